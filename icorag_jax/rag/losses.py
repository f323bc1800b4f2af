"""What learning minimizes: losses of answers and of selected passages, a penalty on the bias."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.context import passage_rows
from icorag_jax.rag.frozen import Reading, token_losses, upper_decoder, upper_states
from icorag_jax.rag.interface import bias_scores, token_scores
from icorag_jax.rag.method import MethodConfig, predict_state, state_edit


class LossWeights(NamedTuple):
    """How much each loss counts beside that of answers.

    Attributes:
        bias: the mean square of biases of passages, and that of biases of tokens.
        selection: see `selection_losses`; of passages and of tokens alike.
    """

    bias: float
    selection: float


class LearningLosses(NamedTuple):
    """Of a step.

    Attributes:
        answers: mean cross entropy of answers, a question's tokens summed; 0 where it was not
            computed.
        penalty: mean square of biases of passages, and that of biases of tokens.
        selection: see `selection_losses`; over the questions for which it says something.
        tokens: likewise, see `token_selection_losses`.
        exact: share of answers whose tokens are all the likeliest, likewise.
        gradient_norm: before clipping.
    """

    answers: Float[Array, ""]
    penalty: Float[Array, ""]
    selection: Float[Array, ""]
    tokens: Float[Array, ""]
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
    is_positive: Bool[Array, "batch passages"], present: Bool[Array, "batch passages"]
) -> Bool[Array, "batch"]:
    """Whether `selection_losses` say something: some passages are positive, and some are not."""
    return is_positive.any(axis=1) & (present & ~is_positive).any(axis=1)


def selection_losses(
    scores: Float[Array, "batch passages"],
    is_positive: Bool[Array, "batch passages"],
    present: Bool[Array, "batch passages"],
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    """Cross entropy of the positive passages under the softmax of scores, their mean.

    Args:
        scores: of passages, `icorag_jax.rag.interface.bias_scores`; or of tokens.
        is_positive: see `icorag_jax.rag.batches.Batch`.
        present: which there are.

    Returns:
        The loss, and whether it says something, `has_selection_loss`.
    """
    shown = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
    each = jnp.where(is_positive, -jax.nn.log_softmax(shown, axis=-1), 0)
    says = has_selection_loss(is_positive, present)
    count = jnp.maximum(is_positive.sum(axis=1), 1).astype(scores.dtype)
    return jnp.where(says, each.sum(axis=1) / count, 0), says


def token_selection_losses(
    scores: Float[Array, "batch evidence"], reading: Reading
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    """Cross entropy of an answer's tokens under the softmax over the tokens of positive passages.

    Args:
        scores: of tokens, `icorag_jax.rag.interface.token_scores`.
        reading: of questions with answers.

    Returns:
        As `selection_losses`.
    """
    of_positive = passage_rows(reading.context) & reading.is_positive[..., None]
    there = jnp.any(of_positive, axis=1)
    return selection_losses(scores, reading.states_answer, there)


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
    penalty = jnp.mean(jnp.square(edit.logit_bias)) + jnp.mean(jnp.square(edit.token_bias))
    scores = bias_scores(features, state, method.interface.bound)
    each, says = selection_losses(scores, reading.is_positive, reading.context.present)
    selection = _mean(each, says)
    by_token = token_scores(features, state, method.interface.bound)
    tokens = _mean(*token_selection_losses(by_token, reading))
    zero, selected = jnp.float32(0), weights.selection * (selection + tokens)
    if selection_alone:
        # A penalty on biases would but shrink the gains of heads, which nothing else acts on here.
        return selected, LearningLosses(zero, penalty, selection, tokens, zero, zero)
    upper = upper_decoder(decoder, frozen, method.interface.layer)
    losses, exact = answer_losses(*upper, reading, edit)
    found = LearningLosses(losses.mean(), penalty, selection, tokens, exact.mean(), zero)
    return found.answers + weights.bias * penalty + selected, found


def _mean(losses: Float[Array, "batch"], says: Bool[Array, "batch"]) -> Float[Array, ""]:
    """The mean of the losses that say something."""
    return losses.sum() / jnp.maximum(says.sum(), 1).astype(losses.dtype)
