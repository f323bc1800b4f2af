"""The boundary sweep end to end on tiny settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import boundary_sweep
from experiments.boundary_sweep import Config
from experiments.support.boundary_measures import _half_way
from experiments.support.variants import variants
from icorag_jax.theory.alignment import (
    PreconditionedRates,
    preconditioned_layers,
    predict_preconditioned,
)
from icorag_jax.theory.attention import AttentionWeights, apply_layers
from icorag_jax.theory.constructions import direct_tokens
from icorag_jax.theory.tasks import Task, draw_episodes


def tiny(out, **changes) -> Config:
    settings = {
        "distributions": ("gaussian", "clustered"),
        "architectures": ("linear", "half_scale", "tempered_1", "gd_plus_plus"),
        "features": 3, "examples": 4, "queries": 2, "temperatures": (1.0,), "depths": (2,),
        "samples": 32, "seeds": 2, "starts": 2, "start_steps": 2, "steps": 4, "batch": 4,
        "fit_episodes": 64, "test_episodes": 8, "transfer_episodes": 4,
        "bootstrap": 20,
    }  # fmt: skip
    return Config(out=out, **(settings | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "run"
    boundary_sweep.main(tiny(out))
    return out


def test_summary_has_every_architecture(run):
    summary = json.loads((run / "summary.json").read_text())
    found = summary["architectures"]
    kinds = {name: entry["kind"] for name, entry in found.items()}
    assert kinds == {
        "linear": "linear",
        "half_scale": "linear",
        "gd_plus_plus": "linear",
        "tempered_1": "nonlinear",
    }
    for entry in found.values():
        alignment = entry["alignment_by_distribution"]
        assert set(alignment) == {"gaussian", "clustered"}
        means = [value["mean"] for value in alignment.values()]
        assert entry["spread"]["mean"] == pytest.approx(max(means) - min(means))
        assert all(value["low"] <= value["mean"] <= value["high"] for value in alignment.values())


def test_linear_constructions_are_their_descent_and_tempered_ones_are_not(run):
    table = pd.read_parquet(run / "episodes.parquet")
    table = table[table["reading"] == "construction"]
    errors = table.groupby("architecture", observed=True)["relative_error"].max()
    assert errors[["linear", "half_scale", "gd_plus_plus"]].max() < 1e-4
    assert errors["tempered_1"] > 1e-2


def test_summary_agrees_with_the_episodes(run):
    table = pd.read_parquet(run / "episodes.parquet")
    rows = (
        (table["architecture"] == "linear")
        & (table["reading"] == "trained")
        & (table["distribution"] == "clustered")
    )
    summary = json.loads((run / "summary.json").read_text())
    entry = summary["architectures"]["linear"]["alignment_by_distribution"]["clustered"]
    assert rows.sum() == 16
    expected = table.loc[rows, "prediction_cosine"].astype(float).mean()
    assert entry["mean"] == pytest.approx(expected, abs=1e-6)


def test_other_measures_come_with_intervals(run):
    table = pd.read_parquet(run / "episodes.parquet").astype({"architecture": str})
    entries = json.loads((run / "summary.json").read_text())["architectures"]
    measures = {
        "sensitivity_cosine": ("trained", "sensitivity_cosine"),
        "sensitivity_distance": ("trained", "sensitivity_distance"),
        "relative_error": ("trained", "relative_error"),
        "loss": ("trained", "loss"),
        "best_step_loss": ("trained", "reference_loss"),
        "interpolated_loss": ("interpolated", "loss"),
    }
    for name, (reading, column) in measures.items():
        rows = table[(table["architecture"] == "linear") & (table["reading"] == reading)]
        means = rows.groupby("distribution", observed=True)[column].apply(
            lambda values: values.astype(float).mean()
        )
        for law, entry in entries["linear"][f"{name}_by_distribution"].items():
            assert entry["mean"] == pytest.approx(means[law], rel=1e-5)
            assert entry["low"] < entry["mean"] < entry["high"]
    gap = entries["linear"]["loss_gap_by_distribution"]["gaussian"]["mean"]
    losses = [
        entries["linear"][f"{name}_by_distribution"]["gaussian"]["mean"]
        for name in ("loss", "best_step_loss")
    ]
    assert gap == pytest.approx(losses[0] - losses[1], abs=1e-5)
    # Two layers, and a softmax, have no half way.
    assert "interpolated_loss_by_distribution" not in entries["gd_plus_plus"]
    assert "interpolated_loss_by_distribution" not in entries["tempered_1"]


def test_half_way_from_a_step_to_itself_is_that_step():
    """And from a layer that is a multiple of it in one factor, and a fraction in the other."""
    d, outputs = 3, 2
    step = 0.3 * jax.random.normal(jax.random.key(0), (1, d, d))
    rates = PreconditionedRates(step, jnp.zeros_like(step))
    layer = jax.tree.map(lambda leaf: leaf[:1], preconditioned_layers(rates, outputs)[0])
    layer = layer._replace(query=4 * layer.query, output=layer.output / 4)
    mixed = _half_way({"layer_0": {"attention": layer._asdict()}}, rates, outputs)
    found = AttentionWeights(**mixed["layer_0"]["attention"])
    bank = jax.random.normal(jax.random.key(1), (64, d))
    episodes = draw_episodes(jax.random.key(2), bank, Task(5, outputs, 4), 1)
    episode = jax.tree.map(lambda leaf: leaf[0], episodes)
    np.testing.assert_allclose(
        -apply_layers([found], direct_tokens(episode))[:, d:],
        predict_preconditioned(rates, episode),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_lost_cell_comes_back_the_same(run):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("half_scale.npz", "half_scale.npz.sha256"):
        (run / "cells" / name).unlink()
    boundary_sweep.main(tiny(run, resume=True))
    assert {path: path.read_bytes() for path in files} == files


def test_figures_are_there(run):
    names = {path.stem for path in (run / "figures").glob("*.png")}
    assert {
        "alignment_trained",
        "alignment_construction",
        "spread",
        "temperature_trained",
        "transfer_alignment",
    } <= names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ("linear", "quadratic")}, "unknown architectures.*quadratic"),
        ({"distributions": ("gaussian", "cauchy")}, "unknown distributions.*cauchy"),
        ({"distributions": ("gaussian",)}, "at least two"),
        ({"seeds": 0}, "seeds"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"temperatures": (1.0, float("nan"))}, "temperatures"),
        ({"depths": (1,)}, "depths"),
        ({"start_steps": 5}, "start_steps"),
        ({"architectures": ("heads",)}, "heads.*at least 4, got 3"),
        ({"distributions": ("gaussian", "text"), "texts": 5}, "at least 6 texts"),
    ],
)
def test_bad_settings_write_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        boundary_sweep.main(tiny(tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["texts", "encoder"])
def test_text_features_need_texts_and_encoder_first(tmp_path, monkeypatch, missing):
    if missing == "texts":
        monkeypatch.setenv("ICORAG_QA_FOLDER", str(tmp_path / "nowhere"))
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises((OSError, ValueError), match=r"nowhere|pip install"):
        boundary_sweep.main(tiny(tmp_path / "run", distributions=("gaussian", "text")))
    assert not (tmp_path / "run").exists()


def test_every_architecture_of_the_boundary_is_there():
    found = variants(16, 8, (100.0, 1.0), (2, 4))
    kinds = [variant.architecture.kind for variant in found.values()]
    assert kinds.count("linear") >= 16
    assert {"softmax", "tempered_1", "relu", "elu", "cosine", "layer_norm", "gelu_features",
            "softmax_block"} <= set(found)  # fmt: skip
    assert len({variant.name for variant in found.values()}) == len(found)
    assert np.all([variant.name == name for name, variant in found.items()])
