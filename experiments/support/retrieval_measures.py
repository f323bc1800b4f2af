"""What retrievers found: benchmarks and their corpora, recall with intervals, comparisons."""

import functools
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.support.statistics import bootstrap_means
from icorag_jax.data.answers import answer_hits, gold_recall_at, normalize_answer, recall_at
from icorag_jax.data.comparison import compare
from icorag_jax.data.folders import DataError, find_file
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.retrieval.retriever import MISSING, SearchResults, passage_text

# Benchmarks that are searched in a corpus of another name.
CORPORA = {"nq": "wiki18", "triviaqa": "wiki18", "bamboogle": "wiki18", "2wikimultihopqa": "2wiki"}
COMPARED_AT = 5


def find_benchmarks(data: Path, split: str, names: Sequence[str]) -> dict[str, str]:
    """The corpus of each benchmark: the one in `CORPORA`, or of its name, or the only one there.

    Args:
        data: folder of benchmarks and corpora.
        split: that a benchmark must have.
        names: of benchmarks; none for all that have the split.

    Raises:
        DataError: no folder, no benchmark, one without the split or without a corpus.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder")
    corpora = {path.name.partition(".jsonl")[0] for path in (data / "corpora").glob("*.jsonl*")}
    folders = sorted(path for path in data.iterdir() if path.is_dir() and path.name != "corpora")
    chosen = names or [folder.name for folder in folders if find_file(folder, split)]
    if not chosen:
        raise DataError(f"{data} has no benchmark with a file {split}.jsonl or {split}.jsonl.gz")
    found = {}
    for name in chosen:
        if find_file(data / name, split) is None:
            raise DataError(f"{data / name} has no file {split}.jsonl or {split}.jsonl.gz")
        candidates = [CORPORA.get(name), name, *(corpora if len(corpora) == 1 else ())]
        corpus = next((candidate for candidate in candidates if candidate in corpora), None)
        if corpus is None:
            there = ", ".join(sorted(corpora)) or "none"
            raise DataError(f"{data / 'corpora'} has no corpus of {name!r}; there are: {there}")
        found[name] = corpus
    return found


def found_passages(
    questions: Sequence[Question], corpus: Sequence[CorpusPassage], results: SearchResults
) -> pd.DataFrame:
    """A row a question and place.

    Returns:
        `question`, `rank` (from 1), `passage` (its id, None where there is none), `content` (the
        id of the corpus's first passage with the same title and text), `score`, `answer` (whether
        title or text have one, in whole words), `answer_string` (whether they have one anywhere),
        `gold` (whether it is a gold passage of the question, the same
        title and text), `golds` (how many the question has).
    """
    first: dict[tuple[str, str], str] = {}
    for passage in corpus:
        first.setdefault((passage.title, passage.text), passage.id)
    rows = []
    for question, ids, scores in zip(questions, results.ids, results.scores, strict=True):
        gold = {(p.title, p.text) for p in question.passages if p.is_gold}
        passages = [corpus[position] if position != MISSING else None for position in ids]
        texts = [passage_text(passage) if passage else "" for passage in passages]
        hits = answer_hits(texts, question.answers)
        strings = _string_hits(texts, question.answers)
        for rank, (passage, score, hit, string) in enumerate(
            zip(passages, scores, hits, strings, strict=True), start=1
        ):
            rows.append(
                {
                    "question": question.id,
                    "rank": rank,
                    "passage": passage.id if passage else None,
                    "content": first[passage.title, passage.text] if passage else None,
                    "score": float(score),
                    "answer": hit,
                    "answer_string": string,
                    "gold": passage is not None and (passage.title, passage.text) in gold,
                    "golds": len(gold),
                }
            )
    return pd.DataFrame(rows).astype({"passage": "string", "content": "string"})


def recall_table(found: pd.DataFrame, ks: Sequence[int], bootstrap: int, seed: int) -> pd.DataFrame:
    """Recall at each k, with 95% bootstrap intervals over questions.

    Args:
        found: as `found_passages`, with `benchmark` and `retriever`.
        ks: places to look at.
        bootstrap: draws of an interval.
        seed: of the draws.

    Returns:
        `benchmark`, `retriever`, `measure` (`answer`, `answer_string`, and `gold` where questions
        have gold passages), `k`, `mean`, `low`, `high`, `questions`: a row each.
    """
    rows = []
    for benchmark, retriever in dict.fromkeys(
        zip(found["benchmark"], found["retriever"], strict=True)
    ):
        of_both = (found["benchmark"] == benchmark) & (found["retriever"] == retriever)
        part = found.loc[of_both]
        for measure, recall in _MEASURES.items():
            values = np.array([list(recall(part, k).values()) for k in ks])
            if not values.size:
                continue
            rng = np.random.default_rng([seed, zlib.crc32(f"{benchmark} {measure}".encode())])
            means = bootstrap_means(values[:, None], bootstrap, rng)
            low, high = np.quantile(means, [0.025, 0.975], axis=0)
            for place, k in enumerate(ks):
                rows.append(
                    {
                        "benchmark": benchmark,
                        "retriever": retriever,
                        "measure": measure,
                        "k": k,
                        "mean": float(values[place].mean()),
                        "low": float(low[place]),
                        "high": float(high[place]),
                        "questions": values.shape[1],
                    }
                )
    return pd.DataFrame(rows)


def compare_retrievers(
    found: pd.DataFrame, retrievers: Sequence[str], draws: int, seed: int
) -> pd.DataFrame:
    """Answer recall at `COMPARED_AT` of each retriever less that of each before it, by question.

    Benchmarks of one question alone are left out.

    Args:
        found: as `found_passages`, with `benchmark` and `retriever`; `COMPARED_AT` ranks at least.
        retrievers: in this order.
        draws: of intervals and p-values.
        seed: of the draws.

    Returns:
        `benchmark`, `retriever`, `other` and the fields of `Comparison`: a row each.

    Raises:
        ValueError: fewer ranks were searched.
    """
    depth = found["rank"].to_numpy().max()
    if depth < COMPARED_AT:
        raise ValueError(f"recall at {COMPARED_AT} takes as many ranks, got {depth}; search deeper")
    columns = ["benchmark", "retriever", "other", "difference", "low", "high", "p_value", "count"]
    rows = []
    for benchmark, part in found.groupby("benchmark", sort=False):
        recalls = {
            retriever: _answer_recall(part.loc[part["retriever"] == retriever], COMPARED_AT)
            for retriever in retrievers
        }
        for other, retriever in itertools.combinations(retrievers, 2):
            if len(recalls[other]) > 1:
                compared = compare(recalls[retriever], recalls[other], draws=draws, seed=seed)
                rows.append([benchmark, retriever, other, *compared])
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _answer_recall(found: pd.DataFrame, k: int, column: str = "answer") -> dict[str, float]:
    hits = found.sort_values("rank").groupby("question", sort=False)[column].agg(list)
    return recall_at(hits.to_dict(), k)


def _string_hits(texts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which texts have an answer in them once both are normalized, be it within a word."""
    wanted = [answer for answer in map(normalize_answer, answers) if answer]
    return [any(answer in text for answer in wanted) for text in map(normalize_answer, texts)]


def _gold_recall(found: pd.DataFrame, k: int) -> dict[str, float]:
    """By question; those without a gold passage are left out."""
    ranked: dict[str, list[object]] = {}
    gold: dict[str, list[object]] = {}
    kept = found.loc[found["golds"] > 0].sort_values("rank")
    for question, part in kept.groupby("question", sort=False):
        key = str(question)
        # By content: a passage that the corpus has twice is one passage.
        ranked[key] = part["content"].tolist()
        hits = part.loc[part["gold"], "content"].unique().tolist()
        # Those that were not found have names that nothing else has.
        lacking = int(part["golds"].iloc[0]) - len(hits)
        assert lacking >= 0, "more gold passages were found than there are"
        gold[key] = [*hits, *((number, "not found") for number in range(lacking))]
    return gold_recall_at(ranked, gold, k)


_MEASURES = {
    "answer": _answer_recall,
    "answer_string": functools.partial(_answer_recall, column="answer_string"),
    "gold": _gold_recall,
}
