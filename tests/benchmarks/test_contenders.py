"""The contenders train one model alike: on the same episodes they get the same weights."""

import jax
import numpy as np
import pytest
import torch

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS, Size
from icorag_jax.theory import architectures

SIZE = Size(seeds=2, batch=8, d=3, n=5, steps=4)
NAMES = ("query", "key", "value", "output")


def torch_episodes(episodes):
    """Features and targets of the context and then of the query, as PyTorch's loss takes them."""
    pairs = (
        (episodes.features, episodes.query_features),
        (episodes.targets, episodes.query_targets),
    )
    return [torch.from_numpy(np.concatenate(pair, axis=1)) for pair in pairs]


def assert_same_training(found, expected):
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    for name in NAMES:
        # Four steps move a weight by up to 4e-3.
        np.testing.assert_allclose(found.weights[name], expected.weights[name], atol=1e-5)


@pytest.fixture(scope="module")
def trained_by_one_program():
    return CONTENDERS["one_program"](SIZE)()


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_trains_each_time_it_is_called(name):
    run = CONTENDERS[name](SIZE)
    for trained in (run(), run()):
        assert trained.losses.shape == (2, 4)
        assert {name: weight.shape for name, weight in trained.weights.items()} == dict.fromkeys(
            NAMES, (2, 4, 4)
        )
        # Episodes differ from step to step and from seed to seed.
        assert len(np.unique(trained.losses)) == 8
    assert contenders.seconds_to_train(name, SIZE) > 0


def test_loss_and_gradient_are_the_same_in_pytorch():
    model, _ = contenders.model_and_loss(SIZE)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 0.5, (4, 4)).astype(np.float32) for name in NAMES}
    parameters = {"layer_0": {"attention": {name: value[None] for name, value in values.items()}}}
    episodes = contenders.draw_batch(SIZE, jax.random.key(1))
    loss, slope = jax.value_and_grad(contenders.batch_loss, argnums=1)(model, parameters, episodes)

    weights = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    torch_loss = contenders.torch_loss(weights, *torch_episodes(episodes))
    torch_loss.backward()
    np.testing.assert_allclose(torch_loss.item(), loss, rtol=1e-5)
    for name in NAMES:
        expected = slope["layer_0"]["attention"][name][0]
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(weights[name].grad, expected, rtol=1e-5, atol=1e-6)


def test_the_plain_loop_trains_as_one_program_does(trained_by_one_program):
    same = CONTENDERS["plain_loop_same_draws"](SIZE)()
    assert_same_training(same, trained_by_one_program)
    # As JAX comes, the loop starts from the same weights, and draws other episodes.
    other = CONTENDERS["plain_loop"](SIZE)()
    assert np.abs(other.losses - same.losses).min() > 1e-4
    np.testing.assert_allclose(other.weights["key"], same.weights["key"], atol=1e-2)


def test_pytorch_trains_as_one_program_does(trained_by_one_program):
    """From the same weights, on the very episodes that the one program draws."""
    model, _ = contenders.model_and_loss(SIZE)
    runs = []
    for key in jax.random.split(jax.random.key(0), SIZE.seeds):
        start = architectures.attention_weights(architectures.init_parameters(model, key, 1), 0)
        weights = {name: torch.from_numpy(np.array(w[0])) for name, w in start._asdict().items()}
        with jax.threefry_partitionable(False):
            batches = [
                torch_episodes(contenders.draw_batch(SIZE, jax.random.fold_in(key, step)))
                for step in range(SIZE.steps)
            ]
        runs.append(contenders.torch_train(weights, batches))
    found = contenders.Trained(
        weights={name: np.stack([weights[name] for weights, _ in runs]) for name in NAMES},
        losses=np.stack([losses for _, losses in runs]),
    )
    assert_same_training(found, trained_by_one_program)
