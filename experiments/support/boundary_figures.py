"""The figures of the boundary sweep."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support import figures
from experiments.support.boundary_summary import Measured
from experiments.support.variants import Variant

# Whose transfer between distributions is drawn.
_TRANSFERRED = ("linear", "depth_2", "softmax", "softmax_block")
# The best alignment of a summary's entry for an architecture: trained, or by construction.
_Reading = Callable[[dict], dict]


def draw_all(
    rows: Mapping[str, Variant], measured: Measured, summary: dict, laws: Sequence[str]
) -> dict[str, Figure]:
    """All figures by name; those whose architectures were not run are left out."""
    entries = summary["architectures"]
    readings: dict[str, _Reading] = {
        "trained": lambda entry: entry,
        "construction": lambda entry: entry["construction"],
    }
    titles = {
        "trained": "Alignment with the best step, trained",
        "construction": "Alignment with its descent, construction",
    }
    spreads = pd.DataFrame([{"label": name, **entries[name]["spread"]} for name in rows])
    found = {"spread": figures.intervals(spreads, x_label="spread of alignment over distributions")}
    tempered = {
        name: variant.architecture.temperature
        for name, variant in rows.items()
        if variant.architecture.kernel == "tempered"
    }
    depths = {
        kind: {
            name: variant.architecture.layers
            for name, variant in rows.items()
            if name == "linear" or name.startswith(f"{kind}_")
        }
        for kind in ("depth", "recurrent")
    }
    for reading, pick in readings.items():
        found[f"alignment_{reading}"] = _heatmap(entries, rows, laws, titles[reading], pick)
        if tempered:
            found[f"temperature_{reading}"] = _curves(
                entries, tempered, laws, pick, "temperature (large: linear, small: hard)",
                f"alignment, {reading}", log_x=True,
            )  # fmt: skip
    for kind, layers in depths.items():
        if len(layers) > 1:
            found[f"{kind}_trained"] = _curves(
                entries, layers, laws, readings["trained"], "layers", "alignment, trained",
                log_x=False,
            )  # fmt: skip
    if chosen := [name for name in _TRANSFERRED if name in rows]:
        alignments = {
            name: measured[name]["transfer.prediction_cosine"].mean(axis=-1).T for name in chosen
        }
        found["transfer_alignment"] = figures.matrix_grid(alignments, list(laws), "alignment")
        losses = {name: measured[name]["transfer.loss"].mean(axis=-1).T for name in chosen}
        excess = {
            name: np.log10(values / np.diag(values)[None, :]) for name, values in losses.items()
        }
        found["transfer_loss"] = figures.matrix_grid(
            excess, list(laws), "log10 loss over that of the model trained there"
        )
    return found


def _heatmap(
    entries: Mapping[str, dict],
    rows: Mapping[str, Variant],
    laws: Sequence[str],
    title: str,
    pick: _Reading,
) -> Figure:
    values = np.array(
        [
            [pick(entries[name])["alignment_by_distribution"][law]["mean"] for law in laws]
            for name in rows
        ]
    )
    return figures.heatmap(values, list(rows), list(laws), title, low=0.5, high=1.0)


def _curves(
    entries: Mapping[str, dict],
    names: Mapping[str, float],
    laws: Sequence[str],
    pick: _Reading,
    x_label: str,
    y_label: str,
    log_x: bool,
) -> Figure:
    """Alignment over a number that each of the named architectures has, a line a distribution."""
    table = pd.DataFrame(
        [
            {"x": x, "distribution": law, **pick(entries[name])["alignment_by_distribution"][law]}
            for name, x in names.items()
            for law in laws
        ]
    )
    return figures.curves(
        table, "x", "mean", "distribution", "low", "high",
        x_label=x_label, y_label=y_label, log_x=log_x,
    )  # fmt: skip
