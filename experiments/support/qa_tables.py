"""Scores of methods, and paired comparisons of them, from rows of answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

MEASURES = ("exact_match", "f1")
# Comparisons of one method with another.
PAIRS = (
    ("updater", "shared"), ("updater", "frozen"), ("updater", "blind"), ("updater", "feedback"),
    ("shared", "frozen"), ("feedback", "shared"), ("blind", "shared"),
    ("updater", "updater_shuffled"), ("updater", "updater_random"), ("updater", "updater_empty"),
    ("updater_shuffled", "shared"), ("updater_random", "shared"), ("updater_empty", "shared"),
    ("updater", "tta"), ("tta", "shared"), ("slot", "frozen"), ("oracle", "shared"),
)  # fmt: skip
ALL = "all"
COMPARISON_COLUMNS = (
    "benchmark", "method", "against", "measure", "difference", "low", "high", "p", "questions",
)  # fmt: skip


def score_table(answers: pd.DataFrame, bootstrap: int, seed: int) -> pd.DataFrame:
    """Mean scores of each method, with 95% bootstrap intervals over questions.

    Args:
        answers: `benchmark`, `id`, `method`, `exact_match`, `f1`; a row a question and method.
        bootstrap: draws of an interval.
        seed: of the draws.

    Returns:
        `benchmark` (`all` for the mean over benchmarks, each counting alike), `method`, `measure`,
        `mean`, `low`, `high`, `questions`.
    """
    rows = []
    for measure in MEASURES:
        for method in dict.fromkeys(answers["method"]):
            of = answers.loc[answers["method"] == method]
            values = {
                str(name): part[measure].to_numpy()
                for name, part in of.groupby("benchmark", sort=False)
            }
            for name, (mean, draws) in _means(values, bootstrap, seed).items():
                low, high = np.quantile(draws, [0.025, 0.975])
                count = len(of) if name == ALL else len(values[name])
                rows.append((name, method, measure, mean, low, high, count))
    columns = ["benchmark", "method", "measure", "mean", "low", "high", "questions"]
    return pd.DataFrame(rows, columns=columns)


def comparison_table(
    answers: pd.DataFrame, pairs: Sequence[tuple[str, str]], bootstrap: int, seed: int
) -> pd.DataFrame:
    """Paired differences of methods on the questions that both answered.

    Args:
        answers: as in `score_table`.
        pairs: of a method and the one that it is compared with; those that are not there are
            left out.
        bootstrap: draws.
        seed: of the draws.

    Returns:
        `benchmark`, `method`, `against`, `measure`, `difference`, `low`, `high`, `p` and
        `questions`; `p` is twice the share of bootstrap draws on the other side of zero.
    """
    rows = []
    for measure in MEASURES:
        wide = answers.pivot_table(
            index=["benchmark", "id"], columns="method", values=measure, sort=False
        )
        for method, against in pairs:
            if not {method, against} <= set(wide.columns):
                continue
            difference = (wide[method] - wide[against]).dropna()
            values = {
                str(name): part.to_numpy()
                for name, part in difference.groupby("benchmark", sort=False)
            }
            for name, (mean, draws) in _means(values, bootstrap, seed).items():
                low, high = np.quantile(draws, [0.025, 0.975])
                # One more of each, as no finite number of draws shows a chance of zero.
                below, above = (draws <= 0).sum() + 1, (draws >= 0).sum() + 1
                p = min(1.0, 2 * min(below, above) / (bootstrap + 1))
                count = len(difference) if name == ALL else len(values[name])
                rows.append((name, method, against, measure, mean, low, high, p, count))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def best_settings(tuned: pd.DataFrame) -> pd.DataFrame:
    """For each method the setting with the most right answers, then the lowest loss, then steps.

    Args:
        tuned: `method`, `exact`, `loss`, `steps` and what a setting is, a row a setting.
    """
    order = tuned.sort_values(["exact", "loss", "steps"], ascending=[False, True, True])
    return order.groupby("method", sort=False).head(1)


def comparisons_of(compared: pd.DataFrame, method: str, against: str, measure: str) -> pd.DataFrame:
    """The rows of `comparison_table` that compare two methods by one measure."""
    return compared.loc[
        (compared["method"] == method)
        & (compared["against"] == against)
        & (compared["measure"] == measure)
    ]


def points(row: Mapping[str, Any]) -> str:
    """A difference with its interval, in points."""
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _means(
    values: dict[str, Float[np.ndarray, " questions"]], bootstrap: int, seed: int
) -> dict[str, tuple[float, Float[np.ndarray, " draws"]]]:
    """Mean and bootstrap draws of it, of each benchmark and of all."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, scores in values.items():
        counts = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=bootstrap)
        found[name] = (float(scores.mean()), counts @ scores / len(scores))
    means, draws = zip(*found.values(), strict=True)
    found[ALL] = (float(np.mean(means)), np.mean(draws, axis=0))
    return found
