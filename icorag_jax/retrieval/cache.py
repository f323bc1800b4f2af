"""Files of an index on disk, each beside its checksum: one that changed is never taken for good."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock
import numpy as np

from icorag_jax.files import open_atomically, remove_leftovers, write_atomically


def fingerprint(parts: Mapping[str, object]) -> str:
    """The SHA-256 of plain values, in hexadecimal.

    Args:
        parts: all that an index depends on, in types that JSON has.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Opens an index's folder for one builder at a time; another waits until the first is done.

    What killed builders left half written is deleted.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        remove_leftovers(folder)
        yield


def is_intact(path: Path) -> bool:
    """Whether a file is there, and is as it was when its checksum was written."""
    seal = _seal_path(path)
    if not path.is_file() or not seal.is_file():
        return False
    return seal.read_bytes() == _seal(path, _file_checksum(path))


def store(path: Path, data: bytes) -> None:
    """Writes a file and its checksum; wherever a kill falls, a file that is there is known whole.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(_seal_path(path), _seal(path, hashlib.sha256(data).hexdigest()))
    write_atomically(path, data)


def store_array(path: Path, array: np.ndarray) -> None:
    """Writes an array in NumPy's own form, as `store`."""
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    store(path, sink.getvalue())


@contextlib.contextmanager
def storing(path: Path) -> Iterator[Callable[[bytes], int]]:
    """As `store`, of data that come part by part; if the context fails, nothing is written.

    Yields:
        What a part is written with; returns its number of bytes.

    Raises:
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    with open_atomically(path) as file:

        def write(data: bytes) -> int:
            digest.update(data)
            return file.write(data)

        yield write
        # Before the file itself, as in `store`.
        write_atomically(_seal_path(path), _seal(path, digest.hexdigest()))


def _seal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _seal(path: Path, checksum: str) -> bytes:
    """A line as `sha256sum` has it; with the folder, as files of two indexes share their names."""
    return f"{checksum}  {path.parent.name}/{path.name}\n".encode()


def _file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
