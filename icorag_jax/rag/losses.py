"""What learning minimizes: losses of answers and of selected passages, a penalty on the bias."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.frozen import Reading, token_losses, upper_decoder, upper_states
from icorag_jax.rag.interface import passage_scores
from icorag_jax.rag.method import MethodConfig, predict_state, state_edit


class LossWeights(NamedTuple):
    """How much each loss counts beside that of answers.

    Attributes:
        bias: the mean square of the logit bias.
        selection: see `selection_losses`.
        gold_share: see `selection_target`.
    """

    bias: float
    selection: float
    gold_share: float


class LearningLosses(NamedTuple):
    """Of a step.

    Attributes:
        answers: mean cross entropy of answers, a question's tokens summed; 0 where it was not
            computed.
        penalty: mean square of the logit bias.
        selection: see `selection_losses`; over the questions for which it says something.
        exact: share of answers whose tokens are all the likeliest, likewise.
        gradient_norm: before clipping.
    """

    answers: Float[Array, ""]
    penalty: Float[Array, ""]
    selection: Float[Array, ""]
    exact: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def answer_losses(
    decoder: DecoderConfig, frozen: Parameters, reading: Reading, edit: Any
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Cross entropy of each answer, its tokens summed, and whether all were the likeliest.

    Args:
        decoder: from `upper_decoder`.
        frozen: from `upper_decoder`.
        reading: of questions with answers.
        edit: how evidence is seen; None is the frozen model.
    """
    return score_answers(decoder, frozen, upper_states(decoder, frozen, reading, edit), reading)


def score_answers(
    decoder: DecoderConfig,
    frozen: Parameters,
    states: Float[Array, "batch tokens width"],
    reading: Reading,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """`answer_losses` from final states."""
    losses, hits = token_losses(decoder, frozen, states, reading.tokens)
    where = reading.is_answer[:, 1:]
    exact = jnp.all(hits | ~where, axis=1).astype(jnp.float32)
    return jnp.sum(jnp.where(where, losses, 0), axis=1), exact


def has_selection_loss(
    selected: Bool[Array, "batch passages"], present: Bool[Array, "batch passages"]
) -> Bool[Array, "batch"]:
    """Whether `selection_losses` say something: some passages are to be selected, some are not."""
    return selected.any(axis=1) & (present & ~selected).any(axis=1)


def selection_target(
    is_positive: Bool[Array, "batch passages"],
    is_gold: Bool[Array, "batch passages"],
    gold_share: float,
) -> Float[Array, "batch passages"]:
    """How attention should be shared among passages: evenly among the positive ones.

    A part of it goes evenly to all that a question needs, those that lead to an answer among them.
    What has an answer is the third passage of one task and the first of another; that all
    of them are needed is true of both.

    Args:
        is_positive: see `icorag_jax.rag.batches.Batch`.
        is_gold: likewise.
        gold_share: that part.

    Returns:
        float32; zeros for a question without positive passages, else 1 in all.
    """
    answer, needed = is_positive.astype(jnp.float32), (is_positive | is_gold).astype(jnp.float32)
    answer /= jnp.maximum(answer.sum(axis=1, keepdims=True), 1)
    needed /= jnp.maximum(needed.sum(axis=1, keepdims=True), 1)
    target = (1 - gold_share) * answer + gold_share * needed
    return jnp.where(is_positive.any(axis=1, keepdims=True), target, 0)


def selection_losses(
    scores: Float[Array, "batch passages"],
    target: Float[Array, "batch passages"],
    present: Bool[Array, "batch passages"],
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    """Cross entropy of the target under the softmax of scores.

    Args:
        scores: of passages, `icorag_jax.rag.interface.passage_scores`.
        target: from `selection_target`.
        present: which there are.

    Returns:
        The loss, and whether it says something, `has_selection_loss`.
    """
    shown = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
    each = jnp.where(target > 0, -target * jax.nn.log_softmax(shown, axis=-1), 0)
    says = has_selection_loss(target > 0, present)
    return jnp.where(says, each.sum(axis=1), 0), says


def method_loss(
    method: MethodConfig,
    decoder: DecoderConfig,
    weights: LossWeights,
    frozen: Parameters,
    parameters: Any,
    reading: Reading,
    *,
    selection_alone: bool,
) -> tuple[Float[Array, ""], LearningLosses]:
    """What learning minimizes.

    Args:
        method: the method.
        decoder: of the whole frozen model.
        weights: of the losses.
        frozen: the whole frozen model's parameters.
        parameters: of the method.
        reading: of questions with answers.
        selection_alone: leave the loss of answers out.
    """
    features, state = predict_state(method, decoder, parameters, reading.context)
    edit = state_edit(method, decoder, parameters, features, state)
    penalty = jnp.mean(jnp.square(edit.logit_bias))
    target = selection_target(reading.is_positive, reading.is_gold, weights.gold_share)
    each, says = selection_losses(passage_scores(features, state), target, reading.context.present)
    selection = each.sum() / jnp.maximum(says.sum(), 1).astype(each.dtype)
    zero = jnp.float32(0)
    if selection_alone:
        # A penalty on biases would but shrink the gains of heads, which nothing else acts on here.
        return weights.selection * selection, LearningLosses(zero, penalty, selection, zero, zero)
    upper = upper_decoder(decoder, frozen, method.interface.layer)
    losses, exact = answer_losses(*upper, reading, edit)
    found = LearningLosses(losses.mean(), penalty, selection, exact.mean(), zero)
    total = found.answers + weights.bias * penalty + weights.selection * selection
    return total, found
