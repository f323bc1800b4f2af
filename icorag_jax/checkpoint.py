"""Checkpoint folders in the Hugging Face form, read into parameter trees and written from them."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from jaxtyping import Array, Bool, Float, PyTree

from icorag_jax.stored_tensors import (
    INDEX,
    WEIGHTS,
    CheckpointError,
    StoredTensor,
    stored_tensors,
)

Parameters = PyTree[Float[Array, "..."]]
Template = PyTree[jax.ShapeDtypeStruct]

_TENSOR_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model's parameters are named in a checkpoint.

    Attributes:
        modules: pairs (regular expression of a module's path in the parameter tree, its name in
            the checkpoint). The name may refer to groups; one with `{layer}` stands for one module
            a layer, stacked on the parameters' leading axis.
        aliases: pairs (regular expression, replacement), first applied to the checkpoint's names.
        ignored: regular expression of names that the model has no use for.
    """

    modules: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    ignored: str


def resolve_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; one named by hub id is downloaded, without its pickles.

    Raises:
        CheckpointError: `source` is no folder, and no repository that can be had either.
    """
    if Path(source).is_dir():
        return Path(source)
    if not isinstance(source, str) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise CheckpointError(f"{source} is not a folder")
    try:
        patterns = ["*.safetensors", "*.json", "*.txt"]
        # Some repositories hold the weights once more, in another layout.
        twice = ["consolidated*", "original/*"]
        return Path(
            huggingface_hub.snapshot_download(
                source, allow_patterns=patterns, ignore_patterns=twice
            )
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a folder nor a repository that can be downloaded: {error}"
        ) from error


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of `tokenizer.json`, with its own truncation and padding switched off.

    Raises:
        CheckpointError: the file is missing or is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"cannot read {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_parameters(folder: Path, template: Template, layout: Layout) -> Parameters:
    """A checkpoint's tensors as a parameter tree.

    Tensors go one by one, large ones in pieces, to the dtype and the sharding of the template:
    beside the parameters themselves, memory holds less than one large tensor.

    Args:
        folder: holds the safetensors.
        template: nested dictionaries of the parameters' shapes, dtypes and, if any, shardings.
        layout: how the parameters are named in the checkpoint.

    Raises:
        CheckpointError: no safetensors, or tensors that are missing, unexpected, misshapen, double
            or not finite floating point numbers: all of them in one message.
    """
    stored, problems = _find_tensors(folder, layout)
    sources = jax.tree_util.tree_map_with_path(
        lambda path, leaf: [stored.pop(name, name) for name in _tensor_names(path, leaf, layout)],
        template,
    )

    def check(path: Any, leaf: jax.ShapeDtypeStruct, tensors: list[StoredTensor | str]) -> None:
        expected = _stored_shape(path, leaf, layout)
        for tensor in tensors:
            if isinstance(tensor, str):
                problems.append(f"missing: {tensor}, expected {expected}")
            elif tensor.shape != expected:
                problems.append(
                    f"misshapen: {tensor.key}, expected {expected}, found {tensor.shape}"
                )

    jax.tree_util.tree_map_with_path(check, template, sources)
    for name in sorted(stored):
        problems.append(f"unexpected: {name}, found {stored[name].shape}")
    if not problems:
        # Only now, as reading takes long: what headers show is told at once.
        parameters = jax.tree_util.tree_map_with_path(
            lambda path, leaf, tensors: _gather(path, leaf, tensors, layout, problems),
            template,
            sources,
        )
        if not problems:
            return parameters
    raise CheckpointError("\n  ".join([f"{folder}: {len(problems)} wrong tensors", *problems]))


def write_parameters(
    folder: Path, parameters: Parameters, layout: Layout, shard_bytes: int = 5 * 2**30
) -> None:
    """Writes a parameter tree as the safetensors of a checkpoint, the inverse of `read_parameters`.

    Args:
        folder: an empty folder.
        parameters: nested dictionaries, in any dtype that safetensors have.
        layout: how the parameters are named in the checkpoint.
        shard_bytes: size of a file, at most, but for one tensor that is larger.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    shards: list[list[tuple[str, Callable[[], np.ndarray]]]] = [[]]
    filled = 0
    for path, leaf in leaves:
        names = _tensor_names(path, leaf, layout)
        size = leaf.nbytes // len(names)
        for index, name in enumerate(names):
            if shards[-1] and filled + size > shard_bytes:
                shards.append([])
                filled = 0
            filled += size
            part = functools.partial(_part, path, leaf, index, layout)
            shards[-1].append((name, part))
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: part() for name, part in shard}
        safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(leaf.nbytes for _, leaf in leaves)},
            "weight_map": {n: f for f, shard in zip(files, shards, strict=True) for n, _ in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _part(path: Any, leaf: Array, index: int, layout: Layout) -> np.ndarray:
    """One stored tensor of a parameter."""
    array = np.asarray(leaf[index] if _stacked(path, layout) else leaf)
    return np.ascontiguousarray(array.T if _is_kernel(path) else array)


def _keys(path: Any) -> list[str]:
    return [str(key.key) for key in path]


def _is_kernel(path: Any) -> bool:
    """Whether a parameter multiplies from the right here, but from the left in the checkpoint."""
    return _keys(path)[-1] == "kernel"


def _module_name(path: Any, layout: Layout) -> str:
    """A module's name in the checkpoint, perhaps with `{layer}` in it."""
    module = "/".join(_keys(path)[:-1])
    for pattern, name in layout.modules:
        if match := re.fullmatch(pattern, module):
            return match.expand(name)
    raise KeyError(f"the layout does not name module {module}")


def _stacked(path: Any, layout: Layout) -> bool:
    return "{layer}" in _module_name(path, layout)


def _tensor_names(path: Any, leaf: Any, layout: Layout) -> list[str]:
    """The names of the tensors that make up a parameter."""
    name = f"{_module_name(path, layout)}.{_TENSOR_NAMES[_keys(path)[-1]]}"
    if not _stacked(path, layout):
        return [name]
    return [name.format(layer=layer) for layer in range(leaf.shape[0])]


def _stored_shape(path: Any, leaf: Any, layout: Layout) -> tuple[int, ...]:
    """The shape of each of those tensors."""
    shape = leaf.shape[int(_stacked(path, layout)) :]
    return shape[::-1] if _is_kernel(path) else shape


def _gather(
    path: Any,
    leaf: jax.ShapeDtypeStruct,
    tensors: list[StoredTensor],
    layout: Layout,
    problems: list[str],
) -> Array:
    """A parameter from its tensors, one after the other."""
    kernel, stacked = _is_kernel(path), _stacked(path, layout)
    sharding = leaf.sharding if isinstance(leaf.sharding, jax.sharding.NamedSharding) else None
    parameter = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    for layer, tensor in enumerate(tensors):
        finite = True
        for row, piece in tensor.pieces(sharding and _stored_sharding(sharding, kernel, stacked)):
            start = (layer,) * stacked + ((0, row) if kernel else (row,) + (0,) * (piece.ndim - 1))
            parameter, good = _fill(parameter, piece, start, kernel=kernel, sharding=sharding)
            # Waits for the piece: the next one is read when this one is gone.
            finite &= bool(good)
        if not finite:
            problems.append(f"NaN or infinity: {tensor.key}")
    return parameter


@functools.partial(jax.jit, static_argnames=("kernel", "sharding"), donate_argnames="parameter")
def _fill(
    parameter: Float[Array, "..."],
    piece: Float[Array, "..."],
    start: tuple[Any, ...],
    *,
    kernel: bool,
    sharding: jax.sharding.NamedSharding | None,
) -> tuple[Float[Array, "..."], Bool[Array, ""]]:
    """The parameter with a piece of a stored tensor, in the same memory; whether it is finite."""
    part = (piece.T if kernel else piece).astype(parameter.dtype)
    finite = jnp.isfinite(part).all()
    part = part.reshape((1,) * (parameter.ndim - part.ndim) + part.shape)
    parameter = jax.lax.dynamic_update_slice(parameter, part, start)
    if sharding is not None:
        parameter = jax.lax.with_sharding_constraint(parameter, sharding)
    return parameter, finite


def _stored_sharding(
    sharding: jax.sharding.NamedSharding, kernel: bool, stacked: bool
) -> jax.sharding.NamedSharding:
    """The sharding of a stored tensor: one layer of a stack, whose own axis is whole."""
    axes = sharding.spec[int(stacked) :]
    return jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec(*(axes[::-1] if kernel else axes))
    )


def _find_tensors(folder: Path, layout: Layout) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors that are not ignored, by name without aliases, and what is wrong with them."""
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for tensor in stored_tensors(folder):
        name = functools.reduce(lambda n, alias: re.sub(*alias, n), layout.aliases, tensor.key)
        if re.fullmatch(layout.ignored, name):
            continue
        if name in tensors:
            problems.append(f"double: {tensor.key}")
        if tensor.dtype not in _FLOATS:
            problems.append(f"not floating point: {tensor.key}, found {tensor.dtype}")
        tensors[name] = tensor
    return tensors, problems
