"""What a small reader misreads, and a step of training on that."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from experiments.support.reader_texts import Texts
from experiments.support.reader_training import (
    Losses,
    ReaderState,
    apply_gradients,
    loss,
    read_texts,
)
from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import logits

# Rows that are read at once, of much the same length.
_ROWS = 16
# Rows are cut to a multiple of so many tokens: few shapes to compile for.
_STRIDE = 64


class AnswerScores(NamedTuple):
    """Of the answer of each row.

    Attributes:
        loss: cross entropy, summed over the answer's tokens, in nats.
        wrong: whether greedy decoding would find another answer.
    """

    loss: Float[np.ndarray, " rows"]
    wrong: Bool[np.ndarray, " rows"]


def score_answers(config: DecoderConfig, parameters: Parameters, texts: Texts) -> AnswerScores:
    """Reads rows that hold one text with one question each; a progress bar shows how far it is.

    Args:
        config: of the decoder.
        parameters: its weights.
        texts: the rows.
    """
    lengths = (texts.segments >= 0).sum(axis=1)
    longest = int(texts.is_answer.sum(axis=1).max())
    order = np.argsort(lengths, kind="stable")
    scores = AnswerScores(np.zeros(len(order), np.float32), np.zeros(len(order), bool))
    starts = range(0, len(order), _ROWS)
    for start in tqdm(starts, desc="read", unit="batch", leave=False):
        places = order[start : start + _ROWS]
        width = -(-int(lengths[places].max()) // _STRIDE) * _STRIDE
        # The last rows come again until there are enough.
        filled = np.resize(places, _ROWS)
        rows = Texts(*(array[filled, :width] for array in texts))
        found = jax.device_get(_score(config, parameters, rows, longest))
        for array, values in zip(scores, found, strict=True):
            array[places] = values[: len(places)]
    return scores


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(
    config: DecoderConfig, parameters: Parameters, texts: Texts, longest: int
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    tokens, is_answer = jnp.asarray(texts.tokens), jnp.asarray(texts.is_answer)
    states = read_texts(config, parameters, texts)
    # Logits of answers alone: the vocabulary is most of what is to be computed.
    first = jnp.argmax(is_answer, axis=1)[:, None]
    places: Int[Array, "rows answer"] = jnp.minimum(
        first + jnp.arange(longest, dtype=first.dtype)[None], tokens.shape[1] - 1
    )
    labels = jnp.take_along_axis(tokens, places, axis=1)
    counts = jnp.take_along_axis(is_answer, places, axis=1)
    found = logits(config, parameters, jnp.take_along_axis(states, places[..., None] - 1, axis=1))
    each = optax.softmax_cross_entropy_with_integer_labels(found, labels)
    wrong = counts & (jnp.argmax(found, axis=-1) != labels)
    return jnp.sum(jnp.where(counts, each, 0), axis=1), wrong.any(axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def correction_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    state: ReaderState,
    misread: Texts,
    plain: Texts,
) -> tuple[ReaderState, tuple[Losses, Losses]]:
    """One step of the optimizer on the sum of the losses of two batches.

    Args:
        config: of the decoder.
        optimizer: whose state `state` has.
        state: from before the step.
        misread: rows to correct.
        plain: other rows, that what they teach is not forgotten.

    Returns:
        The state after the step, and the losses of either batch before it; the norm of the
        gradient is that of the sum.
    """

    def total(parameters: Parameters) -> tuple[Float[Array, ""], tuple[Losses, Losses]]:
        of_misread, misread_losses = loss(config, parameters, misread)
        of_plain, plain_losses = loss(config, parameters, plain)
        return of_misread + of_plain, (misread_losses, plain_losses)

    gradients, losses = jax.grad(total, has_aux=True)(state.parameters)
    norm = optax.tree.norm(gradients)
    of_misread, of_plain = (each._replace(gradient_norm=norm) for each in losses)
    return apply_gradients(optimizer, state, gradients), (of_misread, of_plain)
