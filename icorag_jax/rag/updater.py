"""The updater: one linear self-attention read of the passages that changes the interface's state.

With keys `x_j` and values `rho_j` of the passages and their weights `w_j`, a step adds

    dW = eta sum_j w_j rho_j x_j^T        dV = eta' sum_j w_j rho_j e_j^T        dT likewise

to the state, which is what a gradient-descent step on the linearized objective adds, with
`rho_j = C_j^T (y_j - C_j W z_j)` and `x_j = z_j` (`icorag_jax.theory.objective.gradient`); the edit
of values has a step of its own. It is computed by the very layer that does that step,
`icorag_jax.theory.constructions.factored_layers`, one head for each of the interface's two forms.

Keys and values are learned linear maps of the interface's features of the passages, less their mean
over the question's passages for keys: `x_j = K (b_j - mean b)`, `rho_j = (1 + m . b_j) 1`, where 1
is the question's constant. `e_j` is the passage itself, since `V` and `T` are in terms of their
vectors of words: a step adds to each passage's own coordinate, as gradient descent on functions of
a kernel does. How far a step goes is for the question to say: `eta = g . a`, and each kernel's
`eta'` likewise. A question for the smaller of two numbers turns the kernel of their order about,
and no other one.

The weights of the first read are the softmax of learned scores of traits and words alone, which
start from how much of the question a passage has. Then they move along chains of passages
(`icorag_jax.rag.chains`): of `w_j`, the share `M_jk` goes on to the passage k that j leads to. The
coordinates of `V` that stand for the passages as such take what has moved, `eta'' sum_j w_j rho_j
M_j^T`: a passage counts for more where a read arrives at it, and for less where it is left. `eta''`
is the same for all reads: a third hop is taken as the second is.

The bias of passage j gains `sum_i w_i (1 + m . b_i)(eta x_i . b_j + eta' k(i, j) + eta'' M_ij)`,
with `k` the words that two passages share beyond what others do, and which one's number is larger:
a passage counts for more because it resembles, exceeds or goes on from another one, which no shared
interface can know of. That of token t gains `sum_i w_i (1 + m . b_i) eta_t d_ti`, so that what
several passages name counts for more. Of this, `eta_t` alone is learned: what finds the tokens of
an answer among all, were weights of words and of passages learned from it too, does harm on tasks
that were not trained on.

What is learned of states of questions and passages helps on some tasks that were not trained on,
and harms on others (`docs/method.md`); it is set to zero there (`without_states`). What is left
goes by traits and words, which say the same in any task, and has to stand by itself: in every other
step of learning there is nothing else. On new tasks its moves count twice (`for_new_tasks`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.rag.chains import follow
from icorag_jax.rag.deviations import centre
from icorag_jax.rag.interface import Features, InterfaceConfig, InterfaceState
from icorag_jax.rag.kernels import KERNELS, TOKEN_KERNELS
from icorag_jax.rag.traits import TRAITS
from icorag_jax.rag.words import SPANS, WORD_KERNELS
from icorag_jax.ranges import check_at_least
from icorag_jax.theory.attention import attend, linear_kernel
from icorag_jax.theory.constructions import factored_layers
from icorag_jax.theory.objective import Block

# What is read: the passages; or, in controls, learned vectors, in the place of each passage by its
# rank (what a step adds to `V` then is to the passages of these ranks), or in no passage's place.
Reads = Literal["passages", "ranks", "vectors"]

# The sizes of steps of words, and of tokens, among those of a step.
OF_WORDS = slice(1, WORD_KERNELS + 1)
OF_TOKENS = slice(KERNELS + 1, KERNELS + 1 + TOKEN_KERNELS)
# How many times they count. They are all that tokens learn, and the optimizer moves any parameter
# by as much.
TOKEN_RATE = 4.0
# Likewise the size of moves, which are at most 1 where scores are a few.
MOVE_RATE = 30.0
# How many times moves count on tasks that are new. They were learned beside an interface that knows
# its tasks by their states.
NEW_TASK_MOVES = 2.0
# Of what a passage has of the question's words, in the scores that weights start from.
ASKED_FIRST = 10.0


@dataclasses.dataclass(frozen=True)
class UpdaterConfig:
    """How the updater reads.

    Attributes:
        steps: reads, one after the other.
    """

    steps: int = 3

    def __post_init__(self):
        """Checks the range."""
        check_at_least(self, steps=1)


class Updater(nn.Module):
    """Predicts a change of the interface's state from passages and question; zero at the start.

    Attributes:
        config: how it reads.
        interface: sizes of the interface.
        reads: what it reads; learned vectors are as many as a question may have passages.
    """

    config: UpdaterConfig
    interface: InterfaceConfig
    reads: Reads = "passages"

    @nn.compact
    def __call__(self, features: Features, state: InterfaceState) -> InterfaceState:
        """The state after the update, float32.

        Args:
            features: what it reads.
            state: that it starts from.
        """
        asked, read = self.interface.question_features, self.interface.passage_features
        said = self.interface.word_features
        rank, steps = self.interface.rank, self.config.steps
        if self.reads != "passages":
            features = self._learned(features)
        present = features.present
        identity = lambda _, shape: jnp.eye(*shape)  # noqa: E731
        to_keys = self.param("keys", identity, (read, read))
        zeros = nn.initializers.zeros
        to_values = self.param("values", zeros, (read, 1))
        small = nn.initializers.lecun_normal()
        to_value_keys = self.param("value_keys", small, (read, rank))
        to_value_values = self.param("value_values", nn.initializers.normal(rank**-0.5), (1, rank))
        # Of `W`, of each kernel in `V` and `T`, and of `S`; at zero nothing is updated.
        step_sizes = self.param("step_sizes", zeros, (steps, KERNELS + TOKEN_KERNELS + 2, asked))
        move_size = self.param("move_size", zeros, (asked,))
        weighing = _asked_first(self.param("weighing", zeros, (said,)))
        passages = features.passages * read**-0.5
        keys = centre(passages, present) @ to_keys
        # Not by a product of matrices, whose rounding differs from row to row of a batch.
        worth = 1 + jnp.sum(passages * to_values.T[None], axis=-1, keepdims=True)
        scores = jnp.sum(passages[..., -said:] * weighing[None, None], axis=-1)
        values = jnp.pad(worth, ((0, 0), (0, 0), (asked - 1, 0)))
        values = jnp.concatenate([values, worth @ to_value_values], axis=-1)
        value_keys = keys @ to_value_keys
        count = present.shape[1]
        # A vector that stands for no passage has no words, and no part in `V` or `T`.
        own = jnp.zeros(()) if self.reads == "vectors" else jnp.eye(count)
        own = jnp.broadcast_to(own, (*present.shape, count))
        blocks = (Block(asked, read + 2 * count), Block(rank, rank))
        # The constant as it is, and all else as large as it together.
        question = features.question.at[:, :-1].multiply(asked**-0.5)
        of_tokens = _sizes_for(
            jax.lax.stop_gradient(question), TOKEN_RATE * step_sizes[:, OF_TOKENS]
        )
        step_sizes = _sizes_for(question, step_sizes).at[..., OF_TOKENS].set(of_tokens)
        move_size = MOVE_RATE * jnp.sum(question * move_size[None], axis=-1)
        shown = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(present, jax.nn.softmax(shown, axis=-1), 0)
        before = jnp.zeros_like(weights)
        for step_size in step_sizes:
            moves = jnp.zeros_like(own)
            if self.reads == "passages":
                moves = follow(features.links, before, present)
            # Once for all kernels, which differ in the sizes of their steps alone.
            every_key = jnp.concatenate([keys, own, moves, value_keys], axis=-1)
            change = jax.vmap(read_step, in_axes=(None, 0, 0, 0, 0))(
                blocks, every_key, values, weights, present
            )
            state = _take_step(state, change, step_size, move_size)
            before = jnp.minimum(before + weights, 1)
            weights = weights + jnp.einsum("bi,bij->bj", weights, moves)
        return state

    def _learned(self, features: Features) -> Features:
        """Learned vectors in the place of all that the updater sees."""
        slots = self.param("slots", nn.initializers.normal(1.0), features.passages.shape[1:])
        return features._replace(
            question=jnp.ones_like(features.question),
            passages=jnp.broadcast_to(slots, features.passages.shape),
            words=jnp.zeros_like(features.words),
            present=jnp.ones_like(features.present),
        )


def without_states(config: InterfaceConfig, parameters: Any) -> Any:
    """An updater's parameters with zeros for what hidden states of questions and passages say.

    Values then go by traits and words, and sizes of steps are the same for all questions; weights
    of passages go by traits and words as it is. Tokens get no bias: whether an answer is what
    several passages name, or what a single one does, is for the question to say. And no passage
    counts for more for the words that it shares: that is as good a rule as chains where all lead
    from one passage to a second, and leads to the second where there is a third.

    Args:
        config: sizes of the interface.
        parameters: of `Updater`.
    """
    read, asked = config.passage_features, config.question_features
    is_said = jnp.arange(read) >= read - config.word_features
    is_constant = jnp.arange(asked) == asked - 1
    step_sizes = jnp.where(is_constant[None, None], parameters["step_sizes"], 0)
    for part in (OF_WORDS, OF_TOKENS):
        step_sizes = step_sizes.at[:, part].set(0)
    move_size = jnp.where(is_constant, parameters["move_size"], 0)
    values = jnp.where(is_said[:, None], parameters["values"], 0)
    return {**parameters, "step_sizes": step_sizes, "move_size": move_size, "values": values}


def for_new_tasks(config: InterfaceConfig, parameters: Any) -> Any:
    """An updater's parameters for tasks that it was not trained on.

    Those of `without_states`, and moves along chains count `NEW_TASK_MOVES` times.

    Args:
        config: sizes of the interface.
        parameters: of `Updater`.
    """
    hidden = without_states(config, parameters)
    return {**hidden, "move_size": NEW_TASK_MOVES * hidden["move_size"]}


def _asked_first(weighing: Float[Array, " said"]) -> Float[Array, " said"]:
    """Weighing of traits and words that starts from what passages have of the question.

    Of its tokens, against the others and as a share; pairs of a question are seldom in a passage.
    """
    of_tokens = jnp.asarray([TRAITS, TRAITS + SPANS])
    return weighing.at[of_tokens].add(ASKED_FIRST)


def _sizes_for(
    question: Float[Array, "batch asked"], sizes: Float[Array, "steps parts asked"]
) -> Float[Array, "steps batch parts"]:
    """Sizes of steps for each question."""
    # As for the worth of passages, not by a product of matrices.
    return jnp.sum(sizes[:, None] * question[None, :, None], axis=-1)


def _take_step(
    state: InterfaceState,
    change: Float[Array, "batch d_c d_z"],
    step_sizes: Float[Array, "batch parts"],
    move_size: Float[Array, "batch"],
) -> InterfaceState:
    """The state after a step along a change.

    Args:
        state: before it.
        change: from `read_step`.
        step_sizes: of `W`, of each kernel in `V` and `T`, and of `S`.
        move_size: of what moves in `V`.
    """
    (batch, asked, read), rank = state.bias.shape, state.value.shape[2]
    count = (change.shape[2] - read - rank) // 2
    sizes = step_sizes[:, :, None, None]
    own = change[:, :asked, None, read : read + count]
    words = own * step_sizes[:, None, 1 : KERNELS + 1, None]
    moved = change[:, :asked, read + count : -rank] * move_size[:, None, None]
    tokens = jax.lax.stop_gradient(own) * step_sizes[:, None, OF_TOKENS, None]
    words = jnp.concatenate([words.reshape(batch, asked, -1), moved], axis=-1)
    return InterfaceState(
        state.bias + sizes[:, 0] * change[:, :asked, :read],
        state.words + words,
        state.tokens + tokens.reshape(batch, asked, -1),
        state.value + sizes[:, -1] * change[:, asked:, -rank:],
    )


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
    # The construction has the root of a weight on keys and on values; the whole of it on values
    # comes to the same, and has a slope where it is 0.
    values = weights[:, None] * values
    tokens = jnp.concatenate([keys, values, jnp.zeros_like(values)], axis=-1)
    basis = jnp.pad(jnp.eye(d_z, dtype=keys.dtype), ((0, 0), (0, 2 * d_c)))
    return attend(layer, basis, tokens, present, linear_kernel)[:, d_z + d_c :].T
