"""Passages from a file of a reader's own: JSON lines or plain text."""

import re
from collections.abc import Iterator
from pathlib import Path

from icorag_jax.data.folders import (
    DataError,
    corpus_passage_from_row,
    parse_object,
    parse_rows,
    read_lines,
)
from icorag_jax.data.records import CorpusPassage

_JSON_LINES = (".jsonl", ".jsonl.gz")


def read_passages(path: Path) -> list[CorpusPassage]:
    """The passages of a file, in its order.

    Of JSON lines (`.jsonl`, `.jsonl.gz`) each is an object with `text` and, if it has them, `title`
    and `id`; so files of corpora will do. Of plain text (`.txt`) each is a paragraph, or, where no
    blank line parts paragraphs, each line. An id that is not given is the passage's number, from 1.

    Raises:
        DataError: the file cannot be read, is of another kind, holds no passage, or a malformed
            one; the message has the file and the line.
    """
    if path.name.endswith(_JSON_LINES):
        lines = ((f"{path}, line {number}", (number, line)) for number, line in read_lines(path))
        return list(parse_rows(path, lines, _parse_line))
    if path.suffix != ".txt":
        raise DataError(f"{path} must end in {', '.join(_JSON_LINES)} or .txt")
    text = "\n".join(line for _, line in read_lines(path))
    found = list(_split_text(text))
    if not found:
        raise DataError(f"{path} is empty")
    return [CorpusPassage(str(number), "", part) for number, part in enumerate(found, start=1)]


def _parse_line(numbered: tuple[int, str]) -> CorpusPassage:
    number, line = numbered
    return corpus_passage_from_row({"id": str(number), "title": "", **parse_object(line)})


def _split_text(text: str) -> Iterator[str]:
    """Paragraphs, or lines where there is but one paragraph, with single spaces."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    parts = paragraphs if len(paragraphs) > 1 else text.split("\n")
    return (" ".join(part.split()) for part in parts if part.strip())
