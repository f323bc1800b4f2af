"""Prepared datasets on disk: their ids and checksums, and what becomes of damaged ones."""

import json
from collections.abc import Mapping
from pathlib import Path

from icorag_jax.data.benchmarks.shards import file_checksum
from icorag_jax.files import write_atomically

_IDS = "ids.json"
_CHECKSUMS = "checksums.json"


def is_intact(folder: Path) -> bool:
    """Whether a folder holds a prepared dataset, each of its files as it was written."""
    try:
        stored = json.loads((folder / _CHECKSUMS).read_bytes())
        return stored == _folder_checksums(folder)
    except (OSError, ValueError):
        return False


def read_ids(folder: Path, split: str) -> list[str]:
    """The ids of a split of a prepared dataset, in the order of its records."""
    return json.loads((folder / _IDS).read_bytes())[split]


def write_ids(folder: Path, ids: Mapping[str, list[str]]) -> None:
    """Keeps the ids of each split of a dataset."""
    write_atomically(folder / _IDS, json.dumps(ids).encode())


def write_checksums(folder: Path) -> None:
    """Seals a dataset: from now on it is intact for as long as its files are what they are."""
    write_atomically(folder / _CHECKSUMS, json.dumps(_folder_checksums(folder)).encode())


def discard_damaged_downloads(downloads: Path) -> None:
    """Deletes downloads that are not as they were downloaded, by what was noted beside them."""
    for note in downloads.rglob("*.INFO"):
        path = note.with_suffix("")
        try:
            expected = json.loads(note.read_bytes())["url_info"]["checksum"]
            intact = file_checksum(path) == expected
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)


def _folder_checksums(folder: Path) -> dict[str, str]:
    """The checksum of each file of a dataset but the file of checksums."""
    paths = sorted(path for path in folder.iterdir() if path.name != _CHECKSUMS)
    return {path.name: file_checksum(path) for path in paths}
