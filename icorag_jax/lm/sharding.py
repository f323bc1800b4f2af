"""Parameters, caches and batches laid out over a mesh of devices.

The mesh has two axes. `data` splits batches, and every matrix along one of its dimensions, so that
each device holds a part of all weights and gathers a layer when it runs (as in fully sharded data
parallelism). `tensor` splits heads and the features inside MLPs. What does not divide evenly is
kept whole along that axis. The compiler derives all communication from these layouts.
"""

import math
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from icorag_jax.checkpoint import Parameters, Template
from icorag_jax.lm.config import DecoderConfig

DATA, TENSOR = "data", "tensor"
_Axes = tuple[str | tuple[str, ...] | None, ...]
# For each matrix `[in, out]`, which axis of the mesh splits which of its dimensions.
_KERNELS = {
    "query": (DATA, TENSOR),
    "key": (DATA, TENSOR),
    "value": (DATA, TENSOR),
    "gate": (DATA, TENSOR),
    "up": (DATA, TENSOR),
    # Far larger than the rows it acts on, this one is not gathered.
    "output": (None, (TENSOR, DATA)),
    "attention_output": (TENSOR, DATA),
    "down": (TENSOR, DATA),
    "embedding": (TENSOR, DATA),
}
# The same for the arrays that a batch, its cache, its evidence and an edit of that consist of.
_ROWS = (None, DATA, None, TENSOR)
_FIELDS = {
    "tokens": (DATA,),
    "positions": (DATA,),
    "passages": (DATA,),
    "keys": _ROWS,
    "values": _ROWS,
    "used": (),
    "logit_bias": (None, DATA, TENSOR),
    "token_bias": (None, DATA),
    "value_down": (None, DATA),
    "value_up": (None, DATA),
}
OfBatch = TypeVar("OfBatch", bound=tuple)  # Batch, Cache, Evidence or EvidenceEdit


def make_mesh(data: int, tensor: int) -> Mesh:
    """A mesh of all devices of all processes, `data * tensor` of them.

    With several processes call `jax.distributed.initialize` first. Neighbours along `tensor` are
    the closest devices, as they talk most.

    Raises:
        ValueError: there are not as many devices.
    """
    count = jax.device_count()
    if data < 1 or tensor < 1 or data * tensor != count:
        raise ValueError(
            f"data * tensor must be the number of devices, {count}, got {data} * {tensor}"
        )
    return jax.make_mesh((data, tensor), (DATA, TENSOR), axis_types=(AxisType.Auto,) * 2)


def shard_template(
    config: DecoderConfig, template: Template, mesh: Mesh | AbstractMesh
) -> Template:
    """The same shapes and dtypes, each with its sharding.

    Args:
        config: the decoder.
        template: of its parameters, `jax.ShapeDtypeStruct` leaves.
        mesh: from `make_mesh`; an abstract one will do to ask for shapes.

    Raises:
        ValueError: the mesh has other axes.
    """
    _check_mesh(mesh)
    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    heads = {
        "query": query_heads, "attention_output": query_heads, "key": kv_heads, "value": kv_heads,
    }  # fmt: skip

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        *_, module, kind = (str(key.key) for key in path)
        axes: _Axes = ()
        if kind in ("kernel", "embedding"):
            axes = _KERNELS[module]
        elif kind == "bias":
            axes = _KERNELS[module][1:]
        if heads.get(module, 0) % mesh.shape[TENSOR]:
            # A part of a head is of no use to a device.
            axes = tuple(None if axis == TENSOR else axis for axis in axes)
        if str(path[0].key) == "layers":
            axes = (None, *axes)
        sharding = _even_sharding(leaf.shape, axes, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, template)


def shard_batch(batch: OfBatch, mesh: Mesh) -> OfBatch:
    """What belongs to texts split along `data` by text, and along `tensor` by head.

    Args:
        batch: arrays of the host or of its devices, then the same in all processes, or arrays that
            lie on the mesh already.
        mesh: from `make_mesh`.

    Raises:
        ValueError: the mesh has other axes.
    """
    _check_mesh(mesh)

    def place(array: Any, axes: _Axes) -> jax.Array:
        if isinstance(array, jax.Array) and array.is_fully_addressable:
            array = np.asarray(array)
        return jax.device_put(array, _even_sharding(array.shape, axes, mesh))

    named: Any = batch
    return named._make(map(place, batch, (_FIELDS[name] for name in named._fields)))


def shard_like(parameters: Parameters, batch: OfBatch) -> OfBatch:
    """`shard_batch` on the mesh that parameters lie on; the same batch if they lie on none.

    Within a compiled program the batch stays as it is: the compiler lays it out.
    """
    leaf = jax.tree.leaves(parameters)[0]
    found = None if isinstance(leaf, Tracer) else leaf.sharding
    if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh):
        return shard_batch(batch, found.mesh)
    return batch


def split_by_text(parameters: Parameters, states: Array) -> Array:
    """Within a compiled program: `[batch, ...]` along `data` on the parameters' mesh, if any.

    Left to itself, the compiler may well split the features of the residual stream instead, as the
    embedding is split so, and then exchange activations of the whole batch rather than weights.
    """
    return _constrain(parameters, states, (DATA,))


def whole(parameters: Parameters, states: Array) -> Array:
    """Within a compiled program: all texts on every device of the parameters' mesh, if any."""
    return _constrain(parameters, states, ())


def _constrain(parameters: Parameters, states: Array, axes: _Axes) -> Array:
    mesh = jax.typeof(jax.tree.leaves(parameters)[0]).sharding.mesh
    if DATA not in mesh.axis_names:
        return states
    return jax.lax.with_sharding_constraint(states, _even_sharding(states.shape, axes, mesh))


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array, in every process; all of them must call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _check_mesh(mesh: Mesh | AbstractMesh) -> None:
    if set(mesh.axis_names) != {DATA, TENSOR}:
        raise ValueError(
            f"the mesh must have the axes {DATA} and {TENSOR}, got {mesh.axis_names}: use make_mesh"
        )


def _even_sharding(shape: tuple[int, ...], axes: _Axes, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of each dimension by its axis, if that divides it."""
    even = [
        axis if axis is not None and size % _devices(axis, mesh) == 0 else None
        for size, axis in zip(shape, axes, strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*even))


def _devices(axis: str | tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in ([axis] if isinstance(axis, str) else axis))
