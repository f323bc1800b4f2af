"""Parameters, caches and batches laid out over a mesh of devices.

The mesh has two axes. `data` splits batches, and every matrix along one of its dimensions, so that
each device holds a part of all weights and gathers a layer when it runs (as in fully sharded data
parallelism). `tensor` splits heads and the features inside MLPs. What does not divide evenly is
kept whole on every device. The compiler derives all communication from these layouts.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icorag_jax.checkpoint import Template
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import Cache
from icorag_jax.lm.evidence_attention import Evidence

DATA, TENSOR = "data", "tensor"
# For each matrix `[in, out]`, which axis of the mesh splits which of its dimensions.
_KERNELS = {
    "query": (DATA, TENSOR),
    "key": (DATA, TENSOR),
    "value": (DATA, TENSOR),
    "gate": (DATA, TENSOR),
    "up": (DATA, TENSOR),
    "output": (DATA, TENSOR),
    "attention_output": (TENSOR, DATA),
    "down": (TENSOR, DATA),
    "embedding": (TENSOR, DATA),
}


def make_mesh(data: int, tensor: int) -> Mesh:
    """A mesh of all devices of all processes, `data * tensor` of them.

    With several processes call `jax.distributed.initialize` first.

    Raises:
        ValueError: there are not as many devices.
    """
    devices = jax.devices()
    if data * tensor != len(devices):
        raise ValueError(
            f"data * tensor must be the number of devices, {len(devices)}, got {data} * {tensor}"
        )
    return Mesh(np.reshape(devices, (data, tensor)), (DATA, TENSOR))


def shard_template(config: DecoderConfig, template: Template, mesh: Mesh) -> Template:
    """The same shapes and dtypes, each with its sharding.

    Args:
        config: the decoder.
        template: of its parameters, `jax.ShapeDtypeStruct` leaves.
        mesh: from `make_mesh`.
    """

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        *_, module, kind = (str(key.key) for key in path)
        stacked = str(path[0].key) == "layers"
        axes: tuple[str | None, ...] = ()
        if kind in ("kernel", "embedding"):
            axes = _KERNELS[module]
        elif kind == "bias":
            axes = _KERNELS[module][1:]
        if module in ("key", "value") and config.num_key_value_heads % mesh.shape[TENSOR]:
            # A part of a head is of no use to a device.
            axes = tuple(None if axis == TENSOR else axis for axis in axes)
        spec = (None,) * int(stacked) + axes
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=_even_sharding(leaf.shape, spec, mesh)
        )

    return jax.tree_util.tree_map_with_path(place, template)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays `[batch, ...]` of every process's own making, the same in all, split along `data`."""
    return jax.tree.map(lambda array: _place(array, (DATA,), mesh), batch)


def shard_cache(cache: Cache, mesh: Mesh) -> Cache:
    """A cache split along `data` by text and along `tensor` by head."""
    rows = (None, DATA, None, TENSOR)
    return Cache(
        keys=_place(cache.keys, rows, mesh),
        values=_place(cache.values, rows, mesh),
        positions=_place(cache.positions, (DATA,), mesh),
        used=_place(cache.used, (), mesh),
    )


def shard_evidence(evidence: Evidence, mesh: Mesh) -> Evidence:
    """Evidence split along `data` by text and along `tensor` by head."""
    rows = (None, DATA, None, TENSOR)
    return Evidence(
        keys=_place(evidence.keys, rows, mesh),
        values=_place(evidence.values, rows, mesh),
        positions=_place(evidence.positions, (DATA,), mesh),
        passages=_place(evidence.passages, (DATA,), mesh),
    )


def _place(array: Any, spec: tuple[str | None, ...], mesh: Mesh) -> jax.Array:
    sharding = _even_sharding(array.shape, spec, mesh)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(array)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, functools.partial(_part, host))


def _part(array: np.ndarray, index: Any) -> np.ndarray:
    return array[index]


def _even_sharding(
    shape: tuple[int, ...], spec: tuple[str | None, ...], mesh: Mesh
) -> NamedSharding:
    """The sharding of a spec, without the axes that do not divide their dimension."""
    even = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for size, axis in zip(shape, spec, strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*even))
