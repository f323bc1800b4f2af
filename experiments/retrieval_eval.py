"""Hold retrievers against each other: how often they find an answer, or the gold passages.

Every benchmark of a local folder (`docs/data.md`) by BM25, by dense retrieval and by the fusion of
their rankings. Answer recall at k is the share of questions with an answer's words in one of the
first k passages, title or text; as `answer_string`, with an answer anywhere in one, be it within a
word. Gold recall at k is the mean share of a question's gold passages
that are among the first k, over the questions that have any.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from experiments.support import retrieval_report
from experiments.support.command import check_numbers, run_command
from experiments.support.retrieval_measures import (
    COMPARED_AT,
    compare_retrievers,
    find_benchmarks,
    found_passages,
    recall_table,
)
from experiments.support.retrievers import (
    HYBRID_PARTS,
    RetrieverName,
    make_retriever,
    read_encoder,
    read_sample,
)
from experiments.support.run_folder import Run, RunFolderError, open_run
from icorag_jax.data.folders import find_corpus, find_splits, read_corpus
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.retrieval.encoder import SentenceEncoder
from icorag_jax.retrieval.encoder_files import Prompts
from icorag_jax.retrieval.hybrid import Fusion, HybridIndex
from icorag_jax.retrieval.retriever import Index, corpus_fingerprint


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        data: folder of benchmarks and corpora.
        seed: of the draws of questions and of the bootstrap.
        resume: continue a run that was interrupted.
        benchmarks: which, or none for all that have the split.
        split: train, dev or test.
        retrievers: which.
        questions: how many of each benchmark, drawn at random, or all.
        encoder: folder or hub id of the dense retriever's encoder; by default the installed one.
        query_prompt: what it wants before a query, if its files do not say.
        passage_prompt: what it wants before a passage, if its files do not say.
        max_length: tokens a passage is cut to.
        batch_size: texts embedded at once.
        cache: folder to keep indexes in; by default one in the run's own.
        ks: places to look at.
        bootstrap: draws of an interval.
    """

    out: Path
    data: Path
    seed: int = 0
    resume: bool = False
    benchmarks: tuple[str, ...] = ()
    split: str = "dev"
    retrievers: tuple[RetrieverName, ...] = ("bm25", "dense", "hybrid")
    questions: int | None = None
    encoder: str | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    max_length: int = 256
    batch_size: int = 32
    cache: Path | None = None
    ks: tuple[int, ...] = (1, 3, 5, 10, 20)
    bootstrap: int = 2000


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "quick": {"questions": 100, "max_length": 64},
}


def main(config: Config) -> None:
    """Runs the experiment and writes its folder.

    Raises:
        ValueError: settings, data or an encoder that are not right; nothing is written.
        RunFolderError: as `open_run`, and where the folder holds a run on other data or with
            another encoder.
    """
    _check(config)
    corpora = find_benchmarks(config.data, config.split, config.benchmarks)
    questions = {
        name: read_sample(config.data / name, config.split, config.questions, config.seed)
        for name in corpora
    }
    # All of them now: what is malformed is found before anything is written.
    passages = {
        name: list(read_corpus(find_corpus(config.data, name)))
        for name in dict.fromkeys(corpora.values())
    }
    encoder = _encoder(config) if set(config.retrievers) - {"bm25"} else None
    inputs = describe_inputs(config, passages, list(questions), encoder)
    with (
        open_run(config.out, "retrieval_eval", config, resume=config.resume) as run,
        tqdm(total=2 * len(corpora) * len(config.retrievers), unit="cell") as progress,
    ):
        check_inputs(run.cell("inputs", lambda: inputs), inputs)
        run.write_table("inputs", inputs)
        found, costs = [], []
        for corpus in passages:
            cache = config.cache or run.path / "cache"
            indexes = Indexes(config, passages[corpus], encoder, cache)
            for retriever in config.retrievers:
                cost = build_cost(run, corpus, indexes, retriever)
                for benchmark in [name for name, of in corpora.items() if of == corpus]:
                    progress.set_description(f"{benchmark}, {retriever}")
                    asked, name = questions[benchmark], f"{benchmark}_{retriever}"
                    labels = {"benchmark": benchmark, "retriever": retriever}
                    search = functools.partial(indexes.search, retriever, asked)
                    found.append(run.cell(f"search_{name}", search).assign(**labels))
                    progress.update()
                    clock = functools.partial(indexes.search_cost, retriever, asked)
                    speed = run.cell(f"speed_{name}", clock)
                    costs.append(pd.concat([cost, speed], axis=1).assign(**labels))
                    progress.update()
        results = pd.concat(found, ignore_index=True)
        recall = recall_table(results, config.ks, config.bootstrap, config.seed)
        compared = compare_retrievers(results, config.retrievers, config.bootstrap, config.seed)
        run.write_table("found", results)
        run.write_table("recall", recall)
        run.write_table("comparisons", compared)
        # Times of this machine, which another run does not have: in a table of their own.
        cost = pd.concat(costs, ignore_index=True)
        run.write_table("costs", cost)
        for name, figure in retrieval_report.draw(recall).items():
            run.write_figure(name, figure)
        summary = retrieval_report.summarize(recall, compared, cost)
        run.write_account(retrieval_report.account(summary))
        run.write_summary(summary)


class Indexes:
    """The indexes of one corpus, each made when it is first asked for."""

    def __init__(
        self,
        config: Config,
        corpus: list[CorpusPassage],
        encoder: SentenceEncoder | None,
        cache: Path,
    ) -> None:
        """Makes nothing yet."""
        self.corpus = corpus
        self._config, self._encoder, self._cache = config, encoder, cache
        self._made: dict[str, Index] = {}

    def get(self, retriever: RetrieverName) -> Index:
        """An index, made now or before."""
        if retriever not in self._made:
            self._made[retriever] = self._make(retriever)
        return self._made[retriever]

    def build_cost(self, retriever: RetrieverName) -> pd.DataFrame:
        """Seconds, bytes, and how many passages were embedded rather than in the cache: one row.

        Not of the hybrid, whose index is those of its parts: `build_cost`.
        """
        start = time.perf_counter()
        index = self.get(retriever)
        return pd.DataFrame(
            {
                "passages": [len(self.corpus)],
                "build_seconds": [time.perf_counter() - start],
                "embedded_now": [index.computed],
                "bytes": [index.size_bytes],
            }
        )

    def search(self, retriever: RetrieverName, questions: list[Question]) -> pd.DataFrame:
        """What is found for questions: a row a question and place."""
        results = self.get(retriever).search(_texts(questions), _depth(self._config))
        return found_passages(questions, self.corpus, results)

    def search_cost(self, retriever: RetrieverName, questions: list[Question]) -> pd.DataFrame:
        """Seconds to search all questions at once, compiled before: one row."""
        index, k = self.get(retriever), _depth(self._config)
        index.search(_texts(questions), k)
        start = time.perf_counter()
        index.search(_texts(questions), k)
        seconds = time.perf_counter() - start
        return pd.DataFrame({"questions": [len(questions)], "search_seconds": [seconds]})

    def _make(self, retriever: RetrieverName) -> Index:
        if retriever == "hybrid":
            return HybridIndex(tuple(self.get(part) for part in HYBRID_PARTS), Fusion())
        made = make_retriever(
            retriever, self._encoder, self._config.max_length, self._config.batch_size, self._cache
        )
        return made.index(self.corpus)


def build_cost(run: Run, corpus: str, indexes: Indexes, retriever: RetrieverName) -> pd.DataFrame:
    """As `Indexes.build_cost`, kept in the run; the hybrid's is the sum of its parts'."""
    if retriever == "hybrid":
        parts = pd.concat([build_cost(run, corpus, indexes, part) for part in HYBRID_PARTS])
        return parts.groupby("passages").agg("sum").reset_index()
    build = functools.partial(indexes.build_cost, retriever)
    return run.cell(f"build_{corpus}_{retriever}", build)


def describe_inputs(
    config: Config,
    passages: Mapping[str, list[CorpusPassage]],
    benchmarks: list[str],
    encoder: SentenceEncoder | None,
) -> pd.DataFrame:
    """What a run depends on beside its settings: `input`, `sha256`, a row each."""
    found = {f"corpus {name}": corpus_fingerprint(corpus) for name, corpus in passages.items()}
    for name in benchmarks:
        path = find_splits(config.data / name)[config.split]
        found[f"questions of {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if encoder is not None:
        found["encoder"] = encoder.fingerprint()
    return pd.DataFrame({"input": list(found), "sha256": list(found.values())})


def check_inputs(there: pd.DataFrame, now: pd.DataFrame) -> None:
    """Checks that a run goes on with what it began with.

    Args:
        there: as `describe_inputs`, when the run began.
        now: as `describe_inputs`.

    Raises:
        RunFolderError: they differ.
    """
    began, found = (dict(zip(t["input"], t["sha256"], strict=True)) for t in (there, now))
    different = [name for name in began | found if began.get(name) != found.get(name)]
    if different:
        raise RunFolderError(
            f"data or encoder changed since this run began: {', '.join(different)}; pass another "
            "--out"
        )


def _encoder(config: Config) -> SentenceEncoder:
    prompts = Prompts(config.query_prompt, config.passage_prompt)
    return read_encoder(config.encoder, prompts, config.max_length)


def _depth(config: Config) -> int:
    """Places to search for: all that are looked at, those of the comparisons as well."""
    return max(*config.ks, COMPARED_AT)


def _texts(questions: list[Question]) -> list[str]:
    return [question.question for question in questions]


def _check(config: Config) -> None:
    check_numbers(config)
    for name in ("retrievers", "ks"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, got {list(values)}")


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
