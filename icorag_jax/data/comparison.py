"""Whether one system answers better than another, on the same questions."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from icorag_jax.data.answers import check_same_questions


class Comparison(NamedTuple):
    """The mean difference of two systems' scores over questions.

    Attributes:
        difference: mean of the first system's score less the second's.
        low: lower end of the 95% bootstrap interval of the difference, questions drawn.
        high: its upper end.
        p_value: two-sided, of a permutation test that swaps the two systems' scores of a question:
            how often chance alone gives a difference as large.
        count: number of questions.
    """

    difference: float
    low: float
    high: float
    p_value: float
    count: int


def compare(
    first: Mapping[str, float], second: Mapping[str, float], *, draws: int, seed: int
) -> Comparison:
    """Compares two systems question by question.

    Args:
        first: scores by question id.
        second: scores of the same questions; their order does not matter.
        draws: resamples of the bootstrap, and of the test where there are too many to try them all.
        seed: of the draws.

    Raises:
        ValueError: the questions differ, with the first ids that do, there are fewer than two, or
            a score is not finite.
    """
    check_same_questions("first", first, "second", second)
    keys = sorted(first)
    if len(keys) < 2:
        raise ValueError(f"a comparison takes at least two questions, got {len(keys)}")
    pairs = np.asarray([[first[key], second[key]] for key in keys], np.float64)
    if not np.isfinite(pairs).all():
        bad = keys[int(np.argmin(np.isfinite(pairs).all(axis=1)))]
        raise ValueError(f"the score of question {bad!r} is not finite")
    differences = pairs[:, 0] - pairs[:, 1]
    bootstrap_rng, test_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    # Questions are drawn in blocks, so that memory does not grow with the number of draws.
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=draws, method="percentile", batch=100,
        rng=bootstrap_rng,
    ).confidence_interval  # fmt: skip
    test = stats.permutation_test(
        (pairs[:, 0], pairs[:, 1]), _mean_difference, permutation_type="samples", vectorized=True,
        n_resamples=draws, batch=100, rng=test_rng,
    )  # fmt: skip
    return Comparison(
        float(differences.mean()),
        float(interval.low),
        float(interval.high),
        float(test.pvalue),
        len(keys),
    )


def _mean_difference(first, second, axis):
    return np.mean(first, axis=axis) - np.mean(second, axis=axis)
