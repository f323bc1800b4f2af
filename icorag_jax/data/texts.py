"""Real questions and passages from local benchmark files, or generated ones where there are none.

Files are as `folders` has them; those of a benchmark's test split are not read.
"""

import os
import random
from pathlib import Path

from icorag_jax.data.folders import find_file, read_questions
from icorag_jax.data.records import Passage
from icorag_jax.data.sentences import generate_sentences

_VARIABLE = "ICORAG_QA_FOLDER"
_SPLITS = ("train", "dev")


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

    A passage is its title, a full stop and its text, or one alone where the other is empty. White
    space is made single spaces. Every distinct question is as likely as any other, whichever
    benchmark it is from, and so is every passage; the order of files and rows does not matter.

    Args:
        folder: holds the folders of the benchmarks; the files of other splits than train and dev
            are not read.
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
    paths = [find_file(child, split) for child in sorted(folder.iterdir()) for split in _SPLITS]
    for path in filter(None, paths):
        for row in read_questions(path):
            questions.add(_clean(row.question))
            passages.update(map(_join, row.passages))
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


def _join(passage: Passage) -> str:
    """A passage as one text."""
    return ". ".join(filter(None, map(_clean, (passage.title, passage.text))))


def _clean(text: str) -> str:
    """A text with single spaces."""
    return " ".join(text.split())
