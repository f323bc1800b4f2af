"""The frozen model cut where the method needs it: lower layers once, upper layers with an edit.

Nothing below the interface depends on its state, and evidence rows do not either. So a question is
read once; learning and test-time adaptation run the upper layers' question and answer rows alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import (
    Cache,
    embed,
    empty_cache,
    logits,
    normalize_states,
    run_layers,
)
from icorag_jax.lm.evidence import prefill
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.context import Context


class Reading(NamedTuple):
    """What a frozen model has read of a batch, up to the interface's first layer.

    Attributes:
        context: what interface and updater see.
        evidence: keys and values of the upper layers.
        tokens: of question and answer rows.
        positions: -1 at padding.
        is_answer: rows of the answer.
        is_positive: see `icorag_jax.rag.batches.Batch`.
        states_answer: likewise.
    """

    context: Context
    evidence: Evidence
    tokens: Int[Array, "batch tokens"]
    positions: Int[Array, "batch tokens"]
    is_answer: Bool[Array, "batch tokens"]
    is_positive: Bool[Array, "batch passages"]
    states_answer: Bool[Array, "batch evidence"]


def upper_decoder(
    decoder: DecoderConfig, parameters: Parameters, layer: int
) -> tuple[DecoderConfig, Parameters]:
    """The layers from `layer` on as a decoder of its own, layers stacked or unstacked."""
    return _take_layers(decoder, parameters, slice(layer, None))


def _take_layers(
    decoder: DecoderConfig, parameters: Parameters, which: slice
) -> tuple[DecoderConfig, Parameters]:
    windows = decoder.windows[which]
    config = dataclasses.replace(decoder, num_hidden_layers=len(windows), windows=windows)
    layers = parameters["layers"]
    if isinstance(layers, list):
        return config, {**parameters, "layers": layers[which]}
    return config, {**parameters, "layers": jax.tree.map(lambda leaf: leaf[which], layers)}


def read_evidence(
    decoder: DecoderConfig, parameters: Parameters, batch: Batch, *, layer: int
) -> tuple[Evidence, Float[Array, "batch evidence width"]]:
    """Evidence of all layers, and its residual stream before the interface's first layer."""
    rows = batch.evidence_tokens, batch.evidence_positions, batch.passage_of
    evidence, output = prefill(
        decoder, parameters, *(jnp.asarray(array) for array in rows), interface_layer=layer
    )
    return evidence, output.features


def read_rows(
    decoder: DecoderConfig,
    parameters: Parameters,
    batch: Batch,
    evidence: Evidence,
    evidence_states: Float[Array, "batch evidence width"],
    *,
    layer: int,
    slots: int,
) -> tuple[Reading, Cache]:
    """Runs question and answer rows through the layers below the interface.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        batch: what is read.
        evidence: from `read_evidence`.
        evidence_states: from `read_evidence`.
        layer: the interface's first layer.
        slots: room of the cache of question and answer rows.
    """
    states = embed(parameters, jnp.asarray(batch.tokens))
    positions = jnp.asarray(batch.positions)
    cache = empty_cache(decoder, batch.tokens.shape[0], slots, states.dtype)
    states, cache = run_layers(
        decoder, parameters, states, positions, cache, evidence, layers=range(layer)
    )
    context = Context(
        evidence_tokens=jnp.asarray(batch.evidence_tokens),
        evidence_states=evidence_states,
        passage_of=jnp.asarray(batch.passage_of),
        question_tokens=jnp.asarray(batch.tokens),
        question_states=states,
        is_question=jnp.asarray(batch.is_question),
        traits=jnp.asarray(batch.traits),
        present=jnp.asarray(batch.present),
    )
    upper = evidence._replace(keys=evidence.keys[layer:], values=evidence.values[layer:])
    reading = Reading(
        context=context,
        evidence=upper,
        tokens=context.question_tokens,
        positions=positions,
        is_answer=jnp.asarray(batch.is_answer),
        is_positive=jnp.asarray(batch.is_positive),
        states_answer=jnp.asarray(batch.states_answer),
    )
    return reading, cache


@functools.partial(jax.jit, static_argnames=("decoder", "layer"))
def read(decoder: DecoderConfig, parameters: Parameters, batch: Batch, *, layer: int) -> Reading:
    """What learning and adaptation go on from; forward only."""
    evidence, states = read_evidence(decoder, parameters, batch, layer=layer)
    reading, _ = read_rows(
        decoder, parameters, batch, evidence, states, layer=layer, slots=batch.tokens.shape[1]
    )
    return reading


@functools.partial(jax.jit, static_argnames=("decoder", "layer"))
def read_below(
    decoder: DecoderConfig, parameters: Parameters, batch: Batch, *, layer: int
) -> Reading:
    """`read` without the evidence of the upper layers, which the loss `selection` does without."""
    lower, below = _take_layers(decoder, parameters, slice(layer))
    rows = batch.evidence_tokens, batch.evidence_positions, batch.passage_of
    tokens, positions, passages = (jnp.asarray(array) for array in rows)
    states = embed(parameters, tokens)
    cache = empty_cache(lower, tokens.shape[0], tokens.shape[1], states.dtype)
    states, cache = run_layers(lower, below, states, positions, cache, layers=range(layer))
    evidence = Evidence(cache.keys, cache.values, positions, passages)
    reading, _ = read_rows(
        lower, below, batch, evidence, states, layer=layer, slots=batch.tokens.shape[1]
    )
    return reading


def upper_states(
    upper: DecoderConfig,
    parameters: Parameters,
    reading: Reading,
    edit: EvidenceEdit | None,
    *,
    chunk: int | None = None,
) -> Float[Array, "batch tokens width"]:
    """Final states of question and answer rows, seen through an edit.

    Args:
        upper: from `upper_decoder`.
        parameters: from `upper_decoder`.
        reading: of a batch.
        edit: how evidence is seen; None is the frozen model.
        chunk: evidence rows at a time, see `icorag_jax.lm.evidence_attention`.
    """
    states = reading.context.question_states
    batch, rows, _ = states.shape
    cache = empty_cache(upper, batch, rows, states.dtype)
    if edit is not None:
        edit = jax.tree.map(lambda leaf: leaf.astype(states.dtype), edit)
    states, _ = run_layers(
        upper, parameters, states, reading.positions, cache, reading.evidence, edit,
        layers=range(upper.num_hidden_layers), chunk=chunk,
    )  # fmt: skip
    return normalize_states(upper, parameters, states)


def token_losses(
    upper: DecoderConfig,
    parameters: Parameters,
    states: Float[Array, "batch tokens width"],
    tokens: Int[Array, "batch tokens"],
) -> tuple[Float[Array, "batch following"], Bool[Array, "batch following"]]:
    """Cross entropy of each token but the first, and whether it was the likeliest."""
    found = logits(upper, parameters, states[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(found, tokens[:, 1:])
    return losses, jnp.argmax(found, axis=-1) == tokens[:, 1:]


def mean_where(
    values: Float[Array, "batch tokens"], where: Bool[Array, "batch tokens"]
) -> Float[Array, "batch"]:
    """The mean of each row over some of its entries, 0 where there are none."""
    count = jnp.sum(where, axis=1, dtype=values.dtype)
    return jnp.sum(jnp.where(where, values, 0), axis=1) / jnp.maximum(count, 1)
