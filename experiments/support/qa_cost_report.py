"""Summary, account and figure of what a query costs, as values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.support.claims import Claim, claims_markdown


def summarize(costs: pd.DataFrame) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        costs: `method`, `flops`, `p50_ms`, `p95_ms`, `memory_mb`, `compile_s`.
    """
    summary: dict[str, Any] = {"costs": costs.to_dict("records")}
    return summary | {"claims": [dataclasses.asdict(claim) for claim in claims(costs)]}


def claims(costs: pd.DataFrame) -> list[Claim]:
    """What the updater may add to the cost of a query."""
    by = costs.set_index("method")
    flops = by["flops"] / by.loc["frozen", "flops"] - 1
    wall = by["p50_ms"] / by.loc["frozen", "p50_ms"] - 1
    found = [
        Claim(
            "The updater adds at most 3% to the FLOPs of a query",
            f"{100 * flops['updater']:+.2f}%",
            bool(flops["updater"] <= 0.03),
        ),
        Claim(
            "It adds at most 5% to the median wall time",
            f"{100 * wall['updater']:+.1f}%",
            bool(wall["updater"] <= 0.05),
        ),
    ]
    for name in by.index:
        if name.startswith("tta_"):
            share = flops["updater"] / flops[name]
            steps = name.removeprefix("tta_")
            found.append(
                Claim(
                    f"At most 5% of what TTA of {steps} steps adds, in FLOPs",
                    f"{100 * share:.1f}% (TTA {100 * flops[name]:+.0f}%, wall "
                    f"{100 * wall[name]:+.0f}%)",
                    bool(share <= 0.05),
                )
            )
    return found


def account(summary: Mapping[str, Any]) -> str:
    """The run in words."""
    lines = [
        "# Cost of a query",
        "",
        "From evidence and question to the last token of the answer, one query at a time. The",
        "decoding loop is counted as one token; memory is that of arguments, results and",
        "temporaries of the program. Times are of this machine; compare methods, not machines.",
        "",
        "| method | GFLOP | p50, ms | p95, ms | memory, MB | compile, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary["costs"]:
        lines.append(
            f"| {row['method']} | {row['flops'] / 1e9:.3f} | {row['p50_ms']:.1f} "
            f"| {row['p95_ms']:.1f} | {row['memory_mb']:.1f} | {row['compile_s']:.1f} |"
        )
    return "\n".join([*lines, "", claims_markdown([Claim(**row) for row in summary["claims"]]), ""])


def draw(costs: pd.DataFrame) -> dict[str, Figure]:
    """Operations and median wall time of each method, beside those of the frozen model."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, (column, label) in zip(
        both,
        (("flops", "FLOPs"), ("p50_ms", "median wall time")),
        strict=True,
    ):
        share = costs[column] / costs.loc[costs["method"] == "frozen", column].iloc[0]
        axes.barh(costs["method"], share, color="#0072B2")
        for row, value in enumerate(share):
            axes.text(value, row, f" {value:.2f}", va="center", fontsize=8)
        axes.set_xlabel(f"{label}, frozen RAG is 1")
        axes.set_xlim(0, 1.15 * share.max())
        axes.spines[["top", "right"]].set_visible(False)
    both[0].invert_yaxis()  # of both, as they share it
    return {"cost": figure}
