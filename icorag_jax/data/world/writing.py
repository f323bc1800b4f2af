"""A generated world as a folder of JSON lines, in the form that local benchmarks have."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from icorag_jax.checkpoint import write_folder
from icorag_jax.data.records import Question
from icorag_jax.data.world.config import WorldConfig
from icorag_jax.data.world.generation import corpus_of, count_of, generate_questions
from icorag_jax.data.world.names import SPLITS, Split

CORPUS = "corpora/world.jsonl.gz"
DESCRIPTION = "world.json"
_COMPRESSION = 6


def write_world(config: WorldConfig, folder: Path) -> None:
    """Generates a world and writes it whole or not at all.

    The folder holds `FAMILY/SPLIT.jsonl.gz`, a row a question, for splits that have questions;
    `corpora/world.jsonl.gz`, a row a passage; and `world.json`: the settings, the number of rows
    and the SHA-256 of each file before compression, and a fingerprint of all that. Of the world,
    memory holds the names alone.

    Args:
        config: settings of the world.
        folder: a new one, or an empty one.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it cannot be written; nothing is left of it.
        ValueError: there are not enough names for a world of that size.
    """
    write_folder(folder, lambda path: _fill(path, config))


def _fill(folder: Path, config: WorldConfig) -> None:
    splits: list[Split] = [split for split in SPLITS if count_of(config, split)]
    total = sum(count_of(config, split) for split in splits) * len(config.families)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=total, desc="world", unit="question"))
        files = {
            name: stack.enter_context(_open_rows(folder / name))
            for name in (CORPUS, *(_file(f, split) for split in splits for f in config.families))
        }
        for split in splits:
            for question in generate_questions(config, split):
                files[_file(question.type, split)].write(_question_row(question))
                for passage in corpus_of([question]):
                    files[CORPUS].write(vars(passage))
                progress.update()
    described: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "files": {
            name: {"rows": file.count, "sha256": file.digest.hexdigest()}
            for name, file in files.items()
        },
    }
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**described, "fingerprint": fingerprint}, indent=2)
    (folder / DESCRIPTION).write_bytes(f"{text}\n".encode())


def _file(family: str | None, split: str) -> str:
    return f"{family}/{split}.jsonl.gz"


def _question_row(question: Question) -> dict[str, Any]:
    # As `dataclasses.asdict`, in a small part of its time.
    return {**vars(question), "passages": [vars(passage) for passage in question.passages]}


class _Rows:
    """JSON lines on their way to a file, counted and digested."""

    def __init__(self, file: gzip.GzipFile):
        self._file = file
        self.count = 0
        self.digest = hashlib.sha256()

    def write(self, row: dict[str, Any]) -> None:
        line = f"{json.dumps(row, ensure_ascii=False)}\n".encode()
        self._file.write(line)
        self.digest.update(line)
        self.count += 1


@contextlib.contextmanager
def _open_rows(path: Path) -> Iterator[_Rows]:
    path.parent.mkdir(exist_ok=True)
    # Neither name nor time goes into the file, so that the same rows are the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=_COMPRESSION, fileobj=raw, mtime=0) as file,
    ):
        yield _Rows(file)
