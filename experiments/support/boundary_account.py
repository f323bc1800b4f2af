"""What the boundary sweep found, in words: the claims table's rows, and the account."""

from collections.abc import Mapping

import numpy as np

from experiments.support.boundary_summary import ALIGNED, expected, shortfalls
from experiments.support.claims import Claim, claims_markdown
from experiments.support.statistics import POOR
from icorag_jax.theory.features import SIGNED_PERMUTATION_INVARIANT


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


def account(summary: dict) -> str:
    """The sweep in words."""
    lines = [
        "# Boundary sweep",
        "",
        "Alignment is the cosine between a model's and a gradient step's predictions for an",
        "episode's queries; the spread is the largest mean over distributions less the smallest,",
        "with a 95% bootstrap interval over runs and episodes, in which the upward bias of that",
        "difference is corrected.",
        "",
        f"Text features: {_text(summary['text_source'])}.",
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
    lines += [
        "",
        "## Other measures, trained",
        "",
        "At the distribution where each is worst: cosine of the derivatives in the query's",
        "features; relative error of the predictions; loss above that of the best step, as a share",
        "of it; the same for the weights half way between the trained ones and the best step's,",
        "where the two can be mixed. All distributions, with intervals, are in `summary.json`.",
        "",
        "| architecture | sensitivity cosine | relative error | loss gap | half way |",
        "| --- | --- | --- | --- | --- |",
        *(_measures(name, entry) for name, entry in summary["architectures"].items()),
        "",
        "## Where a linear extension falls short",
        "",
    ]
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
        f"their coordinates ({', '.join(sorted(SIGNED_PERMUTATION_INVARIANT))}) and the task does",
        "not break that (missing passages, distractors and anisotropic features do):",
        "`against_plain_step` in `summary.json` has the alignment with the plain step.",
        "",
        f"A poor start is an initialization whose loss after the first steps is above {POOR} times",
        "that of the run's best one; each run goes on from its best.",
        "",
        claims_markdown([Claim(**row) for row in summary["claims"]]),
    ]
    return "\n".join([*lines, ""])


def _text(source: dict | None) -> str:
    if source is None:
        return "none"
    return (
        f"{source['texts']} {source['source']}, embedded by {source['encoder']} from their first "
        f"{source['max_length']} tokens"
    )


def _measures(name: str, entry: dict) -> str:
    """A row of the table of other measures, each where it is worst."""
    best = entry["best_step_loss_by_distribution"]

    def worst(shares):
        law = max(shares, key=lambda law: shares[law])
        return f"{shares[law]:.1%} ({law})"

    least, cosine = min(
        (value["mean"], law) for law, value in entry["sensitivity_cosine_by_distribution"].items()
    )
    cells = [name, f"{least:.4f} ({cosine})"]
    cells.append(
        worst({law: v["mean"] for law, v in entry["relative_error_by_distribution"].items()})
    )
    gaps = {law: v["mean"] for law, v in entry["loss_gap_by_distribution"].items()}
    cells.append(worst({law: gap / best[law]["mean"] for law, gap in gaps.items()}))
    between = entry.get("interpolated_loss_by_distribution")
    cells.append(
        worst({law: v["mean"] / best[law]["mean"] - 1 for law, v in between.items()})
        if between
        else ""
    )
    return "| " + " | ".join(cells) + " |"


def _reason(entry: dict, law: str) -> str:
    loss = entry["loss_by_distribution"][law]["mean"]
    best = entry["best_step_loss_by_distribution"][law]["mean"]
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


def _median_spread(entries: Mapping[str, dict]) -> float:
    return float(np.median([entry["spread"]["mean"] for entry in entries.values()]))


def _interval(entry: dict) -> str:
    return f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
