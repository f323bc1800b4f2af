"""Measures, and the best steps by least squares, against NumPy and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import compiled, seeds

from icorag_jax.theory import alignment
from icorag_jax.theory.alignment import PreconditionedRates
from icorag_jax.theory.architectures import Architecture, Model, fill_parameters, init_parameters
from icorag_jax.theory.architectures import predict as predict_model
from icorag_jax.theory.constructions import direct_tokens
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.features import LAWS, SIGNED_PERMUTATION_INVARIANT, draw_bank
from icorag_jax.theory.tasks import Task, draw_episodes

D = 3


def draw(seed, task, count, d=D):
    """Episodes on Gaussian features."""
    key = jax.random.key(seed)
    bank = jax.random.normal(key, (4096, d))
    return draw_episodes(jax.random.fold_in(key, 1), bank, task, count)


def directions(episodes):
    """`G = sum p y z^T` of each episode in NumPy."""
    share = episodes.weights / episodes.weights.sum(axis=-1, keepdims=True)
    return np.einsum("en,enm,end->emd", share, episodes.targets, episodes.features)


def as_numpy(episodes) -> Episode:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), episodes)


@given(st.integers(1, 6), seeds())
def test_cosine_matches_numpy(size, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 5, size)).astype(np.float32)
    a[0] = 0
    a[1] = b[1] = 0
    found = compiled(alignment.cosine)(a, b)
    expected = [
        x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a[2:], b[2:], strict=True)
    ]
    np.testing.assert_allclose(found, [0.0, 1.0, *expected], atol=1e-5)


def test_relative_error_of_zeros():
    zero, one = jnp.zeros((2, 1)), jnp.ones((2, 1))
    assert alignment.relative_error(zero, zero) == 0
    assert alignment.relative_error(one, zero) == jnp.inf
    assert alignment.relative_error(3 * one, one) == pytest.approx(2)


def test_measures_match_numpy():
    """A quadratic predictor against a linear one: every field from its definition."""
    episodes = draw(0, Task(examples=4, outputs=2, queries=3), 5)
    matrix = jax.random.normal(jax.random.key(2), (2, D))

    def model(episode):
        return (episode.query_features**2) @ matrix.T

    def reference(episode):
        return episode.query_features @ matrix.T

    found = compiled(lambda batch: alignment.measure(model, reference, batch))(episodes)
    w = np.asarray(matrix, np.float64)
    for index in range(5):
        z, y = (
            np.asarray(part[index], np.float64)
            for part in (episodes.query_features, episodes.query_targets)
        )
        p, r = z**2 @ w.T, z @ w.T
        # d (w_mi z_i^2) / d z_i = 2 w_mi z_i.
        slopes = 2 * w[None] * z[:, None, :]
        difference = slopes - w[None]
        cosines = [np.sum(s * w) / np.linalg.norm(s) / np.linalg.norm(w) for s in slopes]
        expected = {
            "prediction_cosine": np.sum(p * r) / np.linalg.norm(p) / np.linalg.norm(r),
            "relative_error": np.linalg.norm(p - r) / np.linalg.norm(r),
            "sensitivity_cosine": np.mean(cosines),
            "sensitivity_distance": np.mean([np.linalg.norm(part) for part in difference]),
            "loss": 0.5 * np.mean(np.sum((p - y) ** 2, axis=-1)),
            "reference_loss": 0.5 * np.mean(np.sum((r - y) ** 2, axis=-1)),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                getattr(found, name)[index], value, rtol=1e-4, atol=1e-5, err_msg=name
            )


@settings(max_examples=8)
@given(st.sampled_from([1, 2]), st.booleans(), seeds())
def test_best_preconditioner_is_least_squares(outputs, weighted, seed):
    task = Task(examples=5, outputs=outputs, queries=4, retriever_weights=weighted)
    episodes = draw(seed % 1000, task, 200)
    numbers = as_numpy(episodes)
    directed = directions(numbers)
    # One row an episode, query and output; one column an entry of M.
    rows = np.einsum("emi,eqj->eqmij", directed, numbers.query_features).reshape(-1, D * D)
    expected = np.linalg.lstsq(rows, numbers.query_targets.reshape(-1), rcond=None)[0]
    found = compiled(alignment.best_preconditioner)(episodes)
    np.testing.assert_allclose(found, expected.reshape(D, D), rtol=1e-3, atol=1e-3)
    moves = np.einsum("emd,eqd->eqm", directed, numbers.query_features)
    rate = np.sum(moves * numbers.query_targets) / np.sum(moves**2)
    np.testing.assert_allclose(compiled(alignment.best_step_size)(episodes), rate, rtol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_best_preconditioner_of_gaussian_features(noise):
    """`M = ((N + 1) / N Sigma + (tr Sigma + sigma^2) / N I)^{-1}`."""
    n, scales = 6, jnp.asarray([1.5, 1.0, 0.4])
    key = jax.random.key(3)
    bank = jax.random.normal(key, (200_000, D)) * scales[None, :]
    task = Task(examples=n, outputs=1, queries=4, label_noise=noise)
    episodes = draw_episodes(jax.random.fold_in(key, 1), bank, task, 60_000)
    found = np.asarray(compiled(alignment.best_preconditioner)(episodes))
    sigma = np.diag(np.asarray(scales, np.float64) ** 2)
    shrink = (np.trace(sigma) + noise**2) / n
    expected = np.linalg.inv((n + 1) / n * sigma + shrink * np.eye(D))
    # Errors of the fit fall with the root of 240,000 queries, and grow where features are small.
    assert np.abs(found - expected).max() < 0.03 * expected.max()
    # Neither limit of the formula would pass: no shrinkage, or nothing but shrinkage.
    assert np.abs(np.linalg.inv(sigma) - expected).max() > 0.3 * expected.max()


@pytest.mark.parametrize("law", LAWS)
def test_symmetric_laws_need_no_preconditioner(law):
    """There, and only there, the best preconditioner is a multiple of the identity."""
    d, key = 4, jax.random.key(5)
    bank = draw_bank(law, key, 20_000, d).train
    task = Task(examples=8, outputs=1, queries=8)
    episodes = draw_episodes(jax.random.fold_in(key, 1), bank, task, 20_000)
    found = np.asarray(compiled(alignment.best_preconditioner)(episodes))
    scalar = np.trace(found) / d * np.eye(d)
    stray = np.linalg.norm(found - scalar) / np.linalg.norm(scalar)
    if law in SIGNED_PERMUTATION_INVARIANT:
        assert stray < 0.1
    else:
        assert stray > 0.2


@settings(max_examples=10)
@given(seeds())
def test_a_layer_is_an_even_part_and_a_preconditioned_step(seed):
    """Theorem 6: with one output, what is odd in the targets is `G M z` for any weights."""
    task = Task(examples=6, outputs=1, queries=4)
    episodes = draw(seed % 1000, task, 3)
    model = Model(Architecture(), D, 1.0)
    parameters = init_parameters(model, jax.random.key(seed % 997), 1)

    def predict(sign):
        signed = episodes._replace(targets=sign * episodes.targets)
        return jax.vmap(lambda episode: predict_model(model, parameters, episode))(signed)

    odd = 0.5 * (np.asarray(predict(1.0)) - np.asarray(predict(-1.0)))
    layer = {
        name: np.asarray(leaf[0], np.float64)
        for name, leaf in parameters["layer_0"]["attention"].items()
    }
    mixing = (layer["key"].T @ layer["query"])[:, :D]
    writing = -(layer["output"] @ layer["value"])[D:]
    matrix = writing[0, D] * mixing[:D] + np.outer(writing[0, :D], mixing[D])
    numbers = as_numpy(episodes)
    expected = np.einsum("emi,ij,eqj->eqm", directions(numbers), matrix, numbers.query_features)
    np.testing.assert_allclose(odd, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_averaging_over_outputs_leaves_a_preconditioned_step():
    """Theorem 6 for several outputs and heads: over signed permutations, any layer is `G M z`."""
    outputs, heads = 2, 2
    episode = jax.tree.map(lambda leaf: leaf[0], draw(3, Task(6, outputs, 4), 1))
    model = Model(Architecture(heads=heads), D, 1.0)
    parameters = init_parameters(model, jax.random.key(4), outputs)
    swaps = [np.eye(outputs)[list(order)] for order in itertools.permutations(range(outputs))]
    signs = [np.diag(sign) for sign in itertools.product([1.0, -1.0], repeat=outputs)]
    turned = []
    for rotation in [swap @ sign for swap in swaps for sign in signs]:
        turn = jnp.asarray(rotation, jnp.float32)
        found = predict_model(model, parameters, episode._replace(targets=episode.targets @ turn.T))
        turned.append(np.asarray(found, np.float64) @ rotation)
    layer = {k: np.asarray(v, np.float64) for k, v in parameters["layer_0"]["attention"].items()}
    matrix = np.zeros((D, D))
    for query, key, value, output in zip(
        *(layer[name] for name in ("query", "key", "value", "output")), strict=True
    ):
        mixing, writing = (key.T @ query)[:, :D], -(output @ value)[D:]
        matrix += np.trace(writing[:, D:]) / outputs * mixing[:D]
        matrix += writing[:, :D].T @ mixing[D:] / outputs
    numbers = as_numpy(jax.tree.map(lambda leaf: leaf[None], episode))
    expected = directions(numbers)[0] @ matrix @ numbers.query_features[0].T
    np.testing.assert_allclose(
        np.mean(turned, axis=0), expected.T, atol=1e-5 * max(1, np.abs(turned).max())
    )


@settings(max_examples=10)
@given(st.integers(1, 3), seeds())
def test_preconditioned_steps_match_numpy(layers, seed):
    """`y <- y - sum p y z^T M z` and `z <- z - sum p z z^T Gamma z`, for every token."""
    rng = np.random.default_rng(seed)
    step, curvature = 0.2 * rng.normal(size=(2, layers, D, D))
    episodes = draw(seed % 1000, Task(examples=5, outputs=2, queries=3, missing_rate=0.3), 1)
    rates = PreconditionedRates(jnp.asarray(step, jnp.float32), jnp.asarray(curvature, jnp.float32))
    episode = jax.tree.map(lambda leaf: leaf[0], episodes)
    found = compiled(alignment.predict_preconditioned)(rates, episode)
    numbers = as_numpy(episode)
    share = numbers.weights / numbers.weights.sum()
    z, y, zq = numbers.features, numbers.targets, numbers.query_features
    yq = np.zeros((3, 2))
    for m, gamma in zip(step, curvature, strict=True):
        pull, gram = (y.T * share) @ z, (z.T * share) @ z
        yq, zq, y, z = (
            yq - zq @ m.T @ pull.T,
            zq - zq @ gamma.T @ gram.T,
            y - z @ m.T @ pull.T,
            z - z @ gamma.T @ gram.T,
        )
    np.testing.assert_allclose(found, -yq, atol=1e-5 * max(1, np.abs(yq).max()))


def test_preconditioned_layers_fit_a_model():
    """The family's weights are weights that a trained model can have."""
    rng = np.random.default_rng(0)
    rates = PreconditionedRates(*jnp.asarray(0.2 * rng.normal(size=(2, 2, D, D)), jnp.float32))
    episode = jax.tree.map(lambda leaf: leaf[0], draw(1, Task(5, 1, 3), 1))
    model = Model(Architecture(layers=2, heads=2), D, 1.0)
    parameters = fill_parameters(
        model,
        init_parameters(model, jax.random.key(0), 1),
        alignment.preconditioned_layers(rates, 1),
    )
    assert direct_tokens(episode).context.shape == (5, D + 1)
    np.testing.assert_allclose(
        predict_model(model, parameters, episode),
        alignment.predict_preconditioned(rates, episode),
        rtol=1e-5,
        atol=1e-6,
    )
