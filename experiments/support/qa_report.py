"""Summary, account and figures of question answering, as values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support.claims import Claim, claims_markdown
from experiments.support.qa_tables import (
    ALL,
    COMPARISON_COLUMNS,
    best_settings,
    comparisons_of,
    points,
)
from icorag_jax.data.world import CONTROL

_COLOURS = {
    "closed_book": "#BBBBBB", "frozen": "#888888", "shared": "#56B4E9", "blind": "#E69F00",
    "feedback": "#F0E442", "updater": "#D55E00", "updater_shuffled": "#CC79A7",
    "updater_random": "#882255", "updater_empty": "#AA4499",
    "slot": "#999933", "tta": "#009E73", "oracle": "#000000",
}  # fmt: skip


def summarize(
    scores: pd.DataFrame, compared: pd.DataFrame, tuned: pd.DataFrame, cosines: pd.DataFrame
) -> dict[str, Any]:
    """What `summary.json` holds."""
    summary: dict[str, Any] = {
        "scores": scores.to_dict("records"),
        "comparisons": compared.to_dict("records"),
    }
    if len(tuned):
        summary["tuned"] = best_settings(tuned).to_dict("records")
    if len(cosines):
        quantiles = np.quantile(cosines["cosine"], [0.05, 0.25, 0.5, 0.75, 0.95])
        names = ("q05", "q25", "median", "q75", "q95")
        summary["update_cosines"] = dict(zip(names, quantiles.tolist(), strict=True))
    return summary | {"claims": [dataclasses.asdict(claim) for claim in claims(summary)]}


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """What should hold of one backbone and retriever."""
    # Where no two methods are compared there are no records that could tell columns.
    compared = pd.DataFrame(summary["comparisons"], columns=list(COMPARISON_COLUMNS))
    found = [
        _gain_claim(compared, "updater", "shared", "The updater beats the shared interface"),
        _gain_claim(compared, "updater", "blind", "It beats a context-blind one of equal size"),
        _gain_claim(compared, "updater", "feedback", "It beats feedback that is fixed by rank"),
        _control_claim(compared),
        *(
            loss_claim(compared, f"updater_{name}", f"Fed {name} evidence, its gain is gone")
            for name in ("shuffled", "random")
        ),
        adaptation_claim(compared),
    ]
    if "update_cosines" in summary:
        median = summary["update_cosines"]["median"]
        found.append(
            Claim(
                "Updates of different questions differ",
                f"median cosine of two {median:.2f}",
                median < 0.9,
            )
        )
    return [claim for claim in found if claim is not None]


def difference(
    compared: pd.DataFrame, method: str, against: str, benchmark: str, measure: str
) -> dict[str, Any] | None:
    """The row of a comparison, None where it was not made."""
    rows = comparisons_of(compared, method, against, measure)
    rows = rows[rows["benchmark"] == benchmark]
    return rows.iloc[0].to_dict() if len(rows) else None


def _gain_claim(compared: pd.DataFrame, method: str, against: str, claim: str) -> Claim | None:
    """By both measures, over all benchmarks, p below 0.01."""
    rows = [difference(compared, method, against, ALL, name) for name in ("exact_match", "f1")]
    if None in rows:
        return None
    found = [row for row in rows if row is not None]
    measured = ", ".join(
        f"{name} {points(row)}" for name, row in zip(("EM", "F1"), found, strict=True)
    )
    holds = all(row["difference"] > 0 and row["p"] < 0.01 for row in found)
    return Claim(f"{claim} (points, p < 0.01)", measured, holds)


def _control_claim(compared: pd.DataFrame) -> Claim | None:
    """On the control family the updater is not above the frozen model beyond its interval."""
    row = difference(compared, "updater", "frozen", CONTROL, "exact_match")
    if row is None:
        return None
    return Claim(
        "On single facts it does not beat frozen RAG", f"EM {points(row)}", row["low"] <= 0
    )


def loss_claim(compared: pd.DataFrame, method: str, claim: str) -> Claim | None:
    """What a control gains over the shared interface is not above zero beyond its interval."""
    row = difference(compared, method, "shared", ALL, "exact_match")
    if row is None:
        return None
    return Claim(claim, f"EM over shared {points(row)}", row["low"] <= 0)


def adaptation_claim(compared: pd.DataFrame) -> Claim | None:
    """The updater gains at least 0.8 of what label-free test-time adaptation gains."""
    tta = difference(compared, "tta", "shared", ALL, "exact_match")
    updater = difference(compared, "updater", "tta", ALL, "exact_match")
    if tta is None or updater is None:
        return None
    gain = updater["difference"] + tta["difference"]
    return Claim(
        "It gains 80% of what label-free TTA gains, or more",
        f"EM over shared: {100 * gain:+.1f}, TTA {100 * tta['difference']:+.1f}, "
        f"{tta['questions']} questions",
        gain >= 0.8 * tta["difference"],
    )


def table(scores: pd.DataFrame, measure: str = "exact_match") -> str:
    """Mean scores as text: a row a benchmark, a column a method."""
    wide = scores[scores["measure"] == measure].pivot_table(
        index="benchmark", columns="method", values="mean", sort=False
    )
    return wide.map(lambda value: f"{100 * value:.1f}").to_string()


def origin(trained: Path | str | None) -> list[str]:
    """Lines that say where methods are from, none where the run trained them.

    Args:
        trained: see `QaMethods`.
    """
    return [] if trained is None else [f"Methods were trained before: {trained}.", ""]


def account(
    summary: dict[str, Any],
    scores: pd.DataFrame,
    compared: pd.DataFrame,
    trained: Path | str | None,
) -> str:
    """The run in words; `trained` as in `QaMethods`."""
    lines = ["# Question answering with updates of the evidence-use interface", ""]
    lines += origin(trained)
    for measure, name in (("exact_match", "Exact match"), ("f1", "Token F1")):
        lines += [f"## {name}, in percent", "", *_markdown(scores, measure), ""]
    lines += ["## Paired differences, in points, with 95% intervals", ""]
    lines += ["| benchmark | method | against | measure | difference | p | questions |"]
    lines += ["| --- | --- | --- | --- | ---: | ---: | ---: |"]
    for row in compared.to_dict("records"):
        lines.append(
            f"| {row['benchmark']} | {row['method']} | {row['against']} | {row['measure']} | "
            f"{points(row)} | {row['p']:.4f} | {row['questions']} |"
        )
    lines += ["", claims_markdown([Claim(**row) for row in summary["claims"]])]
    if "update_cosines" in summary:
        found = summary["update_cosines"]
        lines += ["", "Cosines between the updates of two questions: "]
        lines[-1] += ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return "\n".join([*lines, ""])


def draw(scores: pd.DataFrame, compared: pd.DataFrame, cosines: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name: scores, what the updater gains, cosines of updates."""
    figures = {"scores": _score_bars(scores)}
    gains = comparisons_of(compared, "updater", "shared", "exact_match")
    if len(gains):
        figures["gains"] = _gain_strips(gains)
    if len(cosines):
        figures["cosines"] = _histogram(cosines["cosine"].to_numpy())
    return figures


def _markdown(scores: pd.DataFrame, measure: str) -> list[str]:
    of = scores[scores["measure"] == measure]
    methods = list(dict.fromkeys(of["method"]))
    lines = [f"| benchmark | {' | '.join(methods)} |", f"| --- |{' ---: |' * len(methods)}"]
    for name, part in of.groupby("benchmark", sort=False):
        by = part.set_index("method")
        cells = [
            f"{100 * by.loc[m, 'mean']:.1f} [{100 * by.loc[m, 'low']:.1f} "
            f"{100 * by.loc[m, 'high']:.1f}]"
            if m in by.index
            else ""
            for m in methods
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _score_bars(scores: pd.DataFrame) -> Figure:
    of = scores.loc[scores["measure"] == "exact_match"]
    names, methods = (list(dict.fromkeys(of[column])) for column in ("benchmark", "method"))
    figure = Figure(figsize=(1.6 * len(names) + 2, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(methods)
    for index, method in enumerate(methods):
        part = of.loc[of["method"] == method].set_index("benchmark").reindex(names)
        mean = part["mean"].to_numpy()
        at = np.arange(len(names)) - 0.42 + (index + 0.5) * width
        reach = np.stack([mean - part["low"], part["high"] - mean])
        axes.bar(
            at, mean, width, color=_COLOURS.get(method, "#333333"), label=method, yerr=reach,
            error_kw={"linewidth": 0.8, "ecolor": "#333333"},
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("exact match, 95% interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=8)
    return figure


def _gain_strips(gains: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6, 0.4 * len(gains) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, gain in enumerate(gains.to_dict("records")):
        colour = "#D55E00" if gain["benchmark"] != ALL else "#000000"
        axes.plot([100 * gain["low"], 100 * gain["high"]], [row, row], color=colour, linewidth=2)
        axes.plot(100 * gain["difference"], row, "o", color=colour)
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(gains)), list(gains["benchmark"]))
    axes.invert_yaxis()
    axes.set_xlabel("exact match of the updater minus that of the shared interface, points")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _histogram(cosines: np.ndarray) -> Figure:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(cosines, bins=np.linspace(-1, 1, 41).tolist(), color="#D55E00")
    axes.set_xlabel("cosine between the updates of two questions")
    axes.set_ylabel("pairs")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
