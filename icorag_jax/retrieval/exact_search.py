"""Exact search among embeddings: inner products in blocks, over all devices of a mesh.

Each device holds an equal share of the rows and goes through them a block at a time; of each block
it keeps the k best, and the best of all blocks are put together at the end. So memory beside the
embeddings is one block and its scores, and what devices exchange is k candidates a block. A block
is as long as its scores may be many: few queries go through all rows at once.

Axes: `devices`, `rows` of a device's share, `width` of an embedding, `queries`, `k`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from icorag_jax.retrieval.retriever import SearchResults, no_results

Precision = Literal["float32", "bfloat16"]
_AXIS = "devices"
_READ_ROWS = 65_536  # read at once, beside the share that they go to
_GROUP = 128  # scores of which only the largest is looked at first


@dataclasses.dataclass(frozen=True)
class PlacedEmbeddings:
    """Embeddings on the devices of a mesh.

    Attributes:
        shares: the rows in their order, then rows of zeros; sharded along `devices`.
        count: rows that are embeddings.
        mesh: of one axis.
    """

    shares: Float[Array, "devices rows width"]
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
    precision: Precision,
) -> PlacedEmbeddings:
    """Places embeddings on devices, one share after another: the host never holds two.

    For one process, whose devices are all of the mesh's.

    Args:
        read_rows: the rows from a start up to an end.
        count: of rows.
        width: of a row.
        mesh: its devices share the rows, along all of its axes.
        precision: what the devices hold.

    Raises:
        ValueError: there are no rows.
    """
    if count < 1:
        raise ValueError("there are no embeddings to search")
    mesh = Mesh(mesh.devices.ravel(), (_AXIS,))
    rows = -(-count // (mesh.size * _GROUP)) * _GROUP

    shares = []
    for number, device in enumerate(mesh.devices):
        share = np.zeros((1, rows, width), jnp.dtype(precision))
        end = min(count, (number + 1) * rows)
        for start in range(number * rows, end, _READ_ROWS):
            part = read_rows(start, min(start + _READ_ROWS, end))
            share[0, start - number * rows :][: len(part)] = part
        # Once it is there, the host's copy can go.
        shares.append(jax.block_until_ready(jax.device_put(share, device)))
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    placed = jax.make_array_from_single_device_arrays((mesh.size, rows, width), sharding, shares)
    return PlacedEmbeddings(placed, count, mesh)


def search(
    embeddings: PlacedEmbeddings,
    queries: Float[np.ndarray, "queries width"],
    k: int,
    *,
    batch: int,
    block_scores: int,
) -> SearchResults:
    """The rows with the largest inner products, descending, equal ones in the rows' order.

    Sums are in float32. Queries are rounded to the embeddings' precision.

    Args:
        embeddings: where to search.
        queries: what for.
        k: how many rows; one k is one compilation a size of batch.
        batch: queries searched at once; what is left of them is filled up to a power of two.
        block_scores: scores that a device holds at once, or 128 a query if that is more.

    Returns:
        Numbers of rows as ids, and inner products.
    """
    found = min(k, embeddings.count)
    results = no_results(len(queries), k)
    for start in range(0, len(queries), batch):
        part = queries[start : start + batch]
        size = min(batch, 1 << (len(part) - 1).bit_length())
        filled = np.pad(part, ((0, size - len(part)), (0, 0)))
        outputs = _search(
            embeddings.mesh,
            found,
            embeddings.count,
            block_scores,
            embeddings.shares,
            jnp.asarray(filled),
        )
        for result, output in zip(results, outputs, strict=True):
            result[start : start + len(part), :found] = np.asarray(output)[: len(part)]
    return results


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(
    mesh: Mesh,
    k: int,
    count: int,
    block_scores: int,
    shares: Float[Array, "devices rows width"],
    queries: Float[Array, "queries width"],
) -> tuple[Int[Array, "queries k"], Float[Array, "queries k"]]:
    own, all_of_it = PartitionSpec(_AXIS), PartitionSpec()
    candidates = jax.shard_map(
        functools.partial(_search_share, k, count, block_scores),
        mesh=mesh,
        in_specs=(own, all_of_it),
        out_specs=(PartitionSpec(None, _AXIS), PartitionSpec(None, _AXIS)),
    )
    ids, scores = candidates(shares, queries.astype(shares.dtype))
    # Candidates come in the rows' order where they are equal, and `top_k` keeps the first of these.
    scores, places = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(ids, places, axis=1), scores


def _search_share(
    k: int,
    count: int,
    block_scores: int,
    shares: Float[Array, "1 rows width"],
    queries: Float[Array, "queries width"],
) -> tuple[Int[Array, "queries candidates"], Float[Array, "queries candidates"]]:
    """The k best of each block of a device."""
    share, asked = shares[0], queries.shape[0]
    length = max(_GROUP, block_scores // asked // _GROUP * _GROUP)
    blocks = -(-share.shape[0] // length)
    length = min(length, share.shape[0])
    first = jax.lax.axis_index(_AXIS) * share.shape[0]

    def search_block(number):
        # The last block begins early, so that it ends with the rows: those that the block before
        # has seen do not count again.
        start = jnp.minimum(number * length, share.shape[0] - length)
        block = share if blocks == 1 else jax.lax.dynamic_slice_in_dim(share, start, length)
        scores = jax.lax.dot_general(
            queries, block, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        rows = start + jnp.arange(length, dtype=jnp.int32)
        counted = (rows >= number * length) & (first + rows < count)
        scores, places = _top_k(jnp.where(counted[None], scores, -jnp.inf), min(k, length))
        return first + start + places, scores

    ids, scores = jax.lax.map(search_block, jnp.arange(blocks, dtype=jnp.int32))
    join = lambda found: jnp.moveaxis(found, 0, 1).reshape(asked, -1)  # noqa: E731
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
