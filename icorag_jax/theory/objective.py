"""The unified linearized objective of retrieval-augmented generation, and gradient descent on it.

    L(W) = 1 / (2 sum w) * sum_i w_i ||C_i W z_i - y_i||^2  +  lambda / 2 * ||W - W_ref||_F^2

Every function takes one episode; `jax.vmap` gives batches. Axes as in `icorag_jax.theory.episodes`.
The gradient is written out here and checked against `jax.grad` in the tests.

Functions of an episode, here and in `constructions`, begin with `check_episode` and raise what it
raises. It sees no values under `jax.jit` and `jax.vmap`: `validate_episode` does, before them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icorag_jax.theory.episodes import (
    Episode,
    InvalidEpisodeError,
    holds_nan,
    is_traced,
    normalized_weights,
    validate_episode,
)


class Ridge(NamedTuple):
    """A pull of strength `lambda` towards a reference interface.

    Attributes:
        strength: scalar `lambda`, at least 0.
        reference: `[d_c, d_z]`, the interface `W_ref`.
    """

    strength: Float[Array, ""]
    reference: Float[Array, "d_c d_z"]


class Block(NamedTuple):
    """One diagonal block of a block-diagonal interface: its evidence and feature sizes."""

    d_c: int
    d_z: int


def block_mask(blocks: Sequence[Block], dtype: jnp.dtype | type) -> Float[Array, "d_c d_z"]:
    """Ones on the diagonal blocks and zeros elsewhere, `[sum d_c, sum d_z]`."""
    return jax.scipy.linalg.block_diag(*[jnp.ones(block, dtype) for block in blocks])


def check_episode(
    episode: Episode,
    interface: Float[Array, "..."] | None = None,
    ridge: Ridge | None = None,
    mask: Float[Array, "..."] | None = None,
) -> None:
    """Refuses what would broadcast to wrong numbers, or turn to NaN, without a word.

    Shapes are checked always, which costs a compiled program nothing; values are where they are
    known, which is where nothing is traced.

    Args:
        episode: one episode.
        interface: `[d_c, d_z]`, if one is in play.
        ridge: its pull, if there is one.
        mask: `[d_c, d_z]`, which entries may move.

    Raises:
        InvalidEpisodeError: as of `validate_episode`, and for a batch of episodes.
        ValueError: a matrix that is not of the interface's shape or not finite, or a strength of
            the ridge that is not a number of at least 0.
    """
    validate_episode(episode)
    if batch := np.shape(episode.weights)[:-1]:
        raise InvalidEpisodeError(f"got episodes with batch axes {batch}: map over them (jax.vmap)")
    matrices = {"the interface": interface, "the mask": mask}
    if ridge is not None:
        matrices["the ridge's reference"] = ridge.reference
        strength = ridge.strength
        # In NumPy: under `jax.jit` a comparison by JAX would be traced, of known values too.
        if np.shape(strength) or not (is_traced(strength) or np.asarray(strength) >= 0):
            raise ValueError(f"the ridge's strength must be at least 0, got {strength}")
    for name, matrix in matrices.items():
        if matrix is None:
            continue
        if np.shape(matrix) != episode.interface_shape:
            raise ValueError(
                f"{name} has shape {np.shape(matrix)}, but the episode has "
                f"[d_c, d_z] = {episode.interface_shape}"
            )
        if holds_nan(matrix):
            raise ValueError(f"{name} holds NaN or infinity")


def predict(
    interface: Float[Array, "d_c d_z"],
    features: Float[Array, "n d_z"],
    readouts: Float[Array, "n m d_c"],
) -> Float[Array, "n m"]:
    """Predictions `C_i W z_i`."""
    return jnp.einsum("nmc,cz,nz->nm", readouts, interface, features)


def predict_queries(interface: Float[Array, "d_c d_z"], episode: Episode) -> Float[Array, "q m"]:
    """Predictions `C_q W z_q` for the episode's queries."""
    check_episode(episode, interface)
    return predict(interface, episode.query_features, episode.query_readouts)


def loss(
    interface: Float[Array, "d_c d_z"], episode: Episode, ridge: Ridge | None = None
) -> Float[Array, ""]:
    """The objective `L(W)` over the context examples."""
    check_episode(episode, interface, ridge)
    residuals = predict(interface, episode.features, episode.readouts) - episode.targets
    weights = normalized_weights(episode.weights)
    data = 0.5 * jnp.sum(weights * jnp.sum(residuals**2, axis=-1))
    if ridge is None:
        return data
    return data + 0.5 * ridge.strength * jnp.sum((interface - ridge.reference) ** 2)


def payloads(interface: Float[Array, "d_c d_z"], episode: Episode) -> Float[Array, "n d_c"]:
    """What example i asks of the interface, `C_i^T (y_i - C_i W z_i)`, before its weight."""
    check_episode(episode, interface)
    residuals = episode.targets - predict(interface, episode.features, episode.readouts)
    return jnp.einsum("nmc,nm->nc", episode.readouts, residuals)


def gradient(
    interface: Float[Array, "d_c d_z"], episode: Episode, ridge: Ridge | None = None
) -> Float[Array, "d_c d_z"]:
    """`dL/dW = -1 / sum w * sum_i w_i C_i^T (y_i - C_i W z_i) z_i^T + lambda (W - W_ref)`."""
    check_episode(episode, interface, ridge)
    weights = normalized_weights(episode.weights)
    data = -jnp.einsum("n,nc,nz->cz", weights, payloads(interface, episode), episode.features)
    if ridge is None:
        return data
    return data + ridge.strength * (interface - ridge.reference)


def gradient_descent(
    interface: Float[Array, "d_c d_z"],
    episode: Episode,
    step_sizes: Float[Array, " steps"],
    ridge: Ridge | None = None,
    mask: Float[Array, "d_c d_z"] | None = None,
) -> Float[Array, "d_c d_z"]:
    """Gradient descent from `interface`, one step for each step size.

    Args:
        interface: `[d_c, d_z]`, where to start.
        episode: the context examples; queries play no part.
        step_sizes: `[steps]`.
        ridge: optional pull towards a reference.
        mask: optional `[d_c, d_z]` of ones and zeros; entries at zero stay where they are
            (`block_mask` for a block-diagonal interface).

    Returns:
        The interface after the last step.
    """
    check_episode(episode, interface, ridge, mask)

    def step(current, step_size):
        slope = gradient(current, episode, ridge)
        return current - step_size * (slope if mask is None else mask * slope), None

    return jax.lax.scan(step, interface, step_sizes)[0]


def gd_plus_plus(
    episode: Episode, step_sizes: Float[Array, " steps"], curvatures: Float[Array, " steps"]
) -> Float[Array, "d_c d_z"]:
    """GD++ (von Oswald et al. 2023) from the zero interface, for the projection interface.

    Step k is a gradient step on features `M_k z` followed by the curvature correction
    `M_{k+1} = (I - gamma_k H_k) M_k` with `H_k = 1 / sum w * sum_i w_i (M_k z_i)(M_k z_i)^T`,
    both read off the features before the step. The prediction stays linear in the original
    features, so the result is an interface like any other.

    Args:
        episode: context examples with identity readouts.
        step_sizes: `[steps]`, the rates `eta_k`.
        curvatures: `[steps]`, the rates `gamma_k`; all zero gives plain gradient descent.
    """
    check_episode(episode)
    weights = normalized_weights(episode.weights)
    d_c, d_z = episode.interface_shape
    dtype = episode.features.dtype

    def step(state, rates):
        interface, transform = state
        step_size, curvature = rates
        features = episode.features @ transform.T
        slope = -jnp.einsum("n,nc,nz->cz", weights, payloads(interface, episode), features)
        gram = jnp.einsum("n,ni,nj->ij", weights, features, features)
        interface = interface - step_size * slope @ transform
        return (interface, transform - curvature * gram @ transform), None

    start = (jnp.zeros((d_c, d_z), dtype), jnp.eye(d_z, dtype=dtype))
    return jax.lax.scan(step, start, (step_sizes, curvatures))[0][0]
