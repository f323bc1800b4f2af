"""Paired comparisons against exact enumeration, and on draws whose truth is known."""

import itertools

import numpy as np
import pytest

from icorag_jax.data.comparison import compare


def scores(values):
    return {f"q{index}": float(value) for index, value in enumerate(values)}


def test_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1.0, 9), rng.normal(0.0, 1.0, 9)
    flips = np.asarray(list(itertools.product([-1, 1], repeat=9)))
    means = flips @ (first - second) / 9
    observed = np.mean(first - second)
    # Two-sided: twice the smaller tail.
    tails = np.mean(means >= observed - 1e-12), np.mean(means <= observed + 1e-12)
    found = compare(scores(first), scores(second), draws=10_000, seed=0)
    assert found.p_value == pytest.approx(min(1.0, 2 * min(tails)))
    assert found.difference == pytest.approx(observed)
    assert found.count == 9


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = []
    for trial in range(150):
        first, second = rng.normal(0.3, 1.0, 60), rng.normal(0.0, 1.0, 60)
        found = compare(scores(first), scores(second), draws=300, seed=trial)
        covered.append(found.low <= 0.3 <= found.high)
    # Three standard errors of a share of 150, and a point for the percentile interval's bias.
    assert abs(np.mean(covered) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 150) + 0.01


def test_pairing_is_by_question_and_not_by_order():
    first = scores(range(20))
    shuffled = dict(reversed(list(scores(np.arange(20) - 0.5).items())))
    found = compare(first, shuffled, draws=200, seed=0)
    assert found.difference == found.low == found.high == 0.5
    assert found == compare(first, scores(np.arange(20) - 0.5), draws=200, seed=0)


def test_equal_systems_do_not_differ():
    found = compare(scores([0, 1, 1, 0]), scores([0, 1, 1, 0]), draws=100, seed=0)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1.0, "b": 0.0}, {"a": 1.0}, "second lack questions that first have: 'b'"),
        ({"a": 1.0}, {"a": 1.0}, "at least two questions, got 1"),
        ({"a": 1.0, "b": np.nan}, {"a": 1.0, "b": 0.0}, "question 'b' is not finite"),
    ],
)
def test_bad_scores_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        compare(first, second, draws=10, seed=0)
