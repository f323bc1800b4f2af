"""One step of a small reader's pretraining."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.support.reader_texts import SEGMENTS, Texts
from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import forward_texts, logits


class ReaderState(NamedTuple):
    """What pretraining goes on from.

    Attributes:
        step: steps done.
        parameters: of the decoder, float32.
        optimizer: its state.
    """

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: Any


class Losses(NamedTuple):
    """Of a step.

    Attributes:
        answers: mean cross entropy of an answer's tokens.
        texts: that of all other tokens.
        exact: share of answers whose tokens are all the likeliest: greedy decoding finds these.
        gradient_norm: before clipping.
    """

    answers: Float[Array, ""]
    texts: Float[Array, ""]
    exact: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def make_optimizer(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""

    def matrices(parameters: Parameters) -> Any:
        def dimensions(path: Any, leaf: Array) -> Any:
            stacked = path[0].key == "layers" and leaf.ndim == 3
            return optax.contrib.MuonDimensionNumbers((1,), (2,)) if stacked else None

        return jax.tree_util.tree_map_with_path(dimensions, parameters)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            learning_rate,
            weight_decay=0.01,
            consistent_rms=0.2,
            adam_b2=0.98,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def visible(
    positions: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"]
) -> Bool[Array, "batch tokens tokens"]:
    """A token sees what came before in the evidence and in its own question."""
    query, key = segments[:, :, None], segments[:, None, :]
    earlier = positions[:, None, :] <= positions[:, :, None]
    evidence = key == query // SEGMENTS * SEGMENTS
    return (key >= 0) & earlier & (evidence | (key == query))


def read_texts(
    config: DecoderConfig, parameters: Parameters, texts: Texts
) -> Float[Array, "batch tokens d"]:
    """The decoder's final states, of tokens that see what they are to see."""
    positions, segments = jnp.asarray(texts.positions), jnp.asarray(texts.segments)
    seen = visible(positions, segments)
    return forward_texts(config, parameters, jnp.asarray(texts.tokens), positions, seen)


def loss(
    config: DecoderConfig, parameters: Parameters, texts: Texts
) -> tuple[Float[Array, ""], Losses]:
    """What is minimized: cross entropy of answers, and some of that of all other tokens."""
    tokens, segments = jnp.asarray(texts.tokens), jnp.asarray(texts.segments)
    states = read_texts(config, parameters, texts)
    # A question's first token follows the evidence, which is not before it in the row: skipped.
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
    found = logits(config, parameters, states[:, :-1])
    each = optax.softmax_cross_entropy_with_integer_labels(found, tokens[:, 1:])
    answers = jnp.asarray(texts.is_answer)[:, 1:] & follows
    others = follows & ~answers

    def mean(where: Bool[Array, "batch tokens"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(where, each, 0)) / jnp.maximum(where.sum(), 1).astype(each.dtype)

    wrong = answers & (jnp.argmax(found, axis=-1) != tokens[:, 1:])
    rows = jnp.arange(tokens.shape[0])[:, None] * SEGMENTS**2
    segment = (rows + segments[:, 1:]).ravel()
    count = functools.partial(jax.ops.segment_sum, num_segments=tokens.shape[0] * SEGMENTS**2)
    asked = count(answers.ravel().astype(jnp.int32), segment) > 0
    missed = count(wrong.ravel().astype(jnp.int32), segment) > 0
    exact = jnp.mean(~missed, where=asked, dtype=jnp.float32)
    losses = Losses(mean(answers), mean(others), exact, jnp.float32(0))
    return losses.answers + 0.5 * losses.texts, losses


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    state: ReaderState,
    texts: Texts,
) -> tuple[ReaderState, Losses]:
    """One step of the optimizer on a batch."""
    (_, losses), gradients = jax.value_and_grad(loss, argnums=1, has_aux=True)(
        config, state.parameters, texts
    )
    norm = optax.tree.norm(gradients)
    return apply_gradients(optimizer, state, gradients), losses._replace(gradient_norm=norm)


def apply_gradients(
    optimizer: optax.GradientTransformation, state: ReaderState, gradients: Parameters
) -> ReaderState:
    """The state after one step of the optimizer."""
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    return ReaderState(state.step + 1, parameters, optimizer_state)
