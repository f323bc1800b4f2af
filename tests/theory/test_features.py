"""The laws have the moments and symmetries they claim; banks of text keep halves apart."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icorag_jax.theory.features import (
    LAWS,
    SIGNED_PERMUTATION_INVARIANT,
    InvalidFeaturesError,
    draw_bank,
    stack_banks,
    text_bank,
)

D, SAMPLES = 4, 50_000
KURTOSIS = {"gaussian": 3.0, "uniform": 1.8, "rademacher": 1.0, "sparse": 15.0}
laws = pytest.mark.parametrize("law", LAWS)


@pytest.fixture(scope="module")
def banks():
    return {
        law: np.asarray(draw_bank(law, jax.random.key(1), SAMPLES, D).train, np.float64)
        for law in LAWS
    }


@laws
def test_energy_is_the_dimension(banks, law):
    energies = np.sum(banks[law] ** 2, axis=-1)
    assert np.isfinite(energies).all()
    error = energies.std() / SAMPLES**0.5
    assert abs(energies.mean() - D) < 5 * error + 1e-3


@pytest.mark.parametrize("law", KURTOSIS)
def test_kurtosis(banks, law):
    z = banks[law]
    found = np.mean(z**4) / np.mean(z**2) ** 2
    assert found == pytest.approx(KURTOSIS[law], rel=0.06)


def test_sphere_has_one_radius(banks):
    np.testing.assert_allclose(np.linalg.norm(banks["sphere"], axis=-1), D**0.5, rtol=1e-5)


def test_rademacher_are_signs(banks):
    assert set(np.unique(banks["rademacher"])) == {-1.0, 1.0}


def test_sparse_is_mostly_zero(banks):
    assert np.mean(banks["sparse"] == 0) == pytest.approx(0.8, abs=0.01)


def test_student_t_has_five_degrees_of_freedom(banks):
    """P(|t_5| > 4.03) = 1% and P(|t_5| > 1.476) = 20%, at unit variance."""
    t = np.abs(banks["student_t"]) * (5 / 3) ** 0.5
    assert np.mean(t > 4.032) == pytest.approx(0.01, rel=0.1)
    assert np.mean(t > 1.476) == pytest.approx(0.2, rel=0.03)


def test_power_law_spectrum(banks):
    z = banks["power_law"]
    values = np.sort(np.linalg.eigvalsh(z.T @ z / SAMPLES))[::-1]
    np.testing.assert_allclose(values / values[0], 1 / np.arange(1, D + 1), rtol=0.05)


def test_clusters_have_a_mean(banks):
    assert np.linalg.norm(banks["clustered"].mean(axis=0)) > 0.1


def test_manifold_has_few_directions():
    """Near a point, differences span no more directions than the surface has."""
    d, surface = 8, 2
    z = np.asarray(draw_bank("manifold", jax.random.key(2), 200_000, d).train, np.float64)
    near = z[np.argsort(np.linalg.norm(z - z[0], axis=-1))[1:20]] - z[0]
    values = np.linalg.svd(near, compute_uv=False)
    assert values[surface] < 0.3 * values[surface - 1]


@laws
def test_signed_permutations(banks, law):
    """Second and fourth moments change under swaps and signs, or do not, as is claimed."""
    z = banks[law]

    def moments(rows):
        one, other = rows.T
        return np.stack([one, one * other, one**2, one**2 * other**2, one**4])

    every = [
        moments(z[:, order] * signs)
        for order in itertools.permutations(range(D), 2)
        for signs in ([1, 1], [-1, 1])
    ]
    means = np.array([found.mean(axis=-1) for found in every])
    stray = np.ptp(means, axis=0)
    if law in SIGNED_PERMUTATION_INVARIANT:
        # Of so many means the largest and the smallest are within eight standard errors; a
        # Student-t's fourth power has no variance, so its own sample's is what it is held to.
        errors = np.max([found.std(axis=-1) for found in every], axis=0) / np.sqrt(len(z))
        assert np.all(stray < 8 * errors + 1e-6)
    else:
        assert stray[:3].max() > 0.1


@laws
def test_the_law_is_fixed_by_its_key_and_the_halves_differ(law):
    first, again = (draw_bank(law, jax.random.key(3), 64, D) for _ in range(2))
    np.testing.assert_array_equal(first.train, again.train)
    assert first.train.shape == first.test.shape == (64, D)
    assert first.train.dtype == jnp.float32
    assert jnp.abs(first.train - first.test).max() > 0.1
    other = draw_bank(law, jax.random.key(4), 64, D)
    assert jnp.abs(first.train - other.train).max() > 0.1


def test_halves_of_a_law_share_its_centres():
    bank = draw_bank("clustered", jax.random.key(5), 20_000, D)
    np.testing.assert_allclose(bank.train.mean(axis=0), bank.test.mean(axis=0), atol=0.05)


def test_unknown_laws_are_named():
    with pytest.raises(InvalidFeaturesError, match=r"'cauchy'; known: gaussian, power_law"):
        draw_bank("cauchy", jax.random.key(0), 8, D)


@pytest.mark.parametrize(("samples", "d"), [(0, 3), (8, 0), (-1, 3)])
def test_sizes_below_one_are_refused(samples, d):
    with pytest.raises(InvalidFeaturesError, match="must be at least 1"):
        draw_bank("gaussian", jax.random.key(0), samples, d)
    with pytest.raises(InvalidFeaturesError, match="must be at least 1"):
        text_bank(embeddings(), jax.random.key(0), samples, d)


def embeddings(texts=60, width=10):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(texts, width)) * np.geomspace(3, 0.1, width)[None] + 0.5).astype(
        np.float32
    )


def test_text_banks_hold_projected_texts_of_separate_halves():
    found = embeddings()
    bank = text_bank(found, jax.random.key(0), 500, 3)
    assert bank.train.shape == bank.test.shape == (500, 3)
    train, test = (np.unique(np.round(half, 4), axis=0) for half in bank)
    assert len(train) == len(test) == 30
    assert not {tuple(row) for row in train} & {tuple(row) for row in test}
    # The scale is that of the training half.
    assert np.mean(np.sum(train**2, axis=-1)) == pytest.approx(3, rel=1e-3)


def test_text_directions_are_those_of_most_energy():
    """Texts that all but lie in a plane keep their lengths, up to the one scale."""
    rng = np.random.default_rng(1)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    flat = rng.normal(size=(60, 2)) @ plane.T + 1e-4 * rng.normal(size=(60, 8))
    bank = text_bank(flat.astype(np.float32), jax.random.key(0), 1000, 2)
    rows = np.concatenate([np.unique(np.round(half, 5), axis=0) for half in bank])
    found, expected = (np.sort(np.linalg.norm(part, axis=-1)) for part in (rows, flat))
    np.testing.assert_allclose(found / found[-1], expected / expected[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e * np.where(np.arange(60) == 7, np.nan, 1)[:, None],
            "in 1 of 60 rows, first in 7",
        ),
        (lambda e: e[:4], r"3 features need at least 3 dimensions and 6 texts"),
        (lambda e: e[:, :2], r"3 features need at least 3 dimensions"),
        (lambda e: 0 * e, "fewer than 3 directions"),
        (lambda e: e[:, :1] * np.ones((1, 5)), "fewer than 3 directions"),
    ],
    ids=["nan", "few texts", "narrow", "zero", "one direction"],
)
def test_bad_embeddings_are_refused(change, message):
    with pytest.raises(InvalidFeaturesError, match=message):
        text_bank(change(embeddings()).astype(np.float32), jax.random.key(0), 8, 3)


def test_banks_stack():
    banks = [draw_bank(law, jax.random.key(0), 16, D) for law in ("gaussian", "uniform")]
    stacked = stack_banks(banks)
    assert stacked.train.shape == stacked.test.shape == (2, 16, D)
    np.testing.assert_array_equal(stacked.test[1], banks[1].test)
