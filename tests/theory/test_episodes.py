"""Episodes: features and readouts of the interfaces, and what is refused."""

import functools

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from problems import INTERFACES, SIZES, compiled, episode_of, problems, seeds

from experiments.support import theorems
from icorag_jax.theory import episodes
from icorag_jax.theory.episodes import Episode, InvalidEpisodeError, validate_episode


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def valid(batch=()):
    """Plain NumPy: checking happens on the host."""
    n, q, m, d_z, d_c = 4, 2, 3, 5, 6
    rng = np.random.default_rng(0)
    shapes = Episode((n, d_z), (n, m, d_c), (n, m), (n,), (q, d_z), (q, m, d_c), (q, m))
    episode = Episode(*[rng.normal(size=batch + shape) for shape in shapes])
    return episode._replace(weights=np.abs(episode.weights))


def edit(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,), (2, 1)])
def test_valid_episodes_pass(batch):
    episode = valid(batch)
    validate_episode(episode)
    validate_episode(Episode(*[jnp.asarray(array.astype(np.float32)) for array in episode]))
    some_masked = edit(episode.weights, (..., slice(3)), 0.0)
    validate_episode(episode._replace(weights=some_masked))
    assert episode.interface_shape == (6, 5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("readouts", (5, 3, 6), "axis n is 4 in features but 5 in readouts"),
        ("targets", (4, 2), "axis m is 3 in readouts but 2 in targets"),
        ("weights", (3,), "axis n is 4 in features but 3 in weights"),
        ("query_features", (2, 4), "axis d_z is 5 in features but 4 in query_features"),
        ("query_readouts", (2, 3, 7), "axis d_c is 6 in readouts but 7 in query_readouts"),
        ("query_readouts", (1, 3, 6), "axis q is 2 in query_features but 1 in query_readouts"),
        ("query_targets", (2, 1), "axis m is 3 in readouts but 1 in query_targets"),
        ("features", (5,), r"features has shape (5,), expected [..., n, d_z]"),
        ("weights", (), r"weights has shape (), expected [..., n]"),
        ("targets", (2, 4, 3), "batch axes differ"),
    ],
)
def test_mismatched_shapes_are_named(name, shape, message):
    with pytest.raises(InvalidEpisodeError) as caught:
        validate_episode(valid()._replace(**{name: np.ones(shape)}))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", Episode._fields)
def test_what_is_not_finite_is_named(name, value):
    episode = valid((2,))
    broken = edit(getattr(episode, name), (1, ..., 0), value)
    with pytest.raises(InvalidEpisodeError, match=rf"(: |; ){name} holds NaN or infinity"):
        validate_episode(episode._replace(**{name: broken}))


def test_negative_weights_are_refused():
    episode = valid((2,))
    broken = episode._replace(weights=edit(episode.weights, (1, 2), -0.25))
    with pytest.raises(InvalidEpisodeError, match=r"at least 0, the smallest is -0\.25"):
        validate_episode(broken)


def test_masking_all_examples_is_refused():
    """In any one episode of a batch."""
    episode = valid((3,))
    broken = episode._replace(weights=edit(episode.weights, 1, 0.0))
    with pytest.raises(InvalidEpisodeError, match="all its examples masked"):
        validate_episode(broken)
    assert np.all(np.isnan(episodes.normalized_weights(jnp.zeros(3))))  # what would come of it


def test_all_problems_are_listed_at_once():
    episode = valid()
    broken = episode._replace(
        features=edit(episode.features, (0, 0), np.nan),
        targets=np.ones((4, 2)),
        query_features=np.ones(5),
        weights=edit(episode.weights, 0, -1.0),
    )
    with pytest.raises(InvalidEpisodeError) as caught:
        validate_episode(broken)
    message = str(caught.value)
    for problem in (
        "features holds NaN",
        "axis m is 3 in readouts but 2 in targets",
        "query_features has shape (5,)",
        "the smallest is -1.0",
    ):
        assert problem in message
    assert isinstance(caught.value, ValueError)


# Features and readouts ---------------------------------------------------------------------------


@settings(max_examples=5)
@given(seed=seeds())
def test_normalized_weights_sum_to_one(seed):
    weights = np.random.default_rng(seed).exponential(size=5)
    found = episodes.normalized_weights(jnp.asarray(weights.astype(np.float32)))
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-5)


@settings(max_examples=5)
@given(seed=seeds())
def test_pooling_matches_loops(seed):
    shares, values = numbers(4, 3, seed=seed), numbers(4, 3, 2, seed=seed + 1)
    expected = np.zeros((4, 2))
    for i in range(4):
        for j in range(3):
            expected[i] += np.asarray(shares)[i, j] * np.asarray(values)[i, j]
    found = episodes.pool_evidence(shares, values)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=5)
@given(seed=seeds())
def test_projection_features_match_loops(seed):
    questions, evidence = numbers(4, 3, seed=seed), numbers(4, 2, seed=seed + 1)
    projection = numbers(6, 5, seed=seed + 2)
    expected = np.stack(
        [
            np.asarray(projection) @ np.concatenate([question, pooled])
            for question, pooled in zip(np.asarray(questions), np.asarray(evidence), strict=True)
        ]
    )
    found = episodes.projection_features(questions, evidence, projection)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=5)
@given(seed=seeds())
def test_dot_product_readouts_match_loops(seed):
    """A prediction is attention over passages without a softmax."""
    keys, values = numbers(4, 3, 5, seed=seed), numbers(4, 3, 2, seed=seed + 1)
    interface, question = numbers(5, 6, seed=seed + 2), numbers(6, seed=seed + 3)
    readouts = np.asarray(episodes.dot_product_readouts(keys, values))
    for i in range(4):
        expected = np.zeros(2)
        for j in range(3):
            score = np.asarray(keys)[i, j] @ np.asarray(interface) @ np.asarray(question)
            expected += score * np.asarray(values)[i, j]
        found = readouts[i] @ np.asarray(interface) @ np.asarray(question)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_missing_passages_have_no_influence():
    """A missing passage is one whose value row is zero; its key may be anything."""
    keys, values = numbers(4, 3, 5), edit(np.array(numbers(4, 3, 2, seed=1)), (..., 1, slice(2)), 0)
    loud = edit(np.array(keys), (..., 1, slice(5)), 1e6)
    found = episodes.dot_product_readouts(jnp.asarray(loud), jnp.asarray(values))
    quiet = episodes.dot_product_readouts(keys, jnp.asarray(values))
    np.testing.assert_array_equal(found, quiet)


def test_identity_readouts_are_identities():
    found = episodes.identity_readouts(3, 2, jnp.float32)
    np.testing.assert_array_equal(found, [[[1, 0], [0, 1]]] * 3)
    assert found.dtype == jnp.float32


def test_both_interfaces_side_by_side():
    """With a block-diagonal interface, the prediction is the sum of the two interfaces'."""
    projected, questions, attended = numbers(4, 3), numbers(4, 2, seed=1), numbers(4, 2, 5, seed=2)
    first, second = numbers(2, 3, seed=3), numbers(5, 2, seed=4)
    features = np.asarray(episodes.combine_features(projected, questions))
    readouts = np.asarray(episodes.combine_readouts(attended))
    interface = np.block([[first, np.zeros((2, 2))], [np.zeros((5, 3)), second]])
    for i in range(4):
        expected = np.asarray(first) @ np.asarray(projected)[i]
        expected = (
            expected + np.asarray(attended)[i] @ np.asarray(second) @ np.asarray(questions)[i]
        )
        found = readouts[i] @ interface @ features[i]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interface", INTERFACES)
def test_episodes_match_numpy(interface):
    """All of the above together: questions and passages in, features and readouts out."""
    build = functools.partial(theorems.build_episode, interface=interface)

    @settings(max_examples=5)
    @given(problem=problems(interface, masked=True, sizes=SIZES[:1]))
    def check(problem):
        with jax.enable_x64(True):
            found = compiled(build)(problem)
        chex.assert_trees_all_close(found, episode_of(problem, interface), rtol=1e-10)

    check()


@pytest.mark.parametrize(
    "call",
    [
        lambda: episodes.pool_evidence(numbers(4, 3), numbers(4, 2, 5)),
        lambda: episodes.projection_features(numbers(4, 3), numbers(5, 2), numbers(6, 5)),
        lambda: episodes.projection_features(numbers(4, 3), numbers(4, 2), numbers(6, 4)),
        lambda: episodes.dot_product_readouts(numbers(4, 3, 5), numbers(4, 2, 2)),
        lambda: episodes.combine_features(numbers(4, 3), numbers(3, 2)),
        lambda: episodes.combine_readouts(numbers(4, 3)),
        lambda: episodes.normalized_weights(jnp.ones(3, jnp.int32)),
    ],
)
def test_wrong_shapes_are_caught_at_the_call(call):
    """The tests run under jaxtyping's import hook; this is what it is there for."""
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
