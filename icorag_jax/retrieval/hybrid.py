"""Hybrid retrieval: the rankings of several retrievers fused into one."""

import dataclasses
import math
from collections.abc import Sequence

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.ranking import reciprocal_rank_fusion
from icorag_jax.retrieval.retriever import Index, Retriever, SearchResults, check_search


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Settings of reciprocal rank fusion.

    Attributes:
        depth: places of each ranking that are fused, at least; k of them where k is larger.
        constant: how little the first ranks stand out; 60 in Cormack et al. 2009.
    """

    depth: int = 100
    constant: float = 60.0

    def __post_init__(self):
        """Checks the ranges."""
        if self.depth < 1 or not 0 <= self.constant < math.inf:
            raise ValueError(f"depth must be at least 1, constant finite and at least 0: {self}")


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Settings of a hybrid.

    Attributes:
        retrievers: whose rankings are fused; their order does not matter.
        fusion: how.
    """

    retrievers: tuple[Retriever, ...]
    fusion: Fusion = Fusion()

    def index(self, corpus: Sequence[CorpusPassage]) -> "HybridIndex":
        """An index of each retriever.

        Raises:
            ValueError: as `Retriever.index`.
        """
        return HybridIndex(
            tuple(retriever.index(corpus) for retriever in self.retrievers), self.fusion
        )

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the results of searches in a corpus depend on, in one word."""
        parts = sorted(retriever.fingerprint(corpus) for retriever in self.retrievers)
        return cache.fingerprint(
            {"index": "hybrid", "parts": parts, "fusion": dataclasses.asdict(self.fusion)}
        )


@dataclasses.dataclass(frozen=True)
class HybridIndex:
    """Several indexes of one corpus.

    Attributes:
        indexes: of the same corpus, at least one.
        fusion: how their rankings are fused.
    """

    indexes: tuple[Index, ...]
    fusion: Fusion

    def __post_init__(self):
        """Checks that there is something to fuse."""
        if not self.indexes:
            raise ValueError("a hybrid takes at least one index")

    @property
    def size_bytes(self) -> int:
        """Of all indexes together."""
        return sum(index.size_bytes for index in self.indexes)

    @property
    def computed(self) -> int:
        """Embeddings computed for all indexes together."""
        return sum(index.computed for index in self.indexes)

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k passages with the largest sums of reciprocal ranks."""
        check_search(queries, k)
        depth = max(k, self.fusion.depth)
        rankings = [index.search(queries, depth).ids for index in self.indexes]
        return reciprocal_rank_fusion(rankings, k, self.fusion.constant)
