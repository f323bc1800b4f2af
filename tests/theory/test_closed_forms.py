"""Closed forms against simulation in NumPy, and the bound on two factored steps.

Simulations tolerate four standard errors, and a standard error is held to a small share of the
number itself, so that four of them mean something.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from problems import compute, problems

from experiments.support import reference
from icorag_jax.theory import closed_forms, constructions
from icorag_jax.theory.attention import apply_layers
from icorag_jax.theory.closed_forms import FeatureMoments, ReadoutMoments
from icorag_jax.theory.objective import Block

UNIFORM = FeatureMoments(1 / 12, 1.8)  # on [-1/2, 1/2]
GAUSSIAN = FeatureMoments(1.7, 3.0)


class Setting(NamedTuple):
    """A distribution of episodes; `k = 0` is the projection interface, `d_c = m`."""

    features: FeatureMoments
    n: int
    d_z: int
    m: int
    k: int = 0
    d_c: int = 0
    scale: float = 1.0

    def moments(self):
        if self.k == 0:
            return ReadoutMoments()
        return closed_forms.dot_product_moments(self.m, self.k, self.d_c, self.scale)

    def step_size(self):
        """The best `eta / N`, by the formula under test."""
        if self.k == 0:
            return closed_forms.projection_step_size(self.n, self.d_z, self.features)
        return closed_forms.dot_product_step_size(self.n, self.d_z, self.features, self.moments())

    def loss(self):
        """The loss at that rate, by the formula under test."""
        if self.k == 0:
            return closed_forms.projection_loss(self.n, self.d_z, self.features, self.m)
        d_c, moments = self.d_c, self.moments()
        return closed_forms.dot_product_loss(self.n, d_c, self.d_z, self.features, moments)


SETTINGS = {
    "projection_uniform": Setting(UNIFORM, n=10, d_z=10, m=1),
    "projection_gaussian": Setting(GAUSSIAN, n=6, d_z=4, m=1),
    "projection_uniform_3": Setting(UNIFORM, n=3, d_z=2, m=3),
    "projection_gaussian_3": Setting(GAUSSIAN, n=8, d_z=5, m=3),
    "dot_product_uniform": Setting(UNIFORM, n=8, d_z=4, m=2, k=3, d_c=2, scale=0.5),
    "dot_product_gaussian": Setting(GAUSSIAN, n=6, d_z=3, m=3, k=6, d_c=2, scale=0.3),
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


def draw_features(rng, setting, shape):
    if setting.features is UNIFORM:
        return rng.uniform(-0.5, 0.5, size=shape)
    return rng.normal(size=shape) * math.sqrt(setting.features.variance)


def draw_readouts(rng, setting, rows):
    values = rng.normal(size=(rows, setting.k, setting.m))
    keys = rng.normal(size=(rows, setting.k, setting.d_c))
    return setting.scale * np.swapaxes(values, 1, 2) @ keys


@functools.cache
def simulate(name, episodes_drawn=100_000, chunk=20_000):
    """Targets of queries and what a step of size `eta / N = 1` from zero predicts, `[episode, m]`.

    A step is linear in its size, so these say all about every step size.
    """
    setting = SETTINGS[name]
    rng = np.random.default_rng(0)
    targets, predictions = [], []
    for _ in range(episodes_drawn // chunk):
        d_c = setting.d_c or setting.m
        w = rng.normal(size=(chunk, d_c, setting.d_z))
        step = np.zeros_like(w)
        for _ in range(setting.n):
            z = draw_features(rng, setting, (chunk, setting.d_z))
            wz = np.einsum("ecz,ez->ec", w, z)
            if setting.k:
                c = draw_readouts(rng, setting, chunk)
                wz = np.einsum("emc,emd,ed->ec", c, c, wz, optimize=True)
            step += wz[:, :, None] * z[:, None, :]
        z = draw_features(rng, setting, (chunk, setting.d_z))
        target, prediction = np.einsum("ecz,ez->ec", w, z), np.einsum("ecz,ez->ec", step, z)
        if setting.k:
            c = draw_readouts(rng, setting, chunk)
            target = np.einsum("emc,ec->em", c, target)
            prediction = np.einsum("emc,ec->em", c, prediction)
        targets.append(target)
        predictions.append(prediction)
    return np.concatenate(targets), np.concatenate(predictions)


def losses(name, step_size):
    """The loss of each simulated episode at a step size."""
    targets, predictions = simulate(name)
    return 0.5 * np.sum((targets - step_size * predictions) ** 2, axis=-1)


def standard_error(samples):
    return np.std(samples) / math.sqrt(len(samples))


# The best step and its loss ----------------------------------------------------------------------


@every_setting
def test_loss_matches_simulation(name):
    setting = SETTINGS[name]
    samples = losses(name, setting.step_size())
    error = standard_error(samples)
    assert error < 0.01 * setting.loss()
    assert abs(samples.mean() - setting.loss()) < 4 * error


@every_setting
def test_step_size_is_a_minimum(name):
    """The loss has no slope there, and is higher on both sides."""
    step_size = SETTINGS[name].step_size()
    targets, predictions = simulate(name)
    slopes = np.sum((step_size * predictions - targets) * predictions, axis=-1)
    curvature = np.mean(np.sum(predictions**2, axis=-1))
    assert abs(slopes.mean()) < 4 * standard_error(slopes)
    # In units of the step size; products of many Gaussians are heavy-tailed.
    assert standard_error(slopes) < 0.03 * step_size * curvature
    for factor in (0.5, 1.5):
        worse = losses(name, factor * step_size) - losses(name, step_size)
        assert worse.mean() > 4 * standard_error(worse)


def test_numbers_of_the_design():
    """d = N = 10 and x ~ U(-1/2, 1/2): eta / N, the loss, and the loss of predicting zero."""
    assert closed_forms.projection_step_size(10, 10, UNIFORM) == pytest.approx(0.606, abs=5e-4)
    assert closed_forms.projection_loss(10, 10, UNIFORM) == pytest.approx(0.2062, abs=5e-5)
    zero = np.mean(0.5 * np.sum(simulate("projection_uniform")[0] ** 2, axis=-1))
    assert zero == pytest.approx(0.4167, abs=0.01)


@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, 1), (10, 10, 1), (7, 3, 4)])
@pytest.mark.parametrize("features", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_projection_formulas(n, d, m, features):
    """As the design writes them."""
    s, kappa = features
    assert closed_forms.projection_step_size(n, d, features) == pytest.approx(
        1 / (s * (n + d + kappa - 2))
    )
    assert closed_forms.projection_loss(n, d, features, m) == pytest.approx(
        m / 2 * s * d * (d + kappa - 2) / (n + d + kappa - 2)
    )


def test_projection_is_the_dot_product_of_unit_moments():
    moments = ReadoutMoments(1.0, 1.0)
    assert closed_forms.dot_product_loss(7, 3, 5, GAUSSIAN, moments) == pytest.approx(
        closed_forms.projection_loss(7, 5, GAUSSIAN, m=3)
    )


@pytest.mark.parametrize(
    ("m", "k", "d_c", "scale"), [(1, 1, 1, 1.0), (2, 3, 4, 0.5), (3, 1, 2, -1.0)]
)
def test_dot_product_moments_match_simulation(m, k, d_c, scale):
    setting = Setting(GAUSSIAN, n=1, d_z=1, m=m, k=k, d_c=d_c, scale=scale)
    c = draw_readouts(np.random.default_rng(0), setting, 400_000)
    gram = np.swapaxes(c, 1, 2) @ c
    first = np.trace(gram, axis1=1, axis2=2) / d_c
    second = np.sum(gram**2, axis=(1, 2)) / d_c
    moments = closed_forms.dot_product_moments(m, k, d_c, scale)
    assert abs(first.mean() - moments.first) < 4 * standard_error(first)
    assert abs(second.mean() - moments.second) < 4 * standard_error(second)
    assert standard_error(first) < 0.01 * moments.first
    assert standard_error(second) < 0.05 * moments.second  # moments of order eight


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(
    "formula", [closed_forms.projection_step_size, closed_forms.projection_loss]
)
def test_impossible_features_are_refused(formula, variance):
    with pytest.raises(ValueError, match="variance must be greater than 0"):
        formula(3, 3, FeatureMoments(variance, 3.0))
    with pytest.raises(ValueError, match="kurtosis must be at least 1"):
        formula(3, 3, FeatureMoments(1.0, 0.9))
    with pytest.raises(ValueError, match="kurtosis must be at least 1"):
        formula(3, 3, FeatureMoments(1.0, math.nan))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        closed_forms.projection_step_size(0, 3, UNIFORM)
    with pytest.raises(ValueError, match="d_z must be at least 1, got 0"):
        closed_forms.projection_loss(3, 0, UNIFORM)
    with pytest.raises(ValueError, match="d_c must be at least 1, got -1"):
        closed_forms.dot_product_loss(3, -1, 3, UNIFORM, ReadoutMoments())
    for name in ("m", "k", "d_c"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            closed_forms.dot_product_moments(**{"m": 1, "k": 1, "d_c": 1, name: 0})


def test_impossible_readouts_are_refused():
    def step_size(*moments):
        return closed_forms.dot_product_step_size(3, 3, UNIFORM, ReadoutMoments(*moments))

    with pytest.raises(ValueError, match="first moment must be greater than 0"):
        step_size(0.0, 1.0)
    with pytest.raises(ValueError, match="no readouts have"):
        step_size(2.0, 3.9)
    step_size(2.0, 4.0)  # one Gram matrix for all, a multiple of the identity
    for scale in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be finite and not zero"):
            closed_forms.dot_product_moments(1, 1, 1, scale)


# Two factored steps ------------------------------------------------------------------------------


def two_factored_steps(problem, gram):
    """Payloads kept by their definition for a step, and then moved by one Gram matrix for all."""
    z, c = reference.linearize(problem, "dot_product")
    share = problem.weights / problem.weights.sum()
    first = reference.descend(problem, "dot_product", 1)
    second = first.copy()
    for i, y in enumerate(problem.targets):
        payload = c[i].T @ (y - c[i] @ problem.start @ z[i])
        payload = payload - gram @ (first - problem.start) @ z[i]
        second += problem.step_sizes[1] * share[i] * np.outer(payload, z[i])
    return second


def numpy_bound(problem, gram):
    z, c = reference.linearize(problem, "dot_product")
    share = problem.weights / problem.weights.sum()
    moved = reference.descend(problem, "dot_product", 1) - problem.start
    kept = np.flatnonzero(problem.weights)
    furthest = max(np.linalg.norm(c[i].T @ c[i] - gram, ord=2) for i in kept)
    energy = sum(share[i] * np.sum(z[i] ** 2) for i in kept)
    return abs(problem.step_sizes[1]) * furthest * np.linalg.norm(moved, ord=2) * energy


def numpy_mean_gram(problem):
    _, c = reference.linearize(problem, "dot_product")
    share = problem.weights / problem.weights.sum()
    return sum(share[i] * c[i].T @ c[i] for i in range(len(share)))


def mean_gram(problem, episode):
    return closed_forms.mean_gram(episode)


def bound_by_mean_gram(problem, episode):
    gram = closed_forms.mean_gram(episode)
    return closed_forms.gram_bound(problem.start, episode, problem.step_sizes[:2], gram)


def factored_columns(problem, episode):
    """The interface after two factored steps: unit queries gather columns of its move."""
    d_c, d_z = problem.start.shape
    gram = closed_forms.mean_gram(episode)
    layers = constructions.factored_layers([Block(d_c, d_z)], problem.step_sizes[:2], gram)
    tokens = constructions.factored_tokens(problem.start, episode)
    basis = jnp.eye(d_z, tokens.queries.shape[-1], dtype=problem.start.dtype)
    gathered = apply_layers(layers, tokens._replace(queries=basis))[:, -d_c:]
    return problem.start + gathered.T


@given(problem=problems("dot_product", masked=True))
def test_mean_gram_matches_numpy(problem):
    found = compute(mean_gram, problem, "dot_product", "float64")
    np.testing.assert_allclose(found, numpy_mean_gram(problem), rtol=1e-10, atol=1e-12)


@given(problem=problems("dot_product", masked=True))
def test_gram_bound_holds(problem):
    """And is the product that it says, with weights and with masked examples far out."""
    gram = numpy_mean_gram(problem)
    exact = reference.descend(problem, "dot_product", 2)
    error = np.linalg.norm(two_factored_steps(problem, gram) - exact)
    bound = compute(bound_by_mean_gram, problem, "dot_product", "float64")
    np.testing.assert_allclose(bound, numpy_bound(problem, gram), rtol=1e-10, atol=1e-12)
    assert error <= bound * (1 + 1e-10) + 1e-12 * np.linalg.norm(exact)


@settings(max_examples=10)
@given(problem=problems("dot_product"))
def test_gram_bound_is_about_the_factored_construction(problem):
    """The two steps that the bound is held against above are those of the construction."""
    expected = two_factored_steps(problem, numpy_mean_gram(problem))
    found = compute(factored_columns, problem, "dot_product", "float64")
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=10)
@given(problem=problems("dot_product"))
def test_gram_bound_is_zero_with_a_shared_gram(problem):
    """Then two factored steps are two gradient steps."""
    keys, values = problem.keys.copy(), problem.values.copy()
    keys[:], values[:] = keys[0], values[0]
    problem = problem._replace(keys=keys, values=values)
    exact = reference.descend(problem, "dot_product", 2)
    approximate = two_factored_steps(problem, numpy_mean_gram(problem))
    np.testing.assert_allclose(approximate, exact, rtol=1e-10, atol=1e-12)
    bound = compute(bound_by_mean_gram, problem, "dot_product", "float64")
    assert bound <= 1e-12 * np.linalg.norm(exact)


def bound_by_zero_gram(problem, episode):
    gram = jnp.zeros((1, 1), problem.start.dtype)
    return closed_forms.gram_bound(problem.start, episode, problem.step_sizes[:2], gram)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gram_bound_is_attained(sign):
    """With one example and a scalar Gram matrix, so no factor of it can be spared."""
    rng = np.random.default_rng(0)
    sizes = reference.Sizes(1, 4, 2, 2, 3, 1, 2, 1, 2)
    problem = reference.draw_problem(rng, sizes, "dot_product", masked=0, ridge=False)
    problem = problem._replace(step_sizes=problem.step_sizes * np.array([1.0, sign]))
    exact = reference.descend(problem, "dot_product", 2)
    error = np.linalg.norm(two_factored_steps(problem, np.zeros((1, 1))) - exact)
    bound = compute(bound_by_zero_gram, problem, "dot_product", "float64")
    assert bound > 0.01
    assert error == pytest.approx(float(bound), rel=1e-10)
