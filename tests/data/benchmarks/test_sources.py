"""Rows made up in the layouts of the public sources, and files that are not of their layout."""

import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from icorag_jax.data.benchmarks import raw_files
from icorag_jax.data.benchmarks.raw_files import RawFile, read_raw_file
from icorag_jax.data.benchmarks.sources import SOURCES, read_public_questions
from icorag_jax.data.folders import DataError
from icorag_jax.data.records import Passage, Question


def zipped(name: str, content: str) -> bytes:
    """An archive as a Mac packs it, the file in a folder and its shadow beside."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(f"data/{name}", content)
        archive.writestr(f"__MACOSX/data/{name}", "shadow")
    return sink.getvalue()


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


HOTPOT_ROW = {
    "_id": "5a7a",
    "answer": "yes",
    "question": "Are Oslo and Bergen in Norway?",
    "supporting_facts": [["Oslo", 0], ["Bergen", 0]],
    "context": [
        ["Oslo", ["Oslo is a city.", " It is the capital of Norway."]],
        ["Tea", ["Tea is a drink."]],
        ["Bergen", []],
    ],
    "type": "comparison",
    "level": "hard",
}
MUSIQUE_ROW = {
    "id": "2hop__482757_12019",
    "paragraphs": [
        {"idx": 0, "title": "Tea", "paragraph_text": "Tea is a drink.", "is_supporting": False},
        {"idx": 1, "title": "Oslo", "paragraph_text": "Oslo is a city.", "is_supporting": True},
    ],
    "question": "Where?",
    "question_decomposition": [
        {"id": 482757, "question": "a", "answer": "b", "paragraph_support_idx": 1}
    ],
    "answer": "Oslo",
    "answer_aliases": ["Kristiania", "Oslo"],
    "answerable": True,
}
# The way that the makers of each benchmark lay out a file, and the questions it has.
FILES = {
    ("nq", "dev"): (
        b'{"question": "when did it start", "answer": ["1999", "8 January 1999"]}\n'
        b'{"question": "who", "answer": ["me"]}\n',
        [
            Question("nq/dev_0", "when did it start", ("1999", "8 January 1999"), ()),
            Question("nq/dev_1", "who", ("me",), ()),
        ],
    ),
    ("triviaqa", "train"): (
        parquet(
            [
                {
                    "question": "Which city?",
                    "question_id": "tc_3",
                    "question_source": "http://www.triviacountry.com/",
                    "answer": {
                        "aliases": ["Kristiania", "Oslo", ""],
                        "normalized_aliases": ["kristiania", "oslo"],
                        "value": "Oslo",
                        "type": "WikipediaEntity",
                    },
                }
            ]
        ),
        [Question("triviaqa/tc_3", "Which city?", ("Oslo", "Kristiania"), ())],
    ),
    ("popqa", "test"): (
        b"id\tsubj\tprop\tobj\tquestion\tpossible_answers\n"
        b"4222362\tGeorge Rankin\toccupation\tpolitician\tWhat is George Rankin's occupation?\t"
        b'"[""politician"", ""political leader""]"\n',
        [
            Question(
                "popqa/4222362",
                "What is George Rankin's occupation?",
                ("politician", "political leader"),
                (),
                "occupation",
            )
        ],
    ),
    ("hotpotqa", "dev"): (
        json.dumps([HOTPOT_ROW]).encode(),
        [
            Question(
                "hotpotqa/5a7a",
                "Are Oslo and Bergen in Norway?",
                ("yes",),
                (
                    Passage("Oslo", "Oslo is a city. It is the capital of Norway.", True),
                    Passage("Tea", "Tea is a drink.", False),
                    Passage("Bergen", "", True),
                ),
                "comparison",
            )
        ],
    ),
    ("2wikimultihopqa", "train"): (
        zipped(
            "train.json",
            json.dumps(
                [
                    {
                        **HOTPOT_ROW,
                        "context": [["Oslo", ["Oslo is a city.", "It is cold."]]],
                        "type": "bridge_comparison",
                        "evidences": [["Oslo", "country", "Norway"]],
                        "entity_ids": "Q1_Q2",
                    }
                ],
                indent=1,
            ),
        ),
        [
            Question(
                "2wikimultihopqa/5a7a",
                "Are Oslo and Bergen in Norway?",
                ("yes",),
                (Passage("Oslo", "Oslo is a city. It is cold.", True),),
                "bridge_comparison",
            )
        ],
    ),
    ("musique", "dev"): (
        zipped("musique_ans_v1.0_dev.jsonl", json.dumps(MUSIQUE_ROW) + "\n"),
        [
            Question(
                "musique/2hop__482757_12019",
                "Where?",
                ("Oslo", "Kristiania"),
                (
                    Passage("Tea", "Tea is a drink.", False),
                    Passage("Oslo", "Oslo is a city.", True),
                ),
                "2hop",
            )
        ],
    ),
    ("bamboogle", "test"): (
        '\ufeffQuestion,Answer\r\n"Who, then?",Gaston Leroux\r\n'.encode(),
        [Question("bamboogle/test_0", "Who, then?", ("Gaston Leroux",), ())],
    ),
}


def test_every_benchmark_has_a_file_here():
    assert {benchmark for benchmark, _ in FILES} == set(SOURCES)
    assert len(SOURCES) == 7


@pytest.mark.parametrize(("benchmark", "split"), FILES)
def test_rows_become_questions(tmp_path, benchmark, split):
    content, expected = FILES[benchmark, split]
    path = tmp_path / "download"
    path.write_bytes(content)
    assert list(read_public_questions(benchmark, split, path)) == expected


@pytest.mark.parametrize(
    ("benchmark", "split", "content", "message"),
    [
        (
            "nq",
            "dev",
            b'{"question": "who", "answer": ["me"]}\n{"question": 1}\n',
            "line 2: no 'answer'",
        ),
        ("nq", "dev", b'{"question": "who", "answer": []}\n', "line 1: answers must be a list"),
        ("nq", "dev", b'{"question": "who", "answer": ["me"]}\n{', "after line 1: Expecting"),
        ("nq", "dev", b'{"question": "who", "answer": ["me"]}\n\xff\n', "after line 1: .*utf-8"),
        ("nq", "dev", b"[1]\n", r"line 1: a row must be an object, found \[1\]"),
        ("nq", "dev", b"", "is empty"),
        ("hotpotqa", "dev", b"{}", r"after its beginning: expected \[, found {"),
        ("hotpotqa", "dev", b" ", r"after its beginning: expected \[, found the end"),
        (
            "hotpotqa",
            "dev",
            json.dumps([HOTPOT_ROW]).encode()[:-1],
            "after record 1: expected , or ], found the end",
        ),
        ("hotpotqa", "dev", json.dumps([HOTPOT_ROW]).encode()[:-9], "after its beginning: "),
        ("hotpotqa", "dev", b"[" * 100_000, "after its beginning: maximum recursion"),
        (
            "hotpotqa",
            "dev",
            json.dumps([HOTPOT_ROW, HOTPOT_ROW]).encode(),
            "record 2: id 'hotpotqa/5a7a' is that of row 1 too",
        ),
        ("triviaqa", "dev", b"no parquet", "cannot read"),
        (
            "popqa",
            "test",
            b"id\tprop\tquestion\tpossible_answers\n1\tcolour\twhat?\tred\n",
            "line 2: not laid out as rows of popqa are: Expecting value",
        ),
        ("popqa", "test", b"id\tprop\n1\tcolour\n", "line 2: no 'question'"),
        (
            "bamboogle",
            "test",
            b"Question,Answer\nWho?,Me\nWho?\n",
            "after line 2: line 3 has 1 fields, the header 2",
        ),
        (
            "bamboogle",
            "test",
            b"Question,Answer\nWho, then?,Me\n",
            "line 2 has 3 fields, the header 2",
        ),
        ("bamboogle", "test", b'Question,Answer\n"Who?', "after its beginning: unexpected end"),
        ("musique", "dev", b"no archive", "not a zip file"),
        ("musique", "dev", zipped("other.jsonl", ""), "one file musique_ans_v1.0_dev.jsonl"),
        (
            "musique",
            "dev",
            zipped("musique_ans_v1.0_dev.jsonl", '{"id": "x"}\n'),
            "download, musique_ans_v1.0_dev.jsonl, line 1: no",
        ),
    ],
)
def test_malformed_files_are_refused_by_row(tmp_path, benchmark, split, content, message):
    path = tmp_path / "download"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_public_questions(benchmark, split, path))


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30)), max_size=6),
    indent=st.sampled_from([None, 2]),
    chunk=st.integers(1, 40),
)
def test_arrays_are_read_whole_whatever_is_read_at_a_time(tmp_path_factory, rows, indent, chunk):
    path: Path = tmp_path_factory.mktemp("raw") / "rows.json"
    path.write_text(f" {json.dumps(rows, indent=indent)} \n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "_CHUNK", chunk)
        found = [row for _, row in read_raw_file(path, RawFile("", "json_array"))]
    assert found == rows


@given(
    text=st.lists(st.sampled_from(["[", "]", ",", "{}", '{"a": [1]}', " ", "12", "x"])).map(
        "".join
    ),
    chunk=st.integers(1, 40),
)
@example('[{"a":1}] [{"b":1}]', 40)
@example('[{"a":1}]trunc{', 40)
@example('[{"a":1}{"b":1}]', 40)
@example('[{"a":1},]', 40)
@example("[12,12]", 3)
def test_only_one_array_is_read(tmp_path_factory, text, chunk):
    path: Path = tmp_path_factory.mktemp("raw") / "rows.json"
    path.write_text(text)
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "_CHUNK", chunk)
        rows = read_raw_file(path, RawFile("", "json_array"))
        if isinstance(expected, list):
            assert [row for _, row in rows] == expected
        else:
            with pytest.raises(DataError, match=r"rows\.json after"):
                list(rows)
