"""JSON lines on their way to a file that is whole or absent, one row in memory at a time."""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from icorag_jax.files import open_atomically

_COMPRESSION = 6


class RowWriter:
    """Rows on their way to a file, counted and digested.

    Attributes:
        count: of the rows written.
        digest: SHA-256 of their lines, before compression.
    """

    def __init__(self, write: Callable[[bytes], object]):
        """A writer that passes lines on to what writes bytes."""
        self._write = write
        self.count = 0
        self.digest = hashlib.sha256()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row as a line.

        Raises:
            UnicodeEncodeError: it holds half a surrogate pair.
            OSError: the file cannot be written.
        """
        line = f"{json.dumps(row, ensure_ascii=False)}\n".encode()
        self._write(line)
        self.digest.update(line)
        self.count += 1


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[RowWriter]:
    """A writer of a file, gzipped where the path says so; the same rows are the same bytes.

    The file is there, whole, when the context has ended well. Folders on the way are created.

    Raises:
        OSError: the file cannot be written; an old one stays as it was.
    """
    with open_atomically(path) as raw:
        if path.suffix != ".gz":
            yield RowWriter(raw.write)
            return
        # Neither name nor time goes into the file.
        with gzip.GzipFile("", "wb", compresslevel=_COMPRESSION, fileobj=raw, mtime=0) as file:
            yield RowWriter(file.write)
