"""The seven benchmarks: where their makers publish them, and how a row becomes a question.

Splits are those of the source that have answers; a split `dev` is what the source calls dev or
validation. Only HotpotQA, 2WikiMultihopQA and MuSiQue publish passages, with gold labels; for the
others passages are to be retrieved.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from icorag_jax.data.benchmarks.raw_files import RawFile, read_raw_file
from icorag_jax.data.folders import DataError, parse_rows, question_from_row
from icorag_jax.data.records import Question


@dataclasses.dataclass(frozen=True)
class Source:
    """A benchmark's public source.

    Attributes:
        homepage: of its makers.
        license: that the source states.
        files: the file of each split.
        convert: makes of a row the keys and values of a line of a local folder. Its second
            argument is the id of rows that have none in the source, say `dev_17`. Who changes what
            it makes must raise `builders.ResumableBuilder.VERSION`.
    """

    homepage: str
    license: str
    files: Mapping[str, RawFile]
    convert: Callable[[dict[str, Any], str], dict[str, Any]]


def read_public_questions(benchmark: str, split: str, path: Path) -> Iterator[Question]:
    """The questions of a file that was downloaded; their ids are `BENCHMARK/ID`.

    Args:
        benchmark: a key of `SOURCES`.
        split: one of the source's splits.
        path: the split's file, as it was published.

    Raises:
        DataError: the file cannot be read, or a row is malformed or has an id that was there
            before; the message has the file and the row.
    """
    source = SOURCES[benchmark]

    def parse(numbered: tuple[int, Any]) -> Question:
        index, raw = numbered
        if not isinstance(raw, dict):
            raise DataError(f"a row must be an object, found {raw!r:.60}")
        try:
            row = source.convert(raw, f"{split}_{index}")
        except KeyError as error:
            raise DataError(f"no {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not laid out as rows of {benchmark} are: {error}") from error
        return question_from_row({**row, "id": f"{benchmark}/{row['id']}"})

    rows = enumerate(read_raw_file(path, source.files[split]))
    return parse_rows(path, ((where, (index, raw)) for index, (where, raw) in rows), parse)


def _convert_nq(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {"id": name, "question": raw["question"], "answers": raw["answer"], "passages": []}


def _convert_triviaqa(raw: dict[str, Any], name: str) -> dict[str, Any]:
    del name
    # The answer is one of its aliases for most questions; some aliases are blank.
    known = [raw["answer"]["value"], *raw["answer"]["aliases"]]
    return {
        "id": raw["question_id"],
        "question": raw["question"],
        "answers": _distinct([answer for answer in known if answer.strip()]),
        "passages": [],
    }


def _convert_popqa(raw: dict[str, Any], name: str) -> dict[str, Any]:
    del name
    return {
        "id": raw["id"],
        "question": raw["question"],
        "answers": json.loads(raw["possible_answers"]),
        "passages": [],
        "type": raw["prop"],
    }


def _convert_hotpotqa(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Rows of HotpotQA, and of 2WikiMultihopQA, which keeps to its layout.

    Sentences are joined by single spaces: those of HotpotQA begin with one, those of
    2WikiMultihopQA do not.
    """
    del name
    gold = {title for title, _ in raw["supporting_facts"]}
    return {
        "id": raw["_id"],
        "question": raw["question"],
        "answers": [raw["answer"]],
        "passages": [
            {
                "title": title,
                "text": " ".join(stripped for text in sentences if (stripped := text.strip())),
                "is_gold": title in gold,
            }
            for title, sentences in raw["context"]
        ],
        "type": raw["type"],
    }


def _convert_musique(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Rows of MuSiQue-Answerable; the type is the shape of the reasoning, say `3hop1`."""
    del name
    return {
        "id": raw["id"],
        "question": raw["question"],
        "answers": _distinct([raw["answer"], *raw["answer_aliases"]]),
        "passages": [
            {
                "title": paragraph["title"],
                "text": paragraph["paragraph_text"],
                "is_gold": paragraph["is_supporting"],
            }
            for paragraph in raw["paragraphs"]
        ],
        "type": raw["id"].partition("__")[0],
    }


def _convert_bamboogle(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {"id": name, "question": raw["Question"], "answers": [raw["Answer"]], "passages": []}


def _distinct(answers: list[str]) -> list[str]:
    return list(dict.fromkeys(answers))


_NQ = "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/nq_open"
_TRIVIAQA = (
    "https://huggingface.co/datasets/mandarjoshi/trivia_qa/resolve/main/unfiltered.nocontext"
)
_POPQA = "https://huggingface.co/datasets/akariasai/PopQA/resolve/main/test.tsv"
_HOTPOTQA = "http://curtis.ml.cmu.edu/datasets/hotpot"
_WIKIMULTIHOP = "https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?dl=1"
_MUSIQUE = (
    "https://drive.usercontent.google.com/download"
    "?id=1tGdADlNjWFaHLeZZGShh2IRcpO6Lv24h&export=download&confirm=t"
)
_BAMBOOGLE = (
    "https://docs.google.com/spreadsheets/d/1jwcsA5kE4TObr9YHn9Gc-wQHYjTbLhDGx6tmIzMhl_U"
    "/export?format=csv"
)

SOURCES: Mapping[str, Source] = {
    "nq": Source(
        "https://github.com/google-research-datasets/natural-questions/tree/master/nq_open",
        "CC BY-SA 3.0",
        {
            split: RawFile(f"{_NQ}/NQ-open.{split}.jsonl", "json_lines")
            for split in ("train", "dev")
        },
        _convert_nq,
    ),
    "triviaqa": Source(
        "https://nlp.cs.washington.edu/triviaqa",
        "none stated",
        {
            split: RawFile(f"{_TRIVIAQA}/{name}-00000-of-00001.parquet", "parquet")
            for split, name in (("train", "train"), ("dev", "validation"))
        },
        _convert_triviaqa,
    ),
    "popqa": Source(
        "https://github.com/AlexTMallen/adaptive-retrieval",
        "MIT",
        {"test": RawFile(_POPQA, "tsv")},
        _convert_popqa,
    ),
    "hotpotqa": Source(
        "https://hotpotqa.github.io",
        "CC BY-SA 4.0",
        {
            "train": RawFile(f"{_HOTPOTQA}/hotpot_train_v1.1.json", "json_array"),
            "dev": RawFile(f"{_HOTPOTQA}/hotpot_dev_distractor_v1.json", "json_array"),
        },
        _convert_hotpotqa,
    ),
    "2wikimultihopqa": Source(
        "https://github.com/Alab-NII/2wikimultihop",
        "Apache-2.0",
        {
            split: RawFile(_WIKIMULTIHOP, "json_array", f"{split}.json")
            for split in ("train", "dev")
        },
        _convert_hotpotqa,
    ),
    "musique": Source(
        "https://github.com/StonyBrookNLP/musique",
        "CC BY 4.0",
        {
            split: RawFile(_MUSIQUE, "json_lines", f"musique_ans_v1.0_{split}.jsonl")
            for split in ("train", "dev")
        },
        _convert_musique,
    ),
    "bamboogle": Source(
        "https://github.com/ofirpress/self-ask",
        "MIT",
        {"test": RawFile(_BAMBOOGLE, "csv")},
        _convert_bamboogle,
    ),
}
