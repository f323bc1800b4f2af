"""Intervals for means over runs and episodes, and which starts of training were poor."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special

# A start is poor if its loss is more than this many times that of its run's best.
POOR = 1.2


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
    if not len(runs):
        raise ValueError("there must be at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(runs))
    low = high = None
    if len(runs) > 1 and np.isfinite(runs).all():
        quantile = special.stdtrit(len(runs) - 1, (1 + level) / 2)
        reach = float(quantile * np.std(runs, ddof=1) / np.sqrt(len(runs)))
        low, high = mean - reach, mean + reach
    return {"mean": mean, "low": low, "high": high, "count": len(runs)}


def bootstrap_means(
    values: Float[np.ndarray, "laws seeds episodes"], bootstrap: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws laws"]:
    """Means of a distribution's runs over its episodes, runs and episodes drawn with replacement.

    All runs of a distribution are tested on the same episodes, so a draw of episodes is one for
    all of them: the two are crossed, not nested (Owen 2007, the pigeonhole bootstrap). With very
    few runs their part of the variance comes out small, by one part in their number.

    Args:
        values: one number a run and episode.
        bootstrap: draws.
        rng: source of the draws.
    """
    laws, seeds, episodes = values.shape
    of_runs, of_episodes = (
        rng.multinomial(count, np.full(count, 1 / count), size=(bootstrap, laws))
        for count in (seeds, episodes)
    )
    # A value that is not finite makes its distribution's means so; that is no cause to warn.
    with np.errstate(invalid="ignore"):
        sums = np.einsum("blr,lre,ble->bl", of_runs, values.astype(np.float64), of_episodes)
    return sums / (seeds * episodes)


def poor_share(start_losses: Float[np.ndarray, "... starts"]) -> float:
    """The share of starts whose loss is above `POOR` times that of their run's best."""
    return float(np.mean(start_losses > POOR * start_losses.min(axis=-1, keepdims=True)))
