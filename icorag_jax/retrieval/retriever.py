"""What a retriever is: settings that make an index of a corpus, and an index that is searched.

A passage goes by its position in the corpus: `corpus[position]` is the passage itself.

Axes: `queries`, `k` places of a ranking, the best first.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from icorag_jax.data.records import CorpusPassage

MISSING = -1  # the position where a ranking has no passage


class SearchResults(NamedTuple):
    """The best passages of each query, scores descending, equal scores in the corpus's order.

    Where a retriever finds fewer than k passages, the places left have position `MISSING` and score
    minus infinity. An empty query (or one of white space alone) finds none.

    Attributes:
        ids: positions in the corpus, int32.
        scores: the retriever's own, float32; higher is better.
    """

    ids: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def no_results(queries: int, k: int) -> SearchResults:
    """Places that no passage fills, to be written to."""
    return SearchResults(
        np.full((queries, k), MISSING, np.int32), np.full((queries, k), -np.inf, np.float32)
    )


@runtime_checkable
class Index(Protocol):
    """A corpus made ready for search; a value that never changes."""

    @property
    def size_bytes(self) -> int:
        """What the index takes, in memory or on disk."""
        ...

    @property
    def computed(self) -> int:
        """How many embeddings were computed when it was made, rather than found in a cache."""
        ...

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k best passages of each query; a corpus of fewer gives fewer, see `SearchResults`.

        Raises:
            TypeError: `queries` is a string itself.
            ValueError: k is below 1.
        """
        ...


@runtime_checkable
class Retriever(Protocol):
    """The settings of an index, which make one of any corpus."""

    def index(self, corpus: Sequence[CorpusPassage]) -> Index:
        """An index of a corpus.

        Raises:
            ValueError: the corpus is empty, an id is double, or a passage has neither title nor
                text.
        """
        ...

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the results of searches in a corpus depend on, in one word."""
        ...


def passage_text(passage: CorpusPassage) -> str:
    """A passage as one text: title, full stop, text; either alone where the other is empty."""
    title, text = passage.title.strip(), passage.text.strip()
    return f"{title}. {text}" if title and text else title or text


def check_corpus(corpus: Sequence[CorpusPassage]) -> None:
    """Checks that a corpus can be searched; a passage without text but with a title is fine.

    Raises:
        ValueError: there is no passage, an id is double, or a passage has neither title nor text;
            the message has the first ids.
    """
    if not len(corpus):
        raise ValueError("the corpus has no passages")
    seen: set[str] = set()
    double, blank = [], []
    for passage in corpus:
        if passage.id in seen:
            double.append(passage.id)
        seen.add(passage.id)
        if not passage_text(passage):
            blank.append(passage.id)
    if double:
        raise ValueError(f"passages of the corpus share an id: {_some(double)}; make ids unique")
    if blank:
        raise ValueError(f"passages have neither title nor text: {_some(blank)}; leave them out")


def check_search(queries: Sequence[str], k: int) -> None:
    """Checks the arguments of a search.

    Raises:
        TypeError: `queries` is a string itself.
        ValueError: k is below 1.
    """
    if isinstance(queries, str):
        raise TypeError(f"queries is one string, not a sequence of them; pass [{queries[:40]!r}]")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def corpus_fingerprint(corpus: Sequence[CorpusPassage]) -> str:
    """The SHA-256 of the passages in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for passage in corpus:
        for field in (passage.id, passage.title, passage.text):
            data = field.encode()
            # With its length, as fields could run into each other without.
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(map(repr, ids[:3]))
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"
