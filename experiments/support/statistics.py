"""Intervals for means over runs, and for any statistic by bootstrap."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike
from scipy import special


def mean_interval(values: ArrayLike, level: float = 0.95) -> dict[str, float | None]:
    """Mean of independent runs with its Student-t interval.

    Args:
        values: numbers, one a run, [n].
        level: how often the interval is to hold the true mean, in (0, 1).

    Returns:
        `mean`, `low`, `high` and `count`, the n. One run says nothing about spread: `low` and
        `high` are None then. So are they where a value is not finite; the mean is not, either.

    Raises:
        ValueError: no values, not one-dimensional, or a level outside (0, 1).
    """
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1:
        raise ValueError(f"values must be one-dimensional, got shape {runs.shape}")
    _check(len(runs), level)
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(runs))
    low = high = None
    if len(runs) > 1 and np.isfinite(runs).all():
        quantile = special.stdtrit(len(runs) - 1, (1 + level) / 2)
        reach = float(quantile * np.std(runs, ddof=1) / np.sqrt(len(runs)))
        low, high = mean - reach, mean + reach
    return {"mean": mean, "low": low, "high": high, "count": len(runs)}


def bootstrap_interval(
    values: Shaped[np.ndarray, "n ..."],
    statistic: Callable[[np.ndarray], float],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 1000,
) -> dict[str, float | None]:
    """A statistic of independent values with its percentile bootstrap interval.

    Args:
        values: one a row; rows are drawn whole, so pairs stay pairs.
        statistic: a number from an array of the shape of `values`.
        rng: source of the draws.
        level: how often the interval is to hold the true statistic, in (0, 1).
        draws: resamples.

    Returns:
        `estimate`, the statistic of the values themselves, `low`, `high` and `count`, the n.
        `low` and `high` are None for one value, and where a resample's statistic is not finite.

    Raises:
        ValueError: no values, no draws, or a level outside (0, 1).
    """
    count = len(values)
    _check(count, level)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    low = high = None
    if count > 1:
        found = [statistic(values[rng.integers(count, size=count)]) for _ in range(draws)]
        if np.isfinite(found).all():
            low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return {"estimate": float(statistic(values)), "low": low, "high": high, "count": count}


def _check(count: int, level: float) -> None:
    if count < 1:
        raise ValueError("there must be at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
