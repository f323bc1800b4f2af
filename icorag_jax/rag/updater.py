"""The updater: one linear self-attention read of the passages that changes the interface's state.

With learned keys `x_j` and values `rho_j` of the passages, the keys less their mean over the
question's passages, and the passages' confidence `w_j`, a step adds

    dW = eta * sum_j w_j rho_j x_j^T

to the state, which is what a gradient-descent step on the linearized objective adds, with
`rho_j = C_j^T (y_j - C_j W z_j)` and `x_j = z_j` (`icorag_jax.theory.objective.gradient`). It is
computed by the very layer that does that step, `icorag_jax.theory.constructions.factored_layers`,
one head for each of the interface's two forms.

The bias of passage j gains `sum_i w_i (a . rho_i)(x_i . b_j)`: a passage counts for more because it
resembles, completes or contradicts another one, which no shared interface can know of.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.rag.context import TRAITS, Context
from icorag_jax.rag.interface import (
    Features,
    InterfaceConfig,
    InterfaceState,
    Pool,
    append_traits,
    passage_rows,
    passage_scores,
)
from icorag_jax.theory.attention import attend, linear_kernel
from icorag_jax.theory.constructions import factored_layers
from icorag_jax.theory.objective import Block


@dataclasses.dataclass(frozen=True)
class UpdaterConfig:
    """How the updater reads.

    Attributes:
        steps: reads, one after the other; each weighs passages by the state that the one before it
            has left.
    """

    steps: int = 2

    def __post_init__(self):
        """Checks the range."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


class Updater(nn.Module):
    """Predicts a change of the interface's state from passages and question; zero at the start.

    Attributes:
        config: how it reads.
        interface: sizes of the interface.
        slots: None, or the number of learned vectors that it reads instead of passages: the
            control of equal size that sees no context.
    """

    config: UpdaterConfig
    interface: InterfaceConfig
    slots: int | None = None

    @nn.compact
    def __call__(
        self, context: Context, features: Features, state: InterfaceState
    ) -> InterfaceState:
        """The state after the update, float32."""
        sizes, rank = self.interface, self.interface.rank
        if self.slots is not None:
            context, features = self._blind(context, features)
        rows = passage_rows(context)
        pools = sizes.pools, sizes.pool_features
        keys = Pool(*pools, name="keys")(context.evidence_states, rows)
        values = Pool(*pools, name="values")(context.evidence_states, rows)
        present = context.present
        keys = append_traits(context, keys)
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        confidence = self.param(
            "confidence", nn.initializers.zeros, (sizes.question_features, sizes.passage_features)
        )
        # Of the two forms; at zero nothing is updated.
        step_sizes = self.param("step_sizes", nn.initializers.zeros, (self.config.steps, 2))
        small = nn.initializers.lecun_normal()
        value_keys = keys @ self.param("value_keys", small, (keys.shape[-1], rank))
        value_values = values @ self.param("value_values", small, (values.shape[-1], rank))
        read = Features(features.question, keys, present)
        keys, value_keys = (_centred(found, present) for found in (keys, value_keys))
        keys, values = (found * found.shape[-1] ** -0.5 for found in (keys, values))
        blocks = (Block(values.shape[-1], keys.shape[-1]), Block(rank, rank))
        change = jax.tree.map(jnp.zeros_like, state)
        for step_size in step_sizes:
            scores = passage_scores(read, confidence[None] + change.bias)
            shown = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
            weights = jnp.where(present, jax.nn.softmax(shown, axis=-1), 0)
            asked = jnp.concatenate([step_size[0] * values, step_size[1] * value_values], axis=-1)
            step = jax.vmap(read_step, in_axes=(None, 0, 0, 0, 0))(
                blocks, jnp.concatenate([keys, value_keys], axis=-1), asked, weights, present
            )
            change = InterfaceState(
                change.bias + step[:, : values.shape[-1], : keys.shape[-1]],
                change.value + step[:, values.shape[-1] :, keys.shape[-1] :],
            )
        return jax.tree.map(jnp.add, state, change)

    def _blind(self, context: Context, features: Features) -> tuple[Context, Features]:
        """Learned vectors in the place of all that the updater sees."""
        batch, _, width = context.evidence_states.shape
        shape = (self.slots, width)
        slots = self.param("slots", nn.initializers.normal(1.0), shape)
        blind = Context(
            evidence_states=jnp.broadcast_to(slots, (batch, *shape)),
            passage_of=jnp.broadcast_to(jnp.arange(shape[0]), (batch, shape[0])),
            question_states=context.question_states,
            is_question=context.is_question,
            traits=jnp.zeros((batch, shape[0], TRAITS)),
            present=jnp.ones((batch, shape[0]), bool),
        )
        return blind, features._replace(question=jnp.ones_like(features.question))


def _centred(
    keys: Float[Array, "batch passages d"], present: Bool[Array, "batch passages"]
) -> Float[Array, "batch passages d"]:
    """Keys less their mean over a question's passages, 0 where there is no passage.

    What all passages share says nothing of which one counts, and with it updates are nearly the
    same for all questions.
    """
    count = jnp.maximum(present.sum(axis=1), 1).astype(keys.dtype)
    kept = jnp.where(present[..., None], keys, 0)
    mean = kept.sum(axis=1, keepdims=True) / count[:, None, None]
    return jnp.where(present[..., None], keys - mean, 0)


def read_step(
    blocks: Sequence[Block],
    keys: Float[Array, "passages d_z"],
    values: Float[Array, "passages d_c"],
    weights: Float[Array, " passages"],
    present: Bool[Array, " passages"],
) -> Float[Array, "d_c d_z"]:
    """`sum_j w_j rho_j x_j^T` on the diagonal blocks, read off a layer of linear self-attention.

    The passages are the context tokens of the factored construction; the query tokens are the
    basis, whose predictions are the columns of the interface's change.

    Args:
        blocks: sizes of the diagonal blocks.
        keys: `x_j`.
        values: `rho_j`.
        weights: `w_j`, their sum 1.
        present: which passages there are.
    """
    d_z, d_c = keys.shape[-1], values.shape[-1]
    (layer,) = factored_layers(blocks, jnp.ones(1, keys.dtype))
    tokens = jnp.concatenate([keys, values, jnp.zeros_like(values)], axis=-1)
    tokens = jnp.sqrt(weights)[:, None] * tokens
    basis = jnp.pad(jnp.eye(d_z, dtype=keys.dtype), ((0, 0), (0, 2 * d_c)))
    return attend(layer, basis, tokens, present, linear_kernel)[:, d_z + d_c :].T
