"""Local folders of benchmarks and corpora: JSON lines, read strictly and written whole.

A folder holds a folder a benchmark, and one of corpora; each file may be gzipped (`.jsonl.gz`):

    BENCHMARK/{train,dev,test}.jsonl    a `Question` a line
    corpora/NAME.jsonl                  a `CorpusPassage` a line

`docs/data.md` has the keys of a line. Keys that are not named there are not read.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from icorag_jax.data.json_lines import open_rows
from icorag_jax.data.records import CorpusPassage, Passage, Question

Record = TypeVar("Record", Question, CorpusPassage)

SPLITS = ("train", "dev", "test")
_SUFFIXES = (".jsonl", ".jsonl.gz")
_READ_ERRORS = (OSError, EOFError, zlib.error)


class DataError(ValueError):
    """Data are missing or malformed; the message says where, and what is wrong."""


def find_file(folder: Path, name: str) -> Path | None:
    """The file `NAME.jsonl` or `NAME.jsonl.gz` of a folder, or None where there is neither.

    Raises:
        DataError: both are there.
    """
    found = [path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def find_splits(folder: Path) -> dict[str, Path]:
    """The files of a benchmark's folder, by split.

    Raises:
        DataError: there are none.
    """
    found = {split: path for split in SPLITS if (path := find_file(folder, split))}
    if not found:
        names = ", ".join(f"{split}.jsonl[.gz]" for split in SPLITS)
        raise DataError(f"{folder} holds no benchmark: it has none of {names}")
    return found


def find_corpus(folder: Path, name: str) -> Path:
    """The file of a corpus.

    Args:
        folder: the folder of the benchmarks, which has `corpora` in it.
        name: of the corpus.

    Raises:
        DataError: there is no such corpus; the message has those there are.
    """
    path = find_file(folder / "corpora", name)
    if path is None:
        files = [p.name for suffix in _SUFFIXES for p in (folder / "corpora").glob(f"*{suffix}")]
        there = ", ".join(sorted({file.partition(".jsonl")[0] for file in files})) or "none"
        raise DataError(f"{folder / 'corpora'} has no corpus {name!r}; there are: {there}")
    return path


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file, in its order, one line in memory at a time.

    Raises:
        DataError: the file cannot be read, holds no line, or has a malformed one or an id that
            was there before; the message has the file and the line.
    """
    return _read_records(path, parse_question)


def read_corpus(path: Path) -> Iterator[CorpusPassage]:
    """The passages of a corpus, in its order, one line in memory at a time.

    Raises:
        DataError: as `read_questions`.
    """
    return _read_records(path, parse_corpus_passage)


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Writes a file of questions whole, gzipped where the path says so; same rows, same bytes."""
    _write_rows(path, (question_row(question) for question in questions))


def write_corpus(path: Path, passages: Iterable[CorpusPassage]) -> None:
    """Writes a corpus whole, gzipped where the path says so; same passages, same bytes."""
    _write_rows(path, (corpus_row(passage) for passage in passages))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, gzipped or not, with their numbers from 1.

    Raises:
        DataError: the file cannot be read; the message has it and the line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # Only a line feed ends a line of bytes: a carriage return is white space of JSON.
            for number, line in enumerate(file, start=1):
                text = line.decode()
                yield number, text.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}, line {number}: {error}") from error
    except _READ_ERRORS as error:
        raise DataError(f"cannot read {path}, line {number + 1}: {error}") from error


def parse_rows(
    path: Path, rows: Iterable[tuple[str, Any]], parse: Callable[[Any], Record]
) -> Iterator[Record]:
    """Records from rows, one at a time.

    Args:
        path: of the file, for messages.
        rows: where each row stands, for messages, and what stands there.
        parse: makes the record of a row, or raises a DataError.

    Raises:
        DataError: a malformed row or an id that was there before, with the place of the row; or
            there are no rows.
    """
    numbers: dict[str, int] = {}
    for number, (where, row) in enumerate(rows, start=1):
        try:
            record = parse(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if record.id in numbers:
            raise DataError(f"{where}: id {record.id!r} is that of row {numbers[record.id]} too")
        numbers[record.id] = number
        yield record
    if not numbers:
        raise DataError(f"{path} is empty")


def parse_object(line: str) -> dict[str, Any]:
    """The keys and values of a line.

    Raises:
        DataError: it is not JSON, or no object.
    """
    try:
        value = json.loads(line)
    # A ValueError that is no JSONDecodeError: a number has too many digits for Python.
    except (ValueError, RecursionError) as error:
        raise DataError(f"the line is not JSON: {error}") from error
    return _check_object(value, "the line")


def parse_question(line: str) -> Question:
    """A question from its line.

    Raises:
        DataError: the line is malformed; the message says how.
    """
    return question_from_row(parse_object(line))


def question_from_row(row: dict[str, Any]) -> Question:
    """A question from the keys and values of its line.

    Raises:
        DataError: a value is missing or malformed; the message says how.
    """
    answers = _require(row, "answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"answers must be a list of one answer or more, found {answers!r:.60}")
    passages = _require(row, "passages")
    if not isinstance(passages, list):
        raise DataError(f"passages must be a list, found {passages!r:.60}")
    kind = row.get("type")
    return Question(
        _check_text(_require(row, "id"), "id"),
        _check_text(_require(row, "question"), "question"),
        tuple(_check_text(answer, "an answer") for answer in answers),
        tuple(_parse_passage(passage) for passage in passages),
        None if kind is None else _check_text(kind, "type"),
    )


def parse_corpus_passage(line: str) -> CorpusPassage:
    """A passage of a corpus from its line.

    Raises:
        DataError: the line is malformed; the message says how.
    """
    return corpus_passage_from_row(parse_object(line))


def corpus_passage_from_row(row: dict[str, Any]) -> CorpusPassage:
    """A passage of a corpus from the keys and values of its line.

    Raises:
        DataError: a value is missing or malformed; the message says how.
    """
    return CorpusPassage(_check_text(_require(row, "id"), "id"), *_parse_title_and_text(row))


def question_row(question: Question) -> dict[str, Any]:
    """A question as JSON has it; what is None is left out."""
    row = {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "passages": [_passage_row(passage) for passage in question.passages],
    }
    return row if question.type is None else {**row, "type": question.type}


def corpus_row(passage: CorpusPassage) -> dict[str, Any]:
    """A passage of a corpus as JSON has it."""
    return {"id": passage.id, "title": passage.title, "text": passage.text}


def _read_records(path: Path, parse: Callable[[str], Record]) -> Iterator[Record]:
    lines = ((f"{path}, line {number}", line) for number, line in read_lines(path))
    return parse_rows(path, lines, parse)


def _check_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{name} must be an object, found {value!r:.60}")
    return value


def _parse_passage(value: Any) -> Passage:
    row = _check_object(value, "a passage")
    is_gold = row.get("is_gold")
    if is_gold is not None and not isinstance(is_gold, bool):
        raise DataError(f"is_gold must be true, false or null, found {is_gold!r:.60}")
    return Passage(*_parse_title_and_text(row), is_gold)


def _parse_title_and_text(row: dict[str, Any]) -> tuple[str, str]:
    """Either may be empty, but not both: such a passage says nothing and cannot be found."""
    title = _check_text(_require(row, "title"), "title", blank=True)
    text = _check_text(_require(row, "text"), "text", blank=True)
    if not title.strip() and not text.strip():
        raise DataError("a passage has neither title nor text")
    return title, text


def _check_text(value: Any, name: str, *, blank: bool = False) -> str:
    """The value itself, if it is a text that can be written, not blank unless that is allowed."""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, found {value!r:.60}")
    if not blank and not value.strip():
        raise DataError(f"{name} is blank: {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} holds half a surrogate pair: {value!r:.60}") from error
    return value


def _passage_row(passage: Passage) -> dict[str, Any]:
    row: dict[str, Any] = {"title": passage.title, "text": passage.text}
    return row if passage.is_gold is None else {**row, "is_gold": passage.is_gold}


def _require(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise DataError(f"no {key!r}")
    return row[key]


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open_rows(path) as writer:
        for row in rows:
            writer.write(row)
