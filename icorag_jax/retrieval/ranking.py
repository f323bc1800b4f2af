"""Rankings in NumPy: the best of many scores, and the fusion of several rankings.

Axes: `queries`, `passages` of the corpus, `k` places.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from icorag_jax.retrieval.retriever import MISSING, SearchResults, no_results


def best_scores(scores: Float[np.ndarray, " passages"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of one query, equal scores in the corpus's order.

    Args:
        scores: minus infinity where a passage is not found at all.
        k: how many.

    Returns:
        Positions `[k]` int32 and scores `[k]` float32; see `SearchResults` where there are fewer.
    """
    ids, best = np.full(k, MISSING, np.int32), np.full(k, -np.inf, np.float32)
    found = np.flatnonzero(scores > -np.inf)
    if len(found) > k:
        # All that could be among the first k, those with the k-th score's equals included.
        least = np.partition(scores[found], -k)[-k]
        found = found[scores[found] >= least]
    order = found[np.argsort(-scores[found], kind="stable")][:k]
    ids[: len(order)], best[: len(order)] = order, scores[order]
    return ids, best


def reciprocal_rank_fusion(
    rankings: Sequence[Int[np.ndarray, "queries _"]], k: int, constant: float
) -> SearchResults:
    """One ranking of several: a passage's score is the sum of `1 / (constant + rank)` over them.

    Ranks begin at 1; a ranking that does not have the passage adds nothing (Cormack, Clarke and
    Buettcher 2009). The order of the rankings does not matter.

    Args:
        rankings: positions in the corpus, `MISSING` where there is none; depths may differ.
        k: places of the result.
        constant: how little the first ranks stand out.
    """
    queries = len(rankings[0])
    ids, scores = no_results(queries, k)
    for query in range(queries):
        parts = [ranking[query] for ranking in rankings]
        found = np.unique(np.concatenate(parts))
        found = found[found != MISSING]
        terms = np.zeros((len(parts), len(found)))
        for term, part in zip(terms, parts, strict=True):
            ranks = np.flatnonzero(part != MISSING)
            term[np.searchsorted(found, part[ranks])] = 1 / (constant + 1 + ranks)
        # Sorted, so that equal terms add up to equal sums whichever ranking they are from.
        fused = np.sort(terms, axis=0).sum(axis=0)
        order = np.argsort(-fused, kind="stable")[:k]
        ids[query, : len(order)], scores[query, : len(order)] = found[order], fused[order]
    return SearchResults(ids, scores)
