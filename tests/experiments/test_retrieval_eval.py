"""The evaluation end to end on a folder of its own, its recall by hand, and what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import retrieval_eval
from experiments.retrieval_eval import Config
from experiments.support import retrievers
from experiments.support.command import run_command
from experiments.support.retrieval_measures import (
    compare_retrievers,
    find_benchmarks,
    found_passages,
    recall_table,
)
from experiments.support.run_folder import RunFolderError
from icorag_jax.data.folders import write_corpus, write_questions
from icorag_jax.data.records import CorpusPassage, Passage, Question
from icorag_jax.data.texts import find_text_folder
from icorag_jax.retrieval.retriever import SearchResults

CORPUS = [
    CorpusPassage("r", "Rome", "The capital of Italy lies on the Tiber."),
    CorpusPassage("p", "Paris", "The capital of France lies on the Seine."),
    CorpusPassage("t", "Tiber", "A river of Italy, famous in Rome."),
    CorpusPassage("m", "Mount Etna", "A volcano."),
]
QUESTIONS = [
    Question("1", "Which river flows through the capital of Italy?", ("the Tiber", "Tevere"), (
        Passage("Rome", "The capital of Italy lies on the Tiber.", True),
        Passage("Tiber", "A river of Italy, famous in Rome.", True),
        Passage("Mount Etna", "A volcano.", False),
    )),
    Question("2", "What is the capital of France?", ("Paris",), (
        Passage("Paris", "The capital of France lies on the Seine.", True),
        Passage("Paris", "Of another edition.", True),
    )),
    Question("3", "Which volcano erupts?", ("Vesuvius",), (Passage("Mount Etna", "A volcano."),)),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "corpora" / "world.jsonl.gz", CORPUS)
    write_questions(folder / "facts" / "dev.jsonl", QUESTIONS)
    write_questions(folder / "more" / "dev.jsonl.gz", QUESTIONS[1:])
    write_questions(folder / "training" / "train.jsonl", QUESTIONS[:1])
    return folder


def make_config(out: Path, data: Path, **changes) -> Config:
    # The encoder in few tokens and one shape a time: quick to compile.
    settings = {"max_length": 16, "batch_size": 4, "ks": (1, 2), "bootstrap": 50}
    return Config(out, data, **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    retrieval_eval.main(make_config(out, data))
    return out


class TestCommand:
    def test_everything_is_measured(self, finished):
        recall = pd.read_parquet(finished / "recall.parquet")
        expected = 2 * 3 * 3 * 2  # benchmarks, retrievers, measures, ks
        assert len(recall) == len(recall.drop_duplicates(list(recall.columns[:4]))) == expected
        assert (recall["low"] <= recall["mean"]).all() and (recall["mean"] <= recall["high"]).all()
        costs = pd.read_parquet(finished / "costs.parquet")
        assert len(costs) == 2 * 3
        assert (costs[["search_seconds", "bytes"]] > 0).all(axis=None)
        # The hybrid is built of the others.
        for _, part in costs.set_index("retriever").groupby("benchmark"):
            built = part[["build_seconds", "embedded_now", "bytes"]]
            sums = built.loc["bm25"] + built.loc["dense"]
            np.testing.assert_allclose(built.loc["hybrid"].astype(float), sums.astype(float))
            assert part["passages"].eq(4).all()
        dense = costs.loc[costs["retriever"] == "dense"]
        assert (dense["embedded_now"] == 4).all() and (dense["bytes"] == 4 * 384 * 4).all()
        summary = json.loads((finished / "summary.json").read_text())
        assert set(summary["recall"]["gold"]["facts"]) == {"bm25", "dense", "hybrid"}
        assert summary["recall"]["answer"]["facts"]["bm25"]["1"]["questions"] == 3
        assert summary["recall"]["gold"]["facts"]["bm25"]["1"]["questions"] == 2
        assert len(summary["comparisons"]) == 2 * 3
        # They are of recall at 5, though `ks` ends at 2.
        found = pd.read_parquet(finished / "found.parquet")
        assert found.groupby(["benchmark", "retriever", "question"])["rank"].max().eq(5).all()
        hits = found.groupby(["benchmark", "retriever", "question"])["answer"].any()
        means = hits.groupby(["benchmark", "retriever"]).mean()
        for row in summary["comparisons"]:
            at, of = ((row["benchmark"], row[name]) for name in ("retriever", "other"))
            assert row["difference"] == pytest.approx(means[at] - means[of])
        account = (finished / "account.md").read_text()
        assert "easier" in account and "| facts | 3 | hybrid |" in account
        figures = {path.name: path.stat().st_size for path in (finished / "figures").iterdir()}
        assert set(figures) == {"answer_recall.png", "gold_recall.png"}
        assert min(figures.values()) > 1000

    def test_recall_of_bm25_by_hand(self, finished):
        summary = json.loads((finished / "summary.json").read_text())["recall"]
        answer, gold = (summary[measure]["facts"]["bm25"] for measure in ("answer", "gold"))
        # Rome and Paris come first; Vesuvius is nowhere.
        assert answer["1"]["mean"] == pytest.approx(2 / 3)
        # One of two gold passages each; then the Tiber, but the other edition is nowhere.
        assert gold["1"]["mean"] == pytest.approx(1 / 2)
        assert gold["2"]["mean"] == pytest.approx((1 + 1 / 2) / 2)

    def test_a_run_that_goes_on_has_the_same_results(self, finished, data, tmp_path):
        """Half the cells of a finished run are lost; times alone may differ."""
        out = tmp_path / "run"
        out.mkdir()
        kept = [path for path in sorted(finished.rglob("*")) if path.is_file()]
        for path in kept:
            lost = path.parent.name == "cells" and "dense" in path.name
            if path.name != "summary.json" and not lost:
                target = out / path.relative_to(finished)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        with pytest.raises(RunFolderError, match="pass --resume"):
            retrieval_eval.main(make_config(out, data))
        retrieval_eval.main(make_config(out, data, resume=True))
        for name in ("found", "recall", "comparisons"):
            file = f"{name}.parquet"
            assert (out / file).read_bytes() == (finished / file).read_bytes()
        costs = pd.read_parquet(out / "costs.parquet")
        assert (costs.loc[costs["retriever"] == "dense", "embedded_now"] == 0).all()

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("corpora/world.jsonl", "volcano", "corpus world"),
            ("facts/dev.jsonl", "Vesuvius", "questions of facts"),
        ],
    )
    def test_a_run_does_not_go_on_with_other_data(self, tmp_path, file, change, message):
        folder, out = tmp_path / "data", tmp_path / "run"
        write_corpus(folder / "corpora" / "world.jsonl", CORPUS)
        write_questions(folder / "facts" / "dev.jsonl", QUESTIONS)
        config = make_config(out, folder, retrievers=("bm25",), bootstrap=10)
        retrieval_eval.main(config)
        inputs = pd.read_parquet(out / "inputs.parquet")
        assert inputs["input"].tolist() == ["corpus world", "questions of facts"]
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        text = (folder / file).read_text()
        assert change in text
        (folder / file).write_text(text.replace(change, "other"))
        with pytest.raises(RunFolderError, match=f"run began: {message}; pass another --out"):
            retrieval_eval.main(dataclasses.replace(config, resume=True))
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        (folder / file).write_text(text)
        retrieval_eval.main(dataclasses.replace(config, resume=True))

    def test_a_run_does_not_go_on_with_another_encoder(self):
        there, now = (
            pd.DataFrame({"input": ["corpus world", "encoder"], "sha256": ["1", sha]})
            for sha in "23"
        )
        retrieval_eval.check_inputs(there, there)
        for other in (now, there[:1]):
            with pytest.raises(RunFolderError, match="run began: encoder; pass another"):
                retrieval_eval.check_inputs(there, other)

    def test_some_of_it(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr(retrievers, "find_default_encoder", lambda: 1 / 0)  # not needed
        args = ["--data", str(data), "--out", str(tmp_path / "run"), "--retrievers", "bm25"]
        args += ["--benchmarks", "more", "--questions", "1", "--ks", "5", "--bootstrap", "10"]
        run_command(retrieval_eval.main, Config, retrieval_eval.PRESETS, args)
        found = pd.read_parquet(tmp_path / "run" / "found.parquet")
        assert len(found) == 5 and set(found["benchmark"]) == {"more"}
        # The places left are empty.
        assert (
            found["passage"].isna().any() and not found.loc[found["passage"].isna(), "answer"].any()
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"benchmarks": ("nothing",)}, r"has no file dev\.jsonl"),
            ({"benchmarks": ("training",)}, r"has no file dev\.jsonl"),
            ({"split": "test"}, r"has no benchmark with a file test\.jsonl"),
            ({"data": Path("missing")}, "missing is not a folder"),
            ({"ks": ()}, "ks must be at least one"),
            ({"ks": (5, 5)}, "ks must be .*each once"),
            ({"ks": (0,)}, "ks must be at least 1"),
            ({"retrievers": ()}, "retrievers must be at least one"),
            ({"questions": 0}, "questions must be at least 1"),
            ({"max_length": 513}, "max_length must be at most 512"),
            ({"encoder": "./missing"}, "missing is not a folder"),
        ],
    )
    def test_bad_settings_write_nothing(self, data, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            retrieval_eval.main(make_config(tmp_path / "run", changes.pop("data", data), **changes))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("corpus", "message"),
        [
            ('{"id": "r", "title": "Rome"', r"world\.jsonl"),
            ("", r"world\.jsonl is empty"),
            ('{"id": "r", "title": "", "text": " "}', r"world\.jsonl, line 1: .*neither title"),
        ],
    )
    def test_a_bad_corpus_writes_nothing(self, tmp_path, corpus, message):
        folder = tmp_path / "data"
        write_questions(folder / "facts" / "dev.jsonl", QUESTIONS)
        (folder / "corpora").mkdir()
        (folder / "corpora" / "world.jsonl").write_text(corpus)
        with pytest.raises(ValueError, match=message):
            retrieval_eval.main(make_config(tmp_path / "run", folder))
        assert not (tmp_path / "run").exists()


class TestBenchmarks:
    def make_folder(self, folder: Path, corpora: list[str], benchmarks: list[str]) -> Path:
        for name in corpora:
            write_corpus(folder / "corpora" / f"{name}.jsonl", CORPUS)
        for name in benchmarks:
            write_questions(folder / name / "dev.jsonl", QUESTIONS)
        return folder

    def test_corpus_of_a_benchmark(self, tmp_path):
        folder = self.make_folder(tmp_path, ["wiki18", "popqa"], ["popqa", "nq"])
        assert find_benchmarks(folder, "dev", []) == {"nq": "wiki18", "popqa": "popqa"}
        assert find_benchmarks(folder, "dev", ["popqa"]) == {"popqa": "popqa"}

    def test_the_only_corpus(self, tmp_path):
        folder = self.make_folder(tmp_path, ["world"], ["bridge", "nq"])
        assert find_benchmarks(folder, "dev", []) == {"bridge": "world", "nq": "world"}

    def test_none(self, tmp_path):
        folder = self.make_folder(tmp_path, ["a", "b"], ["c"])
        with pytest.raises(ValueError, match="has no corpus of 'c'; there are: a, b"):
            find_benchmarks(folder, "dev", [])


class TestMeasures:
    IDS = np.array([[2, 0, 3], [0, 1, -1], [-1, -1, -1]], np.int32)

    def make_found(self, ids: np.ndarray = IDS) -> pd.DataFrame:
        scores = np.where(ids >= 0, np.float32(1.0), np.float32(-np.inf))
        return found_passages(QUESTIONS, CORPUS, SearchResults(ids, scores))

    def test_what_is_found(self):
        found = self.make_found()
        assert found["rank"].tolist() == [1, 2, 3] * 3
        assert found["passage"].fillna("-").tolist() == ["t", "r", "m", "r", "p", *"----"]
        assert found["answer"].tolist() == [True, True, False, False, True, *[False] * 4]
        assert found["gold"].tolist() == [True, True, False, False, True, *[False] * 4]
        assert found["golds"].tolist() == [2] * 6 + [0] * 3

    def test_recall(self):
        found = self.make_found().assign(benchmark="facts", retriever="bm25")
        table = recall_table(found, (1, 2), bootstrap=4000, seed=0)
        means = table.set_index(["measure", "k"])["mean"]
        assert means["answer", 1] == pytest.approx(1 / 3)
        assert means["answer", 2] == pytest.approx(2 / 3)
        assert means["gold", 1] == pytest.approx((1 / 2 + 0) / 2)
        assert means["gold", 2] == pytest.approx((1 + 1 / 2) / 2)
        # One right of three: all three draws right, or none, is one in 27, or eight.
        low, high = table.loc[0, ["low", "high"]]
        assert (low, high) == (0, 1)

    def test_a_passage_that_the_corpus_has_twice_counts_once(self):
        """Rome under two ids fills the first two places; the other gold passage is third."""
        corpus = [*CORPUS, dataclasses.replace(CORPUS[0], id="again")]
        ids = np.array([[4, 0, 2]], np.int32)
        found = found_passages(
            QUESTIONS[:1], corpus, SearchResults(ids, np.ones((1, 3), np.float32))
        ).assign(benchmark="facts", retriever="bm25")
        assert found["passage"].tolist() == ["again", "r", "t"]
        table = recall_table(found, (1, 2, 3), bootstrap=10, seed=0)
        means = table.set_index(["measure", "k"])["mean"]["gold"]
        assert means.tolist() == [1 / 2, 1 / 2, 1]

    def test_all_gold_passages_are_copies_of_one(self):
        corpus = [*CORPUS, dataclasses.replace(CORPUS[0], id="again")]
        question = dataclasses.replace(QUESTIONS[0], passages=QUESTIONS[0].passages[:1])
        results = SearchResults(np.array([[0, 4]], np.int32), np.ones((1, 2), np.float32))
        found = found_passages([question], corpus, results)
        table = recall_table(found.assign(benchmark="a", retriever="b"), (1, 2), 10, seed=0)
        assert table.loc[table["measure"] == "gold", "mean"].tolist() == [1, 1]

    def test_no_gold_labels(self):
        found = self.make_found().assign(benchmark="facts", retriever="bm25", golds=0, gold=False)
        assert set(recall_table(found, (1,), bootstrap=10, seed=0)["measure"]) == {
            "answer",
            "answer_string",
        }

    def test_an_answer_within_a_word(self):
        question = Question("1", "Who?", ("A Franc", "the"), ())  # within Francesca
        corpus = [CorpusPassage("f", "Francesca", "."), CorpusPassage("m", "Mount", "Theban")]
        results = SearchResults(np.array([[1, 0, -1]], np.int32), np.ones((1, 3), np.float32))
        found = found_passages([question], corpus, results)
        assert found["answer"].tolist() == [False] * 3
        assert found["answer_string"].tolist() == [False, True, False]
        table = recall_table(found.assign(benchmark="a", retriever="b"), (1, 2), 10, seed=0)
        means = table.groupby("measure")["mean"].agg(list)
        assert means["answer"] == [0, 0] and means["answer_string"] == [0, 1]

    def test_differences(self):
        ids = np.array([[2, 0, 3, -1, -1], [0, 3, -1, -1, 1], [-1] * 5], np.int32)
        found = self.make_found(ids)
        with pytest.raises(ValueError, match="recall at 5 takes as many ranks, got 4"):
            compare_retrievers(found[found["rank"] < 5].assign(benchmark="facts"), ("a",), 9, 0)
        none = found.assign(answer=False)
        both = pd.concat(
            [part.assign(benchmark="facts", retriever=name)
             for part, name in ((found, "bm25"), (none, "dense"))]
        )  # fmt: skip
        (row,) = compare_retrievers(both, ("bm25", "dense"), 200, seed=0).to_dict("records")
        assert (row["retriever"], row["other"], row["count"]) == ("dense", "bm25", 3)
        assert row["difference"] == pytest.approx(-2 / 3)


# Rates at 3, 5 and 10 of plain BM25 that came with the data, of answers anywhere in a passage, be
# it within a word.
RATES = {
    "nq": (0.68, 0.75, 0.80), "triviaqa": (0.69, 0.71, 0.73), "popqa": (0.71, 0.84, 0.86),
    "hotpotqa": (0.60, 0.71, 0.83), "2wikimultihopqa": (0.50, 0.56, 0.66),
    "musique": (0.25, 0.28, 0.38), "bamboogle": (0.14, 0.22, 0.28),
}  # fmt: skip


@pytest.mark.slow
def test_rates_on_real_data(tmp_path):
    folder = find_text_folder()
    if folder is None or not (folder / "corpora").is_dir():
        pytest.skip("no real data: name their folder in ICORAG_QA_FOLDER")
    retrieval_eval.main(
        Config(
            tmp_path / "run", folder, benchmarks=tuple(RATES), retrievers=("bm25",),
            ks=(3, 5, 10), bootstrap=10,
        )
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, rates in RATES.items():
        recall = summary["recall"]["answer_string"][name]["bm25"]
        for k, least in zip((3, 5, 10), rates, strict=True):
            assert recall[str(k)]["mean"] >= least, (name, k)


def test_importing_retrievers_does_not_start_jax():
    """A command says how many devices there are before JAX computes anything."""
    code = (
        "import jax; import experiments.retrieval_eval, icorag_jax.retrieval.faiss_index;"
        "jax.config.update('jax_num_cpu_devices', 3); print(len(jax.devices()))"
    )
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "3", done.stderr
