"""Exact search among embeddings: inner products in blocks, over all devices of a mesh.

Each device holds an equal share of the rows and goes through them a block at a time; of each block
it keeps the k best, and the best of all blocks are put together at the end. So memory beside the
embeddings is one block of scores, and what devices exchange is k candidates a block.

Axes: `devices`, `blocks` of a device, `rows` of a block, `width` of an embedding, `queries`, `k`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from icorag_jax.retrieval.retriever import MISSING, SearchResults

Precision = Literal["float32", "bfloat16"]
_AXIS = "devices"
_GROUP = 128  # scores of which only the largest is looked at first


@dataclasses.dataclass(frozen=True)
class PlacedEmbeddings:
    """Embeddings on the devices of a mesh.

    Attributes:
        blocks: the rows in their order, then rows of zeros; sharded along `devices`.
        count: rows that are embeddings.
        mesh: of one axis.
    """

    blocks: Float[Array, "devices blocks rows width"]
    count: int
    mesh: Mesh


def device_mesh() -> Mesh:
    """All devices, along one axis."""
    return Mesh(np.asarray(jax.devices()), (_AXIS,))


def place(
    read_rows: Callable[[int, int], Float[np.ndarray, "rows width"]],
    count: int,
    width: int,
    *,
    mesh: Mesh,
    block_rows: int,
    precision: Precision,
) -> PlacedEmbeddings:
    """Places embeddings on devices; each reads its own share alone.

    Args:
        read_rows: the rows from a start up to an end.
        count: of rows.
        width: of a row.
        mesh: its devices share the rows, along all of its axes.
        block_rows: rows of a block, at most (up to rounding to a multiple of 128): the scores that
            a device holds at once are `queries * block_rows`.
        precision: what the devices hold.

    Raises:
        ValueError: there are no rows, or `block_rows` is below 1.
    """
    if count < 1 or block_rows < 1:
        raise ValueError(f"count and block_rows must be at least 1, got {count} and {block_rows}")
    mesh = Mesh(mesh.devices.ravel(), (_AXIS,))
    share = -(-count // mesh.size)
    blocks = -(-share // block_rows)
    rows = -(-share // (blocks * _GROUP)) * _GROUP
    held = blocks * rows

    def read(index: Any) -> np.ndarray:
        device = index[0].start or 0
        shares = np.zeros((1, held, width), jnp.dtype(precision))
        start, end = (min(count, first * held) for first in (device, device + 1))
        if start < end:
            shares[0, : end - start] = read_rows(start, end)
        return shares.reshape(1, blocks, rows, width)

    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    shape = (mesh.size, blocks, rows, width)
    return PlacedEmbeddings(jax.make_array_from_callback(shape, sharding, read), count, mesh)


def search(
    embeddings: PlacedEmbeddings, queries: Float[np.ndarray, "queries width"], k: int, batch: int
) -> SearchResults:
    """The rows with the largest inner products, descending, equal ones in the rows' order.

    Sums are in float32. Queries are rounded to the embeddings' precision.

    Args:
        embeddings: where to search.
        queries: what for.
        k: how many rows; one k is one compilation a size of batch.
        batch: queries searched at once; what is left of them is filled up to a power of two.

    Returns:
        Numbers of rows as ids, and inner products.
    """
    found = min(k, embeddings.count)
    results = SearchResults(
        np.full((len(queries), k), MISSING, np.int32),
        np.full((len(queries), k), -np.inf, np.float32),
    )
    for start in range(0, len(queries), batch):
        part = queries[start : start + batch]
        size = min(batch, 1 << (len(part) - 1).bit_length())
        filled = np.pad(part, ((0, size - len(part)), (0, 0)))
        outputs = _search(
            embeddings.mesh, found, embeddings.count, embeddings.blocks, jnp.asarray(filled)
        )
        for result, output in zip(results, outputs, strict=True):
            result[start : start + len(part), :found] = np.asarray(output)[: len(part)]
    return results


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    mesh: Mesh,
    k: int,
    count: int,
    blocks: Float[Array, "devices blocks rows width"],
    queries: Float[Array, "queries width"],
) -> tuple[Int[Array, "queries k"], Float[Array, "queries k"]]:
    own, all_of_it = PartitionSpec(_AXIS), PartitionSpec()
    candidates = jax.shard_map(
        functools.partial(_search_share, k, count),
        mesh=mesh,
        in_specs=(own, all_of_it),
        out_specs=(PartitionSpec(None, _AXIS), PartitionSpec(None, _AXIS)),
    )
    ids, scores = candidates(blocks, queries.astype(blocks.dtype))
    # Candidates come in the rows' order where they are equal, and `top_k` keeps the first of these.
    scores, places = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(ids, places, axis=1), scores


def _search_share(
    k: int,
    count: int,
    blocks: Float[Array, "1 blocks rows width"],
    queries: Float[Array, "queries width"],
) -> tuple[Int[Array, "queries candidates"], Float[Array, "queries candidates"]]:
    """The k best of each block of a device."""
    _, number, rows, _ = blocks.shape
    first = jax.lax.axis_index(_AXIS) * (number * rows)
    starts = first + jnp.arange(number, dtype=jnp.int32) * rows

    def search_block(block_and_start):
        block, start = block_and_start
        scores = jax.lax.dot_general(
            queries, block, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        ids = start + jnp.arange(rows, dtype=jnp.int32)
        scores = jnp.where((ids < count)[None], scores, -jnp.inf)
        scores, places = _top_k(scores, min(k, rows))
        return start + places, scores

    ids, scores = jax.lax.map(search_block, (blocks[0], starts))
    join = lambda found: jnp.moveaxis(found, 0, 1).reshape(queries.shape[0], -1)  # noqa: E731
    return join(ids), join(scores)


def _top_k(
    scores: Float[Array, "queries rows"], k: int
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Same as `jax.lax.top_k`, but groups of scores whose largest is too small are left out first.

    The k best are within the k groups whose largest scores are largest: any score elsewhere has k
    others that are larger, or equal and before it. Finding the largest of each group is quick.
    """
    queries, rows = scores.shape
    groups = rows // _GROUP
    if k >= groups:
        best, places = jax.lax.top_k(scores, k)
        return best, places
    grouped = scores.reshape(queries, groups, _GROUP)
    _, chosen = jax.lax.top_k(grouped.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)
    kept = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(queries, k * _GROUP)
    best, places = jax.lax.top_k(kept, k)
    group = jnp.take_along_axis(chosen, places // _GROUP, axis=1)
    return best, group * _GROUP + places % _GROUP
