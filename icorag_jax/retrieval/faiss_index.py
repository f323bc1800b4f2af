"""Dense retrieval by FAISS, for corpora beyond memory.

FAISS is optional: `pip install 'icorag_jax[faiss]'`. Its index is built of the embeddings' shards,
one at a time, kept as a file beside its checksum, and mapped to memory for search.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.embeddings import Embedding, Embeddings
from icorag_jax.retrieval.retriever import SearchResults, check_corpus

_FILE = "index.faiss"


@dataclasses.dataclass(frozen=True)
class Faiss:
    """Settings of a FAISS index of inner products.

    Attributes:
        embedding: of passages and queries; with a cache, where the index is kept as well.
        factory: FAISS's description of an index: "Flat" is exact; "IVF4096,PQ48" takes 48 bytes a
            passage and looks at a part of the lists.
        search_parameters: FAISS's description of how to search, as "nprobe=32"; may be empty.
        training_passages: passages that an index that has to be trained is trained on, at most.
        seed: of their draw.
    """

    embedding: Embedding
    factory: str = "Flat"
    search_parameters: str = ""
    training_passages: int = 200_000
    seed: int = 0

    def __post_init__(self):
        """Checks that there is a place to keep the index."""
        if self.embedding.cache is None:
            raise ValueError("a FAISS index is a file: give its embedding a cache folder")
        if self.training_passages < 1:
            raise ValueError(f"training_passages must be at least 1, got {self.training_passages}")

    def index(self, corpus: Sequence[CorpusPassage]) -> "FaissIndex":
        """Builds the index of a corpus, or finds it in the cache.

        Raises:
            ImportError: FAISS is not installed; the message says how to.
            ValueError: as `Retriever.index`, and where FAISS cannot build such an index.
            OSError: the cache cannot be written.
        """
        faiss = _faiss()
        check_corpus(corpus)
        path, computed = self._path(corpus), 0
        with cache.building(path.parent):
            if not cache.is_intact(path):
                embeddings = self.embedding.passages(corpus)
                built, computed = self._build(embeddings), embeddings.computed
                # A write that fails raises its own OSError through FAISS.
                with cache.storing(path) as write:
                    faiss.write_index(built, faiss.PyCallbackIOWriter(write))
        found = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        if self.search_parameters:
            try:
                faiss.ParameterSpace().set_index_parameters(found, self.search_parameters)
            except RuntimeError as error:
                raise ValueError(
                    f"FAISS has no search parameters {self.search_parameters!r} for this index"
                ) from error
        return FaissIndex(self, path, found, computed)

    def _build(self, embeddings: Embeddings) -> Any:
        faiss = _faiss()
        count = len(embeddings)
        try:
            index = faiss.index_factory(embeddings.width, self.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                rng = np.random.default_rng(self.seed)
                chosen = rng.choice(count, min(count, self.training_passages), replace=False)
                index.train(
                    np.concatenate([embeddings.rows(i, i + 1) for i in np.sort(chosen).tolist()])
                )
            for shard in embeddings.shards:
                index.add(np.ascontiguousarray(shard))
        except RuntimeError as error:
            raise ValueError(
                f"FAISS cannot build {self.factory!r} of {count} passages: {error}"
            ) from error
        return index

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the results of searches in a corpus depend on, in one word."""
        return cache.fingerprint(
            {**self._file_parts(corpus), "search_parameters": self.search_parameters}
        )

    def _path(self, corpus: Sequence[CorpusPassage]) -> Path:
        assert self.embedding.cache is not None  # checked when it was made
        return self.embedding.cache / cache.fingerprint(self._file_parts(corpus)) / _FILE

    def _file_parts(self, corpus: Sequence[CorpusPassage]) -> dict[str, object]:
        """What the file depends on."""
        return {
            "index": "faiss",
            "version": _faiss().__version__,
            "embeddings": self.embedding.fingerprint(corpus),
            "factory": self.factory,
            "training_passages": self.training_passages,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class FaissIndex:
    """An index that FAISS searches; equal scores come in the corpus's order, if FAISS found them.

    Attributes:
        settings: what it was made with.
        path: its file.
        faiss_index: the file, mapped to memory.
        computed: how many embeddings were computed now rather than found in the cache.
    """

    settings: Faiss
    path: Path
    faiss_index: Any
    computed: int

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    def search(self, queries: Sequence[str], k: int) -> SearchResults:
        """The k best passages of each query that FAISS finds."""
        return self.settings.embedding.search(queries, k, lambda vectors: self._search(vectors, k))

    def _search(self, vectors: Float[np.ndarray, "queries width"], k: int) -> SearchResults:
        scores, ids = self.faiss_index.search(vectors, k)
        # FAISS has -1 where it finds no more, as we do, but a score of its own there.
        scores = np.where(ids < 0, np.float32(-np.inf), scores)
        order = np.lexsort((ids, -scores))
        return SearchResults(
            np.take_along_axis(ids, order, axis=1).astype(np.int32),
            np.take_along_axis(scores, order, axis=1),
        )


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("FAISS is not installed: pip install 'icorag_jax[faiss]'") from error
    return faiss
