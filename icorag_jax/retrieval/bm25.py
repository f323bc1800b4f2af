"""Sparse retrieval: BM25 by the `bm25s` library.

A passage is its title, several times over, and its text. Words are of two letters or digits at
least, in lower case, stemmed, stop words left out where that is asked for. A passage is found if it
shares a word with the query; so a query of stop words that are left out, or of words that the
corpus has not, finds nothing.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import Stemmer

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.ranking import best_scores
from icorag_jax.retrieval.retriever import (
    SearchResults,
    check_corpus,
    check_search,
    corpus_fingerprint,
)

_ARRAYS = ("data", "indices", "indptr")
_VOCABULARY = "vocabulary.json"
# To be raised when a passage's words are put together in another way, as settings do not tell.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Bm25:
    """Settings of BM25, in Lucene's form: `idf * tf / (tf + k1 * (1 - b + b * length / mean))`.

    `k1` and `b` are Anserini's, for passages; `docs/retrieval.md` says what else was tried.

    Attributes:
        k1: how slowly a word's repetitions within a passage saturate; above 0.
        b: how much a passage's length counts, in [0, 1].
        title_weight: how many times a title's words count; at least 1.
        stop_words: words left out: bm25s's list of 33 English ones, or none.
        stemming: Snowball's English stemmer, or none.
        cache: folder to keep indexes in, or None.
    """

    k1: float = 0.9
    b: float = 0.4
    title_weight: int = 2
    stop_words: Literal["english"] | None = None
    stemming: Literal["english"] | None = "english"
    cache: Path | None = None

    def __post_init__(self):
        """Checks the ranges."""
        if not (self.k1 > 0 and 0 <= self.b <= 1 and self.title_weight >= 1):
            raise ValueError(f"k1 must be above 0, b in [0, 1], title_weight at least 1: {self}")

    def index(self, corpus: Sequence[CorpusPassage]) -> "Bm25Index":
        """Counts the words of a corpus, or reads the counts from the cache.

        Raises:
            ValueError: as `Retriever.index`, and where no passage has a word that counts.
        """
        check_corpus(corpus)
        if self.cache is None:
            arrays, vocabulary = self._count(corpus)
        else:
            folder = self.cache / self.fingerprint(corpus)
            with cache.building(folder):
                paths = [folder / f"{name}.npy" for name in _ARRAYS]
                if not all(map(cache.is_intact, [*paths, folder / _VOCABULARY])):
                    self._write(folder, corpus)
                arrays = {path.stem: np.load(path) for path in paths}
                vocabulary = json.loads((folder / _VOCABULARY).read_bytes())
        return Bm25Index(self, len(corpus), arrays, vocabulary)

    def tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text that count."""
        return _bm25s().tokenize(
            list(texts),
            stopwords=self.stop_words or [],
            stemmer=Stemmer.Stemmer(self.stemming) if self.stemming else None,
            return_ids=False,
            show_progress=False,
        )

    def _count(self, corpus: Sequence[CorpusPassage]) -> tuple[dict[str, np.ndarray], dict]:
        """The scores of each word in each passage, a sparse matrix by word, and the words."""
        words = self.tokenize(
            [f"{f'{passage.title} ' * self.title_weight}{passage.text}" for passage in corpus]
        )
        vocabulary = {word: i for i, word in enumerate(sorted({w for part in words for w in part}))}
        if not vocabulary:
            raise ValueError(
                "no passage of the corpus has a word that counts; BM25 cannot search it"
            )
        scorer = _bm25s().BM25(k1=self.k1, b=self.b, method="lucene")
        ids = [[vocabulary[word] for word in part] for part in words]
        scorer.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return {name: np.asarray(scorer.scores[name]) for name in _ARRAYS}, vocabulary

    def _write(self, folder: Path, corpus: Sequence[CorpusPassage]) -> None:
        arrays, vocabulary = self._count(corpus)
        for name, array in arrays.items():
            cache.store_array(folder / f"{name}.npy", array)
        cache.store(folder / _VOCABULARY, json.dumps(vocabulary).encode())

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the index of a corpus depends on, in one word."""
        settings = dataclasses.asdict(dataclasses.replace(self, cache=None))
        libraries = {"bm25s": _bm25s().__version__, "stemmer": Stemmer.version()}
        parts = {"index": "bm25", "format": _FORMAT, "corpus": corpus_fingerprint(corpus)}
        return cache.fingerprint({**parts, **settings, **libraries})


@dataclasses.dataclass(frozen=True)
class Bm25Index:
    """Scores of words in passages, summed at search.

    Attributes:
        settings: what it was made with; queries are treated alike.
        passages: how many.
        arrays: `data`, `indices` and `indptr` of a matrix `[passages, words]` in columns.
        vocabulary: number of each word's column.
    """

    settings: Bm25
    passages: int
    arrays: dict[str, np.ndarray]
    vocabulary: dict[str, int]

    @property
    def size_bytes(self) -> int:
        """The matrix, and the words in UTF-8."""
        words = sum(len(word.encode()) for word in self.vocabulary)
        return words + sum(array.nbytes for array in self.arrays.values())

    @property
    def computed(self) -> int:
        """BM25 has no embeddings."""
        return 0

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k best passages of each query; those that share no word with it are not found."""
        check_search(queries, k)
        scorer = self._scorer()
        ids, scores = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
        for row, words in enumerate(self.settings.tokenize(queries)):
            known = [self.vocabulary[word] for word in words if word in self.vocabulary]
            # A word adds more than 0 to the score of every passage that has it.
            sums = scorer.get_scores_from_ids(known)
            ids[row], scores[row] = best_scores(np.where(sums > 0, sums, -np.inf), k)
        return SearchResults(ids, scores)

    def _scorer(self) -> Any:
        scorer = _bm25s().BM25(method="lucene")
        scorer.scores = {**self.arrays, "num_docs": self.passages}
        scorer.vocab_dict, scorer.nonoccurrence_array = self.vocabulary, None
        return scorer


def _bm25s() -> ModuleType:
    """The library, imported late: its import computes with JAX, which fixes JAX's devices."""
    import bm25s

    # It logs every index at level DEBUG, which shows wherever logging has been set up.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s
