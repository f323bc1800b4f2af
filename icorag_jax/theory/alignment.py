"""How close a model's in-context predictions are to a gradient step.

A *reference* is the best member of the family that the theory names, on a given distribution:

* the best plain step, `W = eta * G` with `G = sum_i w_i y_i z_i^T / sum w`, minus the gradient at
  zero;
* the best preconditioned step, `W = G M`, which is what one layer of linear attention can learn
  on any feature distribution (docs/theory.md);
* for several layers, the best `PreconditionedRates`, trained like a model.

Axes: `e` episodes, `q` queries, `m` outputs, `d` features.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icorag_jax.theory.attention import AttentionWeights, apply_layers
from icorag_jax.theory.constructions import direct_tokens
from icorag_jax.theory.episodes import Episode, normalized_weights, validate_episode
from icorag_jax.theory.objective import Ridge, check_episode

# From one episode to predictions [q, m] for its queries.
Predictor = Callable[[Episode], Float[Array, "q m"]]


class Measures(NamedTuple):
    """Agreement of a model with a reference, one number an episode, every field `[e]`.

    Attributes:
        prediction_cosine: between the two vectors of predictions over queries and outputs.
        relative_error: norm of the difference of predictions over the norm of the reference's;
            infinite where the reference alone is zero.
        sensitivity_cosine: between derivatives of predictions in the query's features, mean over
            queries.
        sensitivity_distance: norm of the difference of those derivatives, mean over queries.
        loss: the model's, half the squared error summed over outputs, mean over queries.
        reference_loss: the reference's.
    """

    prediction_cosine: Float[Array, " e"]
    relative_error: Float[Array, " e"]
    sensitivity_cosine: Float[Array, " e"]
    sensitivity_distance: Float[Array, " e"]
    loss: Float[Array, " e"]
    reference_loss: Float[Array, " e"]


def cosine(a: Float[Array, "... n"], b: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Cosine along the last axis; 0 where one of the two is zero, 1 where both are."""
    norm_a, norm_b = jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(b, axis=-1)
    norms = norm_a * norm_b
    found = jnp.sum(a * b, axis=-1) / jnp.where(norms > 0, norms, 1)
    same = ((norm_a == 0) & (norm_b == 0)).astype(found.dtype)
    return jnp.where(norms > 0, found, same)


def relative_error(found: Float[Array, "*n"], expected: Float[Array, "*n"]) -> Float[Array, ""]:
    """Norm of the difference over the norm of what is expected; 0 for two zeros."""
    difference = jnp.linalg.norm((found - expected).ravel())
    return jnp.where(difference > 0, difference / jnp.linalg.norm(expected.ravel()), 0)


def sensitivity(predictor: Predictor, episode: Episode) -> Float[Array, "q slopes"]:
    """Derivative of each query's predictions in its own features, `slopes = m d`.

    Queries do not see each other, so the derivative of the sum over queries holds them all.
    """

    def total(query_features):
        return jnp.sum(predictor(episode._replace(query_features=query_features)), axis=0)

    jacobian = jax.jacrev(total)(episode.query_features)
    return jnp.moveaxis(jacobian, 0, 1).reshape(jacobian.shape[1], -1)


def query_loss(predictions: Float[Array, "q m"], targets: Float[Array, "q m"]) -> Float[Array, ""]:
    """Half the squared error, summed over outputs, mean over queries."""
    return 0.5 * jnp.mean(jnp.sum((predictions - targets) ** 2, axis=-1))


def measure(model: Predictor, reference: Predictor, episodes: Episode) -> Measures:
    """Compares two predictors on a batch of episodes `[e, ...]`."""
    validate_episode(episodes)

    def one(episode: Episode) -> Measures:
        predictions, expected = model(episode), reference(episode)
        slopes, expected_slopes = sensitivity(model, episode), sensitivity(reference, episode)
        return Measures(
            prediction_cosine=cosine(predictions.ravel(), expected.ravel()),
            relative_error=relative_error(predictions, expected),
            sensitivity_cosine=jnp.mean(cosine(slopes, expected_slopes)),
            sensitivity_distance=jnp.mean(jnp.linalg.norm(slopes - expected_slopes, axis=-1)),
            loss=query_loss(predictions, episode.query_targets),
            reference_loss=query_loss(expected, episode.query_targets),
        )

    return jax.vmap(one)(episodes)


def descent_direction(episode: Episode) -> Float[Array, "m d"]:
    """`G = sum_i w_i y_i z_i^T / sum w`, minus the gradient at the zero projection interface."""
    check_episode(episode)
    weights = normalized_weights(episode.weights)
    return jnp.einsum("n,nm,nd->md", weights, episode.targets, episode.features)


def best_step_size(episodes: Episode) -> Float[Array, ""]:
    """The rate of the plain step that loses least on the episodes' queries: least squares."""
    validate_episode(episodes)
    directions = jax.vmap(descent_direction)(episodes)
    moves = jnp.einsum("emd,eqd->eqm", directions, episodes.query_features)
    return jnp.sum(moves * episodes.query_targets) / jnp.sum(moves**2)


def best_preconditioner(episodes: Episode) -> Float[Array, "d d"]:
    """The `M` for which the step `W = G M` loses least on the episodes' queries: least squares.

    The loss is convex and quadratic in `M`; its normal equations have size `d^2`. Directions that
    no feature ever takes are left at zero.
    """
    validate_episode(episodes)
    directions = jax.vmap(descent_direction)(episodes)
    d = directions.shape[-1]
    left = jnp.einsum("emi,emj->eij", directions, directions)
    right = jnp.einsum("eqi,eqj->eij", episodes.query_features, episodes.query_features)
    cross = jnp.einsum(
        "emi,eqm,eqj->ij", directions, episodes.query_targets, episodes.query_features
    )
    normal = jnp.einsum("eab,ecd->acbd", left, right).reshape(d * d, d * d)
    return jnp.linalg.lstsq(normal, cross.reshape(-1))[0].reshape(d, d)


class PreconditionedRates(NamedTuple):
    """GD++ with matrices for rates: a family of linear attention layers that all take steps.

    Attributes:
        step: `[layers, d, d]`; `eta I` is a plain step.
        curvature: `[layers, d, d]`; zero for no correction of the features.
    """

    step: Float[Array, "layers d d"]
    curvature: Float[Array, "layers d d"]


def preconditioned_layers(rates: PreconditionedRates, outputs: int) -> list[AttentionWeights]:
    """The layers of linear attention that take these steps on direct tokens, from zero."""
    layers, d, _ = rates.step.shape
    size, dtype = d + outputs, rates.step.dtype
    features = jnp.pad(jnp.eye(d, dtype=dtype), ((0, size - d), (0, size - d)))
    targets = jnp.eye(size, dtype=dtype) - features
    room = ((0, 0), (0, size - d), (0, size - d))
    queries = jnp.pad(jnp.stack([rates.step, rates.curvature], axis=1), ((0, 0), *room))
    slots = jnp.stack([targets, features])
    keys = jnp.stack([features, features])
    return [AttentionWeights(queries[index], keys, slots, -slots) for index in range(layers)]


def predict_preconditioned(
    rates: PreconditionedRates, episode: Episode, ridge: Ridge | None = None
) -> Float[Array, "q m"]:
    """Predictions after the steps, from the zero projection interface."""
    d, outputs = episode.features.shape[-1], episode.targets.shape[-1]
    layers = preconditioned_layers(rates, outputs)
    return -apply_layers(layers, direct_tokens(episode, ridge))[:, d:]
