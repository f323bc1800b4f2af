"""Shards of examples on disk: each written whole, checksummed, and never written twice.

A shard is `00017.array_record`, and beside it `00017.json` with the checksums of the file and of
the examples it was made of. A writer that was killed finds the shards that it had finished.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from icorag_jax.files import remove_leftovers, temporary_path, write_atomically


class Shard(NamedTuple):
    """A finished shard.

    Attributes:
        path: its file.
        count: number of examples.
    """

    path: Path
    count: int


def write_shards(
    folder: Path,
    examples: Iterator[Any],
    serialize: Callable[[Any], bytes],
    examples_per_shard: int,
) -> list[Shard]:
    """Writes the shards that a folder does not have yet, and returns all.

    Args:
        folder: created if need be.
        examples: all of them, from the first, in types that JSON has.
        serialize: makes the record of an example; not called for those in finished shards.
        examples_per_shard: the last shard may have fewer.

    Raises:
        OSError: a shard cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    shards: list[Shard] = []
    while batch := list(itertools.islice(examples, examples_per_shard)):
        path = folder / f"{len(shards):05d}.array_record"
        made_of = hashlib.sha256(json.dumps(batch).encode()).hexdigest()
        if not _is_finished(path, made_of):
            _write_shard(path, [serialize(example) for example in batch], made_of)
        shards.append(Shard(path, len(batch)))
    return shards


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_finished(path: Path, made_of: str) -> bool:
    """Whether a shard is whole and of these examples."""
    try:
        account = json.loads(path.with_suffix(".json").read_bytes())
        return account == {"sha256": file_checksum(path), "made_of": made_of}
    except (OSError, ValueError):
        return False


def _write_shard(path: Path, records: list[bytes], made_of: str) -> None:
    temporary = temporary_path(path)
    # Groups of one record are what random access wants.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    account = {"sha256": file_checksum(temporary), "made_of": made_of}
    # The account first: wherever a kill falls, a shard that is there has one.
    write_atomically(path.with_suffix(".json"), json.dumps(account).encode())
    os.replace(temporary, path)
