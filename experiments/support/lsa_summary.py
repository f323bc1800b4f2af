"""What trained attention was measured to be: tables, summary, claims, and the account in words.

Everything starts from `found`: by name of the setting, each of `MEASURES` `[seeds]`,
`training_loss` `[seeds, steps]` and `start_losses` `[seeds, starts]`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.support.claims import Claim, claims_markdown
from experiments.support.statistics import POOR, mean_interval, poor_share

MEASURES = (
    "loss",
    "gd_loss",
    "closed_form_loss",
    "excess_loss",
    "prediction_cosine",
    "sensitivity_cosine",
    "interpolated_loss",
    "interpolated_excess_loss",
)
# How near a loss must be to that of the best step, and how well sensitivities must agree.
NEAR = 0.01
ALIGNED = 0.99


def seed_table(found: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """A row a setting and seed."""
    parts = [
        pd.DataFrame({measure: arrays[measure] for measure in MEASURES}).assign(
            setting=name, seed=range(len(arrays["loss"]))
        )
        for name, arrays in found.items()
    ]
    return pd.concat(parts, ignore_index=True)


def loss_table(found: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Training loss over that of the best step: mean and range over seeds, a hundred points."""
    parts = []
    for name, arrays in found.items():
        losses = arrays["training_loss"] / arrays["closed_form_loss"][:, None]
        width = max(1, losses.shape[1] // 100)
        points = losses.shape[1] // width
        binned = losses[:, : points * width].reshape(-1, points, width).mean(axis=-1)
        parts.append(
            pd.DataFrame(
                {
                    "setting": name,
                    "step": width * (np.arange(points) + 0.5),
                    "relative_loss": binned.mean(axis=0),
                    "low": binned.min(axis=0),
                    "high": binned.max(axis=0),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def excess_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """In percent, a row a setting for the trained weights and one half way to the construction."""
    labels = {
        "excess_loss": "trained",
        "interpolated_excess_loss": "half way to the construction",
    }
    rows = []
    for name, entry in summary["settings"].items():
        for key, label in labels.items():
            percent = {
                field: None if entry[key][field] is None else 100 * entry[key][field]
                for field in ("mean", "low", "high")
            }
            rows.append({"label": f"{name}: {label}", **percent})
    return pd.DataFrame(rows)


def summarize(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """What `summary.json` holds: each measure of each setting as mean and interval over seeds."""
    entries: dict[str, dict[str, Any]] = {
        name: {measure: mean_interval(arrays[measure]) for measure in MEASURES}
        for name, arrays in found.items()
    }
    for name, arrays in found.items():
        entries[name]["poor_starts"] = poor_share(arrays["start_losses"])
    rows = claims(entries)
    return {"settings": entries, "claims": [dataclasses.asdict(row) for row in rows]}


def claims(entries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Claim]:
    """The claims table's rows."""
    rows = []
    for name, entry in entries.items():
        best, cosine = entry["closed_form_loss"]["mean"], entry["sensitivity_cosine"]["mean"]
        excess, between = entry["excess_loss"], entry["interpolated_excess_loss"]
        rows.append(
            Claim(
                f"Trained linear attention is one gradient step ({name}, {excess['count']} seeds)",
                f"loss {_percent(excess)} above the best step's {best:.4f}; sensitivity cosine "
                f"{cosine:.4f}",
                abs(excess["mean"]) <= NEAR and cosine >= ALIGNED,
            )
        )
        rows.append(
            Claim(
                f"Weights half way to the construction do as well ({name})",
                f"loss {_percent(between)} above the best step's {best:.4f}",
                abs(between["mean"]) <= NEAR,
            )
        )
    return rows


def account(summary: Mapping[str, Any]) -> str:
    """The run in words."""
    lines = [
        "# Trained linear self-attention",
        "",
        "One layer, trained from small random weights, beside the one gradient step that it",
        "should be. Mean and 95% interval over seeds; losses are half the squared error, summed",
        "over outputs, on fresh episodes that all seeds share. An excess loss is the mean",
        "difference to the best step's loss on the same episodes, as a share of the closed form.",
        "",
        "| setting | " + " | ".join(name.replace("_", " ") for name in MEASURES) + " |",
        "| --- | " + " | ".join("---" for _ in MEASURES) + " |",
    ]
    for name, entry in summary["settings"].items():
        cells = [_show(entry[measure]) for measure in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Runs choose the best of a few starts after their first steps, as some lead to poor",
        f"minima. Share of starts whose loss was then above {POOR} times the best one's: "
        + ", ".join(
            f"{name.replace('_', ' ')} {entry['poor_starts']:.0%}"
            for name, entry in summary["settings"].items()
        )
        + ".",
    ]
    rows = claims_markdown([Claim(**row) for row in summary["claims"]])
    return "\n".join([*lines, "", rows, ""])


def _percent(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{100 * entry['mean']:.2f}%"
    return f"{100 * entry['mean']:.2f}% [{100 * entry['low']:.2f}, {100 * entry['high']:.2f}]"


def _show(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['mean']:.4f}"
    mean, low, high = (f"{entry[name]:.4f}" for name in ("mean", "low", "high"))
    return mean if low == mean == high else f"{mean} [{low}, {high}]"
