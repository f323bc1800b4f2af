"""Retrieval by sentences: a passage is as relevant as the best of its sentences.

An embedding of a passage has to stand for all that it says. That of a sentence, with the passage's
title, stands for one thing, and so does most of what is asked (Chen et al. 2024, "Dense X
Retrieval"). It takes as many embeddings as there are sentences.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.retriever import (
    MISSING,
    Index,
    Retriever,
    SearchResults,
    check_corpus,
    check_search,
    no_results,
)

# Too many sentences, as after "Dr.", do no harm: the best one counts.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Settings of retrieval by sentences.

    Attributes:
        retriever: finds them.
    """

    retriever: Retriever

    def index(self, corpus: Sequence[CorpusPassage]) -> "SentencesIndex":
        """An index of all sentences.

        Raises:
            ValueError: as `Retriever.index`.
        """
        check_corpus(corpus)
        sentences, passage_of = split_passages(corpus)
        return SentencesIndex(self.retriever.index(sentences), passage_of)

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the results of searches in a corpus depend on, in one word."""
        sentences, _ = split_passages(corpus)
        found = self.retriever.fingerprint(sentences)
        return cache.fingerprint({"index": "sentences", "retriever": found})


@dataclasses.dataclass(frozen=True)
class SentencesIndex:
    """An index of the sentences of a corpus.

    Attributes:
        sentences: finds them.
        passage_of: position in the corpus of the passage that a sentence is of, ascending.
    """

    sentences: Index
    passage_of: Int[np.ndarray, " sentences"]

    @property
    def size_bytes(self) -> int:
        """Of the index of sentences."""
        return self.sentences.size_bytes

    @property
    def computed(self) -> int:
        """Embeddings of sentences that were computed."""
        return self.sentences.computed

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k passages whose best sentences have the highest scores."""
        check_search(queries, k)
        # So many sentences are of k passages at least, whichever they are.
        found = self.sentences.search(queries, int(self._sizes[: k - 1].sum()) + 1)
        results = no_results(len(queries), k)
        for row, (sentences, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
            passages = self.passage_of[sentences[sentences != MISSING]]
            best = np.sort(np.unique(passages, return_index=True)[1])[:k]
            results.ids[row, : len(best)] = passages[best]
            results.scores[row, : len(best)] = scores[best]
        return results

    @functools.cached_property
    def _sizes(self) -> Int[np.ndarray, " passages"]:
        """How many sentences passages have, the largest number first."""
        return np.sort(np.bincount(self.passage_of))[::-1]


def split_passages(
    corpus: Sequence[CorpusPassage],
) -> tuple[list[CorpusPassage], Int[np.ndarray, " sentences"]]:
    """The sentences of a corpus as passages with its titles, and which passage each is of."""
    sentences, passage_of = [], []
    for position, passage in enumerate(corpus):
        for place, text in enumerate(_SENTENCE_END.split(passage.text.strip())):
            sentences.append(CorpusPassage(f"{passage.id}/{place}", passage.title, text))
            passage_of.append(position)
    return sentences, np.asarray(passage_of, np.int32)
