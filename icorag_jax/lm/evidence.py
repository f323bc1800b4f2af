"""Evidence: keys and values of instruction and passages, computed once and kept.

A question is run after evidence as if one text held both: its positions go on where the evidence
ends, and its rows see those of the evidence.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm import sharding
from icorag_jax.lm.batches import Side, Span, check_spans, pad_batch
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import Output, empty_cache, forward
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit


def prefill_evidence(
    config: DecoderConfig,
    parameters: Parameters,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Span]],
    *,
    buckets: Sequence[int],
    side: Side = "left",
) -> Evidence:
    """Runs instructions and passages through the model, and keeps what questions read.

    Args:
        config: the decoder.
        parameters: its parameters.
        rows: token ids of instruction and passages, from the beginning of a text on.
        spans: for each row, pairs (first token, one after the last) of its passages.
        buckets: padded lengths to choose from.
        side: where padding goes.

    Raises:
        ValueError: rows or spans that do not fit the model or each other, see
            `icorag_jax.lm.batches`.
    """
    check_spans(rows, spans)
    batch = pad_batch(config, rows, buckets=buckets, side=side, name="evidence")
    passages = np.full(batch.tokens.shape, -1, np.int32)
    for row, found in enumerate(spans):
        first = batch.tokens.shape[1] - len(rows[row]) if side == "left" else 0
        for number, (start, stop) in enumerate(found):
            passages[row, first + start : first + stop] = number
    batch = sharding.shard_like(parameters, batch)
    kept = prefill_rows(config, parameters, batch.tokens, batch.positions, passages)
    return sharding.shard_like(parameters, kept)


@functools.partial(jax.jit, static_argnums=0)
def prefill_rows(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "batch evidence"],
    positions: Int[Array, "batch evidence"],
    passages: Int[Array, "batch evidence"],
) -> Evidence:
    """`prefill_evidence` on padded arrays."""
    return prefill(config, parameters, tokens, positions, passages)[0]


def prefill(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "batch evidence"],
    positions: Int[Array, "batch evidence"],
    passages: Int[Array, "batch evidence"],
    *,
    interface_layer: int = 0,
) -> tuple[Evidence, Output]:
    """Evidence, and the pass that it comes from, with its features before `interface_layer`."""
    dtype = parameters["norm"]["scale"].dtype
    batch, slots = tokens.shape
    cache = empty_cache(config, batch, slots, dtype)
    output = forward(config, parameters, tokens, positions, cache, interface_layer=interface_layer)
    kept = Evidence(output.cache.keys, output.cache.values, positions, passages)
    return kept, output


def take_evidence(evidence: Evidence, rows: Any) -> Evidence:
    """Some rows of the batch, each as often as wanted.

    Args:
        evidence: of a batch.
        rows: indices of the rows, `[new batch]`, at least one.

    Raises:
        ValueError: none, or one that is not in the batch.
    """
    rows, count = np.asarray(rows), evidence.positions.shape[0]
    if not rows.size or rows.min() < 0 or rows.max() >= count:
        raise ValueError(f"rows must be some of 0 to {count - 1}, got {rows.tolist()}")
    return Evidence(
        keys=evidence.keys[:, rows],
        values=evidence.values[:, rows],
        positions=evidence.positions[rows],
        passages=evidence.passages[rows],
    )


def stack_evidence(parts: Sequence[Evidence]) -> Evidence:
    """Evidence of several batches as one batch, padded at the end to the longest.

    Raises:
        ValueError: there is none.
    """
    if not parts:
        raise ValueError("there is no evidence to stack")
    longest = max(part.positions.shape[1] for part in parts)

    def join(name: str, batch_axis: int, fill: int) -> Array:
        arrays = []
        for part in parts:
            array = getattr(part, name)
            pads = [(0, 0)] * array.ndim
            pads[batch_axis + 1] = (0, longest - array.shape[batch_axis + 1])
            arrays.append(jnp.pad(array, pads, constant_values=fill))
        return jnp.concatenate(arrays, axis=batch_axis)

    return Evidence(
        keys=join("keys", 1, 0),
        values=join("values", 1, 0),
        positions=join("positions", 0, -1),
        passages=join("passages", 0, -1),
    )


def evidence_lengths(evidence: Evidence) -> Int[Array, "batch"]:
    """The position of the first token after each row's evidence."""
    return evidence.positions.max(axis=1) + 1


def zero_edit(
    config: DecoderConfig,
    batch: int,
    passages: int,
    rank: int,
    *,
    rows: int,
    interface_layer: int,
    dtype: Any,
) -> EvidenceEdit:
    """The edit that changes nothing.

    Args:
        config: the decoder.
        batch: texts.
        passages: passages a text.
        rank: of the edit of values.
        rows: of the evidence of a text.
        interface_layer: the first layer that is edited.
        dtype: of the edit.
    """
    layers = config.num_hidden_layers - interface_layer
    width = config.num_key_value_heads * config.head_dim
    return EvidenceEdit(
        logit_bias=jnp.zeros((layers, batch, config.num_attention_heads, passages), dtype),
        token_bias=jnp.zeros((layers, batch, 1, rows), dtype),
        value_down=jnp.zeros((layers, batch, width, rank), dtype),
        value_up=jnp.zeros((layers, batch, rank, width), dtype),
    )


def check_evidence(config: DecoderConfig, parameters: Parameters, evidence: Evidence) -> None:
    """Checks that evidence is this model's.

    Raises:
        ValueError: it has other sizes, or another dtype; the message names the array.
    """
    layers, heads, d = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    dtype = parameters["norm"]["scale"].dtype
    for name in ("keys", "values"):
        array = getattr(evidence, name)
        expected = (layers, *evidence.positions.shape, heads, d)
        if array.shape != expected or array.dtype != dtype:
            raise ValueError(
                f"{name} of the evidence must be {dtype} {expected}, got {array.dtype} "
                f"{array.shape}: is it another model's?"
            )


def check_edit(
    config: DecoderConfig, evidence: Evidence, edit: EvidenceEdit, interface_layer: int
) -> None:
    """Checks that an edit is one of this evidence.

    Raises:
        ValueError: it has other sizes; the message names the array.
    """
    layers, batch = config.num_hidden_layers - interface_layer, evidence.positions.shape[0]
    width = config.num_key_value_heads * config.head_dim
    rank = edit.value_down.shape[-1]
    passages = int(np.max(sharding.to_host(evidence.passages), initial=-1)) + 1
    expected = {
        "value_down": (layers, batch, width, rank),
        "value_up": (layers, batch, rank, width),
        "logit_bias": (layers, batch, config.num_attention_heads, edit.logit_bias.shape[-1]),
        "token_bias": (layers, batch, 1, evidence.positions.shape[1]),
    }
    for name, shape in expected.items():
        if getattr(edit, name).shape != shape:
            raise ValueError(f"{name} must be {shape}, got {getattr(edit, name).shape}")
    if edit.logit_bias.shape[-1] < passages:
        raise ValueError(
            f"logit_bias is of {edit.logit_bias.shape[-1]} passages, but the evidence has "
            f"{passages}"
        )
