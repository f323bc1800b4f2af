"""Tensors of a checkpoint folder, known by their headers and read one at a time, in pieces.

Only safetensors are read, never pickles: one `model.safetensors`, or shards with an index.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import safetensors
from jaxtyping import Array, Float

Json = TypeVar("Json", dict, list)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Of what is read at a time, counted as float32.
_PIECE_BYTES = 2**24


class CheckpointError(ValueError):
    """A checkpoint folder does not hold what the model needs."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where it is, and what its header says.

    Attributes:
        path: the file.
        key: its name there.
        shape: its sizes.
        dtype: its type, as safetensors name it.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def pieces(
        self, sharding: jax.sharding.NamedSharding | None
    ) -> Iterator[tuple[int, Float[Array, "..."]]]:
        """The tensor in pieces, each with the number of its first row, on the default device.

        With a sharding it is one piece, of which each device reads its part.
        """
        with safetensors.safe_open(self.path, framework="numpy") as file:
            stored = file.get_slice(self.key)
            if sharding is not None:
                yield 0, jax.make_array_from_callback(self.shape, sharding, stored.__getitem__)
                return
            rows = self.shape[0]
            step = max(1, _PIECE_BYTES // (4 * math.prod(self.shape[1:])))
            for row in range(0, rows, step):
                yield row, jnp.asarray(stored[row : min(row + step, rows)])


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


def stored_tensors(folder: Path) -> Iterator[StoredTensor]:
    """Every tensor of a folder; none is read.

    Raises:
        CheckpointError: there are no safetensors, or a file cannot be read.
    """
    for path in _weight_files(folder):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118  # this is no mapping
                    header = file.get_slice(key)
                    yield StoredTensor(path, key, tuple(header.get_shape()), header.get_dtype())
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error


def same_tensors(folder: Path, first: str, second: str) -> bool:
    """Whether a checkpoint's two tensors are equal; also if it lacks one of them."""
    stored = {tensor.key: tensor for tensor in stored_tensors(folder)}
    if not {first, second} <= stored.keys():
        return True
    if stored[first].shape != stored[second].shape:
        return False
    return all(
        bool(jnp.array_equal(one, other))
        for (_, one), (_, other) in zip(
            stored[first].pieces(None), stored[second].pieces(None), strict=True
        )
    )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX, dict).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or not all(
            isinstance(name, str) and name == Path(name).name for name in names
        ):
            raise CheckpointError(
                f"{folder / INDEX}: weight_map must name files of this folder, found {shards!r:.60}"
            )
        return [folder / name for name in sorted(names)]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which are not read, "
            f"since unpickling can run any code: convert them to {WEIGHTS}"
        )
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
