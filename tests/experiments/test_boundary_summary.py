"""Intervals and claims of the boundary sweep, on numbers that are made up."""

import numpy as np
import pytest
from scipy import stats

from experiments.support.boundary_account import claims
from experiments.support.boundary_summary import alignment_intervals, expected, shortfalls

LAWS = ("gaussian", "student_t")


def summary(**alignments: tuple[str, int, tuple[float, float]]) -> dict:
    """Of architectures by name: kind, layers, and alignment on each of the two laws."""

    def readings(values):
        spread = max(values) - min(values)
        return {
            "alignment_by_distribution": {
                law: {"mean": value, "low": value, "high": value}
                for law, value in zip(LAWS, values, strict=True)
            },
            "spread": {"mean": spread, "low": spread - 0.001, "high": spread + 0.001},
        }

    return {
        "architectures": {
            name: {
                "kind": kind,
                "layers": layers,
                **readings(values),
                "construction": readings((1.0, 1.0)),
            }
            for name, (kind, layers, values) in alignments.items()
        }
    }


def test_intervals_are_the_bootstrap_of_scipy():
    """With one run a law there is one level of draws, as in SciPy."""
    values = np.random.default_rng(0).beta(20.0, 1.0, size=(2, 1, 200))
    found = alignment_intervals(values, LAWS, 2000, np.random.default_rng(1))
    for law, sample in zip(LAWS, values[:, 0], strict=True):
        interval = stats.bootstrap(
            (sample,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        entry = found["alignment_by_distribution"][law]
        assert entry["mean"] == pytest.approx(sample.mean())
        width = interval.high - interval.low
        assert entry["low"] == pytest.approx(interval.low, abs=0.15 * width)
        assert entry["high"] == pytest.approx(interval.high, abs=0.15 * width)


def test_runs_that_differ_widen_the_interval():
    """Episodes of a run are not independent: two runs at 0 and 1 leave everything in between."""
    values = np.repeat(np.asarray([0.0, 1.0])[None, :, None], 500, axis=-1)
    found = alignment_intervals(
        np.concatenate([values, values]), LAWS, 400, np.random.default_rng(0)
    )
    entry = found["alignment_by_distribution"]["gaussian"]
    assert (entry["low"], entry["mean"], entry["high"]) == (0.0, 0.5, 1.0)


def test_runs_share_their_episodes():
    """Ten runs that are all alike on 40 episodes: the mean is of 40 numbers, not of 400."""
    rng = np.random.default_rng(3)
    episodes = rng.uniform(size=(2, 1, 40))
    values = np.broadcast_to(episodes, (2, 10, 40))
    found = alignment_intervals(values, LAWS, 2000, np.random.default_rng(0))
    entry = found["alignment_by_distribution"]["gaussian"]
    error = episodes[0, 0].std() / np.sqrt(40)
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_spread_of_noise_alone_is_not_above_zero():
    """Eight distributions with one mean: the largest less the smallest is positive all the same."""
    laws = tuple("abcdefgh")
    lows = []
    for trial in range(20):
        values = np.random.default_rng(trial).normal(0.9, 0.05, size=(8, 2, 50))
        found = alignment_intervals(values, laws, 400, np.random.default_rng(trial))["spread"]
        assert found["mean"] > 0
        lows.append(found["low"])
    assert np.mean(np.asarray(lows) == 0) >= 0.8


def test_claims_say_where_a_linear_extension_falls_short():
    found = summary(
        linear=("linear", 1, (0.999, 0.95)),
        depth_2=("linear", 2, (0.999, 0.96)),
        softmax=("nonlinear", 1, (0.9, 0.3)),
    )
    assert shortfalls(found) == [("linear", "student_t", 0.95), ("depth_2", "student_t", 0.96)]
    exact, one_layer, several, nonlinear = claims(found)
    assert exact.holds
    assert one_layer.holds is False
    assert (
        "1 of 2 cells" in one_layer.measured and "linear on student_t 0.950" in one_layer.measured
    )
    # Two steps on heavy tails have no best step; what is short is listed all the same.
    assert several.holds is True
    assert "depth_2 on student_t 0.960" in several.measured
    assert nonlinear.holds is True and "in 1 of 1" in nonlinear.measured


def test_a_nonlinear_spread_below_the_linear_one_is_reported_so():
    found = summary(linear=("linear", 1, (0.999, 0.8)), relu=("nonlinear", 1, (0.9, 0.85)))
    nonlinear = claims(found)[-1]
    assert nonlinear.holds is False and "in 0 of 1" in nonlinear.measured


def test_only_deep_steps_on_heavy_tails_are_not_expected():
    cells = {(layers, law): expected(layers, law) for layers in (1, 2, 3) for law in LAWS}
    assert [cell for cell, due in cells.items() if not due] == [(2, "student_t"), (3, "student_t")]
