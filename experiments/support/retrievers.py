"""Retrievers by their names in settings, and searches whose results are kept on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from icorag_jax.data.folders import DataError, find_splits, read_questions
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.encoder import SentenceEncoder, find_default_encoder, load_encoder
from icorag_jax.retrieval.encoder_files import Prompts
from icorag_jax.retrieval.hybrid import Hybrid
from icorag_jax.retrieval.retrieved import search_in_batches
from icorag_jax.retrieval.retriever import Retriever, SearchResults
from icorag_jax.retrieval.sentences import Sentences

# `sentences` is dense retrieval by sentences, `dense` by passages as a whole.
RetrieverName = Literal["bm25", "dense", "sentences", "hybrid"]
# Whose rankings the hybrid fuses.
HYBRID_PARTS: tuple[RetrieverName, ...] = ("bm25", "dense")
_SEARCH_BATCH = 1024  # queries searched at once
# To be raised when results come out otherwise, as settings do not tell.
_FORMAT = 1


def read_encoder(source: str | None, prompts: Prompts, max_length: int) -> SentenceEncoder:
    """The encoder of dense retrieval.

    Args:
        source: folder or hub id, or None for the installed one.
        prompts: what it wants before queries and passages, if its files do not say.
        max_length: tokens a passage is to be cut to.

    Raises:
        ValueError: it has fewer positions than `max_length`, or prompts of its own.
        CheckpointError: as `load_encoder`.
    """
    found = source or find_default_encoder()
    encoder = load_encoder(found, prompts if prompts != Prompts() else None)
    if max_length > encoder.config.max_position_embeddings:
        raise ValueError(
            f"max_length must be at most {encoder.config.max_position_embeddings}, the positions "
            f"of {found}, got {max_length}"
        )
    return encoder


def make_retriever(
    name: RetrieverName,
    encoder: SentenceEncoder | None,
    max_length: int,
    batch_size: int,
    folder: Path,
) -> Retriever:
    """A retriever on the settings of experiments.

    Args:
        name: which.
        encoder: of dense retrieval, by sentences as well, and so of the hybrid, which fuses its
            rankings with BM25's; BM25 needs none.
        max_length: tokens a passage is cut to.
        batch_size: texts embedded at once.
        folder: to keep indexes in.

    Raises:
        ValueError: there is no such retriever, or dense retrieval has no encoder.
    """
    if name not in get_args(RetrieverName):
        raise ValueError(f"retriever must be {' or '.join(get_args(RetrieverName))}, got {name!r}")
    if name == "hybrid":
        parts = (
            make_retriever(part, encoder, max_length, batch_size, folder) for part in HYBRID_PARTS
        )
        return Hybrid(tuple(parts))
    if name == "bm25":
        return Bm25(cache=folder)
    if encoder is None:
        raise ValueError("dense retrieval needs an encoder: read_encoder")
    dense = Dense(
        Embedding(encoder, max_length, batch_size, shard_passages=1024, cache=folder, progress=True)
    )
    return Sentences(dense) if name == "sentences" else dense


def search_stored(
    retriever: Retriever,
    corpus: Sequence[CorpusPassage],
    queries: Sequence[str],
    k: int,
    folder: Path,
) -> SearchResults:
    """The k best passages of each query, searched for once: the results are kept on disk.

    Args:
        retriever: makes the index, if it is needed.
        corpus: to search.
        queries: texts.
        k: places of a ranking.
        folder: to keep the results in, in one of its own of all that they depend on.

    Raises:
        ValueError: as `Retriever.index` and `Index.search`.
        OSError: the folder cannot be written.
    """
    parts = {
        "index": "search", "format": _FORMAT, "retriever": retriever.fingerprint(corpus),
        "queries": list(queries), "k": k,
    }  # fmt: skip
    own = folder / cache.fingerprint(parts)
    with cache.building(own):
        paths = [own / f"{name}.npy" for name in SearchResults._fields]
        if not all(map(cache.is_intact, paths)):
            found = search_in_batches(retriever.index(corpus), queries, k, _SEARCH_BATCH)
            for path, array in zip(paths, found, strict=True):
                cache.store_array(path, array)
        return SearchResults(*(np.load(path, allow_pickle=False) for path in paths))


def read_sample(folder: Path, split: str, count: int | None, seed: int) -> list[Question]:
    """The questions of a benchmark, or a draw of them, in the file's order.

    Args:
        folder: of the benchmark.
        split: train, dev or test.
        count: how many, or None for all; all as well if there are fewer.
        seed: of the draw.

    Raises:
        DataError: there is no such split, or the file is malformed.
    """
    splits = find_splits(folder)
    if split not in splits:
        raise DataError(f"{folder} has no file {split}.jsonl or {split}.jsonl.gz")
    questions = list(read_questions(splits[split]))
    if count is None or count >= len(questions):
        return questions
    chosen = np.random.default_rng(seed).choice(len(questions), count, replace=False)
    return [questions[index] for index in np.sort(chosen)]
