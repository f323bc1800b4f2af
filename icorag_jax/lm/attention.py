"""Attention of a text's own tokens, and of question rows to evidence through the interface.

Who sees whom follows from positions alone: a token sees those at its own position and before,
within its layer's window. Tokens at position -1 are padding, which nobody sees. So padding may
stand on either side, and rows of a cache in any order.

Axes: `tokens` query rows, `slots` rows of a cache or of the text itself, `evidence` rows of the
evidence, `heads` query heads, `kv_heads` key and value heads, `d` features of a head, `width =
kv_heads * d`, `rank` of a value edit.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EvidenceEdit:
    """How question and answer rows look at passages; all zeros is the frozen model itself.

    The `layers` axis is that of the layers which are run with the edit.

    Attributes:
        logit_bias: added to the attention logits of a passage's rows.
        value_down: `A` of the edited values `v + v A B`, `v` all heads' values of a passage's row.
        value_up: `B` of these.
    """

    logit_bias: Float[Array, "layers batch heads passages"]
    value_down: Float[Array, "layers batch width rank"]
    value_up: Float[Array, "layers batch rank width"]


def sees(
    query_positions: Int[Array, "batch tokens"],
    key_positions: Int[Array, "batch slots"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "batch tokens slots"]:
    """Which rows each token sees; `window` None is no limit."""
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    seen = (key >= 0) & (key <= query)
    return seen if window is None else seen & (key > query - window)


def attend(
    query: Float[Array, "batch tokens heads d"],
    keys: Float[Array, "batch slots kv_heads d"],
    values: Float[Array, "batch slots kv_heads d"],
    mask: Bool[Array, "batch tokens slots"],
) -> Float[Array, "batch tokens heads d"]:
    """Softmax attention, float32 within; a token that sees nothing gets finite numbers."""
    # The library itself mixes bfloat16 with float32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, keys, values, mask=mask[:, None])


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
    of that pass does not grow with the evidence; the largest logit, which cancels, comes from a
    pass of its own.

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
    """
    batch, _, heads, d = query.shape
    kv_heads = keys.shape[2]
    evidence = jax.lax.stop_gradient(evidence)
    grouped = query.reshape(batch, -1, kv_heads, heads // kv_heads, d)

    def rows(start):
        """A chunk's keys, values, passages and mask."""
        at = (layer, 0, start, 0, 0)
        size = (1, batch, chunk, kv_heads, d)
        parts = (jax.lax.dynamic_slice(a, at, size)[0] for a in (evidence.keys, evidence.values))
        where, passages = (
            jax.lax.dynamic_slice_in_dim(a, start, chunk, axis=1)
            for a in (evidence.positions, evidence.passages)
        )
        return *parts, passages, sees(positions, where, window)

    def chunk_logits(grouped, edit, chunk_keys, passages, seen):
        logits = _logits(grouped, chunk_keys)
        if edit is not None:
            logits += _passage_bias(edit.logit_bias, passages, kv_heads)
        return jnp.where(seen[:, None, None], logits, _MASKED)

    def chunk_sums(grouped, edit, start, top):
        chunk_keys, chunk_values, passages, seen = rows(start)
        logits = chunk_logits(grouped, edit, chunk_keys, passages, seen)
        down = None if edit is None else edit.value_down
        return _sums(logits, top, chunk_values, passages, down)

    def chunk_top(top, start):
        chunk_keys, _, passages, seen = rows(start)
        logits = chunk_logits(grouped, edit, chunk_keys, passages, seen)
        return jnp.maximum(top, logits.max(axis=-1)), None

    own = jnp.where(mask[:, None, None], _logits(grouped, keys), _MASKED)
    starts = jnp.arange(0, evidence.keys.shape[2], chunk)
    top, _ = jax.lax.scan(chunk_top, own.max(axis=-1), starts)
    top = jax.lax.stop_gradient(top)

    def add(sums, start):
        more = jax.checkpoint(chunk_sums)(grouped, edit, start, top)
        return jax.tree.map(jnp.add, sums, more), None

    sums = _sums(own, top, values, None, None if edit is None else edit.value_down)
    (numerator, low_rank, denominator), _ = jax.lax.scan(add, sums, starts)
    if edit is not None:
        up = edit.value_up.reshape(batch, -1, kv_heads, d)
        numerator += jnp.einsum("btkgr,brkd->btkgd", low_rank, up.astype(jnp.float32))
    read = numerator / denominator[..., None]
    return read.reshape(query.shape).astype(query.dtype)


def _logits(
    grouped: Float[Array, "batch tokens kv_heads group d"],
    keys: Float[Array, "batch slots kv_heads d"],
) -> Float[Array, "batch kv_heads group tokens slots"]:
    """Scaled logits, float32."""
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, keys, preferred_element_type=jnp.float32)
    return logits / jnp.sqrt(jnp.float32(keys.shape[-1]))


def _passage_bias(
    bias: Float[Array, "batch heads passages"], passages: Int[Array, "batch slots"], kv_heads: int
) -> Float[Array, "batch kv_heads group 1 slots"]:
    """The bias of every row, 0 where it belongs to no passage."""
    rows = jnp.take_along_axis(bias, jnp.maximum(passages, 0)[:, None, :], axis=2)
    rows = jnp.where(passages[:, None, :] >= 0, rows, 0.0).astype(jnp.float32)
    return rows.reshape(bias.shape[0], kv_heads, -1, 1, passages.shape[1])


def _sums(
    logits: Float[Array, "batch kv_heads group tokens slots"],
    top: Float[Array, "batch kv_heads group tokens"],
    values: Float[Array, "batch slots kv_heads d"],
    passages: Int[Array, "batch slots"] | None,
    value_down: Float[Array, "batch width rank"] | None,
) -> tuple[
    Float[Array, "batch tokens kv_heads group d"],
    Float[Array, "batch tokens kv_heads group rank"],
    Float[Array, "batch tokens kv_heads group"],
]:
    """Sums over some rows of a softmax's weights times values, times `v A`, and alone; float32.

    An edit of values is linear: the weighted sum of `v A B` is that of `v A`, times `B`.
    """
    weights = jnp.exp(logits - top[..., None])

    def read(rows):
        return jnp.einsum(
            f"bkgts,bs{'k' if rows.ndim == 4 else ''}d->btkgd",
            weights.astype(rows.dtype),
            rows,
            preferred_element_type=jnp.float32,
        )

    batch, slots = values.shape[:2]
    rank = 0 if value_down is None else value_down.shape[-1]
    low_rank = jnp.zeros((batch, slots, rank), values.dtype)
    if passages is not None and value_down is not None:
        low_rank = jnp.einsum("bsw,bwr->bsr", values.reshape(batch, slots, -1), value_down)
        low_rank = jnp.where(passages[:, :, None] >= 0, low_rank, jnp.zeros_like(low_rank))
    denominator = weights.sum(axis=-1).transpose(0, 3, 1, 2)
    return read(values), read(low_rank), denominator
