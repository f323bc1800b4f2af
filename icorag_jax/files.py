"""Files that are whole or absent."""

import os
import re
from pathlib import Path

_TEMPORARY = ".tmp"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that whatever happens, the old file is there or the new one, whole.

    Folders on the way to it are created.

    Raises:
        OSError: the file cannot be written, say for a full disk; the old one stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a file moves atomically only within a file system; with the process's
    # number, as two processes may write at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_leftover(path: Path) -> bool:
    """Whether a file is of a write that never ended."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(_TEMPORARY)}", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half written in a folder and those below it."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        if is_leftover(path):
            path.unlink(missing_ok=True)
