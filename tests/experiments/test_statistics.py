import numpy as np
import pytest
from scipy import stats

from experiments.support.statistics import bootstrap_interval, mean_interval


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


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bootstrap_interval_is_that_of_scipy(statistic):
    values = np.random.default_rng(0).gamma(2.0, size=60)
    expected = stats.bootstrap(
        (values,), statistic, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    )
    found = bootstrap_interval(values, statistic, np.random.default_rng(2), draws=4000)
    interval = expected.confidence_interval
    assert found["estimate"] == pytest.approx(statistic(values))
    assert found["low"] == pytest.approx(interval.low, rel=0.05)
    assert found["high"] == pytest.approx(interval.high, rel=0.05)
    assert found["count"] == 60


def test_bootstrap_keeps_rows_whole_and_follows_its_source():
    pairs = np.arange(10.0)[:, None] * [1.0, 2.0]

    def ratio(rows):
        return (rows[:, 1].sum() + 1) / (rows[:, 0].sum() + 0.5)

    found = [bootstrap_interval(pairs, ratio, np.random.default_rng(0)) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["low"] == pytest.approx(2.0) == found[0]["high"]


def test_bootstrap_at_its_edges():
    one = bootstrap_interval(np.array([3.0]), np.mean, np.random.default_rng(0))
    assert one == {"estimate": 3.0, "low": None, "high": None, "count": 1}
    undefined = bootstrap_interval(np.ones(3), lambda _: np.nan, np.random.default_rng(0))
    assert undefined["low"] is None and undefined["high"] is None


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (np.ones(0), {}, "at least one"),
        (np.ones(2), {"level": 2.0}, "level"),
        (np.ones(2), {"draws": 0}, "draws"),
    ],
)
def test_bootstrap_refuses(values, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, np.mean, np.random.default_rng(0), **settings)
