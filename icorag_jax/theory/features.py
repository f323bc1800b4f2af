"""Feature distributions: the laws that query-side features are drawn from.

A law is a function from keys to vectors. All laws share one scale, `E ||z||^2 = d`, so that a
difference between them is one of shape. Training and evaluation draw from a *bank*, a large fixed
sample of a law, which makes a generated law and real text the same thing to everything downstream.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

Sample = Float[Array, "count d"]
# Law(law_key, key, count, d) -> [count, d]: `law_key` fixes what belongs to the law (cluster
# centres, a mixing matrix), `key` the sample.
Law = Callable[[PRNGKeyArray, PRNGKeyArray, int, int], Sample]


class InvalidFeaturesError(ValueError):
    """Features that no bank can be made of."""


def gaussian(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Isotropic Gaussian, kurtosis 3."""
    return jax.random.normal(key, (count, d))


def power_law(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Gaussian with covariance eigenvalues proportional to `1 / rank`, in a random basis."""
    spectrum = 1 / jnp.arange(1, d + 1)
    scales = jnp.sqrt(spectrum / jnp.mean(spectrum))
    basis = jax.random.orthogonal(law_key, d)
    return (jax.random.normal(key, (count, d)) * scales[None, :]) @ basis.T


def uniform(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Uniform on `[-sqrt 3, sqrt 3]` in each coordinate, kurtosis 1.8."""
    return jax.random.uniform(key, (count, d), minval=-(3**0.5), maxval=3**0.5)


def sphere(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Uniform on the sphere of radius `sqrt d`."""
    draws = jax.random.normal(key, (count, d))
    return d**0.5 * draws / jnp.linalg.norm(draws, axis=-1, keepdims=True)


def rademacher(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Independent signs, kurtosis 1."""
    return jax.random.rademacher(key, (count, d), dtype=jnp.float32)


def sparse(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Each coordinate is zero with probability 0.8, else Gaussian; kurtosis 15."""
    rate = 0.2
    key_kept, key_value = jax.random.split(key)
    kept = jax.random.bernoulli(key_kept, rate, (count, d))
    return jnp.where(kept, jax.random.normal(key_value, (count, d)) / rate**0.5, 0)


def student_t(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Independent Student-t coordinates with 5 degrees of freedom, kurtosis 9."""
    freedom = 5.0
    return jax.random.t(key, freedom, (count, d)) * ((freedom - 2) / freedom) ** 0.5


def clustered(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """Four Gaussian clusters with unequal centres; the mean is not zero."""
    clusters, spread = 4, 0.5
    centres = jax.random.normal(law_key, (clusters, d))
    key_which, key_noise = jax.random.split(key)
    which = jax.random.randint(key_which, (count,), 0, clusters)
    draws = centres[which] + spread * jax.random.normal(key_noise, (count, d))
    energy = jnp.mean(jnp.sum(centres**2, axis=-1)) + spread**2 * d
    return draws * jnp.sqrt(d / energy)


def manifold(law_key: PRNGKeyArray, key: PRNGKeyArray, count: int, d: int) -> Sample:
    """A curved surface of dimension `max(2, d // 4)`: sines of a few latent directions."""
    latent = max(2, d // 4)
    key_map, key_phase = jax.random.split(law_key)
    directions = jax.random.normal(key_map, (latent, d))
    phases = jax.random.uniform(key_phase, (d,), maxval=2 * jnp.pi)
    angles = jax.random.normal(key, (count, latent)) @ directions + phases[None, :]
    waves = jnp.sin(angles)
    # E sin^2(a + phase) for a ~ N(0, v) is (1 - exp(-2 v) cos(2 phase)) / 2.
    variance = jnp.sum(directions**2, axis=0)
    energy = jnp.sum(1 - jnp.exp(-2 * variance) * jnp.cos(2 * phases)) / 2
    return waves * jnp.sqrt(d / energy)


LAWS: Mapping[str, Law] = {
    "gaussian": gaussian,
    "power_law": power_law,
    "uniform": uniform,
    "sphere": sphere,
    "rademacher": rademacher,
    "sparse": sparse,
    "student_t": student_t,
    "clustered": clustered,
    "manifold": manifold,
}
TEXT = "text"

# Laws that do not change when coordinates are permuted or change sign: there the best
# preconditioner of a gradient step is a multiple of the identity (docs/theory.md).
SIGNED_PERMUTATION_INVARIANT = frozenset(
    {"gaussian", "uniform", "sphere", "rademacher", "sparse", "student_t"}
)


class Bank(NamedTuple):
    """Samples of one or several laws.

    Attributes:
        train: `[..., samples, d]`, what training draws from.
        test: `[..., samples, d]`, held out for evaluation.
    """

    train: Float[Array, "*laws samples d"]
    test: Float[Array, "*laws samples d"]


def draw_bank(name: str, key: PRNGKeyArray, samples: int, d: int) -> Bank:
    """Draws `samples` vectors for training and as many for evaluation from a law.

    Raises:
        InvalidFeaturesError: for a name that is not in `LAWS`, or sizes below 1.
    """
    _check_sizes(samples, d)
    if name not in LAWS:
        raise InvalidFeaturesError(
            f"unknown feature distribution {name!r}; known: {', '.join(LAWS)}"
        )
    law_key, train_key, test_key = jax.random.split(key, 3)
    law = LAWS[name]
    return Bank(law(law_key, train_key, samples, d), law(law_key, test_key, samples, d))


def text_bank(
    embeddings: Float[np.ndarray, "texts width"], key: PRNGKeyArray, samples: int, d: int
) -> Bank:
    """A bank of real text: embeddings in the `d` directions that hold most of their energy.

    Texts are split in two halves at random, so no evaluation text was seen in training; each half
    is then drawn from with replacement. Directions and scale come from the training half. The
    mean is left in, as a system that uses embeddings would find it.

    Args:
        embeddings: `[texts, width]`, one row a text.
        key: fixes the split and the draws.
        samples: vectors in each half of the bank.
        d: size of the features, at most `width` and half the number of texts.

    Raises:
        InvalidFeaturesError: sizes below 1, too few texts, dimensions or directions, or NaN or
            infinity in the embeddings.
    """
    _check_sizes(samples, d)
    texts, width = embeddings.shape
    if not np.all(np.isfinite(embeddings)):
        rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=-1))
        raise InvalidFeaturesError(
            f"embeddings hold NaN or infinity in {len(rows)} of {texts} rows, first in {rows[0]}"
        )
    if d > min(width, texts // 2):
        raise InvalidFeaturesError(
            f"{d} features need at least {d} dimensions and {2 * d} texts, "
            f"got embeddings of shape {embeddings.shape}"
        )
    split_key, train_key, test_key = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(split_key, texts))
    train, test = np.split(embeddings[order].astype(np.float64), [texts // 2])
    _, energies, directions = np.linalg.svd(train, full_matrices=False)
    if energies[d - 1] <= 1e-6 * energies[0]:
        raise InvalidFeaturesError(
            f"embeddings of half the texts lie in fewer than {d} directions; take fewer features"
        )
    directions = directions[:d].T
    # The sign of a singular vector is arbitrary: fix it, so that results do not hang on it.
    directions *= np.sign(directions[np.argmax(np.abs(directions), axis=0), np.arange(d)])
    scale = np.sqrt(d / np.mean(np.sum((train @ directions) ** 2, axis=-1)))

    def draw(rows, key):
        picks = jax.random.randint(key, (samples,), 0, rows.shape[0])
        return jnp.asarray(scale * rows @ directions, jnp.float32)[picks]

    return Bank(draw(train, train_key), draw(test, test_key))


def _check_sizes(samples: int, d: int) -> None:
    if samples < 1 or d < 1:
        raise InvalidFeaturesError(
            f"samples and features must be at least 1, got {samples} and {d}"
        )


def stack_banks(banks: Sequence[Bank]) -> Bank:
    """Banks of several laws as one, `[laws, samples, d]`."""
    return Bank(*(jnp.stack(halves) for halves in zip(*banks, strict=True)))
