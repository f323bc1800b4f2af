"""Tasks: how episodes are drawn from a bank of features.

The plain task is linear regression in context: `y = W* z` with `W*` drawn anew for each episode.
Each field of `Task` adds one controlled departure from it, the linear extensions of the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from icorag_jax.ranges import check_at_least
from icorag_jax.theory.episodes import Episode, holds_nan


@dataclasses.dataclass(frozen=True)
class Task:
    """How an episode of the projection interface is drawn.

    The second half of the features plays the part of pooled evidence: it is what may be missing
    or mixed with distractors.

    Attributes:
        examples: context examples of an episode, N.
        outputs: outputs of the interface, m.
        queries: queries of an episode.
        scale: factor on every feature, the alpha of out-of-distribution tests.
        label_noise: standard deviation of noise on the context targets.
        missing_rate: probability that an example's evidence features are zero.
        distractor_share: share of an example's evidence that comes from an unrelated example.
        retriever_weights: draw example weights from U(0, 1) rather than 1, with label noise of
            standard deviation `1 - weight`, so that a weight says how far to trust an example.
        anisotropy: factor on the covariance's condition number, by a diagonal map of the features
            whose own condition number is its root; 1 for none.
        rank: rank of `W*`; None for full rank.

    Raises:
        ValueError: for values out of range.
    """

    examples: int
    outputs: int
    queries: int
    scale: float = 1.0
    label_noise: float = 0.0
    missing_rate: float = 0.0
    distractor_share: float = 0.0
    retriever_weights: bool = False
    anisotropy: float = 1.0
    rank: int | None = None

    def __post_init__(self):
        """Checks ranges."""
        check_at_least(self, examples=1, outputs=1, queries=1)
        # In this form, NaN is out of range too.
        if not (self.scale > 0 and self.anisotropy >= 1 and self.label_noise >= 0):
            raise ValueError("scale must be above 0, anisotropy at least 1, label_noise at least 0")
        if not 0 <= self.missing_rate < 1 or not 0 <= self.distractor_share < 1:
            raise ValueError("missing_rate and distractor_share must lie in [0, 1)")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


def _draw_interfaces(
    key: PRNGKeyArray, task: Task, count: int, d: int
) -> Float[Array, "count m d"]:
    if task.rank is None:
        return jax.random.normal(key, (count, task.outputs, d))
    left_key, right_key = jax.random.split(key)
    left = jax.random.normal(left_key, (count, task.outputs, task.rank))
    right = jax.random.normal(right_key, (count, task.rank, d))
    return left @ right / task.rank**0.5


def draw_episodes(
    key: PRNGKeyArray, bank: Float[Array, "samples d"], task: Task, count: int
) -> Episode:
    """Draws `count` episodes: features from the bank, a new `W*` each, the task's departures.

    Targets come from the features before evidence went missing or was mixed; an episode holds
    the features after it, which is all that a system would see.

    Returns:
        Episodes with a leading axis `[count]`.

    Raises:
        ValueError: a bank that holds NaN or infinity, where its values are known (not traced).
    """
    if holds_nan(bank):
        raise ValueError("the bank of features holds NaN or infinity")
    keys = jax.random.split(key, 7)
    samples, d = bank.shape
    n, q, m = task.examples, task.queries, task.outputs
    # Anisotropy keeps the energy: the factors' mean square is one.
    stretch = jnp.geomspace(1, task.anisotropy**-0.5, d, dtype=bank.dtype)
    factors = task.scale * stretch * (d / jnp.sum(stretch**2)) ** 0.5

    def draw_features(key):
        rows = bank[jax.random.randint(key, (count, n + q), 0, samples)]
        return rows * factors[None, None, :]

    features = draw_features(keys[0])
    interfaces = _draw_interfaces(keys[1], task, count, d)
    targets = jnp.einsum("emd,end->enm", interfaces, features)

    evidence = (jnp.arange(d) >= d // 2)[None, None, :]
    if task.distractor_share > 0:
        unrelated = draw_features(keys[2])
        mixed = (1 - task.distractor_share) * features + task.distractor_share * unrelated
        features = jnp.where(evidence, mixed, features)
    if task.missing_rate > 0:
        missing = jax.random.bernoulli(keys[3], task.missing_rate, (count, n + q, 1))
        features = jnp.where(missing & evidence, 0, features)

    weights = jnp.ones((count, n), bank.dtype)
    context_targets = targets[:, :n]
    if task.label_noise > 0:
        noise = jax.random.normal(keys[4], context_targets.shape)
        context_targets = context_targets + task.label_noise * noise
    if task.retriever_weights:
        # Above 0, so that no episode has all its examples masked.
        weights = jax.random.uniform(keys[5], (count, n), bank.dtype, minval=1e-3)
        noise = jax.random.normal(keys[6], context_targets.shape)
        context_targets = context_targets + (1 - weights)[:, :, None] * noise
    readouts = jnp.broadcast_to(jnp.eye(m, dtype=bank.dtype), (count, n + q, m, m))
    return Episode(
        features=features[:, :n],
        readouts=readouts[:, :n],
        targets=context_targets,
        weights=weights,
        query_features=features[:, n:],
        query_readouts=readouts[:, n:],
        query_targets=targets[:, n:],
    )
