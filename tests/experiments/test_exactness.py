"""The exactness experiment end to end on tiny settings."""

import json
from pathlib import Path

import pytest

from experiments import exactness
from experiments.support import theorems
from experiments.support.command import load_preset
from icorag_jax.theory import constructions

CONSTRUCTIONS = {
    "projection_direct",
    "projection_factored",
    "dot_product_factored",
    "dot_product_lifted",
    "both_block_heads",
    "weighted_masked",
    "ridge_prior_tokens",
    "multi_step_direct",
    "multi_step_lifted",
    "gd_plus_plus",
}


def test_every_theorem_is_measured(tmp_path):
    out = tmp_path / "run"
    exactness.main(exactness.Config(out=out, episodes=4, size_sets=1))
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["constructions"]) == CONSTRUCTIONS
    for entry in summary["constructions"].values():
        assert 0 < entry["max_rel_err_f64"] <= 1e-10
        assert 1e-10 < entry["max_rel_err_f32"] <= 1e-4
        assert entry["episodes"] == 4
    assert summary["gram_bound"]["violations"] == 0
    assert summary["gram_bound"]["episodes"] == 4
    assert all(row["holds"] for row in summary["claims"])
    assert (out / "figures" / "relative_errors.png").stat().st_size > 1000
    assert (out / "figures" / "gram_bound.png").stat().st_size > 1000
    assert "projection_direct" in (out / "account.md").read_text()


def test_every_case_of_a_theorem_has_its_turn():
    config = exactness.Config(out=Path("unused"), episodes=4, size_sets=1)
    found = exactness.construction_errors(config, "weighted_masked")
    assert set(found["interface"]) == {"projection", "dot_product", "both"}
    assert len(found) == 2 * 4


def test_a_wrong_construction_is_seen(monkeypatch):
    exact = constructions.direct
    monkeypatch.setattr(
        constructions, "direct", lambda w, episode, rates: exact(w, episode, 1.001 * rates)
    )
    config = exactness.Config(out=Path("unused"), episodes=3, size_sets=1, seed=11)
    found = exactness.construction_errors(config, "projection_direct")
    assert found["rel_err"].min() > 1e-5


@pytest.mark.parametrize("change", [{"episodes": 0}, {"size_sets": 9}, {"seed": -1}])
def test_bad_settings_write_nothing(tmp_path, change):
    settings = {"episodes": 4, "size_sets": 1} | change
    with pytest.raises(ValueError, match=next(iter(change))):
        exactness.main(exactness.Config(out=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_both_presets_hold_each_theorem_on_a_thousand_episodes():
    assert set(theorems.theorems()) == CONSTRUCTIONS
    for preset in exactness.PRESETS:
        config = load_preset(exactness.Config, exactness.PRESETS, preset, out=Path("unused"))
        assert config.episodes >= 1000
