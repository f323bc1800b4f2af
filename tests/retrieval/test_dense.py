"""Dense retrieval and its fusion against the definitions, in NumPy."""

import numpy as np
import pytest
from tiny import make_corpus, make_encoder

from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.encoder import embed
from icorag_jax.retrieval.hybrid import Fusion, Hybrid, HybridIndex
from icorag_jax.retrieval.retriever import passage_text

CORPUS = make_corpus(40, seed=3)
QUERIES = ["alpha beta", "gamma", "theta eta zeta", "delta delta", "beta"]


def make_dense(**changes) -> Dense:
    return Dense(Embedding(make_encoder(), batch_size=8), **{"query_batch": 2, **changes})


def test_the_largest_inner_products_of_embeddings():
    index = make_dense().index(CORPUS)
    texts = [passage_text(passage) for passage in CORPUS]
    vectors, asked = (embed(make_encoder(), part, batch_size=8) for part in (texts, QUERIES))
    products = asked.astype(np.float64) @ vectors.astype(np.float64).T
    ids, scores = index.search(QUERIES, 6)
    expected = -np.sort(-products, axis=1)[:, :6]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(products, ids, axis=1), expected, atol=1e-5)
    assert index.size_bytes == 40 * 16 * 4
    assert index.computed == 40


def test_half_precision_takes_half_the_bytes():
    index = make_dense(precision="bfloat16").index(CORPUS)
    assert index.size_bytes == 40 * 16 * 2
    exact = make_dense().index(CORPUS)
    found, expected = (i.search(QUERIES, 5) for i in (index, exact))
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.02)


@pytest.mark.parametrize("change", [{"query_batch": 0}, {"block_scores": 0}])
def test_bad_sizes(change):
    with pytest.raises(ValueError, match="must be at least 1"):
        make_dense(**change)


class TestHybrid:
    def test_sum_of_reciprocal_ranks(self):
        bm25, dense = Bm25(), make_dense()
        index = Hybrid((bm25, dense), Fusion(depth=10, constant=5.0)).index(CORPUS)
        parts = [retriever.index(CORPUS).search(QUERIES, 10).ids for retriever in (bm25, dense)]
        ids, scores = index.search(QUERIES, 4)
        for row in range(len(QUERIES)):
            sums = dict.fromkeys(range(40), 0.0)
            for part in parts:
                for place, passage in enumerate(part[row]):
                    if passage >= 0:
                        sums[passage] += 1 / (5 + place + 1)
            order = sorted(sums, key=lambda passage: (-round(sums[passage], 9), passage))[:4]
            assert ids[row].tolist() == order
            np.testing.assert_allclose(scores[row], [sums[p] for p in order], rtol=1e-6)

    def test_deeper_than_asked_for_k_is_deeper(self):
        index = Hybrid((Bm25(), make_dense()), Fusion(depth=1)).index(CORPUS)
        assert (index.search(QUERIES, 30).ids >= 0).all()

    def test_order_does_not_matter(self):
        parts = (Bm25().index(CORPUS), make_dense().index(CORPUS))
        first, second = (HybridIndex(order, Fusion()) for order in (parts, parts[::-1]))
        for one, other in zip(first.search(QUERIES, 8), second.search(QUERIES, 8), strict=True):
            np.testing.assert_array_equal(one, other)
        assert first.size_bytes == sum(part.size_bytes for part in parts)

    def test_nothing_to_fuse(self):
        with pytest.raises(ValueError, match="at least one index"):
            Hybrid(()).index(CORPUS)

    @pytest.mark.parametrize("change", [{"depth": 0}, {"constant": -1.0}, {"constant": np.inf}])
    def test_bad_settings(self, change):
        with pytest.raises(ValueError, match="depth must be at least 1"):
            Fusion(**change)
