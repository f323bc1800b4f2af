"""Training reaches known optima, whatever the chunk and whoever trains beside."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icorag_jax.theory import training
from icorag_jax.theory.training import DivergedError, TrainingConfig

CONFIG = TrainingConfig(
    optimizer="adamw",
    steps=200,
    batch=1,
    learning_rate=0.1,
    b1=0.9,
    b2=0.98,
    weight_decay=0.0,
    clip=1e3,
    cosine=True,
    chunk=20,
)
MUON = dataclasses.replace(CONFIG, optimizer="muon")
both = pytest.mark.parametrize("config", [CONFIG, MUON], ids=["adamw", "muon"])


def bowl(parameters, key, target):
    """Convex, smallest at `target`; the noise has no say in where."""
    noise = 0.1 * jax.random.normal(key, target.shape)
    matrix = jnp.sum((parameters["matrix"] - target) ** 2 + noise * parameters["matrix"])
    return matrix + jnp.sum((parameters["bias"] - target[0]) ** 2)


def two_wells(parameters, key, data):
    """Wells at -1 and 1, the one at 1 deeper by one half."""
    x = parameters["x"]
    return jnp.sum((x**2 - 1) ** 2 - 0.25 * x) + jnp.sum(data) + 0 * jax.random.uniform(key)


def start(runs):
    rng = np.random.default_rng(0)
    parameters = {
        "matrix": jnp.asarray(rng.normal(size=(runs, 3, 2)), jnp.float32),
        "bias": jnp.zeros((runs, 2)),
    }
    targets = jnp.asarray(rng.normal(size=(runs, 3, 2)), jnp.float32)
    return parameters, jax.random.split(jax.random.key(1), runs), targets


@both
def test_training_finds_the_optimum_of_every_run(config):
    parameters, keys, targets = start(3)
    trained, losses = training.train(bowl, parameters, keys, targets, config)
    assert losses.shape == (3, 200)
    np.testing.assert_allclose(trained["matrix"], targets, atol=0.05)
    np.testing.assert_allclose(trained["bias"], targets[:, 0], atol=0.05)
    # The caller keeps its own parameters.
    assert not parameters["matrix"].is_deleted()


@both
def test_chunks_change_nothing(config):
    parameters, keys, targets = start(2)
    short = dataclasses.replace(config, steps=12, chunk=12)
    expected, expected_losses = training.train(bowl, parameters, keys, targets, short)
    for chunk in (1, 4):
        cut = dataclasses.replace(short, chunk=chunk)
        found, losses = training.train(bowl, parameters, keys, targets, cut)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
        np.testing.assert_allclose(found["matrix"], expected["matrix"], rtol=1e-4, atol=1e-5)


@both
def test_runs_do_not_depend_on_each_other(config):
    parameters, keys, targets = start(3)
    short = dataclasses.replace(config, steps=8, chunk=4)
    together, _ = training.train(bowl, parameters, keys, targets, short)
    one = jax.tree.map(lambda leaf: leaf[1:2], (parameters, keys, targets))
    alone, _ = training.train(bowl, *one, short)
    np.testing.assert_allclose(together["matrix"][1:2], alone["matrix"], rtol=1e-4, atol=1e-5)


SPREAD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
import test_training as here
from icorag_jax.theory import training

parameters, keys, targets = here.start(6)
trained, losses = training.train(here.bowl, parameters, keys, targets, here.CONFIG)
print(len(trained["matrix"].sharding.device_set))
np.savez(sys.argv[1], losses=losses, **trained)
"""


def test_runs_spread_over_devices_are_the_same(tmp_path):
    """Six runs on three of four devices: the same draws, and the same results but for rounding."""
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), JAX_PLATFORMS="cpu")
    done = subprocess.run(
        [sys.executable, "-c", SPREAD, str(tmp_path / "found.npz")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"
    found = np.load(tmp_path / "found.npz")
    parameters, keys, targets = start(6)
    trained, losses = training.train(bowl, parameters, keys, targets, CONFIG)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-4, atol=1e-5)
    for name, leaf in trained.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5)


def test_every_step_draws_anew():
    """Losses at a learning rate of nearly zero differ by the draw alone."""
    parameters, keys, targets = start(1)
    still = dataclasses.replace(CONFIG, learning_rate=1e-12, steps=20, chunk=5)
    _, losses = training.train(bowl, parameters, keys, targets, still)
    assert len(set(losses[0].tolist())) == 20


def test_the_best_start_is_kept():
    starts = jnp.asarray([[-1.2, 0.8, -0.9], [1.3, -1.0, -1.1]])
    parameters = {"x": starts[..., None]}
    keys = jax.random.split(jax.random.key(0), 2)
    trained, losses, start_losses = training.train_best_start(
        two_wells, parameters, keys, jnp.zeros((2, 1)), CONFIG, 40
    )
    assert start_losses.shape == (2, 3)
    assert start_losses.argmin(axis=-1).tolist() == [1, 0]
    assert jnp.all(trained["x"] > 0.9)
    # The history is that of the start that was kept.
    first = [
        float(two_wells({"x": x}, keys[0], jnp.zeros(1))) for x in (starts[0, 1], starts[1, 0])
    ]
    np.testing.assert_allclose(losses[:, 0], first, rtol=1e-5)


def test_going_on_is_training_from_that_start():
    parameters = {"x": jnp.asarray([[-1.2, 0.8]])[..., None]}
    keys = jax.random.split(jax.random.key(0), 1)
    chosen, chosen_losses, _ = training.train_best_start(
        two_wells, parameters, keys, jnp.zeros((1, 1)), CONFIG, 60
    )
    alone = {"x": parameters["x"][:, 1]}
    found, losses = training.train(two_wells, alone, keys, jnp.zeros((1, 1)), CONFIG)
    np.testing.assert_array_equal(found["x"], chosen["x"])
    np.testing.assert_array_equal(losses, chosen_losses)


def explodes(parameters, key, data):
    """Infinite for a run whose datum is not zero, from its first step on."""
    return jnp.sum(parameters["x"] ** 2) / jnp.where(jnp.sum(data) > 0, 0.0, 1.0)


def test_diverged_runs_are_named():
    parameters = {"x": jnp.ones((3, 1))}
    data = jnp.asarray([[0.0], [1.0], [0.0]])
    with pytest.raises(DivergedError, match=r"step 0 in runs \[1\].*learning rate \(0.1\)"):
        training.train(explodes, parameters, jax.random.split(jax.random.key(0), 3), data, CONFIG)


def test_a_diverged_start_is_never_chosen():
    def loss(parameters, key, data):
        x = jnp.sum(parameters["x"])
        return jnp.where(x > 5, jnp.nan, x**2)

    parameters = {"x": jnp.asarray([[9.0, 1.0]])[..., None]}
    keys = jax.random.split(jax.random.key(0), 1)
    trained, _, start_losses = training.train_best_start(
        loss, parameters, keys, jnp.zeros((1, 1)), CONFIG, 20
    )
    assert np.isinf(start_losses[0, 0])
    assert jnp.abs(trained["x"]).max() < 0.1
    bad = {"x": parameters["x"][:, :1]}
    with pytest.raises(DivergedError, match=r"runs \[0\]"):
        training.train_best_start(loss, bad, keys, jnp.zeros((1, 1)), CONFIG, 20)


@pytest.mark.parametrize("start_steps", [0, 30, 220])
def test_start_steps_must_be_chunks(start_steps):
    parameters, keys, targets = start(1)
    one = jax.tree.map(lambda leaf: leaf[:, None], parameters)
    with pytest.raises(ValueError, match="multiple of chunk 20"):
        training.train_best_start(bowl, one, keys, targets, CONFIG, start_steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"chunk": 7}, "chunk 7 must divide steps 200"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": -0.1}, "learning_rate must be above 0, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"clip": -1.0}, "clip must be above 0, got -1.0"),
        ({"clip": float("nan")}, "clip must be above 0, got nan"),
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\), got -0.1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_unknown_optimizers_are_named():
    unknown = dataclasses.replace(CONFIG)
    # The tests' type checks would refuse it at the door; users have none.
    object.__setattr__(unknown, "optimizer", "sgd")
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; known: adamw, muon"):
        unknown.__post_init__()


def test_muon_moves_matrices_by_orthogonal_updates():
    """Where there is no momentum yet, all singular values of an update are about one size."""
    config = dataclasses.replace(MUON, cosine=False, steps=1, chunk=1)
    parameters, keys, targets = start(1)
    trained, _ = training.train(bowl, parameters, keys, targets, config)
    move = np.asarray(trained["matrix"] - parameters["matrix"])[0]
    values = np.linalg.svd(move, compute_uv=False)
    assert values.max() / values.min() < 2
    slope = np.asarray(parameters["matrix"] - targets)[0]
    assert np.sum(move * slope) < 0
    values = np.linalg.svd(slope, compute_uv=False)
    assert values.max() / values.min() > 2
