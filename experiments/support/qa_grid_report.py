"""Summary, account and figures of the grid of question answering, as values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support.claims import Claim, claims_markdown
from experiments.support.qa_report import adaptation_claim, difference, loss_claim, origin
from experiments.support.qa_tables import ALL, comparisons_of, points
from icorag_jax.data.world import CONTROL

Results = Mapping[str, Mapping[str, pd.DataFrame]]
_SHARE_OF_CELLS = 22 / 28


def summarize(results: Results) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        results: by `answers` and, if there is one, `transfer`: `scores`, `comparisons`, `together`.
    """
    tree = {
        name: {kind: table.to_dict("records") for kind, table in of.items()}
        for name, of in results.items()
    }
    return tree | {"claims": [dataclasses.asdict(claim) for claim in claims(results)]}


def claims(results: Results) -> list[Claim]:
    """What should hold over the grid."""
    together, cells = results["answers"]["together"], results["answers"]["comparisons"]
    found: list[Claim | None] = []
    for measure, name in (("exact_match", "EM"), ("f1", "F1")):
        row = difference(together, "updater", "shared", ALL, measure)
        if row is None:
            continue
        found.append(
            Claim(
                f"The updater beats the shared interface on average ({name})",
                f"{points(row)} points, p {row['p']:.4f}",
                row["difference"] > 0 and row["p"] < 0.01,
            )
        )
        of = _gains(cells, measure)
        better = int(np.count_nonzero(of["difference"] > 0))
        clear = int(np.count_nonzero(of["low"] > 0))
        found.append(
            Claim(
                f"It does so in 22 of 28 cells, or that share ({name})",
                f"{better} of {len(of)} cells, {clear} beyond the interval",
                better >= _SHARE_OF_CELLS * len(of),
            )
        )
    control = cells[
        (cells["benchmark"] == CONTROL)
        & (cells["against"] == "frozen")
        & (cells["measure"] == "exact_match")
    ]
    if len(control):
        above = control[control["low"] > 0]
        found.append(
            Claim(
                "On the control family nothing beats frozen RAG",
                f"{len(above)} of {len(control)} comparisons beyond the interval",
                not len(above),
            )
        )
    for name in ("shuffled", "random"):
        claim = f"Fed {name} evidence, the updater's gain is gone"
        found.append(loss_claim(together, f"updater_{name}", claim))
    found.append(adaptation_claim(together))
    if "transfer" in results:
        of = _gains(results["transfer"]["comparisons"], "exact_match")
        means = [part["difference"].mean() for _, part in of.groupby("benchmark", sort=False)]
        better = sum(bool(each > 0) for each in means)
        found.append(
            Claim(
                "Left out of training: a gain on 5 of 7 families, or that share",
                f"{better} of {len(means)} families (mean of cells)",
                better >= 5 / 7 * len(means),
            )
        )
    return [claim for claim in found if claim is not None]


def account(summary: Mapping[str, Any], results: Results, trained: Path | str | None) -> str:
    """The grid in words; `trained` as in `QaMethods`."""
    lines = ["# Question answering: benchmarks, retrievers, backbones", "", *origin(trained)]
    lines += [claims_markdown([Claim(**row) for row in summary["claims"]])]
    for name, title in (("answers", "Trained on all"), ("transfer", "Left out of training")):
        if name not in results:
            continue
        scores = results[name]["scores"]
        for measure, of in scores.groupby("measure", sort=False):
            lines += ["", f"## {title}: {measure}, percent", ""]
            methods = list(dict.fromkeys(of["method"]))
            lines += [f"| backbone | retriever | benchmark | {' | '.join(methods)} |"]
            lines += [f"| --- | --- | --- |{' ---: |' * len(methods)}"]
            keys = ["backbone", "retriever", "benchmark"]
            for key, part in of.groupby(keys, sort=False):
                by = part.set_index("method")
                cells = [_cell(by.loc[m]) if m in by.index else "" for m in methods]
                lines.append(f"| {' | '.join([*map(str, cast(tuple, key)), *cells])} |")
        lines += ["", f"## {title}: paired differences over all cells, points", ""]
        lines += ["| method | against | measure | difference | p |"]
        lines += ["| --- | --- | --- | ---: | ---: |"]
        for row in results[name]["together"].to_dict("records"):
            lines.append(
                f"| {row['method']} | {row['against']} | {row['measure']} "
                f"| {points(row)} | {row['p']:.4f} |"
            )
    return "\n".join([*lines, ""])


def draw(results: Results) -> dict[str, Figure]:
    """Heatmaps of what the updater gains over the shared interface, in points of exact match."""
    return {
        f"{name}_gains": _heatmap(_gains(of["comparisons"], "exact_match"))
        for name, of in results.items()
        if len(_gains(of["comparisons"], "exact_match"))
    }


def _gains(compared: pd.DataFrame, measure: str) -> pd.DataFrame:
    rows = comparisons_of(compared, "updater", "shared", measure)
    return rows.loc[rows["benchmark"] != ALL]


def _heatmap(gains: pd.DataFrame) -> Figure:
    rows = gains["backbone"] + ", " + gains["retriever"]
    wide = gains.assign(row=rows).pivot_table(
        index="row", columns="benchmark", values="difference", sort=False
    )
    clear = gains.assign(row=rows, clear=(gains["low"] > 0) | (gains["high"] < 0)).pivot_table(
        index="row", columns="benchmark", values="clear", sort=False
    )
    values = 100 * wide.to_numpy()
    figure = Figure(
        figsize=(1.3 * wide.shape[1] + 2, 0.6 * wide.shape[0] + 1.4), layout="constrained"
    )
    axes = figure.subplots()
    reach = max(1.0, float(np.abs(values).max()))
    image = axes.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        weight = "bold" if clear.to_numpy()[row, column] else "normal"
        colour = "white" if abs(value) > 0.6 * reach else "black"
        axes.text(
            column, row, f"{value:+.1f}", ha="center", va="center", weight=weight, color=colour
        )
    axes.set_xticks(range(wide.shape[1]), list(wide.columns))
    axes.set_yticks(range(wide.shape[0]), list(wide.index))
    axes.set_title(
        "exact match, updater minus shared, points (bold: beyond the 95% interval)", fontsize=9
    )
    figure.colorbar(image)
    return figure


def _cell(row: pd.Series) -> str:
    """A mean with half the width of its interval, in percent."""
    return f"{100 * row['mean']:.1f} ±{50 * (row['high'] - row['low']):.1f}"
