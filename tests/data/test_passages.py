"""Files of passages, of every kind."""

import gzip

import pytest

from icorag_jax.data.folders import DataError
from icorag_jax.data.passages import read_passages
from icorag_jax.data.records import CorpusPassage

LINES = '{"title": "A", "text": "one"}\n{"text": "two", "id": "x", "more": 1}\n'
FOUND = [CorpusPassage("1", "A", "one"), CorpusPassage("x", "", "two")]


def test_json_lines(tmp_path):
    (tmp_path / "passages.jsonl").write_text(LINES)
    (tmp_path / "passages.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    assert read_passages(tmp_path / "passages.jsonl") == FOUND
    assert read_passages(tmp_path / "passages.jsonl.gz") == FOUND


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\n  two  words\n", ["one", "two words"]),
        ("one\nmore\n\n\ntwo\r\n \nthree", ["one more", "two", "three"]),
        ("\n\none line\n", ["one line"]),
        ("\none\ntwo\n\n", ["one", "two"]),
    ],
)
def test_plain_text(tmp_path, text, expected):
    path = tmp_path / "passages.txt"
    path.write_bytes(text.encode())
    found = read_passages(path)
    assert [passage.text for passage in found] == expected
    assert [passage.id for passage in found] == [str(i + 1) for i in range(len(expected))]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.csv", b"x", "must end in"),
        ("a.txt", b"\xff\xfe", "line 1"),
        ("a.jsonl.gz", b"no gzip", "line 1"),
        ("a.jsonl", b"{\n", "line 1: the line is not JSON"),
        ("a.jsonl", b'{"title": "t"}\n', "line 1: no 'text'"),
        ("a.jsonl", b'{"text": ""}\n', "line 1: a passage has neither"),
        ("a.jsonl", b'{"text": "a", "id": "2"}\n{"text": "b"}\n', "line 2: id '2'"),
        ("a.jsonl", b'["text"]\n', "line 1: the line must be an object"),
    ],
)
def test_files_that_will_not_do(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_passages(tmp_path / name)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_passages(tmp_path / "none.txt")
