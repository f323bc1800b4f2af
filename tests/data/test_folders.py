"""Local folders: what is written comes back, and every kind of malformed line is refused."""

import gzip
import hashlib
import json
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.folders import (
    DataError,
    find_corpus,
    find_file,
    find_splits,
    read_corpus,
    read_questions,
    write_corpus,
    write_questions,
)
from icorag_jax.data.records import CorpusPassage, Passage, Question

# Everything UTF-8 can hold, line separators and control characters too.
texts = st.text(st.characters(exclude_categories=["Cs"]))
filled = texts.filter(str.strip)
titles_and_texts = st.tuples(texts, texts).filter(lambda pair: any(map(str.strip, pair)))
passages = st.tuples(titles_and_texts, st.sampled_from([None, True, False]))
# Fields of questions and corpora; the records are made of them in the tests, as the type checks of
# the records draw random numbers, which strategies must not.
questions = st.lists(
    st.tuples(
        filled,
        filled,
        st.lists(filled, min_size=1, max_size=3),
        st.lists(passages, max_size=3),
        st.none() | filled,
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda fields: fields[0],
)
corpora = st.lists(
    st.tuples(filled, titles_and_texts), min_size=1, max_size=4, unique_by=lambda fields: fields[0]
)

GOOD = {"id": "a", "question": "who?", "answers": ["me"], "passages": []}


def write_lines(path: Path, *rows: object) -> Path:
    """Writes rows as JSON, strings as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@given(rows=questions)
def test_questions_come_back_as_written(tmp_path_factory, suffix, rows):
    records = [
        Question(
            id_, question, tuple(answers), tuple(Passage(*pair, gold) for pair, gold in found), kind
        )
        for id_, question, answers, found, kind in rows
    ]
    path = tmp_path_factory.mktemp("folder") / f"dev{suffix}"
    write_questions(path, records)
    assert list(read_questions(path)) == records


@given(rows=corpora)
def test_corpora_come_back_as_written(tmp_path_factory, rows):
    records = [CorpusPassage(id_, *pair) for id_, pair in rows]
    path = tmp_path_factory.mktemp("folder") / "wiki.jsonl.gz"
    write_corpus(path, records)
    assert list(read_corpus(path)) == records


def test_same_questions_are_same_bytes_anywhere(tmp_path):
    question = Question("a", "who?", ("é",), (Passage("", "text", True),), "bridge")
    for name in ("one.jsonl.gz", "two.jsonl.gz", "plain.jsonl"):
        write_questions(tmp_path / name, [question])
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert (tmp_path / "one.jsonl.gz").read_bytes()[4:8] == bytes(4)  # no time of writing
    expected = (
        '{"id": "a", "question": "who?", "answers": ["é"], '
        '"passages": [{"title": "", "text": "text", "is_gold": true}], "type": "bridge"}\n'
    )
    assert (tmp_path / "plain.jsonl").read_text() == expected
    assert gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()).decode() == expected


@pytest.mark.parametrize("name", ["dev.jsonl", "dev.jsonl.gz"])
def test_files_are_written_whole_or_not_at_all(tmp_path, name):
    def rows_until_failure():
        yield Question("b", "who?", ("me",), ())
        raise OSError("no more")

    path = tmp_path / name
    question = Question("a", "who?", ("me",), ())
    write_questions(path, [question])
    with pytest.raises(OSError, match="no more"):
        write_questions(path, rows_until_failure())
    assert list(tmp_path.iterdir()) == [path]
    assert list(read_questions(path)) == [question]


@pytest.mark.parametrize("name", ["wiki.jsonl", "wiki.jsonl.gz"])
def test_rows_are_written_one_by_one(tmp_path, name):
    passages = (CorpusPassage(str(index), "", f"{index}" * 5000) for index in range(1000))
    tracemalloc.start()
    write_corpus(tmp_path / name, passages)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # of over 14 million bytes
    assert sum(1 for _ in read_corpus(tmp_path / name)) == 1000


def test_lines_are_read_one_by_one(tmp_path):
    path = write_lines(tmp_path / "dev.jsonl", GOOD, "{")
    rows = read_questions(path)
    assert next(rows).id == "a"
    with pytest.raises(DataError, match="line 2"):
        next(rows)


def test_only_a_line_feed_ends_a_line(tmp_path):
    row = json.dumps({**GOOD, "question": "a\u2028b"}, ensure_ascii=False, indent=1)
    path = tmp_path / "dev.jsonl"
    path.write_bytes(row.replace("\n", "\r").encode() + b"\r\n{")
    rows = read_questions(path)
    assert next(rows).question == "a\u2028b"
    with pytest.raises(DataError, match="line 2"):
        next(rows)


def test_keys_that_are_not_named_are_not_read(tmp_path):
    path = write_lines(tmp_path / "dev.jsonl", {**GOOD, "score": 1})
    assert next(read_questions(path)) == Question("a", "who?", ("me",), (), None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "the line is not JSON: Expecting property name"),
        ("", "the line is not JSON: Expecting value"),
        ("[" * 100_000, "the line is not JSON"),
        ("9" * 4301, "the line is not JSON: Exceeds the limit"),
        ([1], r"the line must be an object, found \[1\]"),
        ({}, "no 'answers'"),
        ({**GOOD, "id": 3}, "id must be a text, found 3"),
        ({**GOOD, "id": ""}, "id is blank"),
        ({**GOOD, "question": " "}, "question is blank: ' '"),
        ({**GOOD, "question": "\ud800"}, "question holds half a surrogate pair"),
        ({**GOOD, "answers": []}, r"answers must be a list of one answer or more, found \[\]"),
        ({**GOOD, "answers": "me"}, "answers must be a list of one answer or more, found 'me'"),
        ({**GOOD, "answers": ["me", ""]}, "an answer is blank"),
        ({**GOOD, "passages": None}, "passages must be a list, found None"),
        ({**GOOD, "passages": ["a"]}, "a passage must be an object, found 'a'"),
        ({**GOOD, "passages": [{"title": "a"}]}, "no 'text'"),
        ({**GOOD, "passages": [{"text": "a"}]}, "no 'title'"),
        (
            {**GOOD, "passages": [{"title": "", "text": " "}]},
            "a passage has neither title nor text",
        ),
        (
            {**GOOD, "passages": [{"title": "", "text": "a", "is_gold": 1}]},
            "is_gold must be true, false or null, found 1",
        ),
        ({**GOOD, "type": ""}, "type is blank"),
        (GOOD, "id 'a' is that of row 1 too"),
    ],
)
def test_malformed_questions_are_refused_by_file_and_line(tmp_path, row, message):
    path = write_lines(tmp_path / "dev.jsonl", GOOD, row, {**GOOD, "id": "c"})
    with pytest.raises(DataError, match=rf"dev\.jsonl, line 2: {message}"):
        list(read_questions(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "b", "title": "", "text": ""}, "neither title nor text"),
        ({"id": "b", "title": "t"}, "no 'text'"),
        ({"id": "a", "title": "t", "text": "x"}, "id 'a' is that of row 1 too"),
    ],
)
def test_malformed_corpora_are_refused_by_file_and_line(tmp_path, row, message):
    good = {"id": "a", "title": "", "text": "x"}
    path = write_lines(tmp_path / "wiki.jsonl", good, row)
    with pytest.raises(DataError, match=rf"wiki\.jsonl, line 2: .*{message}"):
        list(read_corpus(path))


# With hashes, so that compression leaves bytes of every line.
LINES = [
    json.dumps({**GOOD, "id": f"{i}", "question": hashlib.sha256(bytes([i])).hexdigest()}).encode()
    + b"\n"
    for i in range(99)
]
ZIPPED = gzip.compress(b"".join(LINES), mtime=0)
HALF = ZIPPED[: len(ZIPPED) // 2]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"plain", 1),
        (ZIPPED[:-8], 100),  # without its checksum, all lines are there
        (HALF, zlib.decompressobj(wbits=31).decompress(HALF).count(b"\n") + 1),
        (gzip.compress(b"".join(LINES[:3]), mtime=0) + b"garbage", 4),
        (b"\x1f\x8b\x08", 1),
    ],
)
def test_broken_gzip_is_refused(tmp_path, content, line):
    path = tmp_path / "dev.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*dev\.jsonl\.gz, line {line}: "):
        list(read_questions(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@given(good=st.integers(0, 40), bad=st.sampled_from([b"\xff", b"\xe6\x9d", b"\xed\xa0\x80"]))
def test_lines_that_are_not_utf_8_are_refused(tmp_path_factory, suffix, good, bad):
    path = tmp_path_factory.mktemp("folder") / f"dev{suffix}"
    content = b"".join([*LINES[:good], b'{"id": "' + bad + b'"}\n', *LINES[good:]])
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    rows = read_questions(path)
    assert [next(rows).id for _ in range(good)] == [str(index) for index in range(good)]
    with pytest.raises(DataError, match=rf"cannot read .*{path.name}, line {good + 1}: .*utf-8"):
        next(rows)


def test_empty_files_are_refused(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.touch()
    with pytest.raises(DataError, match=r"wiki\.jsonl is empty"):
        list(read_corpus(path))


def test_files_are_found_by_name(tmp_path):
    dev = write_lines(tmp_path / "nq" / "dev.jsonl", GOOD)
    wiki = write_lines(tmp_path / "corpora" / "wiki.jsonl.gz")
    assert find_splits(tmp_path / "nq") == {"dev": dev}
    assert find_corpus(tmp_path, "wiki") == wiki
    assert find_file(tmp_path / "nq", "train") is None
    with pytest.raises(DataError, match="no corpus 'wik'; there are: wiki"):
        find_corpus(tmp_path, "wik")
    with pytest.raises(DataError, match="holds no benchmark"):
        find_splits(tmp_path / "corpora")
    write_lines(tmp_path / "nq" / "dev.jsonl.gz")
    with pytest.raises(DataError, match=r"both dev\.jsonl and dev\.jsonl\.gz"):
        find_splits(tmp_path / "nq")
