"""Closed forms: the best gradient step and its loss, and how far the factored construction strays.

The setting of the closed forms: `W_0 = 0`, unit weights, no ridge, `N` context examples, targets
`y = C W* z` without noise. `W*` has independent entries of mean 0 and variance 1; features have
`d_z` independent coordinates of mean 0, variance `s` and fourth moment `kappa s^2`; readouts are
independent over examples, with `G = C^T C`, `E G = g1 I` and `E tr G^2 = g2 d_c`; `W*`, features
and readouts are independent of each other. With `h = eta / N` and

    D = (N - 1) g1^2 + g2 (d_z + kappa - 1)

one step of size `eta` from zero has the loss

    1/2 E||y_q - pred||^2 = 1/2 g1 s d_c d_z (1 - 2 h s N g1 + h^2 s^2 N D)

which is smallest at `h = g1 / (s D)`. The projection interface is the case `g1 = g2 = 1`,
`d_c = m`. Proofs are in `docs/theory.md`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from icorag_jax.theory.episodes import Episode, normalized_weights
from icorag_jax.theory.objective import check_episode, gradient_descent


class FeatureMoments(NamedTuple):
    """Moments of one feature coordinate, of mean 0.

    Attributes:
        variance: `s`, greater than 0.
        kurtosis: `kappa`, the fourth moment over `s^2`, at least 1 (uniform 1.8, Gaussian 3).
    """

    variance: float = 1.0
    kurtosis: float = 3.0


class ReadoutMoments(NamedTuple):
    """Moments of the readouts' Gram matrix `G = C^T C` with `E G = g1 I`.

    Attributes:
        first: `g1 = E tr G / d_c`, greater than 0.
        second: `g2 = E tr G^2 / d_c`, at least `g1^2`.
    """

    first: float = 1.0
    second: float = 1.0


def dot_product_moments(m: int, k: int, d_c: int, scale: float = 1.0) -> ReadoutMoments:
    """Moments of `C = scale V^T K` with `V [k, m]` and `K [k, d_c]` independent standard normal.

        g1 = scale^2 m k
        g2 = scale^4 [(d_c + 1) m k (m + k + 1) + (m k)^2 + 2 m k]

    Raises:
        ValueError: a size below 1, or a scale that is zero or not finite.
    """
    _check_sizes(m=m, k=k, d_c=d_c)
    if not math.isfinite(scale) or scale == 0:
        raise ValueError(f"scale must be finite and not zero, got {scale}")
    mk = m * k
    second = (d_c + 1) * mk * (m + k + 1) + mk**2 + 2 * mk
    return ReadoutMoments(scale**2 * mk, scale**4 * second)


def dot_product_step_size(
    n: int, d_z: int, features: FeatureMoments, readouts: ReadoutMoments
) -> float:
    """The best `eta / N` of one step from zero, for any interface.

    `eta` itself, the step size of the mean objective with unit weights, is `n` times it.

    Raises:
        ValueError: a size below 1, or moments that no distribution has.
    """
    _check_sizes(n=n, d_z=d_z)
    _check_moments(features, readouts)
    return readouts.first / (features.variance * _spread(n, d_z, features, readouts))


def dot_product_loss(
    n: int, d_c: int, d_z: int, features: FeatureMoments, readouts: ReadoutMoments
) -> float:
    """The loss `1/2 E||y_q - pred||^2`, summed over outputs, of the best step from zero.

        1/2 g1 s d_c d_z [1 - N g1^2 / ((N - 1) g1^2 + g2 (d_z + kappa - 1))]

    Raises:
        ValueError: a size below 1, or moments that no distribution has.
    """
    _check_sizes(n=n, d_c=d_c, d_z=d_z)
    _check_moments(features, readouts)
    explained = n * readouts.first**2 / _spread(n, d_z, features, readouts)
    return 0.5 * readouts.first * features.variance * d_c * d_z * (1 - explained)


def projection_step_size(n: int, d: int, features: FeatureMoments) -> float:
    """The best `eta / N` of one projection step from zero, `1 / (s (N + d + kappa - 2))`.

    Raises:
        ValueError: a size below 1, or moments that no distribution has.
    """
    return dot_product_step_size(n, d, features, ReadoutMoments())


def projection_loss(n: int, d: int, features: FeatureMoments, m: int = 1) -> float:
    """The loss of the best projection step, `m / 2 * s d (d + kappa - 2) / (N + d + kappa - 2)`.

    Raises:
        ValueError: a size below 1, or moments that no distribution has.
    """
    return dot_product_loss(n, m, d, features, ReadoutMoments())


def grams(episode: Episode) -> Float[Array, "n d_c d_c"]:
    """The Gram matrices `G_i = C_i^T C_i` of the context examples."""
    check_episode(episode)
    return jnp.einsum("nmc,nmd->ncd", episode.readouts, episode.readouts)


def mean_gram(episode: Episode) -> Float[Array, "d_c d_c"]:
    """`1 / sum w * sum_i w_i G_i`, the Gram matrix for several factored steps on this episode."""
    return jnp.einsum("n,ncd->cd", normalized_weights(episode.weights), grams(episode))


def gram_bound(
    interface: Float[Array, "d_c d_z"],
    episode: Episode,
    step_sizes: Float[Array, "2"],
    gram: Float[Array, "d_c d_c"],
) -> Float[Array, ""]:
    """How far two factored steps with one Gram matrix can end from two gradient steps.

        ||W_2 - W_2'||_F <= |eta_2| max_i ||G_i - gram||_op ||W_1 - W_0||_op sum_i p_i ||z_i||^2

    with `p_i = w_i / sum w` and the largest taken over examples that are not masked. No ridge.

    Args:
        interface: `[d_c, d_z]`, the start `W_0`.
        episode: the context examples, with any weights.
        step_sizes: `[2]`, which may differ; the first enters through `W_1 - W_0`.
        gram: `[d_c, d_c]`, what the factored construction takes for every `G_i`, such as
            `mean_gram(episode)`.

    Returns:
        The bound on the Frobenius norm of the difference of the two interfaces.
    """
    weights = normalized_weights(episode.weights)
    moved = gradient_descent(interface, episode, step_sizes[:1]) - interface
    strays = jnp.linalg.norm(grams(episode) - gram[None], ord=2, axis=(-2, -1))
    furthest = jnp.max(jnp.where(weights > 0, strays, 0))
    energy = jnp.sum(weights * jnp.sum(episode.features**2, axis=-1))
    return jnp.abs(step_sizes[1]) * furthest * jnp.linalg.norm(moved, ord=2) * energy


def _spread(n: int, d_z: int, features: FeatureMoments, readouts: ReadoutMoments) -> float:
    """`E||S||^2 / (n s^2 E||W*||^2)` for the sum `S` of the examples' pulls on the interface."""
    repeated = readouts.second * (d_z + features.kurtosis - 1)
    return (n - 1) * readouts.first**2 + repeated


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_moments(features: FeatureMoments, readouts: ReadoutMoments) -> None:
    if not features.variance > 0:
        raise ValueError(f"the variance must be greater than 0, got {features.variance}")
    if not features.kurtosis >= 1:
        raise ValueError(f"the kurtosis must be at least 1, got {features.kurtosis}")
    if not readouts.first > 0:
        raise ValueError(f"the readouts' first moment must be greater than 0: {readouts.first}")
    # Rounding aside, so that moments measured on a sample with one Gram matrix pass.
    if not readouts.second >= readouts.first**2 * (1 - 1e-6):
        raise ValueError(f"no readouts have E tr G^2 below (E tr G)^2 / d_c: {readouts}")
