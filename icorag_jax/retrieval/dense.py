"""Dense retrieval: inner products of embeddings, exact, on all devices."""

import dataclasses
from collections.abc import Sequence

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache, exact_search
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.exact_search import PlacedEmbeddings, Precision
from icorag_jax.retrieval.retriever import SearchResults


@dataclasses.dataclass(frozen=True)
class Dense:
    """Settings of exact dense retrieval.

    Attributes:
        embedding: of passages and queries.
        query_batch: queries searched at once; one size is one compilation.
        block_scores: scores that a device holds at once, of all queries of a batch together.
        precision: of the embeddings on the devices; sums are in float32.
    """

    embedding: Embedding
    query_batch: int = 64
    block_scores: int = 2**22
    precision: Precision = "float32"

    def __post_init__(self):
        """Checks the sizes."""
        if self.query_batch < 1 or self.block_scores < 1:
            raise ValueError(
                "query_batch and block_scores must be at least 1, got "
                f"{self.query_batch} and {self.block_scores}"
            )

    def index(self, corpus: Sequence[CorpusPassage]) -> "DenseIndex":
        """Embeds a corpus, or reads its embeddings from the cache, and spreads them over devices.

        Raises:
            ValueError: as `Retriever.index`.
            OSError: the cache cannot be written.
        """
        embeddings = self.embedding.passages(corpus)
        placed = exact_search.place(
            embeddings.rows, len(embeddings), embeddings.width, mesh=exact_search.device_mesh(),
            precision=self.precision,
        )  # fmt: skip
        return DenseIndex(self, placed, embeddings.computed)

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the results of searches in a corpus depend on, in one word."""
        parts = {"embeddings": self.embedding.fingerprint(corpus), "precision": self.precision}
        return cache.fingerprint({"index": "dense", **parts})


@dataclasses.dataclass(frozen=True)
class DenseIndex:
    """Embeddings on devices.

    Attributes:
        settings: what it was made with.
        embeddings: of the corpus.
        computed: how many of them were computed now rather than found in the cache.
    """

    settings: Dense
    embeddings: PlacedEmbeddings
    computed: int

    @property
    def size_bytes(self) -> int:
        """The embeddings, without padding."""
        shares = self.embeddings.shares
        return self.embeddings.count * shares.shape[-1] * shares.dtype.itemsize

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k passages whose embeddings have the largest inner products with the query's."""
        return self.settings.embedding.search(
            queries,
            k,
            lambda vectors: exact_search.search(
                self.embeddings,
                vectors,
                k,
                batch=self.settings.query_batch,
                block_scores=self.settings.block_scores,
            ),
        )
