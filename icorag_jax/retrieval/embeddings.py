"""The embeddings of a corpus, in shards on disk that are mapped to memory.

A folder of its own, named by the fingerprint of all that they depend on, holds them:

    shard-00000.npy          float32 [passages of the shard, width]
    shard-00000.npy.sha256   its checksum

A shard is written whole once it is done, so that indexing that was stopped goes on with the next.
One that is damaged or was edited is computed anew.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import Float

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.encoder import SentenceEncoder, embed
from icorag_jax.retrieval.retriever import (
    SearchResults,
    check_corpus,
    check_search,
    corpus_fingerprint,
    no_results,
    passage_text,
)

# To be raised when a passage's text is put together in another way, as settings do not tell.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Embedding:
    """How a corpus and queries are embedded.

    Attributes:
        encoder: embeds both.
        max_length: tokens a passage is cut to, or None for the encoder's own limit.
        batch_size: texts to a batch.
        shard_passages: passages to a shard: what is lost at most when indexing is stopped.
        cache: folder to keep embeddings in, or None to keep them in memory alone.
        progress: show a progress bar.
    """

    encoder: SentenceEncoder
    max_length: int | None = None
    batch_size: int = 64
    shard_passages: int = 4096
    cache: Path | None = None
    progress: bool = False

    def __post_init__(self):
        """Checks the sizes."""
        if self.shard_passages < 1 or self.batch_size < 1:
            raise ValueError(
                "shard_passages and batch_size must be at least 1, got "
                f"{self.shard_passages} and {self.batch_size}"
            )

    def fingerprint(self, corpus: Sequence[CorpusPassage]) -> str:
        """What the embeddings of a corpus depend on, in one word."""
        return cache.fingerprint(
            {
                "index": "embeddings",
                "format": _FORMAT,
                "corpus": corpus_fingerprint(corpus),
                "encoder": self.encoder.fingerprint(),
                "max_length": self.max_length,
                # Of no account but to the last digit.
                "batch_size": self.batch_size,
                "shard_passages": self.shard_passages,
            }
        )

    def search(
        self,
        queries: Sequence[str],
        k: int,
        search: Callable[[Float[np.ndarray, "found width"]], SearchResults],
    ) -> SearchResults:
        """Searches by the embeddings of queries, those that are not empty.

        Queries get the encoder's prompt, and are cut to its own limit.

        Args:
            queries: texts.
            k: places of a ranking.
            search: the k best passages of each embedding.

        Raises:
            TypeError, ValueError: as `Index.search`.
        """
        check_search(queries, k)
        results = no_results(len(queries), k)
        asked = [place for place, query in enumerate(queries) if query.strip()]
        if asked:
            texts = [self.encoder.prompts.query + queries[place] for place in asked]
            found = search(embed(self.encoder, texts, batch_size=self.batch_size))
            results.ids[asked], results.scores[asked] = found
        return results

    def passages(self, corpus: Sequence[CorpusPassage]) -> "Embeddings":
        """The embeddings of a corpus: those shards that are in the cache, and the rest computed.

        Raises:
            ValueError: as `Retriever.index`.
            OSError: the cache cannot be written.
        """
        check_corpus(corpus)
        starts = range(0, len(corpus), self.shard_passages)
        with tqdm.tqdm(
            total=len(corpus), desc="embed", unit="passage", disable=not self.progress
        ) as bar:
            shards, computed = [], 0
            if self.cache is None:
                for start in starts:
                    shards.append(self._shard(corpus, start))
                    bar.update(len(shards[-1]))
                return Embeddings(tuple(shards), len(corpus))
            folder = self.cache / self.fingerprint(corpus)
            with cache.building(folder):
                for number, start in enumerate(starts):
                    path = folder / f"shard-{number:05}.npy"
                    if not cache.is_intact(path):
                        cache.store_array(path, self._shard(corpus, start))
                        computed += min(self.shard_passages, len(corpus) - start)
                    shards.append(np.load(path, mmap_mode="r", allow_pickle=False))
                    bar.update(len(shards[-1]))
        return Embeddings(tuple(shards), computed)

    def _shard(self, corpus: Sequence[CorpusPassage], start: int) -> np.ndarray:
        end = min(start + self.shard_passages, len(corpus))
        prompt = self.encoder.prompts.passage
        texts = [prompt + passage_text(corpus[position]) for position in range(start, end)]
        return embed(self.encoder, texts, batch_size=self.batch_size, max_length=self.max_length)


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of a corpus, in its order.

    Attributes:
        shards: arrays `[passages, width]`, float32, all but the last of one length.
        computed: how many were computed now rather than found in the cache.
    """

    shards: tuple[np.ndarray, ...]
    computed: int

    def __len__(self) -> int:
        """Passages of all shards."""
        return len(self.shards[0]) * (len(self.shards) - 1) + len(self.shards[-1])

    @property
    def width(self) -> int:
        """Features of an embedding."""
        return self.shards[0].shape[1]

    def rows(self, start: int, end: int) -> Float[np.ndarray, "rows width"]:
        """The embeddings from `start` up to `end`, copied to memory."""
        length = len(self.shards[0])
        found = np.empty((end - start, self.width), np.float32)
        for number in range(start // length, -(-end // length)):
            first = number * length
            low, high = max(start, first), min(end, first + len(self.shards[number]))
            found[low - start : high - start] = self.shards[number][low - first : high - first]
        return found
