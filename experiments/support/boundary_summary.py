"""What the boundary sweep found: tables, summary, claims, and the account in words.

Everything starts from `measured`: by name of the variant, arrays `READING.MEASURE`
`[laws, seeds, episodes]`, `transfer.MEASURE` `[tested on, trained on, seeds]`, and the losses of
training, `start_losses` `[laws, seeds, starts]`.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.support.claims import Claim, claims_markdown
from experiments.support.statistics import POOR, poor_share
from experiments.support.variants import Variant
from icorag_jax.theory.alignment import Measures
from icorag_jax.theory.features import SIGNED_PERMUTATION_INVARIANT

# What counts as aligned.
ALIGNED = 0.99
# Readings of a variant: a construction's weights; trained against the best step of its family, and
# against the best plain step.
READINGS = ("construction", "trained", "plain")

Measured = Mapping[str, Mapping[str, np.ndarray]]


def episode_table(measured: Measured, laws: Sequence[str]) -> pd.DataFrame:
    """Every measure of every episode: a row a variant, reading, law, seed and episode."""
    parts = []
    for name, arrays in measured.items():
        for reading in READINGS:
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
    text_source: str,
    bootstrap: int,
    seed: int,
) -> dict:
    """What `summary.json` holds: per architecture its kind, alignments, spread, and readings.

    Args:
        rows: the variants by name.
        measured: what was measured of each.
        laws: names of the distributions.
        text_source: where texts came from, in words.
        bootstrap: draws of the bootstrap over runs and episodes.
        seed: of these draws.
    """
    architectures = {}
    for name, variant in rows.items():
        arrays = measured[name]
        readings = {
            reading: alignment_intervals(
                arrays[f"{reading}.prediction_cosine"],
                laws,
                bootstrap,
                np.random.default_rng([seed, zlib.crc32(f"{name} {reading}".encode())]),
            )
            for reading in READINGS
        }
        architectures[name] = {
            "kind": variant.architecture.kind,
            "layers": variant.architecture.layers,
            **readings["trained"],
            "construction": readings["construction"],
            "against_plain_step": readings["plain"],
            "sensitivity_by_distribution": _means(arrays["trained.sensitivity_cosine"], laws),
            "relative_error_by_distribution": _means(arrays["trained.relative_error"], laws),
            "loss_by_distribution": _means(arrays["trained.loss"], laws),
            "best_step_loss_by_distribution": _means(arrays["trained.reference_loss"], laws),
            "poor_starts": poor_share(arrays["start_losses"]),
        }
    summary = {"architectures": architectures, "text_source": text_source}
    return summary | {"claims": [dataclasses.asdict(row) for row in claims(summary)]}


def alignment_intervals(
    values: np.ndarray, laws: Sequence[str], bootstrap: int, rng: np.random.Generator
) -> dict:
    """Mean alignment by distribution and its spread, with 95% bootstrap intervals.

    Args:
        values: `[laws, seeds, episodes]`.
        laws: their names.
        bootstrap: draws: runs with replacement, then episodes of each run with replacement.
        rng: source of the draws.
    """
    found = values.astype(np.float64)
    count, seeds, episodes = found.shape
    draws = np.empty((bootstrap, count))
    for index in range(bootstrap):
        run = rng.integers(seeds, size=(count, seeds, 1))
        episode = rng.integers(episodes, size=(count, seeds, episodes))
        draws[index] = found[np.arange(count)[:, None, None], run, episode].mean(axis=(1, 2))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    means = found.mean(axis=(1, 2))
    spreads = np.quantile(draws.max(axis=1) - draws.min(axis=1), [0.025, 0.975])
    return {
        "alignment_by_distribution": {
            law: {"mean": float(mean), "low": float(least), "high": float(most)}
            for law, mean, least, most in zip(laws, means, low, high, strict=True)
        },
        "spread": {
            "mean": float(means.max() - means.min()),
            "low": float(spreads[0]),
            "high": float(spreads[1]),
        },
    }


def claims(summary: dict) -> list[Claim]:
    """The claims table's rows."""
    architectures = summary["architectures"]
    linear = {n: a for n, a in architectures.items() if a["kind"] == "linear"}
    nonlinear = {n: a for n, a in architectures.items() if a["kind"] == "nonlinear"}
    rows = []
    if linear:
        exact = min(
            entry["mean"]
            for a in linear.values()
            for entry in a["construction"]["alignment_by_distribution"].values()
        )
        rows.append(
            Claim(
                "Linear extensions: a construction's weights are its descent on every distribution",
                f"least mean alignment {exact:.6f} over {len(linear)} extensions",
                exact >= 1 - 1e-4,
            )
        )
    for title, chosen in {
        "One layer": {n: a for n, a in linear.items() if a["layers"] == 1},
        "Several layers": {n: a for n, a in linear.items() if a["layers"] > 1},
    }.items():
        if not chosen:
            continue
        below = [row for row in shortfalls(summary) if row[0] in chosen]
        undue = [row for row in below if expected(chosen[row[0]]["layers"], row[1])]
        cells = sum(len(a["alignment_by_distribution"]) for a in chosen.values())
        listed = ", ".join(f"{name} on {law} {value:.3f}" for name, law, value in below)
        rows.append(
            Claim(
                f"{title} of linear attention, trained: alignment at least {ALIGNED} with the best "
                "step wherever there is one",
                f"{cells - len(below)} of {cells} cells" + (f"; below: {listed}" if below else ""),
                not undue,
            )
        )
    if "linear" in linear and nonlinear:
        one = linear["linear"]["spread"]
        wider = [name for name, a in nonlinear.items() if a["spread"]["low"] > one["high"]]
        rows.append(
            Claim(
                "Nonlinear architectures: alignment depends on the feature distribution, most of "
                "them more than that of one linear layer",
                f"spread {_median_spread(nonlinear):.3f} (median of {len(nonlinear)}) against "
                f"{_median_spread(linear):.3f} (median of {len(linear)} linear); interval above "
                f"that of one linear layer, [{one['low']:.3f}, {one['high']:.3f}], in "
                f"{len(wider)} of {len(nonlinear)}",
                2 * len(wider) > len(nonlinear),
            )
        )
    return rows


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


def account(summary: dict) -> str:
    """The sweep in words."""
    lines = [
        "# Boundary sweep",
        "",
        "Alignment is the cosine between a model's and a gradient step's predictions for an",
        "episode's queries; the spread is the largest mean over distributions less the smallest,",
        "with a 95% bootstrap interval over runs and episodes.",
        "",
        f"Text features: {summary['text_source']}.",
        "",
        "| architecture | kind | least alignment, trained | spread, trained "
        "| least alignment, construction | spread, construction | poor starts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in summary["architectures"].items():
        cells = [name, entry["kind"]]
        for reading in (entry, entry["construction"]):
            law, least = min(
                reading["alignment_by_distribution"].items(), key=lambda item: item[1]["mean"]
            )
            cells += [f"{least['mean']:.4f} ({law})", _interval(reading["spread"])]
        lines.append("| " + " | ".join([*cells, f"{entry['poor_starts']:.0%}"]) + " |")
    lines += ["", "## Where a linear extension falls short", ""]
    below = shortfalls(summary)
    if below:
        lines += [
            "Trained, against the best step of its family (least squares for one layer; for",
            "several layers, steps with matrix rates that are trained as the model is):",
            "",
        ]
    for name, law, value in below:
        entry = summary["architectures"][name]
        lines.append(f"- {name} on {law}: {value:.4f}. {_reason(entry, law)}")
    if not below:
        lines.append(f"Nowhere: every linear cell is at {ALIGNED} or above.")
    lines += [
        "",
        "One layer of linear attention is the best *preconditioned* step on any distribution. It",
        "is also the best plain step where features are invariant under signed permutations of",
        f"their coordinates ({', '.join(sorted(SIGNED_PERMUTATION_INVARIANT))}), and only there:",
        "`against_plain_step` in `summary.json` has the alignment with the plain step everywhere.",
        "",
        f"A poor start is an initialization whose loss after the first steps is above {POOR} times",
        "that of the run's best one; each run goes on from its best.",
        "",
        claims_markdown([Claim(**row) for row in summary["claims"]]),
    ]
    return "\n".join([*lines, ""])


def _reason(entry: dict, law: str) -> str:
    loss = entry["loss_by_distribution"][law]
    best = entry["best_step_loss_by_distribution"][law]
    losses = f" Its loss is {loss:.3g}, that of the step {best:.3g}."
    if not expected(entry["layers"], law):
        return (
            "No best step: the loss of two steps holds moments that these heavy-tailed features "
            "do not have, so that model and step each fit the largest samples they saw." + losses
        )
    if entry["layers"] > 1:
        return (
            "Theory gives weights of these layers that take the steps, not that a short training "
            "finds them; both the model's and the step's training are noisy here." + losses
        )
    return "Theory names this step the optimum of one layer: training has not reached it." + losses


def _means(values: np.ndarray, laws: Sequence[str]) -> dict[str, float]:
    means = values.astype(np.float64).mean(axis=(1, 2))
    return dict(zip(laws, means.tolist(), strict=True))


def _median_spread(entries: Mapping[str, dict]) -> float:
    return float(np.median([entry["spread"]["mean"] for entry in entries.values()]))


def _interval(entry: dict) -> str:
    return f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
