"""Real questions and passages from local benchmark files, or generated ones where there are none.

A folder holds one folder a benchmark, with `train` and `dev` files of JSON lines, gzipped or not.
A row has a `question` and `passages`, each passage a `title` and a `text`.
"""

import gzip
import json
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icorag_jax.data.sentences import generate_sentences

_VARIABLE = "ICORAG_QA_FOLDER"
_FILES = ("train.jsonl", "train.jsonl.gz", "dev.jsonl", "dev.jsonl.gz")


def find_text_folder() -> Path | None:
    """The folder of benchmarks, or None where there is none.

    The environment variable `ICORAG_QA_FOLDER` names it; without one, it is `shared/qa` beside the
    repository.

    Raises:
        NotADirectoryError: the variable names something else than a folder.
    """
    if named := os.environ.get(_VARIABLE):
        if not Path(named).is_dir():
            raise NotADirectoryError(f"{_VARIABLE} names {named}, which is not a folder")
        return Path(named)
    beside = Path(__file__).resolve().parents[3] / "shared" / "qa"
    return beside if beside.is_dir() else None


def default_texts(count: int, seed: int) -> tuple[list[str], str]:
    """Questions and passages in turn, real ones if there are any, and a few words on their source.

    Args:
        count: how many texts.
        seed: of the draw.

    Raises:
        ValueError: the files are malformed or hold too few texts.
    """
    folder = find_text_folder()
    if folder is None:
        return generate_sentences(count, seed), "generated sentences"
    source = f"questions and passages in {folder.resolve().name}"
    return load_texts(folder, count, seed), source


def load_texts(folder: Path, count: int, seed: int) -> list[str]:
    """Draws questions and passages, in turn, the first a question; no text occurs twice.

    A passage is its title, a full stop and its text, or the text alone where the title is empty.
    White space is made single spaces. Every distinct question is as likely as any other, whichever
    benchmark it is from, and so is every passage; the order of files and rows does not matter.

    Args:
        folder: holds the folders of the benchmarks; their files other than `train.jsonl`,
            `dev.jsonl` and these two gzipped are not read.
        count: how many texts.
        seed: of the draw.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        ValueError: a malformed row, with its file and line, or too few texts, with their number.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    questions: set[str] = set()
    passages: set[str] = set()
    for path in sorted(p for name in _FILES for p in folder.glob(f"*/{name}")):
        for question, found in _read_rows(path):
            questions.add(question)
            passages.update(found)
    passages -= questions
    wanted = ((count + 1) // 2, count // 2)
    if len(questions) < wanted[0] or len(passages) < wanted[1]:
        raise ValueError(
            f"{folder} has {len(questions)} questions and {len(passages)} passages; "
            f"{wanted[0]} and {wanted[1]} are wanted"
        )
    rng = random.Random(seed)
    texts = [""] * count
    texts[::2] = rng.sample(sorted(questions), wanted[0])
    texts[1::2] = rng.sample(sorted(passages), wanted[1])
    return texts


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The question and the passages of each row of a file."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            question, passages = _clean(row["question"]), [_join(p) for p in row["passages"]]
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        yield question, passages


def _join(passage: Any) -> str:
    """A passage as one text."""
    title, text = passage["title"], _clean(passage["text"])
    return text if title == "" else f"{_clean(title)}. {text}"


def _clean(text: Any) -> str:
    """A text with single spaces; anything else than a text, or an empty one, is an error."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"expected a text, found {text!r}")
    return " ".join(text.split())
