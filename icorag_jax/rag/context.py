"""What a frozen model makes of passages and a question before the interface's first layer.

The interface and its updater see a text through this alone. All of it is a constant to them: no
gradient flows into the frozen model's lower layers or over evidence.

Axes: `evidence` rows of instruction and passages, `tokens` rows of question and answer, `passages`
of a question, `width` features of the residual stream, `traits` as in `icorag_jax.rag.traits`.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from icorag_jax.rag.traits import without_numbers

Control = Literal["shuffled", "random", "empty"]


class Context(NamedTuple):
    """A batch of questions with their passages.

    Attributes:
        evidence_tokens: token ids of the evidence.
        evidence_states: residual stream of the evidence before the interface's first layer.
        passage_of: which passage an evidence row belongs to, -1 where to none.
        question_tokens: token ids of question and answer rows.
        question_states: residual stream of question and answer rows before that layer.
        is_question: whether such a row is of the question, which is all that may be looked at.
        traits: of each passage; 0 where there is none.
        present: whether there is a passage.
    """

    evidence_tokens: Int[Array, "batch evidence"]
    evidence_states: Float[Array, "batch evidence width"]
    passage_of: Int[Array, "batch evidence"]
    question_tokens: Int[Array, "batch tokens"]
    question_states: Float[Array, "batch tokens width"]
    is_question: Bool[Array, "batch tokens"]
    traits: Float[Array, "batch passages traits"]
    present: Bool[Array, "batch passages"]


def passage_rows(context: Context) -> Bool[Array, "batch passages evidence"]:
    """Which evidence rows are of a passage."""
    numbers = jnp.arange(context.present.shape[1])
    return context.passage_of[:, None] == numbers[None, :, None]


def control_context(context: Context, control: Control, key: PRNGKeyArray | None) -> Context:
    """What an updater is fed in a control; the model itself goes on reading the right passages.

    Args:
        context: of a batch.
        control: `shuffled`, each question with the passages of the one before it in the batch;
            `random`, states of noise as large as those of the evidence, tokens that no text has,
            and no numbers; `empty`, no passages.
        key: of the noise; the other controls need none.

    Raises:
        ValueError: `random` without a key, or no such control.
    """
    if control not in get_args(Control):
        raise ValueError(f"control must be one of {get_args(Control)}, got {control!r}")
    if control == "shuffled":
        return context._replace(
            evidence_tokens=jnp.roll(context.evidence_tokens, 1, axis=0),
            evidence_states=jnp.roll(context.evidence_states, 1, axis=0),
            passage_of=jnp.roll(context.passage_of, 1, axis=0),
            traits=jnp.roll(context.traits, 1, axis=0),
            present=jnp.roll(context.present, 1, axis=0),
        )
    if control == "random":
        if key is None:
            raise ValueError("the control random takes a key")
        states = context.evidence_states
        noise = jax.random.normal(key, states.shape, states.dtype)
        scale = jnp.sqrt(jnp.mean(jnp.square(states), axis=-1, keepdims=True))
        # Different from each other and from all ids.
        tokens = -1 - jnp.arange(states.shape[1], dtype=context.evidence_tokens.dtype)
        return context._replace(
            evidence_tokens=jnp.broadcast_to(tokens, states.shape[:2]),
            evidence_states=noise * scale,
            traits=without_numbers(context.traits),
        )
    return context._replace(
        passage_of=jnp.full_like(context.passage_of, -1),
        traits=jnp.zeros_like(context.traits),
        present=jnp.zeros_like(context.present),
    )
