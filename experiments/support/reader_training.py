"""One step of a small reader's pretraining."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments.support.reader_texts import SEGMENTS, Texts
from icorag_jax.checkpoint import Parameters
from icorag_jax.lm import rotary
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import forward_texts, init_parameters, logits


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


def init_reader(config: DecoderConfig, key: PRNGKeyArray) -> Parameters:
    """Random parameters but for heads that copy: what reading begins with, and arises last.

    In layer 0 two heads look one and two tokens back, whatever there is, and one averages over the
    last dozen or two. In layer 1 two heads look for what followed the same token before, and copy
    it (induction heads, Olsson et al. 2022), and two look for where much the same was said before,
    as around the subject of a question. In all further layers queries and keys start alike, so
    tokens look for their equals (mimetic initialization, Trockman and Kolter 2023). Training goes
    on from there with all parameters.
    """
    width, d = config.hidden_size, config.head_dim
    count, kv = config.num_hidden_layers, config.num_key_value_heads
    group = config.num_attention_heads // kv
    drawn = init_parameters(config, key, jnp.float32)
    keys = jax.random.split(key, 4)
    constant = 8.0  # of the first feature, in deviations of the others
    table = _SCALE * jax.random.normal(keys[0], (config.vocab_size, width))
    table = table.at[:, 0].set(_SCALE * constant)
    kernels = {name: np.array(drawn["layers"][name]["kernel"]) for name in _PROJECTIONS}
    query = kernels["query"].reshape(count, width, kv, group, d)
    key_ = kernels["key"].reshape(count, width, kv, d)
    value = kernels["value"].reshape(count, width, kv, d)
    output = kernels["attention_output"].reshape(count, kv, group, d, width)
    # What layers add is small beside the embedding, so that the heads below see what they look for.
    output *= _SCALE
    kernels["down"] *= _SCALE
    query[...] = key_[:, :, :, None]
    # Orthogonal directions: what a token is, and what the one before it was.
    basis = np.linalg.qr(np.asarray(jax.random.normal(keys[1], (width - 1, width - 1))))[0]
    basis = np.concatenate([np.zeros((1, width - 1)), basis])
    half = d // 2
    slow = np.r_[half // 2 : half, half + half // 2 : d]  # pairs that hardly turn
    of_token, before = basis[:, :d], basis[:, d : 2 * d]
    rates = np.asarray(rotary.frequencies_of(config))
    fast = np.arange(half // 4)
    for place, offset in ((0, 1), (1, 2)):
        query[0, :, 0, place] = 0
        query[0, 0, 0, place, fast] = _SHARP * np.cos(rates[fast] * offset)
        query[0, 0, 0, place, half + fast] = -_SHARP * np.sin(rates[fast] * offset)
    key_[0, :, 0] = 0
    key_[0, 0, 0, fast] = _SHARP
    value[0, :, 0] = of_token
    output[0, 0, 0] = _SCALE * before.T
    output[0, 0, 1] = _SCALE * basis[:, 2 * d : 3 * d].T
    # What stands around: a wide peak of slow pairs. Where queries and keys are normalized, pairs
    # that do not turn take up the rest of the norm, and say nothing.
    around = basis[:, 3 * d : 4 * d]
    wide, still = np.arange(half // 4 - 1, half // 4 + 4), np.arange(half - half // 4, half)
    for kernel in (query[0, :, :, :], key_[0][:, :, None]):
        kernel[:, 1] = 0
        kernel[0, 1, :, wide] = _WIDE
        if config.query_key_norm:
            kernel[0, 1, :, still] = 3.1 * _WIDE
    value[0, :, 1] = of_token
    output[0, 1, 0, : around.shape[1]] = 4 * _SCALE * around.T
    matched = np.zeros((d, d))
    matched[np.arange(len(slow)), slow] = 1.6 * _SHARP
    key_[1, :, 0] = before @ matched
    query[1, :, 0] = (of_token @ matched)[:, None]
    key_[1, :, 1] = around @ matched[: around.shape[1]]
    query[1, :, 1] = key_[1, :, 1][:, None]
    value[1] = of_token[:, None]
    output[1, 0] = 16 * _SCALE * of_token.T
    output[1, 1] = 2 * _SCALE * of_token.T
    layers = dict(drawn["layers"])
    for name in _PROJECTIONS:
        shape = layers[name]["kernel"].shape
        layers[name] = {**layers[name], "kernel": jnp.asarray(kernels[name].reshape(shape))}
    if config.query_key_norm:
        for name in ("query_norm", "key_norm"):
            layers[name] = {"scale": layers[name]["scale"].at[:2].set(2.5)}
    return {**drawn, "layers": layers, "embedding": {"embedding": table}}


_PROJECTIONS = ("query", "key", "value", "attention_output", "down")
# How sharply the heads that are set look; logits are products of two.
_SHARP = 1.5
_WIDE = 0.3
# Deviation of an embedding's features.
_SCALE = 0.03


def visible(
    positions: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"]
) -> Bool[Array, "batch tokens tokens"]:
    """A token sees what came before in the evidence and in its own question."""
    query, key = segments[:, :, None], segments[:, None, :]
    earlier = positions[:, None, :] <= positions[:, :, None]
    evidence = key == query // SEGMENTS * SEGMENTS
    return (key >= 0) & earlier & (evidence | (key == query))


def loss(
    config: DecoderConfig, parameters: Parameters, texts: Texts
) -> tuple[Float[Array, ""], Losses]:
    """What is minimized: cross entropy of answers, and some of that of all other tokens."""
    tokens, segments = jnp.asarray(texts.tokens), jnp.asarray(texts.segments)
    mask = visible(texts.positions, segments)
    states = forward_texts(config, parameters, tokens, texts.positions, mask)
    # A question's first token follows the evidence, which is not before it in the row: skipped.
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
    found = logits(config, parameters, states[:, :-1])
    each = optax.softmax_cross_entropy_with_integer_labels(found, tokens[:, 1:])
    answers = jnp.asarray(texts.is_answer)[:, 1:] & follows
    others = follows & ~answers

    def mean(where: Bool[Array, "batch tokens"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(where, each, 0)) / jnp.maximum(where.sum(), 1)

    wrong = answers & (jnp.argmax(found, axis=-1) != tokens[:, 1:])
    rows = jnp.arange(tokens.shape[0])[:, None] * SEGMENTS**2
    segment = (rows + segments[:, 1:]).ravel()
    count = functools.partial(jax.ops.segment_sum, num_segments=tokens.shape[0] * SEGMENTS**2)
    asked = count(answers.ravel().astype(jnp.int32), segment) > 0
    missed = count(wrong.ravel().astype(jnp.int32), segment) > 0
    exact = (asked & ~missed).sum() / jnp.maximum(asked.sum(), 1)
    losses = Losses(mean(answers), mean(others), exact.astype(jnp.float32), jnp.float32(0))
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
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    norm = optax.tree.norm(gradients)
    return (
        ReaderState(state.step + 1, parameters, optimizer_state),
        losses._replace(gradient_norm=norm),
    )
