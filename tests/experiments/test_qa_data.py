"""Questions of the world and of a folder with their passages, found once, and what is refused."""

import dataclasses
import inspect
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tyro

from experiments.support import qa_data
from experiments.support.qa_data import QaData, load_questions
from experiments.support.retrievers import RetrieverName
from icorag_jax.data.folders import write_corpus, write_questions
from icorag_jax.data.records import CorpusPassage, Passage, Question
from icorag_jax.data.world import FAMILIES, WorldConfig, generate_questions
from icorag_jax.retrieval import bm25, embeddings

WORLD = QaData(train_questions=2, evaluation_questions=1, train_seed=3, evaluation_seed=4)
CORPUS = [
    CorpusPassage("r", "Rome", "The capital of Italy lies on the Tiber."),
    CorpusPassage("p", "Paris", "The capital of France lies on the Seine."),
    CorpusPassage("t", "Tiber", "A river of Italy, famous in Rome."),
    CorpusPassage("m", "Mount Etna", "A volcano."),
]
QUESTIONS = [
    Question("1", "Which river flows through the capital of Italy?", ("the Tiber",), (
        Passage("Rome", "The capital of Italy lies on the Tiber.", True),
        Passage("Mount Etna", "A volcano.", False),
    )),
    Question("2", "Famous France?", ("Paris",), ()),
    Question("3", "Which volcano erupts?", ("Etna",), (Passage("Mount Etna", "A volcano."),)),
    Question("4", "Unknown words?", ("none",), ()),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "corpora" / "facts.jsonl.gz", CORPUS)
    write_corpus(folder / "corpora" / "heldout.jsonl", CORPUS[1:])
    write_questions(folder / "facts" / "train.jsonl", QUESTIONS[:2])
    write_questions(folder / "facts" / "dev.jsonl.gz", QUESTIONS)
    write_questions(folder / "heldout" / "dev.jsonl", QUESTIONS[2:])
    write_questions(folder / "heldout" / "test.jsonl", QUESTIONS[:1])
    write_questions(folder / "training" / "train.jsonl", QUESTIONS)
    return folder


@pytest.fixture
def nothing_is_computed(monkeypatch):
    """From when the value is called, nothing is embedded and no word is looked up."""

    def forbid():
        monkeypatch.setattr(embeddings, "embed", lambda *_, **__: pytest.fail("embedded again"))
        monkeypatch.setattr(bm25.Bm25, "tokenize", lambda *_: pytest.fail("searched again"))

    return forbid


class TestWorld:
    def test_questions(self, tmp_path):
        sets = load_questions(WORLD, tmp_path)
        for found, seed, split, count in (
            (sets.train, 3, "train", 2),
            (sets.evaluation, 4, "dev", 1),
        ):
            expected = list(generate_questions(WorldConfig(seed, 2, 1), split))
            assert tuple(found) == FAMILIES
            for family, questions in found.items():
                assert len(questions) == count
                assert [q.question for q in questions] == [q for q in expected if q.type == family]
            # From the passages of exactly these questions.
            ids = {f"{question.id}/{n}" for question in expected for n in range(10)}
            passages = [p for questions in found.values() for q in questions for p in q.passages]
            assert {passage.id for passage in passages} <= ids
            assert all(len(q.passages) <= 10 for questions in found.values() for q in questions)
        # Of names, archives and relations that the question has, so most are found.
        gold = [any(q.gold) for questions in sets.train.values() for q in questions]
        assert np.mean(gold) > 0.9

    def test_families_test_split_and_no_training(self, tmp_path):
        settings = dataclasses.replace(
            WORLD,
            benchmarks=("conflict", "bridge"),
            train_questions=0,
            evaluation_split="test",
            passages=2,
        )
        sets = load_questions(settings, tmp_path)
        assert sets.train == {} and list(sets.evaluation) == ["bridge", "conflict"]
        for family, (question,) in sets.evaluation.items():
            assert question.question.id == f"world/{family}/test/4/0"
            assert len(question.passages) == 2

    @pytest.mark.parametrize("retriever", get_args(RetrieverName))
    def test_found_once(self, tmp_path, nothing_is_computed, retriever):
        settings = dataclasses.replace(
            WORLD,
            benchmarks=("single_fact",),
            train_questions=1,
            retriever=retriever,
            # Few tokens and one shape: quick to compile.
            max_length=16,
            batch_size=10,
        )
        first = load_questions(settings, tmp_path)
        nothing_is_computed()
        again = load_questions(settings, tmp_path)
        assert again == first
        (question,) = again.evaluation["single_fact"]
        assert question.passages and list(question.scores) == sorted(question.scores)[::-1]
        for change in ({"evaluation_seed": 5}, {"passages": 3}, {"evaluation_questions": 2}):
            with pytest.raises(pytest.fail.Exception):
                load_questions(dataclasses.replace(settings, **change), tmp_path)

    def test_training_with_passages_of_several_retrievers(self, tmp_path):
        settings = dataclasses.replace(WORLD, benchmarks=("bridge",), max_length=16, batch_size=10)
        dense = dataclasses.replace(settings, retriever="dense")
        both = dataclasses.replace(settings, train_retrievers=("dense", "bm25"))
        found = load_questions(both, tmp_path)
        alone = [load_questions(one, tmp_path) for one in (dense, settings)]
        turns = zip(*(sets.train["bridge"] for sets in alone), strict=True)
        # A question with those of either, then the next one; what is asked has its own retriever.
        assert list(found.train["bridge"]) == [each for turn in turns for each in turn]
        assert found.train["bridge"][0].passages != found.train["bridge"][1].passages
        assert found.evaluation == alone[1].evaluation

    def test_a_sentence_is_more_like_its_question_than_its_passage_is(self, tmp_path):
        settings = dataclasses.replace(WORLD, benchmarks=("single_fact",), train_questions=0)
        whole, by_sentences = (
            load_questions(dataclasses.replace(settings, retriever=name), tmp_path)
            for name in ("dense", "sentences")
        )
        ((one,), (other,)) = (sets.evaluation["single_fact"] for sets in (whole, by_sentences))
        assert one.question == other.question and one.positive[0] and other.positive[0]
        assert other.scores[0] > one.scores[0]

    def test_a_result_that_was_damaged_is_found_again(self, tmp_path):
        settings = dataclasses.replace(WORLD, benchmarks=("bridge",))
        first = load_questions(settings, tmp_path)
        stored = list(tmp_path.glob("*/ids.npy"))
        assert len(stored) == 2
        for path in stored:
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        assert load_questions(settings, tmp_path) == first


class TestFolder:
    def test_questions(self, folder, tmp_path):
        sets = load_questions(QaData(folder, passages=3), tmp_path)
        # A benchmark without a train split is a held-out task.
        assert list(sets.train) == ["facts"] and list(sets.evaluation) == ["facts", "heldout"]
        assert [q.question for q in sets.train["facts"]] == QUESTIONS[:2]
        assert [q.question for q in sets.evaluation["facts"]] == QUESTIONS
        assert [q.question for q in sets.evaluation["heldout"]] == QUESTIONS[2:]
        capital, famous, volcano, unknown = sets.evaluation["facts"]
        # Words in common, by hand: "the capital of Italy" of Rome, then two words of either other.
        assert capital.passages[0].id == "r" and capital.gold[0] is True
        assert {p.id for p in capital.passages} == {"r", "p", "t"}
        assert {p.id for p in famous.passages} == {"p", "t"}
        assert [p.id for p in volcano.passages] == ["m"] and volcano.gold == (None,)
        assert unknown.passages == unknown.scores == ()
        # Of its own corpus, which lacks Rome.
        assert [p.id for p in sets.evaluation["heldout"][0].passages] == ["m"]

    def test_draws(self, folder, tmp_path):
        settings = QaData(folder, ("facts",), train_questions=0, evaluation_questions=2)
        drawn = set()
        for seed in range(8):
            sets = load_questions(dataclasses.replace(settings, seed=seed), tmp_path)
            assert sets.train == {}
            questions = [q.question for q in sets.evaluation["facts"]]
            assert questions == [q for q in QUESTIONS if q in questions]
            drawn.add(tuple(q.id for q in questions))
        assert all(len(ids) == 2 for ids in drawn) and len(drawn) > 1

    def test_other_data_are_searched_anew(self, folder, tmp_path):
        own = tmp_path / "data"
        write_corpus(own / "corpora" / "facts.jsonl", CORPUS)
        write_questions(own / "facts" / "dev.jsonl", QUESTIONS)
        settings = QaData(own)
        first = load_questions(settings, tmp_path / "cache")
        write_corpus(own / "corpora" / "facts.jsonl", CORPUS[::-1])
        other = load_questions(settings, tmp_path / "cache")
        for one, two in zip(first.evaluation["facts"], other.evaluation["facts"], strict=True):
            assert dict(zip(one.passages, one.scores, strict=True)) == pytest.approx(
                dict(zip(two.passages, two.scores, strict=True))
            )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": Path("missing")}, "missing is not a folder"),
            ({"benchmarks": ("nothing",)}, r"has no file dev\.jsonl"),
            ({"benchmarks": ("training",)}, r"has no file dev\.jsonl"),
            ({"retriever": "dense", "max_length": 513}, "max_length must be at most 512"),
            ({"retriever": "dense", "encoder": "./missing"}, "missing is not a folder"),
        ],
    )
    def test_bad_data(self, folder, tmp_path, changes, message):
        settings = QaData(**{"data": folder, **changes})
        with pytest.raises(ValueError, match=message):
            load_questions(settings, tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_a_folder_without_benchmarks(self, tmp_path):
        with pytest.raises(ValueError, match=r"has no benchmark with a file dev\.jsonl"):
            load_questions(QaData(tmp_path), tmp_path / "cache")


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"retriever": "colbert"},
                "retriever must be bm25 or dense or sentences or hybrid, got 'colbert'",
            ),
            ({"evaluation_split": "train"}, "evaluation_split must be dev or test, got 'train'"),
            ({"passages": 0}, "passages must be at least 1, got 0"),
            ({"train_questions": -1}, "train_questions must be at least 0"),
            ({"evaluation_questions": 0}, "evaluation_questions must be at least 1"),
            ({"evaluation_seed": -1}, "evaluation_seed must be at least 0"),
            ({"benchmarks": ("bridge", "bridge")}, "must be named once each"),
            ({"train_retrievers": ("bm25", "colbert")}, "train_retrievers must be .*'colbert'"),
            ({"train_retrievers": ("bm25", "bm25")}, "train_retrievers must be named once each"),
            ({"benchmarks": ("nq",)}, "among its families, single_fact, .*, got 'nq'"),
        ],
    )
    def test_bad_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            QaData(**changes)

    def test_command_line(self):
        """As options within another dataclass, each with its help."""

        @dataclasses.dataclass(frozen=True)
        class Outer:
            qa: QaData = dataclasses.field(default_factory=QaData)

        assert tyro.cli(Outer, args=[]).qa == QaData(data="world")
        args = ["--qa.data", "some/folder", "--qa.benchmarks", "nq", "popqa", "--qa.retriever"]
        found = tyro.cli(Outer, args=[*args, "dense"]).qa
        assert found == QaData(Path("some/folder"), ("nq", "popqa"), retriever="dense")
        documentation = inspect.getdoc(qa_data.QaData) or ""
        for field in dataclasses.fields(QaData):
            assert f"    {field.name}: " in documentation
