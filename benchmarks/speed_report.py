"""Summary, account and figures of the measurements of speed, as values."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

OURS, LOOPS = "one_program", ("plain_loop", "plain_loop_same_draws")
CEILINGS = ("matrix_product", "copy")
# What is ours stands out from what it is held against.
_OURS_COLOUR, _OTHER_COLOUR = "#0072B2", "#B8B8B8"
_RATES = {"gigaflops_per_second": "matrix_product", "gigabytes_per_second": "copy"}


def summarize(speed: pd.DataFrame, parts: pd.DataFrame) -> dict[str, Any]:
    """Throughput, ratios and peak memory by batch and contender; the parts of a step.

    Args:
        speed: `contender`, `axis`, the fields of a `Size`, `episodes_per_second`,
            `milliseconds_per_step`, `peak_mebibytes`; a row a measurement.
        parts: `batch`, `seeds` and the columns of `step_parts.step_parts`; a row a part.

    Returns:
        `comparison` by batch, with None for a ratio to a contender that was not measured, and
        `step_parts`.
    """
    compared = speed.loc[speed["axis"] == "comparison"]
    columns = ["milliseconds", *_RATES]
    return {
        "comparison": {
            str(batch): _compare(part.set_index("contender"))
            for batch, part in compared.groupby("batch", sort=False)
        },
        "step_parts": {
            "batch": int(parts["batch"].iloc[0]),
            "seeds": int(parts["seeds"].iloc[0]),
            "parts": {
                row["part"]: {column: row[column] for column in columns}
                for row in parts.to_dict("records")
            },
        },
    }


def _compare(part: pd.DataFrame) -> dict[str, Any]:
    rates = part["episodes_per_second"].to_dict()
    loops = {name: rates[name] for name in LOOPS if name in rates}
    ratios = {
        name: rates[OURS] / rate for name, rate in rates.items() if OURS in rates and name != OURS
    }
    faster = max(loops, key=lambda name: loops[name], default=None)
    return {
        "episodes_per_second": rates,
        "faster_loop": faster,
        "times_as_fast_as_the_faster_loop": ratios.get(faster),
        "times_as_fast_as": ratios,
        "peak_mebibytes": part["peak_mebibytes"].to_dict(),
    }


def account(speed: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """The measurements in words; arguments as for `summarize`, and what it returns."""
    comparison, step = summary["comparison"], summary["step_parts"]
    lines = ["# Speed", ""]
    for batch, entry in comparison.items():
        if ratio := entry["times_as_fast_as_the_faster_loop"]:
            lines.append(
                f"* {batch} episodes a step: one program is {ratio:.1f} times as fast as the "
                f"faster plain loop, `{entry['faster_loop']}`."
            )
    lines += [
        "",
        "## Comparison",
        "",
        "Episodes a second, all seeds together, and peak memory of the process. The two plain",
        "loops draw random bits in JAX's default way, and in the way that one program does.",
        "",
        "| batch | contender | episodes/s | one program is | peak MiB |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for batch, entry in comparison.items():
        for name, rate in entry["episodes_per_second"].items():
            times = entry["times_as_fast_as"].get(name)
            ratio = f"{times:.1f}x as fast" if times else ""
            peak = entry["peak_mebibytes"][name]
            lines.append(f"| {batch} | {name} | {rate:,.0f} | {ratio} | {peak:,.0f} |")
    lines += [
        "",
        "## Parts of a step",
        "",
        f"One step of {step['seeds']} seeds of {step['batch']} episodes, cumulatively; then the",
        "ceilings. Percentages are of the matrix product's GFLOP/s and of the copy's GB/s. Bytes",
        "are the least that has to be read and written, so a part's GB/s is a lower bound.",
        "",
        "| part | ms | GFLOP/s | GB/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, entry in step["parts"].items():
        cells = [f"{entry['milliseconds']:.2f}"]
        for rate, ceiling in _RATES.items():
            share = entry[rate] / step["parts"][ceiling][rate]
            cells.append(f"{entry[rate]:.2f}" + (f" ({share:.0%})" if name not in CEILINGS else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Growth",
        "",
        "One program, as one size grows: context examples n, features d, seeds.",
        "",
        "| axis | size | ms a step, all seeds | peak MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in speed.loc[speed["axis"] != "comparison"].to_dict("records"):
        axis, milliseconds = row["axis"], row["milliseconds_per_step"]
        lines.append(
            f"| {axis} | {row[axis]} | {milliseconds:.2f} | {row['peak_mebibytes']:,.0f} |"
        )
    return "\n".join([*lines, ""])


def draw(speed: pd.DataFrame, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures by name; arguments as for `account`."""
    comparison, step = summary["comparison"], summary["step_parts"]

    def by_batch(key):
        return {f"{batch} episodes a step": entry[key] for batch, entry in comparison.items()}

    labels = {
        "milliseconds": "milliseconds",
        "gigaflops_per_second": "GFLOP/s",
        "gigabytes_per_second": "GB/s",
    }
    measured = [name for name in step["parts"] if name not in CEILINGS]
    rates = {
        labels[key]: {
            name: step["parts"][name][key]
            for name in [*measured, *([_RATES[key]] if key in _RATES else [])]
        }
        for key in labels
    }
    return {
        "throughput": bars(by_batch("episodes_per_second"), "episodes a second", {OURS}),
        "peak_memory": bars(by_batch("peak_mebibytes"), "peak memory, MiB", {OURS}),
        "step_parts": bars(
            rates, f"a step of {step['seeds']} seeds of {step['batch']} episodes", measured
        ),
        "growth": growth(speed.loc[speed["axis"] != "comparison"]),
    }


def bars(
    panels: Mapping[str, Mapping[str, float]], x_label: str, highlighted: Collection[str]
) -> Figure:
    """Horizontal bars with their numbers, panels side by side, each with a scale of its own.

    Args:
        panels: under a panel's title, values by label; a panel may lack labels.
        x_label: what the numbers are.
        highlighted: labels whose bars stand out.
    """
    labels = list(dict.fromkeys(label for values in panels.values() for label in values))
    figure = Figure(figsize=(2 + 3 * len(panels), 1.3 + 0.34 * len(labels)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, panels.items(), strict=True):
        colours = [_OURS_COLOUR if label in highlighted else _OTHER_COLOUR for label in values]
        rows = [labels.index(label) for label in values]
        drawn = axes.barh(rows, list(values.values()), color=colours, height=0.65)
        axes.bar_label(drawn, [_number(value) for value in values.values()], padding=3, fontsize=8)
        axes.set_title(title, fontsize=10)
        # Room for the numbers beside the bars.
        axes.margins(x=0.25)
        # The numbers are printed: no axis need tell them.
        axes.tick_params(left=False, bottom=False, labelbottom=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    grid[0].set_yticks(range(len(labels)), [label.replace("_", " ") for label in labels])
    grid[0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel(x_label, fontsize=10)
    return figure


def growth(scaling: pd.DataFrame) -> Figure:
    """Time and peak memory as one size grows: a column of panels for each axis.

    Args:
        scaling: as for `summarize`, without the comparison.
    """
    axis_labels = {"n": "context examples n", "d": "features d", "seeds": "seeds"}
    row_labels = {
        "milliseconds_per_step": "ms a step, all seeds",
        "peak_mebibytes": "peak memory, MiB",
    }
    figure = Figure(figsize=(9, 5), layout="constrained")
    grid = figure.subplots(2, len(axis_labels), sharex="col", sharey="row")
    for line, (value, row_label) in zip(grid, row_labels.items(), strict=True):
        for axes, axis in zip(line, axis_labels, strict=True):
            part = scaling.loc[scaling["axis"] == axis].sort_values(by=axis)
            axes.plot(part[axis], part[value], "o-", color=_OURS_COLOUR, markersize=4, lw=1.5)
            axes.set_xscale("log")
            axes.set_xticks(part[axis], [str(size) for size in part[axis]])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(row_label)
    for axes, label in zip(grid[-1], axis_labels.values(), strict=True):
        axes.set_xlabel(label)
    # Powers of ten alone may leave no tick in range.
    grid[0, 0].set_yscale("log")
    grid[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    grid[1, 0].set_ylim(0, 1.1 * scaling["peak_mebibytes"].max())
    return figure


def _number(value: float) -> str:
    """Three digits, with thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
