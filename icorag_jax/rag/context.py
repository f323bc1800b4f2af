"""What a frozen model makes of passages and a question before the interface's first layer.

The interface and its updater see a text through this alone. All of it is a constant to them: no
gradient flows into the frozen model's lower layers or over evidence.

Axes: `evidence` rows of instruction and passages, `tokens` rows of question and answer, `passages`
of a question, `width` features of the residual stream, `traits` what the retriever says.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The retriever's score, from its mean and in its deviations over a question's passages; 1 / rank.
TRAITS = 2


class Context(NamedTuple):
    """A batch of questions with their passages.

    Attributes:
        evidence_states: residual stream of the evidence before the interface's first layer.
        passage_of: which passage an evidence row belongs to, -1 where to none.
        question_states: residual stream of question and answer rows before that layer.
        is_question: whether such a row is of the question, which is all that may be looked at.
        traits: of each passage; 0 where there is none.
        present: whether there is a passage.
    """

    evidence_states: Float[Array, "batch evidence width"]
    passage_of: Int[Array, "batch evidence"]
    question_states: Float[Array, "batch tokens width"]
    is_question: Bool[Array, "batch tokens"]
    traits: Float[Array, "batch passages traits"]
    present: Bool[Array, "batch passages"]


def retriever_traits(
    scores: Float[np.ndarray, "batch passages"], present: Bool[np.ndarray, "batch passages"]
) -> Float[np.ndarray, "batch passages traits"]:
    """What the retriever says of passages, the best first, float32.

    Args:
        scores: its own; whatever stands where there is no passage is passed over.
        present: where there is one.
    """
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    known = np.where(present, scores, 0.0)
    centred = np.where(present, known - known.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    score = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 1e-6)
    rank = np.where(present, 1.0 / np.arange(1, scores.shape[1] + 1), 0.0)
    return np.stack([score, rank], axis=-1).astype(np.float32)


def shuffle_passages(context: Context, order: Int[Array, "batch"]) -> Context:
    """Each question with another one's passages, as far as interface and updater see them.

    The model itself goes on reading the right ones: a control for updates that pass over their
    context.

    Args:
        context: of a batch.
        order: whose passages each question gets.
    """
    return context._replace(
        evidence_states=context.evidence_states[order],
        passage_of=context.passage_of[order],
        traits=context.traits[order],
        present=context.present[order],
    )


def without_passages(context: Context) -> Context:
    """The same questions with no passage to be seen by interface and updater."""
    return context._replace(
        passage_of=jnp.full_like(context.passage_of, -1),
        traits=jnp.zeros_like(context.traits),
        present=jnp.zeros_like(context.present),
    )


def with_random_passages(context: Context, noise: Float[Array, "batch evidence width"]) -> Context:
    """The same with states of noise, as large as those of the evidence were.

    Args:
        context: of a batch.
        noise: standard normal numbers.
    """
    scale = jnp.sqrt(jnp.mean(jnp.square(context.evidence_states), axis=-1, keepdims=True))
    return context._replace(evidence_states=noise * scale)
