"""Checkpoint folders in the Hugging Face form, read into parameter trees.

Only safetensors are read, never pickles: one `model.safetensors`, or shards with an index.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float, PyTree

Parameters = PyTree[Float[Array, "..."]]
Json = TypeVar("Json", dict, list)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TENSOR_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


class CheckpointError(ValueError):
    """A checkpoint folder does not hold what the model needs."""


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
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a folder nor a repository that can be downloaded: {error}"
        ) from error


def read_json(path: Path, kind: type[Json]) -> Json:
    """The content of a JSON file, an object (`dict`) or a list.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path} must hold a {kind.__name__}, not {content!r:.60}")
    return content


def read_parameters(
    folder: Path, template: PyTree[jax.ShapeDtypeStruct], layout: Layout
) -> Parameters:
    """A checkpoint's tensors as a parameter tree, in float32.

    Args:
        folder: holds the safetensors.
        template: nested dictionaries of the shapes of the parameters.
        layout: how the parameters are named in the checkpoint.

    Raises:
        CheckpointError: no safetensors, or tensors that are missing, unexpected, misshapen, double
            or not finite floating point numbers: all of them in one message.
    """
    tensors, problems = _read_tensors(folder, layout)

    def gather(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        *module, kind = (str(key.key) for key in path)
        name = f"{_module_name('/'.join(module), layout)}.{_TENSOR_NAMES[kind]}"
        stacked = "{layer}" in name
        names = [name.format(layer=i) for i in range(leaf.shape[0])] if stacked else [name]
        # A kernel multiplies from the right here, from the left in the checkpoint.
        shape = leaf.shape[int(stacked) :][:: -1 if kind == "kernel" else 1]
        parts = []
        for name in names:
            tensor = tensors.pop(name, None)
            if tensor is None:
                problems.append(f"missing: {name}, expected {shape}")
            elif tensor.shape != shape:
                problems.append(f"misshapen: {name}, expected {shape}, found {tensor.shape}")
            else:
                parts.append(tensor.T if kind == "kernel" else tensor)
        if problems:
            return leaf  # the error is raised below, with all the problems there are
        return np.stack(parts) if stacked else parts[0]

    parameters = jax.tree_util.tree_map_with_path(gather, template)
    for name in sorted(tensors):
        problems.append(f"unexpected: {name}, found {tensors[name].shape}")
    if problems:
        raise CheckpointError("\n  ".join([f"{folder}: {len(problems)} wrong tensors", *problems]))
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), parameters)


def _module_name(path: str, layout: Layout) -> str:
    """A module's name in the checkpoint."""
    for pattern, name in layout.modules:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    raise KeyError(f"the layout does not name module {path}")


def _read_tensors(folder: Path, layout: Layout) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors that are not ignored, by name without aliases, and what is wrong with them."""
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for path in _weight_files(folder):
        try:
            stored = safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        for key, tensor in stored.items():
            name = functools.reduce(lambda n, alias: re.sub(*alias, n), layout.aliases, key)
            if re.fullmatch(layout.ignored, name):
                continue
            if name in tensors:
                problems.append(f"double: {key}")
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                problems.append(f"not floating point: {key}, found {tensor.dtype}")
            elif not np.all(np.isfinite(tensor)):
                problems.append(f"NaN or infinity: {key}")
            tensors[name] = tensor
    return tensors, problems


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).exists():
        shards = read_json(folder / _INDEX, dict).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or not all(
            isinstance(name, str) and name == Path(name).name for name in names
        ):
            raise CheckpointError(
                f"{folder / _INDEX}: weight_map must name files of this folder, "
                f"found {shards!r:.60}"
            )
        return [folder / name for name in sorted(names)]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which are not read, "
            f"since unpickling can run any code: convert them to {_WEIGHTS}"
        )
    raise CheckpointError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}")
