"""What the boundary sweep found, in numbers: tables, summary, and where alignment falls short.

Everything starts from `measured`: by name of the variant, arrays `READING.MEASURE`
`[laws, seeds, episodes]`, `transfer.MEASURE` `[tested on, trained on, seeds]`, and the losses of
training, `start_losses` `[laws, seeds, starts]`.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.support.statistics import bootstrap_means, poor_share
from experiments.support.variants import Variant
from icorag_jax.theory.alignment import Measures

# What counts as aligned.
ALIGNED = 0.99
# Readings of a variant: a construction's weights; trained against the best step of its family, and
# against the best plain step; where the two can be mixed, the weights half way between the trained
# ones and the best step's.
READINGS = ("construction", "trained", "plain", "interpolated")
# Measures of the trained reading beside its alignment and losses.
OTHER_MEASURES = ("relative_error", "sensitivity_cosine", "sensitivity_distance")

Measured = Mapping[str, Mapping[str, np.ndarray]]


def episode_table(measured: Measured, laws: Sequence[str]) -> pd.DataFrame:
    """Every measure of every episode: a row a variant, reading, law, seed and episode."""
    parts = []
    for name, arrays in measured.items():
        for reading in READINGS:
            if f"{reading}.loss" not in arrays:
                continue
            fields = {field: arrays[f"{reading}.{field}"] for field in Measures._fields}
            _, seeds, episodes = fields["loss"].shape
            index = pd.MultiIndex.from_product(
                [laws, range(seeds), range(episodes)], names=["distribution", "seed", "episode"]
            )
            columns = {field: values.reshape(-1) for field, values in fields.items()}
            part = pd.DataFrame(columns, index=index).reset_index()
            parts.append(part.assign(architecture=name, reading=reading))
    table = pd.concat(parts, ignore_index=True)
    for column in ("distribution", "architecture", "reading"):
        table[column] = table[column].astype("category")
    return table


def transfer_table(measured: Measured, laws: Sequence[str]) -> pd.DataFrame:
    """Trained on one distribution, tested on another: means over a run's episodes."""
    parts = []
    for name, arrays in measured.items():
        fields = {field: arrays[f"transfer.{field}"] for field in Measures._fields}
        seeds = fields["loss"].shape[-1]
        index = pd.MultiIndex.from_product(
            [laws, laws, range(seeds)], names=["tested_on", "trained_on", "seed"]
        )
        columns = {field: values.reshape(-1) for field, values in fields.items()}
        part = pd.DataFrame(columns, index=index).reset_index()
        parts.append(part.assign(architecture=name))
    return pd.concat(parts, ignore_index=True)


def summarize(
    rows: Mapping[str, Variant],
    measured: Measured,
    laws: Sequence[str],
    text_source: Mapping[str, str | int] | None,
    bootstrap: int,
    seed: int,
) -> dict:
    """What `summary.json` holds: per architecture its kind, alignments, spread, and readings.

    Args:
        rows: the variants by name.
        measured: what was measured of each.
        laws: names of the distributions.
        text_source: where texts and encoder came from; None without text features.
        bootstrap: draws of the bootstrap over runs and episodes.
        seed: of these draws.
    """
    architectures = {}
    for name, variant in rows.items():
        arrays = dict(measured[name])
        # A construction has no runs to differ: its episodes are all of one.
        arrays["construction.prediction_cosine"] = arrays["construction.prediction_cosine"].reshape(
            len(laws), 1, -1
        )

        def draws_for(what, name=name):
            return np.random.default_rng([seed, zlib.crc32(f"{name} {what}".encode())])

        def by_law(what, values, draws_for=draws_for):
            means = values.astype(np.float64).mean(axis=(1, 2))
            return _by_law(means, bootstrap_means(values, bootstrap, draws_for(what)), laws)

        readings = {
            reading: alignment_intervals(
                arrays[f"{reading}.prediction_cosine"], laws, bootstrap, draws_for(reading)
            )
            for reading in ("construction", "trained", "plain")
        }
        loss, best = arrays["trained.loss"], arrays["trained.reference_loss"]
        architectures[name] = {
            "kind": variant.architecture.kind,
            "layers": variant.architecture.layers,
            **readings["trained"],
            "construction": readings["construction"],
            **{
                f"{measure}_by_distribution": by_law(measure, arrays[f"trained.{measure}"])
                for measure in OTHER_MEASURES
            },
            "loss_by_distribution": by_law("loss", loss),
            "best_step_loss_by_distribution": by_law("best step's loss", best),
            "loss_gap_by_distribution": by_law("loss gap", loss - best),
            "poor_starts": poor_share(arrays["start_losses"]),
        }
        if variant.single_step:
            # Several plain steps would each want a rate of their own.
            architectures[name] |= {"against_plain_step": readings["plain"]}
        if "interpolated.loss" in arrays:
            architectures[name] |= {
                "interpolated_loss_by_distribution": by_law(
                    "interpolated loss", arrays["interpolated.loss"]
                )
            }
    return {"architectures": architectures, "text_source": text_source}


def alignment_intervals(
    values: Float[np.ndarray, "laws seeds episodes"],
    laws: Sequence[str],
    bootstrap: int,
    rng: np.random.Generator,
) -> dict:
    """Mean alignment by distribution and its spread, with 95% bootstrap intervals.

    The largest mean less the smallest grows with the noise of the means. Its interval is the basic
    one, the percentile interval mirrored at the estimate, which takes that bias out again.
    """
    means = values.astype(np.float64).mean(axis=(1, 2))
    draws = bootstrap_means(values, bootstrap, rng)
    spread = float(means.max() - means.min())
    high, low = 2 * spread - np.quantile(np.ptp(draws, axis=1), [0.025, 0.975])
    return {
        "alignment_by_distribution": _by_law(means, draws, laws),
        "spread": {"mean": spread, "low": max(0.0, float(low)), "high": max(0.0, float(high))},
    }


def expected(layers: int, law: str) -> bool:
    """Whether theory has a best step of so many layers on a distribution (docs/theory.md).

    The loss of one step holds fourth moments of a feature, that of two steps eighth ones and more;
    Student-t features with five degrees of freedom have none above the fourth.
    """
    return layers == 1 or law != "student_t"


def shortfalls(summary: dict) -> list[tuple[str, str, float]]:
    """Linear cells whose trained alignment is below the mark: name, distribution, alignment."""
    return [
        (name, law, entry["mean"])
        for name, a in summary["architectures"].items()
        if a["kind"] == "linear"
        for law, entry in a["alignment_by_distribution"].items()
        if entry["mean"] < ALIGNED
    ]


def _by_law(
    means: Float[np.ndarray, " laws"],
    draws: Float[np.ndarray, "draws laws"],
    laws: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Mean and percentile interval by distribution."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return {
        law: {"mean": float(mean), "low": float(least), "high": float(most)}
        for law, mean, least, most in zip(laws, means, low, high, strict=True)
    }
