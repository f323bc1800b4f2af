"""The training experiment end to end on tiny settings, and its closed forms by simulation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import trained_lsa
from experiments.support import lsa_summary
from experiments.support.lsa_settings import lsa_settings
from experiments.trained_lsa import Config, training_configs


def tiny(out, **changes) -> Config:
    settings = {
        "seeds": 2, "reference_steps": 4, "reference_batch": 8, "steps": 5, "batch": 4,
        "test_queries": 16,
    }  # fmt: skip
    return Config(out=out, **(settings | changes))


def test_every_measure_is_reported(tmp_path):
    out = tmp_path / "run"
    trained_lsa.main(tiny(out))
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["settings"]) == {"reference", "projection", "dot_product"}
    for entry in summary["settings"].values():
        for name in lsa_summary.MEASURES:
            assert entry[name]["count"] == 2
            assert entry[name]["low"] <= entry[name]["mean"] <= entry[name]["high"]
        excess = entry["loss"]["mean"] - entry["gd_loss"]["mean"]
        share = excess / entry["closed_form_loss"]["mean"]
        assert entry["excess_loss"]["mean"] == pytest.approx(share, abs=1e-4)
    # Four steps are not enough, and the table says so.
    assert not summary["claims"][0]["holds"]
    assert (out / "figures" / "training_loss.png").exists()
    before = (out / "summary.json").read_bytes()
    trained_lsa.main(tiny(out, resume=True))
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.parametrize("name", ["reference", "projection", "dot_product"])
def test_closed_form_is_the_loss_of_the_step(tmp_path, name):
    """The step written out in NumPy, on 20,000 episodes, within four standard errors."""
    setting = lsa_settings(*training_configs(tiny(tmp_path)))[name]
    keys = jax.random.split(jax.random.key(1), 20_000)
    episodes = jax.tree.map(np.asarray, jax.jit(jax.vmap(setting.draw))(keys))
    pulls = np.einsum("enmc,enm->enc", episodes.readouts, episodes.targets)
    moved = setting.step_size * np.einsum("enc,enz->ecz", pulls, episodes.features) / setting.n
    found = np.einsum("eqmc,ecz,eqz->eqm", episodes.query_readouts, moved, episodes.query_features)
    losses = 0.5 * np.mean(np.sum((found - episodes.query_targets) ** 2, axis=2), axis=1)
    error = losses.std() / np.sqrt(losses.size)
    assert abs(losses.mean() - setting.closed_form_loss) <= 4 * error
    assert error < 0.05 * setting.closed_form_loss


def test_the_reference_setting_is_the_published_one(tmp_path):
    setting = lsa_settings(*training_configs(Config(out=tmp_path)))["reference"]
    assert setting.closed_form_loss == pytest.approx(0.2062, abs=5e-5)
    assert setting.step_size / 10 == pytest.approx(0.606, abs=5e-4)
    published = {"steps": 5000, "batch": 2048, "learning_rate": 1e-3, "b1": 0.9, "b2": 0.98}
    assert published.items() <= dataclasses.asdict(setting.training).items()
    assert setting.training.clip == 0.001
    features = setting.draw(jax.random.key(0)).features
    assert features.shape == (10, 10)
    assert jnp.abs(features).max() <= 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 0}, {"steps": 0}, {"test_queries": -1}, {"reference_learning_rate": -1.0},
        {"reference_learning_rate": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings_write_nothing(tmp_path, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        trained_lsa.main(tiny(tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()
