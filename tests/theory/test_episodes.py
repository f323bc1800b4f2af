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
from icorag_jax.theory import (
    alignment,
    architectures,
    closed_forms,
    constructions,
    episodes,
    objective,
)
from icorag_jax.theory.architectures import Architecture, Model
from icorag_jax.theory.attention import AttentionWeights
from icorag_jax.theory.episodes import Episode, InvalidEpisodeError, validate_episode
from icorag_jax.theory.objective import Block, Ridge


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


# Where it is refused -----------------------------------------------------------------------------

# Every function that takes one episode, on a projection episode and an interface for it.
RATES, PULL = jnp.ones(1), Ridge(jnp.asarray(0.1), jnp.zeros((3, 5)))
ENTRIES = {
    "predict_queries": objective.predict_queries,
    "loss": objective.loss,
    "payloads": objective.payloads,
    "gradient": objective.gradient,
    "gradient_descent": lambda w, e: objective.gradient_descent(w, e, RATES),
    "gd_plus_plus": lambda w, e: objective.gd_plus_plus(e, RATES, RATES),
    "direct_tokens": lambda w, e: constructions.direct_tokens(e),
    "direct": lambda w, e: constructions.direct(w, e, RATES),
    "factored_tokens": constructions.factored_tokens,
    "factored": lambda w, e: constructions.factored(w, e, RATES),
    "lift": lambda w, e: constructions.lift(e),
    "lifted": lambda w, e: constructions.lifted(w, e, RATES),
    "mean_gram": lambda w, e: closed_forms.mean_gram(e),
    "gram_bound": lambda w, e: closed_forms.gram_bound(w, e, jnp.ones(2), jnp.eye(3)),
    "descent_direction": lambda w, e: alignment.descent_direction(e),
    "predict": lambda w, e: architectures.predict(
        Model(Architecture(), 5, 1.0),
        {"layer_0": {"attention": AttentionWeights(*[jnp.ones((1, 8, 8))] * 4)._asdict()}},
        e,
    ),
}
entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def projection_episode(**changes):
    """One episode of JAX arrays with identity readouts, with some fields replaced."""
    episode = valid()._replace(
        readouts=np.tile(np.eye(3), (4, 1, 1)), query_readouts=np.tile(np.eye(3), (2, 1, 1))
    )
    return Episode(*[jnp.asarray(part, jnp.float32) for part in episode._replace(**changes)])


@entries
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.ones((4, 1))}, "axis m is 3 in readouts but 1 in targets"),
        ({"weights": np.ones(1)}, "axis n is 4 in features but 1 in weights"),
        ({"query_readouts": np.ones((1, 3, 3))}, "axis q is 2 in query_features but 1"),
    ],
)
def test_every_entry_refuses_shapes_that_would_broadcast(entry, changes, message):
    """Compiled or not."""
    for call in (entry, jax.jit(entry)):
        with pytest.raises(InvalidEpisodeError, match=message):
            call(jnp.ones((3, 5)), projection_episode(**changes))


@entries
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.array([1.0, -2.0, 1.0, 1.0])}, "the smallest is -2"),
        ({"weights": np.zeros(4)}, "all its examples masked"),
        ({"features": np.full((4, 5), np.nan)}, "features holds NaN"),
        ({"query_features": np.full((2, 5), np.inf)}, "query_features holds NaN or infinity"),
    ],
)
def test_every_entry_refuses_values_that_would_spread(entry, changes, message):
    """Where they are known: compiled, an entry sees no values, and neither do its checks."""
    interface, episode = jnp.ones((3, 5)), projection_episode(**changes)
    with pytest.raises(InvalidEpisodeError, match=message):
        entry(interface, episode)
    jax.eval_shape(entry, interface, episode)
    jax.eval_shape(entry, interface, projection_episode())


def test_known_values_are_checked_where_others_are_traced():
    """As in a derivative, or in a compiled function that an episode did not come into by name."""
    broken = projection_episode(weights=np.zeros(4))
    for transform in (jax.grad, jax.jit):
        with pytest.raises(InvalidEpisodeError, match="all its examples masked"):
            transform(lambda w: objective.loss(w, broken))(jnp.ones((3, 5)))


@pytest.mark.parametrize(
    "name", ["loss", "payloads", "gradient", "gradient_descent", "direct", "factored", "lifted"]
)
def test_interfaces_must_fit_the_episode(name):
    for call in (ENTRIES[name], jax.jit(ENTRIES[name])):
        with pytest.raises(ValueError, match=r"the interface has shape \(5, 3\), but .* \(3, 5\)"):
            call(jnp.ones((5, 3)), projection_episode())
    with pytest.raises(ValueError, match="the interface holds NaN"):
        ENTRIES[name](jnp.full((3, 5), jnp.nan), projection_episode())


@pytest.mark.parametrize(
    ("ridge", "message"),
    [
        (Ridge(PULL.strength, jnp.zeros((1, 5))), r"reference has shape \(1, 5\)"),
        (Ridge(PULL.strength, jnp.full((3, 5), jnp.inf)), "reference holds NaN or infinity"),
        (Ridge(jnp.asarray(-0.1), PULL.reference), "strength must be at least 0, got -0.1"),
        (Ridge(jnp.asarray(jnp.nan), PULL.reference), "strength must be at least 0, got nan"),
        (Ridge(jnp.ones(2), PULL.reference), r"strength must be at least 0, got \[1. 1.\]"),
    ],
)
def test_impossible_ridges_are_refused(ridge, message):
    interface, episode = jnp.ones((3, 5)), projection_episode()
    for call in (
        lambda: objective.loss(interface, episode, ridge),
        lambda: objective.gradient(interface, episode, ridge),
        lambda: objective.gradient_descent(interface, episode, RATES, ridge),
        lambda: constructions.direct(interface, episode, RATES, ridge),
        lambda: constructions.factored(interface, episode, RATES, ridge),
        lambda: constructions.lifted(interface, episode, RATES, ridge),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_masks_and_blocks_must_fit_the_interface():
    interface, episode = jnp.ones((3, 5)), projection_episode()
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 5\)"):
        objective.check_episode(episode, mask=jnp.ones((1, 5)))
    with pytest.raises(ValueError, match=r"the mask has shape \(3, 4\)"):
        constructions.factored(interface, episode, RATES, blocks=[Block(1, 2), Block(2, 2)])


def test_direct_tokens_are_for_identity_readouts():
    """Others would be passed over in silence."""
    with pytest.raises(InvalidEpisodeError, match="readouts that are the identity"):
        constructions.direct_tokens(projection_episode(readouts=2 * np.tile(np.eye(3), (4, 1, 1))))
    wide = projection_episode(readouts=np.ones((4, 3, 6)), query_readouts=np.ones((2, 3, 6)))
    with pytest.raises(InvalidEpisodeError, match="readouts that are the identity"):
        jax.eval_shape(constructions.direct_tokens, wide)


def test_batches_are_to_be_mapped_over():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), projection_episode())
    with pytest.raises(InvalidEpisodeError, match=r"batch axes \(2,\): map over them"):
        objective.loss(jnp.ones((3, 5)), batch)
    losses = jax.vmap(objective.loss, in_axes=(None, 0))(jnp.ones((3, 5)), batch)
    assert losses.shape == (2,)


def test_measures_of_batches_check_them():
    batch = jax.tree.map(lambda leaf: leaf[None], projection_episode(weights=np.zeros(4)))
    for call in (
        alignment.best_step_size,
        alignment.best_preconditioner,
        functools.partial(alignment.measure, lambda e: e.query_targets, lambda e: e.query_targets),
    ):
        with pytest.raises(InvalidEpisodeError, match="all its examples masked"):
            call(batch)


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
