"""A generated world as a folder of JSON lines, in the form that local benchmarks have."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from icorag_jax.data.folders import corpus_row, question_row
from icorag_jax.data.json_lines import open_rows
from icorag_jax.data.world.config import WorldConfig
from icorag_jax.data.world.generation import corpus_of, count_of, generate_questions
from icorag_jax.data.world.names import SPLITS, Split
from icorag_jax.files import write_folder

CORPUS = "corpora/world.jsonl.gz"
DESCRIPTION = "world.json"


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
            name: stack.enter_context(open_rows(folder / name))
            for name in (CORPUS, *(_file(f, split) for split in splits for f in config.families))
        }
        for split in splits:
            for question in generate_questions(config, split):
                files[_file(question.type, split)].write(question_row(question))
                for passage in corpus_of([question]):
                    files[CORPUS].write(corpus_row(passage))
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
