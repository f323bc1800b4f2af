"""Rankings against sorting by definition."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.retrieval.ranking import best_scores, reciprocal_rank_fusion

SCORES = st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1.0, 3.0])


@given(scores=st.lists(SCORES, min_size=1, max_size=30), k=st.integers(1, 40))
def test_best_scores_are_those_of_a_sort(scores, k):
    ids, best = best_scores(np.array(scores, np.float32), k)
    order = sorted(
        (i for i, score in enumerate(scores) if score > -np.inf), key=lambda i: (-scores[i], i)
    )[:k]
    missing = k - len(order)
    assert ids.tolist() == order + [-1] * missing
    assert best.tolist() == [scores[i] for i in order] + [-np.inf] * missing


RANKINGS = st.lists(st.permutations(range(8)).map(lambda order: order[:5]), min_size=1, max_size=4)


@given(rankings=RANKINGS, cut=st.integers(0, 5), k=st.integers(1, 10), shuffle=st.randoms())
def test_fusion_is_the_sum_of_reciprocal_ranks(rankings, cut, k, shuffle):
    """In exact fractions: equal sums are ties, whatever they are made of."""
    # The first ranking found fewer.
    rankings = [rankings[0][:cut] + [-1] * (5 - cut), *rankings[1:]]
    sums: dict[int, Fraction] = {}
    for ranking in rankings:
        for place, passage in enumerate(ranking):
            if passage >= 0:
                sums[passage] = sums.get(passage, Fraction(0)) + Fraction(1, 60 + place + 1)
    order = sorted(sums, key=lambda passage: (-sums[passage], passage))[:k]
    shuffle.shuffle(rankings)
    arrays = [np.array([ranking], np.int32) for ranking in rankings]
    ids, scores = reciprocal_rank_fusion(arrays, k, constant=60.0)
    assert ids[0].tolist() == order + [-1] * (k - len(order))
    np.testing.assert_allclose(scores[0, : len(order)], [float(sums[p]) for p in order], rtol=1e-6)
    assert (scores[0, len(order) :] == -np.inf).all()


def test_fusion_of_each_query_alone_and_of_other_depths():
    first = np.array([[0, 1, 2], [5, -1, -1]], np.int32)
    second = np.array([[2], [-1]], np.int32)
    ids, scores = reciprocal_rank_fusion([first, second], 2, constant=0.0)
    np.testing.assert_array_equal(ids, [[2, 0], [5, -1]])
    np.testing.assert_allclose(scores, [[4 / 3, 1], [1, -np.inf]])
