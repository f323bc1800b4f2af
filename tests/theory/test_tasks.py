"""Tasks: each field does to an episode what it says and nothing else, found out in NumPy.

Two things are found from the episodes alone. The bank's rows have distinct directions in their
first half, which no departure touches but by a known factor, so a feature tells which row it comes
from. And there are more queries than features, so least squares finds `W*`.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import seeds

from icorag_jax.theory.episodes import Episode, validate_episode
from icorag_jax.theory.tasks import Task, draw_episodes

ROWS, D, COUNT = 50, 4, 300
HALF = D // 2
PLAIN = Task(examples=5, outputs=2, queries=7)
DEPARTURES = {
    "scale": {"scale": 1.7},
    "label_noise": {"label_noise": 0.6},
    "missing": {"missing_rate": 0.4},
    "distractors": {"distractor_share": 0.3},
    "retriever": {"retriever_weights": True},
    "anisotropy": {"anisotropy": 9.0},
    "rank": {"rank": 1},
}
BANK = np.random.default_rng(0).normal(size=(ROWS, D))


def vary(**changes) -> Task:
    return dataclasses.replace(PLAIN, **changes)


@functools.cache
def draw(task: Task, seed=0, count=COUNT, dtype="float32") -> Episode:
    """Episodes in float64, whatever they are drawn in."""
    with jax.enable_x64(dtype == "float64"):
        found = draw_episodes(jax.random.key(seed), jnp.asarray(BANK, dtype), task, count)
        chex.assert_type(jax.tree.leaves(found), jnp.dtype(dtype))
        return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), found)


def both(episodes: Episode) -> np.ndarray:
    """Features of context and queries, `[count, n + q, d]`."""
    return np.concatenate([episodes.features, episodes.query_features], axis=1)


def rows_of(features: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The bank's row that each feature comes from, by the half that departures leave alone."""
    known = (factors * BANK)[:, :HALF]
    gaps = np.abs(features[..., None, :HALF] - known).max(axis=-1)
    assert np.all(gaps.min(axis=-1) < 1e-5)
    return gaps.argmin(axis=-1)


def interfaces(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`W*` of each episode, `[count, m, d]`, by least squares on its queries."""
    found = [np.linalg.lstsq(z, y, rcond=None)[0].T for z, y in zip(features, targets, strict=True)]
    residual = np.einsum("emd,eqd->eqm", np.stack(found), features) - targets
    assert np.abs(residual).max() < 1e-4
    return np.stack(found)


def noise(episodes: Episode, originals: np.ndarray) -> np.ndarray:
    """What context targets are off `W* z` by, `z` before evidence was touched."""
    n = episodes.features.shape[1]
    w = interfaces(originals[:, n:], episodes.query_targets)
    return episodes.targets - np.einsum("emd,end->enm", w, originals[:, :n])


# The plain task ----------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    n=st.sampled_from([1, 4]),
    m=st.sampled_from([1, 3]),
    q=st.sampled_from([1, 5]),
    departure=st.sampled_from(list(DEPARTURES)),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2),
)
def test_episodes_are_valid_whatever_the_task(n, m, q, departure, dtype, seed):
    task = Task(examples=n, outputs=m, queries=q, **DEPARTURES[departure])
    episodes = draw(task, seed, count=3, dtype=dtype)
    shapes = Episode((3, n, D), (3, n, m, m), (3, n, m), (3, n), (3, q, D), (3, q, m, m), (3, q, m))
    chex.assert_trees_all_equal(Episode(*map(np.shape, episodes)), shapes)
    validate_episode(episodes)
    for readouts in (episodes.readouts, episodes.query_readouts):
        np.testing.assert_array_equal(readouts, np.broadcast_to(np.eye(m), readouts.shape))


@settings(max_examples=5)
@given(seed=seeds())
def test_targets_are_linear_in_rows_of_the_bank(seed):
    episodes = draw(PLAIN, seed)
    features = both(episodes)
    np.testing.assert_allclose(features, BANK[rows_of(features, np.ones(D))], atol=1e-6)
    assert np.abs(noise(episodes, features)).max() < 1e-4
    np.testing.assert_array_equal(episodes.weights, 1)


def test_every_row_of_the_bank_is_as_likely():
    counts = np.bincount(rows_of(both(draw(PLAIN)), np.ones(D)).ravel(), minlength=ROWS)
    expected = counts.sum() / ROWS
    # Pearson's statistic: ROWS - 1 on average, its standard deviation sqrt(2 (ROWS - 1)).
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < ROWS - 1 + 5 * np.sqrt(2 * ROWS)


@pytest.mark.parametrize("rank", [None, 1, 2, 6])
def test_interfaces_are_drawn_anew_with_unit_variance(rank):
    episodes = draw(vary(rank=rank))
    w = interfaces(episodes.query_features, episodes.query_targets).reshape(COUNT, -1)
    # Products of two normals have a fourth moment of at most 9.
    error = np.sqrt(9 / COUNT)
    assert np.abs(w.mean(axis=0)).max() < 4 * np.sqrt(1 / COUNT)
    covariance = w.T @ w / COUNT
    assert np.abs(covariance - np.eye(w.shape[1])).max() < 4 * error
    assert np.abs(np.mean(w[1:] * w[:-1])) < 4 * np.sqrt(1 / w.size)


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_is_that_of_the_interface(rank):
    episodes = draw(vary(outputs=3, rank=rank))
    values = np.linalg.svd(
        interfaces(episodes.query_features, episodes.query_targets), compute_uv=False
    )
    assert np.abs(values[:, rank:]).max() < 1e-4
    assert np.median(values[:, rank - 1]) > 0.1


# Departures --------------------------------------------------------------------------------------


@settings(max_examples=6)
@given(scale=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 3))
def test_scale_multiplies_every_feature_and_keeps_the_interfaces(scale, seed):
    before, after = draw(PLAIN, seed), draw(vary(scale=scale), seed)
    np.testing.assert_allclose(both(after), scale * both(before), rtol=1e-6)
    np.testing.assert_allclose(after.targets, scale * before.targets, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", [4.0, 100.0])
def test_anisotropy_is_the_condition_of_the_covariance(condition):
    """The map keeps `sum of squares = d`, so it moves no energy in or out of isotropic features."""
    episodes = draw(vary(anisotropy=condition))
    ratios = both(episodes) / both(draw(PLAIN))
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[0, 0], ratios.shape), rtol=1e-4)
    stretch = ratios[0, 0]
    # The condition number of what it does to a covariance.
    assert np.max(stretch) ** 2 / np.min(stretch) ** 2 == pytest.approx(condition, rel=1e-4)
    assert np.sum(stretch**2) == pytest.approx(D, rel=1e-5)
    assert np.abs(noise(episodes, both(episodes))).max() < 1e-3


@pytest.mark.parametrize("level", [0.1, 2.0])
def test_label_noise_is_on_context_targets_alone(level):
    before, after = draw(PLAIN), draw(vary(label_noise=level))
    chex.assert_trees_all_close(after._replace(targets=before.targets), before)
    found = noise(after, both(after))
    assert abs(found.mean()) < 4 * level / np.sqrt(found.size)
    assert found.std() == pytest.approx(level, rel=4 / np.sqrt(2 * found.size))
    assert abs(np.mean(found[:, 1:] * found[:, :-1])) < 4 * level**2 / np.sqrt(found.size)


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_missing_evidence_is_zero_at_that_rate(rate):
    """In context and queries, all of an example's evidence at once; targets do not change."""
    before, after = draw(PLAIN), draw(vary(missing_rate=rate))
    features, originals = both(after), both(before)
    missing = np.all(features[..., HALF:] == 0, axis=-1)
    expected = np.where(missing[..., None] & (np.arange(D) >= HALF), 0, originals)
    np.testing.assert_array_equal(features, expected)
    for part in (missing[:, : PLAIN.examples], missing[:, PLAIN.examples :]):
        assert abs(part.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / part.size)
    np.testing.assert_allclose(after.targets, before.targets, rtol=1e-6)
    np.testing.assert_allclose(after.query_targets, before.query_targets, rtol=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_distractors_are_a_share_of_evidence_from_other_rows(share):
    before, after = draw(PLAIN), draw(vary(distractor_share=share))
    features, originals = both(after), both(before)
    np.testing.assert_array_equal(features[..., :HALF], originals[..., :HALF])
    other = (features - (1 - share) * originals)[..., HALF:] / share
    gaps = np.abs(other[..., None, :] - BANK[:, HALF:]).max(axis=-1)
    assert gaps.min(axis=-1).max() < 1e-5
    # Whose evidence it is has nothing to do with whose it is mixed into.
    same = gaps.argmin(axis=-1) == rows_of(originals, np.ones(D))
    assert same.mean() < 1 / ROWS + 4 / np.sqrt(ROWS * same.size)
    np.testing.assert_allclose(after.targets, before.targets, rtol=1e-6)
    np.testing.assert_allclose(after.query_targets, before.query_targets, rtol=1e-6)


@pytest.mark.parametrize("change", [{"scale": 2.0}, {"anisotropy": 9.0}])
def test_distractors_are_features_like_others(change):
    """Scale and anisotropy are of every feature, those that are mixed in too."""
    plain = draw(vary(distractor_share=0.5))
    changed = draw(vary(distractor_share=0.5, **change))
    factors = (both(draw(vary(**change))) / both(draw(PLAIN)))[0, 0]
    np.testing.assert_allclose(both(changed), factors * both(plain), rtol=1e-4, atol=1e-5)


def test_retriever_weights_say_how_far_to_trust():
    """Weights are uniform on (0, 1); noise has a standard deviation of one less the weight."""
    before, after = draw(PLAIN), draw(vary(retriever_weights=True))
    chex.assert_trees_all_close(
        after._replace(targets=before.targets, weights=before.weights), before
    )
    weights = after.weights.ravel()
    assert weights.min() > 0 and weights.max() < 1
    gaps = np.sort(weights) - (np.arange(weights.size) + 0.5) / weights.size
    assert np.abs(gaps).max() < 2 / np.sqrt(weights.size)  # Kolmogorov and Smirnov
    found = noise(after, both(after)).reshape(weights.size, -1)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        chosen = (weights >= low) & (weights < high)
        spread = found[chosen] / (1 - weights[chosen, None])
        assert spread.std() == pytest.approx(1, abs=4 / np.sqrt(2 * spread.size))
        assert abs(spread.mean()) < 4 / np.sqrt(spread.size)


def test_noise_of_labels_and_of_weights_add_up():
    task = vary(label_noise=0.5, retriever_weights=True)
    found = noise(draw(task), both(draw(task)))
    spread = found / np.sqrt(0.25 + (1 - draw(task).weights[..., None]) ** 2)
    assert spread.std() == pytest.approx(1, abs=4 / np.sqrt(2 * spread.size))


# Keys, compilation, refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("name", DEPARTURES)
def test_a_key_fixes_the_episodes(name):
    task = vary(**DEPARTURES[name])
    first, again = (draw.__wrapped__(task, 0, 20) for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    other = draw(task, 1, 20)
    assert not np.any(np.all(first.query_targets == other.query_targets, axis=-1))
    assert not np.allclose(first.features, draw(PLAIN, 0, 20).features) or not np.allclose(
        first.targets, draw(PLAIN, 0, 20).targets
    )


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_changes_nothing(self):
        changes = {key: value for change in DEPARTURES.values() for key, value in change.items()}
        task, bank = vary(**changes), jnp.asarray(BANK, jnp.float32)
        found = self.variant(lambda key: draw_episodes(key, bank, task, 20))(jax.random.key(0))
        chex.assert_trees_all_close(found, draw(task, 0, 20), rtol=1e-5, atol=1e-5)


def test_banks_must_be_finite():
    """Where their values are known."""
    bank = jnp.asarray(BANK, jnp.float32).at[3, 1].set(jnp.nan)

    def draw_from(bank):
        return draw_episodes(jax.random.key(0), bank, PLAIN, 2)

    with pytest.raises(ValueError, match="bank of features holds NaN"):
        draw_from(bank)
    jax.eval_shape(draw_from, bank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": 0}, "examples must be at least 1, got 0"),
        ({"outputs": -1}, "outputs must be at least 1, got -1"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": -1.0}, "scale must be above 0"),
        ({"anisotropy": 0.99}, "anisotropy at least 1"),
        ({"label_noise": -0.1}, "label_noise at least 0"),
        ({"scale": float("nan")}, "scale must be above 0"),
        ({"anisotropy": float("nan")}, "anisotropy at least 1"),
        ({"label_noise": float("nan")}, "label_noise at least 0"),
        ({"missing_rate": -0.1}, "missing_rate and distractor_share must lie in"),
        ({"missing_rate": 1.0}, "missing_rate and distractor_share must lie in"),
        ({"distractor_share": -0.1}, "missing_rate and distractor_share must lie in"),
        ({"distractor_share": 1.0}, "missing_rate and distractor_share must lie in"),
        ({"missing_rate": float("nan")}, "missing_rate and distractor_share must lie in"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        vary(**change)
