import numpy as np
import pytest
from scipy import stats

from experiments.support.statistics import mean_interval, poor_share


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_mean_interval_is_that_of_scipy(count, level):
    values = np.random.default_rng(count).normal(3.0, 2.0, size=count)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = mean_interval(values, level)
    assert found["mean"] == pytest.approx(values.mean())
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["count"] == count
    assert all(type(value) in (float, int) for value in found.values())


def test_mean_interval_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(1.0, size=(2000, 4))
    intervals = [mean_interval(sample, 0.9) for sample in samples]
    covered = np.mean([found["low"] <= 1.0 <= found["high"] for found in intervals])
    # Three standard errors of a share of 2,000.
    assert abs(covered - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 2000)


def test_mean_interval_at_its_edges():
    assert mean_interval([2]) == {"mean": 2.0, "low": None, "high": None, "count": 1}
    assert mean_interval([2, 2, 2]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "count": 3}
    assert mean_interval([True, False])["mean"] == 0.5
    found = mean_interval([np.inf, -np.inf])
    assert np.isnan(found["mean"]) and found["low"] is None and found["high"] is None


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([], 0.95, "at least one"),
        ([[1.0, 2.0]], 0.95, "one-dimensional"),
        (3.0, 0.95, "one-dimensional"),
        ([1.0, 2.0], 0.0, "level"),
        ([1.0, 2.0], 1.0, "level"),
        ([1.0, 2.0], 95, "level"),
    ],
)
def test_mean_interval_refuses(values, level, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, level)


def test_poor_starts_are_far_above_the_best_of_their_run():
    losses = np.asarray([[1.0, 1.1, 1.3, np.inf], [50.0, 10.0, 11.0, 12.5]])
    assert poor_share(losses) == 4 / 8
