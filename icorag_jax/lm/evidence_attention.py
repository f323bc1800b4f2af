"""Attention of question rows to evidence, which they read through the interface.

Axes: `tokens` query rows, `slots` their own rows or a chunk of the evidence's, `evidence` all its
rows, `heads` query heads, `kv_heads` key and value heads, `group` query heads that share one of
these, `d` features of a head, `width = kv_heads * d`, `rank` of an edit of values.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icorag_jax.lm.attention import sees

_MASKED = -1e30
Sums = tuple[
    Float[Array, "batch tokens kv_heads group d"],
    Float[Array, "batch tokens kv_heads group rank"],
    Float[Array, "batch tokens kv_heads group"],
]


class Evidence(NamedTuple):
    """Keys and values of evidence in every layer, computed once and read by many questions.

    Attributes:
        keys: rotated keys, by layer.
        values: values, by layer.
        positions: of each row, -1 at padding.
        passages: which passage a row belongs to, -1 where to none, as instructions do.
    """

    keys: Float[Array, "layers batch evidence kv_heads d"]
    values: Float[Array, "layers batch evidence kv_heads d"]
    positions: Int[Array, "batch evidence"]
    passages: Int[Array, "batch evidence"]


class EvidenceEdit(NamedTuple):
    """How question and answer rows look at passages; all zeros is the frozen model itself.

    The `layers` axis is that of the layers which are run with the edit.

    Attributes:
        logit_bias: added to the attention logits of a passage's rows.
        token_bias: added to those of single rows of passages, in each head or in all of them.
        value_down: `A` of the edited values `v + v A B`, `v` all heads' values of a passage's row.
        value_up: `B` of these.
    """

    logit_bias: Float[Array, "layers batch heads passages"]
    token_bias: Float[Array, "layers batch #heads evidence"]
    value_down: Float[Array, "layers batch width rank"]
    value_up: Float[Array, "layers batch rank width"]


def attend_with_evidence(
    query: Float[Array, "batch tokens heads d"],
    keys: Float[Array, "batch slots kv_heads d"],
    values: Float[Array, "batch slots kv_heads d"],
    mask: Bool[Array, "batch tokens slots"],
    positions: Int[Array, "batch tokens"],
    window: Int[Array, ""] | None,
    evidence: Evidence,
    layer: Int[Array, ""] | int,
    edit: EvidenceEdit | None,
    chunk: int,
) -> Float[Array, "batch tokens heads d"]:
    """One softmax over evidence and own rows, the evidence read through the interface.

    The evidence is a constant: no gradient flows to it. Numerator and denominator of the softmax
    are sums over chunks of evidence, each computed again in the backward pass, so that the memory
    of that pass does not grow with the evidence. The largest logit comes from a pass of its own.

    Args:
        query: of the question and answer rows, rotated.
        keys: own rows' keys, rotated.
        values: own rows' values.
        mask: which own rows a token sees.
        positions: of the query rows.
        window: how far back a token sees; None is no limit.
        evidence: of all layers.
        layer: the layer, an index into the evidence.
        edit: of this layer: the axis `layers` is gone from all its arrays.
        chunk: evidence rows at a time; divides their number.

    Raises:
        ValueError: it does not.
    """
    rows = evidence.keys.shape[2]
    if chunk < 1 or rows % chunk:
        raise ValueError(f"chunk must divide the {rows} rows of the evidence, got {chunk}")
    batch, _, heads, d = query.shape
    kv_heads = keys.shape[2]
    grouped = query.reshape(batch, -1, kv_heads, heads // kv_heads, d)
    reading = jax.lax.stop_gradient(_Reading(evidence, jnp.int32(layer), positions, window))
    own = jnp.where(mask[:, None, None], _logits(grouped, keys), _MASKED)
    own_top = jax.lax.stop_gradient(own).max(axis=-1)
    found: Any = _evidence_sums(grouped, edit, own_top, reading, chunk)
    top, sums = found
    numerator, low_rank, denominator = jax.tree.map(
        jnp.add, sums, _sums(own, top, values, None, edit)
    )
    if edit is not None:
        up = edit.value_up.reshape(batch, -1, kv_heads, d)
        numerator += jnp.einsum("btkgr,brkd->btkgd", low_rank, up.astype(jnp.float32))
    read = numerator / denominator[..., None]
    return read.reshape(query.shape).astype(query.dtype)


class _Reading(NamedTuple):
    """Evidence, the layer that it is read in, and from which positions."""

    evidence: Evidence
    layer: Int[Array, ""]
    positions: Int[Array, "batch tokens"]
    window: Int[Array, ""] | None


class _Chunk(NamedTuple):
    """Some rows of the evidence in one layer, and who sees them."""

    keys: Float[Array, "batch slots kv_heads d"]
    values: Float[Array, "batch slots kv_heads d"]
    passages: Int[Array, "batch slots"]
    seen: Bool[Array, "batch tokens slots"]


def _take_chunk(reading: _Reading, start: Int[Array, ""], chunk: int) -> _Chunk:
    evidence = reading.evidence
    _, batch, _, kv_heads, d = evidence.keys.shape
    at, size = (reading.layer, 0, start, 0, 0), (1, batch, chunk, kv_heads, d)
    positions, passages = (
        jax.lax.dynamic_slice_in_dim(array, start, chunk, axis=1)
        for array in (evidence.positions, evidence.passages)
    )
    return _Chunk(
        jax.lax.dynamic_slice(evidence.keys, at, size)[0],
        jax.lax.dynamic_slice(evidence.values, at, size)[0],
        passages,
        sees(reading.positions, positions, reading.window),
    )


def _take_rows(
    edit: EvidenceEdit | None, start: Int[Array, ""] | int, chunk: int
) -> EvidenceEdit | None:
    """An edit of a layer, of a chunk's rows alone."""
    if edit is None:
        return None
    rows = jax.lax.dynamic_slice_in_dim(edit.token_bias, start, chunk, axis=2)
    return edit._replace(token_bias=rows)


def _chunk_starts(reading: _Reading, chunk: int) -> Int[Array, "chunks"]:
    return jnp.arange(0, reading.evidence.keys.shape[2], chunk)


def _chunk_logits(
    grouped: Float[Array, "batch tokens kv_heads group d"], edit: EvidenceEdit | None, part: _Chunk
) -> Float[Array, "batch kv_heads group tokens slots"]:
    logits = _logits(grouped, part.keys)
    if edit is not None:
        bias = evidence_bias(edit, part.passages)
        logits += bias.reshape(*logits.shape[:3], 1, -1)
    return jnp.where(part.seen[:, None, None], logits, _MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _evidence_sums(
    grouped: Float[Array, "batch tokens kv_heads group d"],
    edit: EvidenceEdit | None,
    own_top: Float[Array, "batch kv_heads group tokens"],
    reading: _Reading,
    chunk: int,
) -> tuple[Float[Array, "batch kv_heads group tokens"], Sums]:
    """The largest logit, and `_sums` over all rows of the evidence.

    Gradients flow from the sums to queries and edit alone: in the softmax the largest logit
    cancels. The derivative is written out, as that of a scan within the scan over layers would
    keep what depends on the evidence alone, masks for one, for every chunk and layer.
    """

    def larger(top, start):
        of_rows = _take_rows(edit, start, chunk)
        logits = _chunk_logits(grouped, of_rows, _take_chunk(reading, start, chunk))
        return jnp.maximum(top, logits.max(axis=-1)), None

    def add(sums, start):
        of_rows = _take_rows(edit, start, chunk)
        more = _chunk_sums(grouped, of_rows, top, _take_chunk(reading, start, chunk))
        return jax.tree.map(jnp.add, sums, more), None

    starts = _chunk_starts(reading, chunk)
    top, _ = jax.lax.scan(larger, own_top, starts)
    rank = 0 if edit is None else edit.value_down.shape[-1]
    zeros = (
        jnp.zeros(grouped.shape, jnp.float32),
        jnp.zeros((*grouped.shape[:-1], rank), jnp.float32),
        jnp.zeros(grouped.shape[:-1], jnp.float32),
    )
    return top, jax.lax.scan(add, zeros, starts)[0]


def _evidence_sums_forward(grouped, edit, own_top, reading, chunk):
    found: Any = _evidence_sums(grouped, edit, own_top, reading, chunk)
    top, _ = found
    return found, (grouped, edit, top, reading)


def _evidence_sums_backward(chunk, kept, slopes):
    """Sums are linear in chunks: each is computed again, and pulls back the same slopes.

    Those of biases of single rows come from the chunk that a row is in, all others from every one.
    """
    grouped, edit, top, reading = kept
    _, slopes = slopes

    def add(total, start):
        part, of_rows = _take_chunk(reading, start, chunk), _take_rows(edit, start, chunk)
        _, pull = jax.vjp(lambda q, e: _chunk_sums(q, e, top, part), grouped, of_rows)
        to_queries, to_edit = pull(slopes)
        more = to_queries, _take_rows(to_edit, 0, 0)
        total = jax.tree.map(lambda t, s: t + s.astype(t.dtype), total, more)
        return total, None if to_edit is None else to_edit.token_bias

    shared = grouped, _take_rows(edit, 0, 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shared)
    found: Any = jax.lax.scan(add, zeros, _chunk_starts(reading, chunk))
    total, to_rows = found
    to_queries, to_edit = jax.tree.map(lambda t, leaf: t.astype(leaf.dtype), total, shared)
    if edit is not None:
        to_rows = jnp.moveaxis(to_rows, 0, 2).reshape(edit.token_bias.shape)
        to_edit = to_edit._replace(token_bias=to_rows)
    return to_queries, to_edit, jnp.zeros_like(top), None


_evidence_sums.defvjp(_evidence_sums_forward, _evidence_sums_backward)


def _chunk_sums(
    grouped: Float[Array, "batch tokens kv_heads group d"],
    edit: EvidenceEdit | None,
    top: Float[Array, "batch kv_heads group tokens"],
    part: _Chunk,
) -> Sums:
    logits = _chunk_logits(grouped, edit, part)
    return _sums(logits, top, part.values, part.passages, edit)


def _logits(
    grouped: Float[Array, "batch tokens kv_heads group d"],
    keys: Float[Array, "batch slots kv_heads d"],
) -> Float[Array, "batch kv_heads group tokens slots"]:
    """Scaled logits, float32."""
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, keys, preferred_element_type=jnp.float32)
    return logits / jnp.sqrt(jnp.float32(keys.shape[-1]))


def evidence_bias(
    edit: EvidenceEdit, passages: Int[Array, "batch slots"]
) -> Float[Array, "batch heads slots"]:
    """What an edit adds to the logits of rows, 0 where one belongs to no passage; float32.

    Args:
        edit: of a layer: the axis `layers` is gone from all its arrays.
        passages: which passage a row belongs to.
    """
    batch, heads = edit.logit_bias.shape[:2]
    bias = jnp.broadcast_to(edit.token_bias, (batch, heads, passages.shape[1])).astype(jnp.float32)
    if edit.logit_bias.shape[2]:
        own = jnp.maximum(passages, 0)[:, None, :]
        bias += jnp.take_along_axis(edit.logit_bias, own, axis=2).astype(jnp.float32)
    return jnp.where(passages[:, None, :] >= 0, bias, 0)


def _sums(
    logits: Float[Array, "batch kv_heads group tokens slots"],
    top: Float[Array, "batch kv_heads group tokens"],
    values: Float[Array, "batch slots kv_heads d"],
    passages: Int[Array, "batch slots"] | None,
    edit: EvidenceEdit | None,
) -> Sums:
    """Sums over some rows of a softmax's weights times values, times `v A`, and alone; float32.

    An edit of values is linear: the weighted sum of `v A B` is that of `v A`, times `B`. Rows of
    no passage, all where `passages` is None, are not edited.
    """
    weights = jnp.exp(logits - top[..., None])
    batch, slots, kv_heads = values.shape[:3]
    rank = 0 if edit is None else edit.value_down.shape[-1]
    low_rank = jnp.zeros((batch, slots, 1, rank), values.dtype)
    if passages is not None and edit is not None:
        down = edit.value_down.astype(values.dtype)
        low_rank = jnp.einsum("bsw,bwr->bsr", values.reshape(batch, slots, -1), down)[:, :, None]
        belongs = passages[:, :, None, None] >= 0
        low_rank = jnp.where(belongs, low_rank, jnp.zeros_like(low_rank))

    def read(rows):
        return jnp.einsum(
            "bkgts,bskd->btkgd",
            weights.astype(rows.dtype),
            jnp.broadcast_to(rows, (batch, slots, kv_heads, rows.shape[-1])),
            preferred_element_type=jnp.float32,
        )

    return read(values), read(low_rank), weights.sum(axis=-1).transpose(0, 3, 1, 2)
