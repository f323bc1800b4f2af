"""Values of passages against those of the same question's others, of which some are not there.

Axes: `passages` and `others` of a question, `rest` whatever comes after.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def centre(
    values: Float[Array, "batch passages *rest"], present: Bool[Array, "batch passages"]
) -> Float[Array, "batch passages *rest"]:
    """Values less their mean over a question's passages, 0 where there is no passage.

    What all passages share says nothing of which one counts.
    """
    there = present.reshape(*present.shape, *[1] * (values.ndim - 2))
    return jnp.where(there, values - _mean(values, there, 1), 0)


def bounded(
    scores: Float[Array, "batch passages"], present: Bool[Array, "batch passages"], bound: float
) -> Float[Array, "batch passages"]:
    """Scores less their mean, `s / sqrt(1 + r^2 / bound^2)` with `r` their root mean square.

    That of what is returned is below `bound`, so that of `n` passages none is more than
    `bound * sqrt(n - 1)` above their mean; small scores stay as they are.
    """
    scores = centre(scores, present)
    mean_square = _mean(jnp.square(scores), present, 1)
    return scores * jax.lax.rsqrt(1 + mean_square / bound**2)


def standardize(
    values: Float[Array, "batch passages spans"], present: Bool[Array, "batch passages"]
) -> Float[Array, "batch passages spans"]:
    """Values in their deviations over a question's passages from their mean."""
    centred = centre(values, present)
    variance = _mean(jnp.square(centred), present[..., None], 1)
    # Small differences stay small: 0.01 is a word among a hundred.
    return centred * jax.lax.rsqrt(variance + 1e-4)


def contrast(
    values: Float[Array, "batch others passages kernels"],
    others: Bool[Array, "batch others"],
    passages: Bool[Array, "batch passages"],
) -> Float[Array, "batch others passages kernels"]:
    """How much more of a passage one has than the others have, in deviations over all pairs.

    A passage is like itself, whatever it says: such pairs are left out, and are 0.
    """
    pairs = _pairs(others, passages)
    values = jnp.where(pairs, values - _mean(values, pairs, 1), 0)
    return values * jax.lax.rsqrt(_mean(jnp.square(values), pairs, (1, 2)) + 1e-4)


def apart(
    values: Float[Array, "batch others passages kernels"],
    others: Bool[Array, "batch others"],
    passages: Bool[Array, "batch passages"],
) -> Float[Array, "batch others passages kernels"]:
    """Values of pairs of two passages that are there, 0 of others and of a passage with itself."""
    return jnp.where(_pairs(others, passages), values, 0)


def _pairs(
    others: Bool[Array, "batch others"], passages: Bool[Array, "batch passages"]
) -> Bool[Array, "batch others passages 1"]:
    """Which pairs are of two passages that are there."""
    pairs = others[:, :, None] & passages[:, None, :] & ~jnp.eye(others.shape[1], dtype=bool)[None]
    return pairs[..., None]


def _mean(values: Array, where: Array, axis: int | tuple[int, ...]) -> Array:
    """The mean over some entries, 0 where there are none, with the axes kept."""
    count = jnp.maximum(jnp.sum(where, axis=axis, keepdims=True), 1).astype(values.dtype)
    return jnp.sum(jnp.where(where, values, 0), axis=axis, keepdims=True) / count
