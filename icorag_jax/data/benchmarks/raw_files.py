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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from icorag_jax.data.folders import DataError

_CHUNK = 1 << 20  # characters read at a time from a JSON array
_BETWEEN = re.compile(r"\s*,?\s*")  # two objects of a JSON array
_READ_ERRORS = (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, pa.ArrowException)


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
    with io.TextIOWrapper(file, "utf-8", newline="\n") as text:
        for number, line in enumerate(text, start=1):
            yield f"line {number}", json.loads(line)


def _read_json_array(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    """The objects of one array, of which few are in memory at a time."""
    decoder, number, position = json.JSONDecoder(), 0, 1
    with io.TextIOWrapper(file, "utf-8") as text:
        buffer = ""
        while not buffer and (more := text.read(_CHUNK)):
            buffer = more.lstrip()
        if not buffer.startswith("["):
            raise ValueError(f"expected an array, found {buffer[:20]!r}")
        while True:
            start = _skip(buffer, position)
            if buffer.startswith("]", start):
                return
            try:
                content, position = decoder.raw_decode(buffer, start)
            except json.JSONDecodeError:
                # The object may go on in what is not read yet.
                if not (more := text.read(max(_CHUNK, len(buffer)))):
                    raise
                buffer, position = buffer[start:] + more, 0
                continue
            number += 1
            yield f"record {number}", content


def _skip(buffer: str, position: int) -> int:
    """The position after white space and a comma."""
    found = _BETWEEN.match(buffer, position)
    return found.end() if found else position


def _read_csv(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    return _read_separated(file, ",")


def _read_tsv(file: io.BufferedReader) -> Iterator[tuple[str, Any]]:
    return _read_separated(file, "\t")


def _read_separated(file: io.BufferedReader, delimiter: str) -> Iterator[tuple[str, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        for row in reader:
            yield f"line {reader.line_num}", row


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
