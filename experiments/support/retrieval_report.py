"""Summary, account and figures of what retrievers found, as values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support.claims import Claim, claims_markdown
from experiments.support.retrieval_measures import COMPARED_AT

_COLOURS = {"bm25": "#0072B2", "dense": "#D55E00", "sentences": "#CC79A7", "hybrid": "#009E73"}
_MARKERS = {"bm25": "o", "dense": "s", "sentences": "D", "hybrid": "^"}
_DRAWN = ("answer", "gold")
_NAMES = {
    "answer": "an answer among the first k passages",
    "answer_string": "an answer anywhere in the first k passages, be it within a word",
    "gold": "share of gold passages among the first k",
}


def summarize(recall: pd.DataFrame, compared: pd.DataFrame, costs: pd.DataFrame) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        recall: as `recall_table`.
        compared: as `compare_retrievers`.
        costs: `benchmark`, `retriever`, `passages`, `build_seconds`, `embedded_now`, `bytes`,
            `questions`, `search_seconds`; a row a benchmark and retriever.
    """
    tree: dict[str, Any] = {}
    for row in recall.to_dict("records"):
        at = tree.setdefault(row["measure"], {}).setdefault(row["benchmark"], {})
        interval = {name: row[name] for name in ("mean", "low", "high", "questions")}
        at.setdefault(row["retriever"], {})[str(row["k"])] = interval
    summary = {
        "recall": tree,
        "mean_over_benchmarks": {
            measure: _mean_over_benchmarks(of) for measure, of in tree.items()
        },
        "comparisons": compared.to_dict("records"),
        "costs": costs.assign(
            queries_per_second=costs["questions"] / costs["search_seconds"]
        ).to_dict("records"),
    }
    return summary | {"claims": [dataclasses.asdict(claim) for claim in claims(summary)]}


def _mean_over_benchmarks(of: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By retriever and k; every benchmark counts alike."""
    first = next(iter(of.values()))
    return {
        retriever: {
            k: float(np.mean([benchmark[retriever][k]["mean"] for benchmark in of.values()]))
            for k in at
        }
        for retriever, at in first.items()
    }


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """How often each retriever finds an answer; nothing has to hold."""
    means = summary["mean_over_benchmarks"]["answer"]
    k = str(COMPARED_AT) if str(COMPARED_AT) in next(iter(means.values())) else None
    found = [f"{name} {at[k]:.3f}" for name, at in means.items() if k]
    return [
        Claim(
            claim=f"Answer recall at {COMPARED_AT}, mean of benchmarks",
            measured=", ".join(found) or "not measured",
            holds=None,
        )
    ]


def account(summary: Mapping[str, Any]) -> str:
    """The run in words."""
    lines = [
        "# Retrieval",
        "",
        "Each benchmark is searched in a corpus of a few thousand passages, which may well have",
        "been pooled from passages retrieved or labelled for these very questions. That is easier",
        "than to search all of Wikipedia, some 21 million passages: compare retrievers with each",
        "other here, not these numbers with those of other corpora.",
    ]
    for measure, name in _NAMES.items():
        if measure in summary["recall"]:
            lines += ["", f"## Recall: {name}", ""]
            lines += _recall_lines(
                summary["recall"][measure], summary["mean_over_benchmarks"][measure]
            )
    lines += [
        "",
        f"## Differences of answer recall at {COMPARED_AT}",
        "",
        "By question, with 95% bootstrap intervals and the p-value of a paired permutation test.",
        "",
        "| benchmark | retriever | less | difference | interval | p |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for row in summary["comparisons"]:
        lines.append(
            f"| {row['benchmark']} | {row['retriever']} | {row['other']} "
            f"| {row['difference']:+.3f} | [{row['low']:+.3f}, {row['high']:+.3f}] "
            f"| {row['p_value']:.3f} |"
        )
    lines += [
        "",
        "## Cost",
        "",
        "Of this machine; another run has other times. Building is of the whole corpus, but for",
        "embeddings that were in the cache; searching is of all questions at once, their embedding",
        "included. The hybrid's index is those of its parts, its cost of building their sum.",
        "",
        "| benchmark | retriever | passages | embedded now | build, s | index, MB | queries/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary["costs"]:
        lines.append(
            f"| {row['benchmark']} | {row['retriever']} | {row['passages']:,} "
            f"| {row['embedded_now']:,} | {row['build_seconds']:.1f} | {row['bytes'] / 1e6:.1f} "
            f"| {row['queries_per_second']:,.0f} |"
        )
    if summary["claims"]:
        lines += ["", claims_markdown([Claim(**row) for row in summary["claims"]])]
    return "\n".join([*lines, ""])


def _recall_lines(of: Mapping[str, Any], means: Mapping[str, Any]) -> list[str]:
    """A table: a row a benchmark and retriever, a column a k, with intervals; then the means."""
    ks = list(next(iter(means.values())))
    header = " | ".join(f"@{k}" for k in ks)
    lines = [
        f"| benchmark | questions | retriever | {header} |",
        f"| --- | ---: | --- |{' --- |' * len(ks)}",
    ]
    for benchmark, retrievers in of.items():
        for retriever, at in retrievers.items():
            cells = [f"{at[k]['mean']:.3f} [{at[k]['low']:.2f}, {at[k]['high']:.2f}]" for k in ks]
            count = at[ks[0]]["questions"]
            lines.append(f"| {benchmark} | {count} | {retriever} | {' | '.join(cells)} |")
    for retriever, at in means.items():
        cells = [f"{at[k]:.3f}" for k in ks]
        lines.append(f"| mean of benchmarks | | {retriever} | {' | '.join(cells)} |")
    return lines


def draw(recall: pd.DataFrame) -> dict[str, Figure]:
    """All figures by name: recall against k, a panel a benchmark.

    Args:
        recall: as `recall_table`.
    """
    return {
        f"{measure}_recall": _panels(part, _NAMES[str(measure)])
        for measure, part in recall.groupby("measure", sort=False)
        if measure in _DRAWN
    }


def _panels(recall: pd.DataFrame, y_label: str) -> Figure:
    benchmarks = list(dict.fromkeys(recall["benchmark"]))
    ks = sorted(set(recall["k"]))
    across = min(4, len(benchmarks))
    down = -(-len(benchmarks) // across)
    figure = Figure(figsize=(1 + 2.6 * across, 0.9 + 2.5 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.flat[len(benchmarks) :]:
        axes.axis("off")
    for axes, benchmark in zip(grid.flat, benchmarks, strict=False):
        part = recall.loc[recall["benchmark"] == benchmark]
        for retriever, line in part.groupby("retriever", sort=False):
            name = str(retriever)
            line = line.sort_values("k")
            axes.plot(
                line["k"], line["mean"], label=name, color=_COLOURS[name], marker=_MARKERS[name],
                markersize=4, linewidth=1.5,
            )  # fmt: skip
            axes.fill_between(
                line["k"], line["low"], line["high"], color=_COLOURS[name], alpha=0.12, lw=0
            )
        axes.set_title(f"{benchmark} ({part['questions'].iloc[0]} questions)", fontsize=9)
        axes.set_xscale("log")
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.supxlabel("k", fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    return figure
