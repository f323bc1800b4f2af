"""Figures as values: each function takes tidy data and returns a Matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_INK = "#333333"
# Colours of Okabe and Ito, then of Tol, told apart by colour-blind readers too.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933",
    "#882255", "#888888",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


def error_strips(errors: pd.DataFrame, limits: Mapping[str, float]) -> Figure:
    """Relative errors of each construction, on a logarithmic axis: median, and up to the worst.

    Args:
        errors: columns `construction`, `dtype`, `rel_err`, one row an episode.
        limits: the largest error that counts as equal, by dtype.
    """
    names = list(dict.fromkeys(errors["construction"]))
    figure, axes = _figure(8, 0.38 * len(names) + 1.4)
    for index, (dtype, limit) in enumerate(limits.items()):
        colour = _COLOURS[index]
        for row, name in enumerate(names):
            chosen = (errors["construction"] == name) & (errors["dtype"] == dtype)
            # An error of zero has no place on the axis; it stands at its left end.
            values = np.maximum(errors.loc[chosen, "rel_err"].to_numpy(), 1e-18)
            y = row + 0.15 - 0.3 * index
            axes.plot([values.min(), values.max()], [y, y], color=colour, linewidth=2, alpha=0.4)
            axes.plot(np.median(values), y, "o", color=colour, markersize=5)
            axes.plot(values.max(), y, "|", color=colour, markersize=10, markeredgewidth=2)
        axes.axvline(limit, color=colour, linestyle="--", linewidth=1, label=f"limit, {dtype}")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("relative error of an episode: median, range, worst")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.invert_yaxis()
    return figure


def bound_scatter(gram: pd.DataFrame) -> Figure:
    """Errors against their bounds; none may lie above the diagonal.

    Args:
        gram: columns `error` and `bound`, one row an episode.
    """
    figure, axes = _figure(5.5, 5)
    error, bound = gram["error"].to_numpy(), gram["bound"].to_numpy()
    shown = (error > 0) & (bound > 1e-9)
    axes.loglog(bound[shown], error[shown], ".", color=_COLOURS[0], markersize=4, alpha=0.5)
    ends = np.array([bound[shown].min(), bound[shown].max()]) if shown.any() else np.ones(2)
    axes.loglog(ends, ends, color=_COLOURS[1], linewidth=1.2, label="error = bound")
    axes.set_xlabel("bound")
    axes.set_ylabel("error of two factored steps (Frobenius)")
    axes.legend(frameon=False)
    return figure


def heatmap(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    low: float,
    high: float,
) -> Figure:
    """A table of numbers as colours, each number printed in its cell."""
    figure, axes = _figure(2.5 + 0.72 * len(columns), 1.5 + 0.3 * len(rows))
    image = _cells(axes, values, low, high, digits=3)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    group: str,
    low: str | None = None,
    high: str | None = None,
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> Figure:
    """A line for each group, with a band from `low` to `high` where these columns are given."""
    figure, axes = _figure(8, 4.6)
    for index, name in enumerate(dict.fromkeys(table[group])):
        part = table.loc[table[group] == name].sort_values(by=x)
        style = {"color": _COLOURS[index % len(_COLOURS)], "linewidth": 1.5}
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(part[x], part[y], marker=marker, markersize=4, label=str(name), **style)
        if low is not None and high is not None:
            colour = style["color"]
            axes.fill_between(part[x], part[low], part[high], color=colour, alpha=0.12, lw=0)
    if log_x:
        axes.set_xscale("log")
    elif np.all(table[x].to_numpy() % 1 == 0):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def matrix_grid(
    matrices: Mapping[str, Float[np.ndarray, "trained tested"]],
    labels: Sequence[str],
    value_label: str,
) -> Figure:
    """Matrices of training distribution (rows) by test distribution (columns), side by side."""
    count = len(matrices)
    across = min(2, count)
    down = -(-count // across)
    size = 1.8 + 0.48 * len(labels)
    figure = Figure(figsize=(across * size + 1, down * size), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    stacked = np.concatenate([matrix.ravel() for matrix in matrices.values()])
    low, high = float(stacked.min()), float(stacked.max())
    image = None
    for axes in grid.flat[count:]:
        axes.axis("off")
    for axes, (name, matrix) in zip(grid.flat, matrices.items(), strict=False):
        image = _cells(axes, matrix, low, high, digits=2)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_title(name)
        axes.set_xlabel("tested on", fontsize=8)
        axes.set_ylabel("trained on", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=grid, label=value_label, shrink=0.6)
    return figure


def intervals(table: pd.DataFrame, x_label: str) -> Figure:
    """Means with their intervals, one row each.

    Args:
        table: columns `label`, `mean`, `low`, `high`.
        x_label: what the numbers are.
    """
    figure, axes = _figure(7, 0.27 * len(table) + 1.2)
    mean, rows = table["mean"].to_numpy(), np.arange(len(table))
    # A single run has no interval.
    low = np.array(
        [m if v is None or np.isnan(v) else v for v, m in zip(table["low"], mean, strict=True)]
    )
    high = np.array(
        [m if v is None or np.isnan(v) else v for v, m in zip(table["high"], mean, strict=True)]
    )
    axes.hlines(rows, low, high, color=_COLOURS[0], alpha=0.5, linewidth=3)
    axes.plot(mean, rows, "o", color=_COLOURS[0], markersize=4)
    axes.set_yticks(rows, table["label"])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel(x_label)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _cells(axes, values: np.ndarray, low: float, high: float, digits: int):
    shades = colormaps["viridis"]
    image = axes.imshow(values, vmin=low, vmax=high, cmap=shades, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        share = (value - low) / (high - low) if high > low else 0.0
        ink = "white" if share < 0.6 else _INK
        axes.text(
            column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=6, color=ink
        )
    return image
