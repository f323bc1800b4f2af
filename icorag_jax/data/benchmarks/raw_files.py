"""Files as the makers of benchmarks publish them, read row by row.

Rows come one by one, so that memory does not grow with a file, and with the place where they stand.
"""

import csv
import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from icorag_jax.data.folders import DataError

_CHUNK = 1 << 20  # characters read at a time from a JSON array
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")  # of JSON
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,  # of JSON that is nested too deeply
    csv.Error,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A file that is published.

    Attributes:
        url: where.
        layout: how rows are laid out: JSON objects a line each or in one array, separated values
            under a header, or Parquet.
        member: name of the file within a zip archive, whatever its folder there; None for a file
            that is no archive.
    """

    url: str
    layout: Literal["json_lines", "json_array", "csv", "tsv", "parquet"]
    member: str | None = None


def read_raw_file(path: Path, raw: RawFile) -> Iterator[tuple[str, Any]]:
    """The rows of a file that was downloaded, each with the place where it stands.

    A row is a dictionary, where the file is sound.

    Raises:
        DataError: the file is not of its layout; the message has the file and the row.
    """
    name = str(path) if raw.member is None else f"{path}, {raw.member}"
    where = "its beginning"
    try:
        with _open(path, raw.member) as file:
            for where, content in _LAYOUTS[raw.layout](file):
                yield f"{name}, {where}", content
    except _READ_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {name} after {where}: {error}") from error


def _open(path: Path, member: str | None) -> io.BufferedReader:
    if member is None:
        return path.open("rb")
    archive = zipfile.ZipFile(path)
    found = [
        name
        for name in archive.namelist()
        # Archives packed on a Mac hold a shadow of every file.
        if os.path.basename(name) == member and not name.startswith("__MACOSX")
    ]
    if len(found) != 1:
        archive.close()
        raise DataError(f"{path} must hold one file {member}, found {found}")
    # An archive stays open for as long as a member of it is.
    with archive:
        return io.BufferedReader(archive.open(found[0]))  # pyright: ignore[reportArgumentType]


def _read_json_lines(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    with file:
        # Decoded line by line, so that an error is told where it is.
        for number, line in enumerate(file, start=1):
            yield f"line {number}", json.loads(line.decode())


def _read_json_array(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    """The objects of one array, of which few are in memory at a time."""
    number = 0
    with io.TextIOWrapper(file, "utf-8") as wrapper:
        text = _JsonText(wrapper)
        text.take("[")
        if text.peek() == "]":
            text.take("]")
        else:
            while True:
                content = text.take_value()
                number += 1
                yield f"record {number}", content
                if text.take(",]") == "]":
                    break
        if text.peek():
            raise ValueError(f"expected nothing after the array, found {text.peek()!r}")


class _JsonText:
    """JSON, of which only a stretch is in memory, taken from its beginning on."""

    def __init__(self, file: io.TextIOWrapper):
        self._file, self._decoder = file, json.JSONDecoder()
        self._stretch, self._position = "", 0

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            found = _WHITE_SPACE.match(self._stretch, self._position)
            self._position = found.end() if found else self._position
            if self._position < len(self._stretch) or not self._read_on():
                return self._stretch[self._position : self._position + 1]

    def take(self, expected: str) -> str:
        """The next character that is not white space, which must be one of those expected."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, found {found or 'the end'}")
        self._position += 1
        return found

    def take_value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._stretch, self._position)
            except json.JSONDecodeError:
                # It may go on in what is not read yet.
                if not self._read_on():
                    raise
            else:
                # So may a number.
                if end < len(self._stretch) or not self._read_on():
                    self._position = end
                    return value

    def _read_on(self) -> bool:
        """Reads a further stretch, at least as long as what is not taken; False at the end."""
        rest = self._stretch[self._position :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._stretch, self._position = rest + more, 0
        return bool(more)


def _read_csv(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    return _read_separated(file, ",")


def _read_tsv(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    return _read_separated(file, "\t")


def _read_separated(file: io.BufferedReader, delimiter: str) -> Iterator[tuple[str, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(reader, [])
        for fields in reader:
            if not fields:
                continue  # an empty line
            where = f"line {reader.line_num}"
            if len(fields) != len(header):
                raise ValueError(f"{where} has {len(fields)} fields, the header {len(header)}")
            yield where, dict(zip(header, fields, strict=True))


def _read_parquet(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


_LAYOUTS = {
    "json_lines": _read_json_lines,
    "json_array": _read_json_array,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}
