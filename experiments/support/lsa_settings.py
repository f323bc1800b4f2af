"""Settings that linear self-attention is trained on: the reference one and two of retrieval."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from icorag_jax.theory.architectures import Architecture, Model
from icorag_jax.theory.closed_forms import (
    FeatureMoments,
    ReadoutMoments,
    dot_product_loss,
    dot_product_moments,
    dot_product_step_size,
)
from icorag_jax.theory.episodes import (
    Episode,
    dot_product_readouts,
    identity_readouts,
    pool_evidence,
    projection_features,
)
from icorag_jax.theory.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Setting:
    """Episodes to train on, and what is known of them.

    Attributes:
        draw: one episode with `n` context examples from a key.
        n: context examples.
        queries: queries of an episode.
        d_c: size of the evidence side.
        d_z: size of the features.
        features: moments of the features.
        readouts: moments of the readouts.
        training: how to train.
        init_scale: variance scaling of the initial weights.
        starts: initializations that a run chooses from.
        start_steps: the first steps, which each start takes.
    """

    draw: Callable[[PRNGKeyArray], Episode]
    n: int
    queries: int
    d_c: int
    d_z: int
    features: FeatureMoments
    readouts: ReadoutMoments
    training: TrainingConfig
    init_scale: float
    starts: int
    start_steps: int

    @property
    def step_size(self) -> float:
        """The best step size of one step from zero."""
        return self.n * dot_product_step_size(self.n, self.d_z, self.features, self.readouts)

    @property
    def closed_form_loss(self) -> float:
        """The loss of that step."""
        return dot_product_loss(self.n, self.d_c, self.d_z, self.features, self.readouts)

    @property
    def model(self) -> Model:
        """One layer of linear attention on tokens `[z; rho]`."""
        return Model(Architecture(), self.d_z, self.init_scale)


def lsa_settings(reference: TrainingConfig, retrieval: TrainingConfig) -> dict[str, Setting]:
    """The three settings by name.

    Args:
        reference: how to train on the reference setting, from the best of three starts after a
            fifth of the steps.
        retrieval: how to train on the projection setting, from the best of three starts after a
            tenth of the steps, and on the dot-product setting, from the best of six.
    """
    n, q, m, d_q, d_v, k, d_c = 16, 8, 2, 4, 4, 4, 3
    scale = float((m * k) ** -0.5)
    unit = FeatureMoments(1.0, 3.0)
    return {
        "reference": Setting(
            draw_reference, 10, 1, 1, 10, FeatureMoments(1 / 12, 1.8), ReadoutMoments(), reference,
            init_scale=0.002, starts=3, start_steps=_share(reference, 5),
        ),
        "projection": Setting(
            lambda key: draw_projection(key, n, q, m, d_q, d_v, k),
            n, q, m, d_q + d_v, unit, ReadoutMoments(), retrieval,
            init_scale=0.01, starts=3, start_steps=_share(retrieval, 10),
        ),
        "dot_product": Setting(
            lambda key: draw_dot_product(key, n, q, m, d_q, d_c, k, scale),
            n, q, d_c, d_q, unit, dot_product_moments(m, k, d_c, scale), retrieval,
            init_scale=0.01, starts=6, start_steps=_share(retrieval, 10),
        ),
    }  # fmt: skip


def draw_reference(key: PRNGKeyArray) -> Episode:
    """Linear regression in context: `d = N = 10`, features U(-1/2, 1/2), one output."""
    feature_key, interface_key = jax.random.split(key)
    features = jax.random.uniform(feature_key, (11, 10), minval=-0.5, maxval=0.5)
    readouts = identity_readouts(11, 1, features.dtype)
    return _episode(10, features, readouts, jax.random.normal(interface_key, (1, 10)))


def draw_projection(
    key: PRNGKeyArray, n: int, q: int, m: int, d_q: int, d_v: int, k: int
) -> Episode:
    """Questions and `k` passages each, pooled with weights that fall with rank, projected.

    Weights are `1 / rank` with unit norm, so that pooled evidence has unit variance; the
    projection is a rotation, fixed for all episodes.
    """
    question_key, passage_key, interface_key = jax.random.split(key, 3)
    rows = n + q
    ranks = 1 / jnp.arange(1, k + 1)
    pooling = jnp.tile(ranks / jnp.linalg.norm(ranks), (rows, 1))
    questions = jax.random.normal(question_key, (rows, d_q))
    evidence = pool_evidence(pooling, jax.random.normal(passage_key, (rows, k, d_v)))
    rotation = jax.random.orthogonal(jax.random.key(0), d_q + d_v)
    features = projection_features(questions, evidence, rotation)
    interface = jax.random.normal(interface_key, (m, d_q + d_v))
    return _episode(n, features, identity_readouts(rows, m, features.dtype), interface)


def draw_dot_product(
    key: PRNGKeyArray, n: int, q: int, m: int, d_q: int, d_c: int, k: int, scale: float
) -> Episode:
    """Questions, and readouts `scale V^T K` from keys and values of `k` passages each."""
    question_key, key_key, value_key, interface_key = jax.random.split(key, 4)
    rows = n + q
    questions = jax.random.normal(question_key, (rows, d_q))
    keys = jax.random.normal(key_key, (rows, k, d_c))
    values = scale * jax.random.normal(value_key, (rows, k, m))
    interface = jax.random.normal(interface_key, (d_c, d_q))
    return _episode(n, questions, dot_product_readouts(keys, values), interface)


def _episode(
    n: int,
    features: Float[Array, "t d_z"],
    readouts: Float[Array, "t m d_c"],
    interface: Float[Array, "d_c d_z"],
) -> Episode:
    """An episode whose rows after the first `n` are queries, with targets `C W* z`."""
    targets = jnp.einsum("tmc,cz,tz->tm", readouts, interface, features)
    return Episode(
        features=features[:n],
        readouts=readouts[:n],
        targets=targets[:n],
        weights=jnp.ones(n),
        query_features=features[n:],
        query_readouts=readouts[n:],
        query_targets=targets[n:],
    )


def _share(training: TrainingConfig, parts: int) -> int:
    """About one of so many parts of the steps, in whole chunks."""
    return training.chunk * max(1, training.steps // (parts * training.chunk))
