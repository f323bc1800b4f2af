"""Kernels and layers against loops in NumPy, and the limits of the tempered kernel."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LIMITS, QUICK_TO_COMPILE, compiled, seeds

from icorag_jax.theory import attention
from icorag_jax.theory.attention import AttentionWeights, Tokens

TEMPERATURE = 0.7
KERNELS = {
    "linear": attention.linear_kernel,
    "softmax": attention.softmax_kernel(TEMPERATURE),
    "tempered": attention.tempered_kernel(TEMPERATURE),
    "relu": attention.relu_kernel,
    "elu": attention.elu_kernel,
    "cosine": attention.cosine_kernel,
}
HOT = {temperature: attention.tempered_kernel(temperature) for temperature in (1e2, 1e4, 1e6)}
COLD_TEMPERATURE = 0.02
COLD = attention.tempered_kernel(COLD_TEMPERATURE)
precisions = pytest.mark.parametrize("dtype", LIMITS)
kernels = pytest.mark.parametrize("name", KERNELS)

H, N, T, D = 2, 4, 3, 3  # heads, context tokens, rows that read them, key size


@st.composite
def numbers(draw, *shape):
    """Multiples of 1/64, the same in both precisions, with zeros and whole vectors of them."""
    rng = np.random.default_rng(draw(seeds()))
    found = rng.integers(-128, 129, size=shape) / 64
    return found * (rng.random(shape) < 0.9) * (rng.random((*shape[:-1], 1)) < 0.8)


key_arrays, query_arrays = numbers(H, N, D), numbers(H, T, D)
presences = st.lists(st.booleans(), min_size=N, max_size=N).filter(any).map(np.array)


def run(kernel, keys, queries, present, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        found = compiled(kernel)(keys.astype(dtype), queries.astype(dtype), present)
        assert found.dtype == dtype
        return np.asarray(found).astype(np.float64)


def value_and_slopes(kernel, keys, queries, present, coefficients, dtype):
    """Of `sum coefficients * a`, by keys and by queries."""

    def total(keys, queries):
        mixing = kernel(keys, queries, jnp.asarray(present))
        return jnp.sum(mixing * jnp.asarray(coefficients, dtype))

    with jax.enable_x64(dtype == "float64"):
        function = jax.jit(
            jax.value_and_grad(total, argnums=(0, 1)), compiler_options=QUICK_TO_COMPILE
        )
        return jax.tree.map(np.asarray, function(keys.astype(dtype), queries.astype(dtype)))


def elu1(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def cosine(key, query):
    norms = np.linalg.norm(key) * np.linalg.norm(query)
    return key @ query / norms if norms else 0.0


def by_loops(name, keys, queries, present):
    """Each coefficient by the formula of its kernel, over the tokens present."""
    mixing = np.zeros((H, T, N))
    there = np.flatnonzero(present)
    for h in range(H):
        for t in range(T):
            query = queries[h, t]
            scores = {i: keys[h, i] @ query for i in there}
            spread = sum(math.exp(score / TEMPERATURE) for score in scores.values())
            elu_scores = {i: elu1(keys[h, i]) @ elu1(query) for i in there}
            for i in there:
                mixing[h, t, i] = {
                    "linear": scores[i],
                    "softmax": len(there) * math.exp(scores[i] / TEMPERATURE) / spread,
                    "tempered": TEMPERATURE
                    * (len(there) + 1)
                    * (math.exp(scores[i] / TEMPERATURE) - 1)
                    / (spread + 1),
                    "relu": np.maximum(keys[h, i], 0) @ np.maximum(query, 0),
                    "elu": len(there) * elu_scores[i] / sum(elu_scores.values()),
                    "cosine": cosine(keys[h, i], query),
                }[name]
    return mixing


# Kernels -----------------------------------------------------------------------------------------


@kernels
@precisions
@given(keys=key_arrays, queries=query_arrays, present=presences)
def test_kernels_match_loops(name, dtype, keys, queries, present):
    found = run(KERNELS[name], keys, queries, present, dtype)
    expected = by_loops(name, keys, queries, present)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=LIMITS[dtype] * max(scale, 1e-3))


@kernels
@settings(max_examples=10)
@given(keys=key_arrays, queries=query_arrays, present=presences)
def test_absent_tokens_have_no_influence(name, keys, queries, present):
    """Their coefficients are 0, and those of others are as if they had never been there."""
    other = np.where(present[None, :, None], keys, 50.0)
    found = run(KERNELS[name], other, queries, present)
    assert np.all(found[:, :, ~present] == 0)
    np.testing.assert_array_equal(found, run(KERNELS[name], keys, queries, present))


@pytest.mark.parametrize("name", ["softmax", "elu"])
@settings(max_examples=10)
@given(keys=key_arrays, queries=query_arrays, present=presences)
def test_normalized_kernels_sum_to_the_tokens_present(name, keys, queries, present):
    found = run(KERNELS[name], keys, queries, present)
    np.testing.assert_allclose(found.sum(axis=-1), present.sum(), rtol=1e-12)
    assert np.all(found >= 0)


@settings(max_examples=10)
@given(keys=key_arrays, queries=query_arrays, present=presences)
def test_tempered_is_linear_at_high_temperature(keys, queries, present):
    """The difference shrinks as one over the temperature: at most 3 s^2 / T for scores up to s."""
    linear = by_loops("linear", keys, queries, present)
    top = np.max(np.abs(linear))
    for temperature, kernel in HOT.items():
        found = run(kernel, keys, queries, present)
        np.testing.assert_allclose(found, linear, rtol=0, atol=3 * top**2 / temperature + 1e-9)


@settings(max_examples=10)
@given(keys=key_arrays, queries=query_arrays, present=presences)
def test_tempered_is_linear_up_to_this_correction(keys, queries, present):
    """`T (a - s)` tends to `s^2 / 2 - s sum(s) / (n + 1)`, the sum over the tokens present."""
    temperature = 1e4
    linear = by_loops("linear", keys, queries, present)
    mean = linear.sum(axis=-1, keepdims=True) / (present.sum() + 1)
    found = temperature * (run(HOT[temperature], keys, queries, present) - linear)
    # What is left is of third order: at most 3 s^3 / T for scores up to s.
    limit = 3 * np.max(np.abs(linear)) ** 3 / temperature + 1e-6
    np.testing.assert_allclose(found, linear**2 / 2 - linear * mean, rtol=0, atol=limit)


@settings(max_examples=10)
@given(scores=st.lists(st.integers(-5, 5), min_size=N, max_size=N, unique=True))
def test_tempered_is_hard_at_low_temperature(scores):
    """Where some score is positive: the whole share goes to the largest."""
    if max(scores) <= 0:
        scores = [6, *scores[1:]]
    keys, queries = np.array(scores, float).reshape(1, N, 1), np.ones((1, 1, 1))
    found = run(COLD, keys, queries, np.ones(N, bool))
    expected = np.zeros(N)
    expected[np.argmax(scores)] = COLD_TEMPERATURE * (N + 1)
    np.testing.assert_allclose(found[0, 0], expected, rtol=0, atol=1e-12)


@precisions
def test_tempered_stays_finite_for_negative_scores(dtype):
    """The null token takes the whole share: every coefficient is `-T (n + 1)`."""
    keys, queries = np.array([-1.0, -2.0]).reshape(1, 2, 1), np.ones((1, 1, 1))
    found = run(attention.tempered_kernel(1e-3), keys, queries, np.ones(2, bool), dtype)
    np.testing.assert_allclose(found, np.full((1, 1, 2), -3e-3), rtol=1e-6)


@kernels
@precisions
def test_gradients_are_finite_for_large_scores(name, dtype):
    """Scores up to 1e8, one of them of an absent token; a NaN would spoil a whole run."""
    keys = np.array([1e4, -1e4, 3.0, 0.0, 1e4]).reshape(1, 5, 1)
    queries = np.array([1e4, -1e4, 1e-2]).reshape(1, 3, 1)
    present = np.array([True, True, True, True, False])
    coefficients = np.random.default_rng(0).normal(size=(1, 3, 5))
    value, slopes = value_and_slopes(KERNELS[name], keys, queries, present, coefficients, dtype)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    assert slopes[0][0, 4, 0] == 0  # the absent token


@precisions
def test_cosine_of_a_zero_vector_is_zero(dtype):
    """And so is its slope, which rsqrt alone would make NaN."""
    keys = np.array([[[0.0, 0.0], [3.0, 4.0]]])
    queries = np.array([[[4.0, 3.0], [0.0, 0.0]]])
    present = np.ones(2, bool)
    expected = [[[0.0, 0.96], [0.0, 0.0]]]
    found = run(attention.cosine_kernel, keys, queries, present, dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    _, (by_keys, by_queries) = value_and_slopes(
        attention.cosine_kernel, keys, queries, present, np.ones((1, 2, 2)), dtype
    )
    np.testing.assert_array_equal(by_keys[0, 0], [0, 0])
    np.testing.assert_array_equal(by_queries[0, 1], [0, 0])
    assert np.all(np.isfinite(by_keys)) and np.all(np.isfinite(by_queries))


# Layers ------------------------------------------------------------------------------------------


def layer_by_loops(layer, row, context, present):
    """What a linear layer adds to one row: `sum_h P_h sum_i (V_h e_i) (K_h e_i)^T (Q_h e)`."""
    added = np.zeros_like(row)
    for query, key, value, output in zip(*layer, strict=True):
        for token, there in zip(context, present, strict=True):
            if there:
                added += output @ (value @ token) * ((key @ token) @ (query @ row))
    return added


def draw_layers(rng, count, d=5, d_key=3, d_value=4):
    shapes = AttentionWeights((H, d_key, d), (H, d_key, d), (H, d_value, d), (H, d, d_value))
    return [
        AttentionWeights(*[rng.normal(size=shape) / 4 for shape in shapes]) for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_layers_match_loops(count):
    """Every layer updates context and queries from the context before it, and from nothing else."""

    @settings(max_examples=10)
    @given(seed=seeds(), present=presences)
    def check(seed, present):
        rng = np.random.default_rng(seed)
        layers = draw_layers(rng, count)
        context, queries = rng.normal(size=(N, 5)), rng.normal(size=(T, 5))
        with jax.enable_x64(True):
            found = compiled(attention.apply_layers)(layers, Tokens(context, queries, present))
        for layer in layers:
            read = context
            context = np.stack([row + layer_by_loops(layer, row, read, present) for row in read])
            queries = np.stack([row + layer_by_loops(layer, row, read, present) for row in queries])
        np.testing.assert_allclose(found, queries, rtol=1e-10, atol=1e-12)

    check()


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_attend_mixes_values_by_the_kernel(name):
    rng = np.random.default_rng(0)
    (layer,) = draw_layers(rng, 1)
    context, rows = rng.normal(size=(N, 5)), rng.normal(size=(T, 5))
    present = np.array([True, False, True, True])
    keys = np.stack([context @ key.T for key in layer.key])
    queries = np.stack([rows @ query.T for query in layer.query])
    mixing = by_loops(name, keys, queries, present)
    expected = np.zeros((T, 5))
    for h in range(H):
        for t in range(T):
            for i in range(N):
                expected[t] += layer.output[h] @ layer.value[h] @ context[i] * mixing[h, t, i]
    attend = functools.partial(attention.attend, kernel=KERNELS[name])
    with jax.enable_x64(True):
        found = compiled(attend)(layer, rows, context, present)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
