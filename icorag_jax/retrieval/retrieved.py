"""Questions with the passages that a retriever finds for them: what a reader is given."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from icorag_jax.data.answers import answer_hits
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.retrieval.retriever import MISSING, Index, SearchResults, passage_text


@dataclasses.dataclass(frozen=True)
class RetrievedQuestion:
    """A question and what was found for it.

    Attributes:
        question: the question, with the passages of its source, which nobody retrieved.
        passages: of the corpus, the best first; fewer than were asked for, or none, where the
            retriever finds no more.
        scores: the retriever's own, one a passage, descending.
    """

    question: Question
    passages: tuple[CorpusPassage, ...]
    scores: tuple[float, ...]

    def __post_init__(self):
        """Checks that every passage has a score."""
        if len(self.passages) != len(self.scores):
            raise ValueError(
                f"passages and scores must be as many, got {len(self.passages)} and "
                f"{len(self.scores)} for question {self.question.id!r}"
            )

    @property
    def gold(self) -> tuple[bool | None, ...]:
        """Whether each passage found is a gold passage of the question: the same title and text.

        None where that is not known: all of them if the question has no gold passage.
        """
        gold = {(p.title, p.text) for p in self.question.passages if p.is_gold}
        return tuple((p.title, p.text) in gold if gold else None for p in self.passages)

    @functools.cached_property
    def positive(self) -> tuple[bool, ...]:
        """Whether an answer is read off each passage found: which a reader is taught to look at.

        Passages whose title or text have an answer, as Karpukhin et al. (2020) choose a dense
        retriever's positive passages; but none that is known not to be needed, where an answer
        occurs by chance.

        Raises:
            ValueError: the question has no answers.
        """
        hits = answer_hits([passage_text(p) for p in self.passages], self.question.answers)
        return tuple(hit and known is not False for hit, known in zip(hits, self.gold, strict=True))


def retrieve(
    index: Index,
    corpus: Sequence[CorpusPassage],
    questions: Sequence[Question],
    passages: int,
    batch_size: int,
) -> list[RetrievedQuestion]:
    """Searches for the passages of questions.

    Args:
        index: of the corpus.
        corpus: what the index was made of, in its order.
        questions: any number, also none.
        passages: to a question, at most.
        batch_size: questions searched at once.

    Returns:
        One a question, in their order.

    Raises:
        ValueError: `passages` or `batch_size` is below 1.
    """
    texts = [question.question for question in questions]
    return pair(questions, corpus, search_in_batches(index, texts, passages, batch_size))


def search_in_batches(
    index: Index, queries: Sequence[str], k: int, batch_size: int
) -> SearchResults:
    """Same as `Index.search`, some queries at a time.

    Raises:
        ValueError: k or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    # Without queries, one search for none: it checks k, and its results have the right shape.
    starts = range(0, max(len(queries), 1), batch_size)
    found = [index.search(queries[start : start + batch_size], k) for start in starts]
    ids, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return SearchResults(ids, scores)


def pair(
    questions: Sequence[Question], corpus: Sequence[CorpusPassage], results: SearchResults
) -> list[RetrievedQuestion]:
    """Puts questions and what was found for them together; places without a passage are left out.

    Args:
        questions: in the order in which they were searched for.
        corpus: that was searched.
        results: of the search.

    Raises:
        ValueError: there are not as many results as questions.
    """
    if len(questions) != len(results.ids):
        raise ValueError(f"{len(questions)} questions, but results of {len(results.ids)}")
    found = []
    for question, ids, scores in zip(questions, results.ids, results.scores, strict=True):
        there = np.flatnonzero(ids != MISSING)
        passages = tuple(corpus[position] for position in ids[there].tolist())
        found.append(RetrievedQuestion(question, passages, tuple(scores[there].tolist())))
    return found
