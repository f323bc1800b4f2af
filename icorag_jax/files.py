"""Files and folders that are whole or absent."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".tmp"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that whatever happens, the old file is there or the new one, whole.

    Folders on the way to it are created.

    Raises:
        OSError: the file cannot be written, say for a full disk; the old one stays as it was.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of the old one when the context ends well.

    Folders on the way to it are created. After any exception, the old file is as it was.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a new folder whole or not at all.

    Args:
        folder: where it comes to lie; those on the way to it are created.
        write: fills the folder that it is given.

    Raises:
        FileExistsError: there is something at `folder` already.
        OSError: it cannot be written; nothing is left of it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: choose a new folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def temporary_path(path: Path) -> Path:
    """Where a file is for as long as it is not finished, in the name that leftovers have."""
    # In the same folder, as a file moves atomically only within a file system; with the numbers of
    # process and thread, as several may write at once.
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{_TEMPORARY}")


def is_leftover(path: Path) -> bool:
    """Whether a file is of a write that never ended."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(_TEMPORARY)}", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half written in a folder and those below it."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        if is_leftover(path):
            path.unlink(missing_ok=True)
