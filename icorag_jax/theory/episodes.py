"""Episodes: context examples and queries as the linearized objective sees them.

Axes: `n` context examples, `q` queries, `k` passages of an example, `d_z` query-side features,
`d_c` evidence-side features, `m` outputs, `d_q` question features, `d_v` pooled evidence features.

An interface is a matrix `W [d_c, d_z]`. Example i has features `z_i`, a readout `C_i` of evidence
and a target `y_i`; its prediction is `C_i W z_i`. The two interfaces of retrieval-augmented
generation differ in how features and readouts come about:

* projection: `z_i = P [question_i; pooled evidence_i]`, `C_i = I`;
* dot-product: `z_i = question_i`, `C_i = values_i^T keys_i`, so that a prediction is
  `sum_j (key_ij^T W z_i) value_ij`, attention over passages without a softmax;
* both at once: features and readouts side by side, `W` block-diagonal.
"""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Episode(NamedTuple):
    """One in-context learning problem. Leading batch axes come from `jax.vmap`.

    Attributes:
        features: `[n, d_z]` query-side features of the context examples.
        readouts: `[n, m, d_c]` evidence readouts of the context examples.
        targets: `[n, m]` targets of the context examples.
        weights: `[n]` retriever confidence, at least 0; an example of weight 0 is masked.
        query_features: `[q, d_z]` query-side features of the queries.
        query_readouts: `[q, m, d_c]` evidence readouts of the queries.
        query_targets: `[q, m]` targets of the queries, for evaluation alone.
    """

    features: Float[Array, "*batch n d_z"]
    readouts: Float[Array, "*batch n m d_c"]
    targets: Float[Array, "*batch n m"]
    weights: Float[Array, "*batch n"]
    query_features: Float[Array, "*batch q d_z"]
    query_readouts: Float[Array, "*batch q m d_c"]
    query_targets: Float[Array, "*batch q m"]

    @property
    def interface_shape(self) -> tuple[int, int]:
        """`(d_c, d_z)`, the shape of the interface `W`."""
        return self.readouts.shape[-1], self.features.shape[-1]


class InvalidEpisodeError(ValueError):
    """An episode that the theory does not cover; the message lists all that is wrong."""


def is_traced(array: Any) -> bool:
    """Whether an array stands for values not there yet, under `jax.jit`, `jax.vmap` and so on."""
    return isinstance(array, jax.core.Tracer)


def holds_nan(array: Any) -> bool:
    """Whether an array holds NaN or infinity; False of one that is traced."""
    return not is_traced(array) and not np.all(np.isfinite(np.asarray(array)))


def validate_episode(episode: Episode) -> None:
    """Checks shapes always, and on the host the values of all arrays that are not traced.

    Args:
        episode: arrays with any number of leading batch axes.

    Raises:
        InvalidEpisodeError: axes that do not match, negative weights, an episode whose examples
            are all masked, or NaN or infinity anywhere. All problems are listed at once.
    """
    axes = {
        "features": ("n", "d_z"),
        "readouts": ("n", "m", "d_c"),
        "targets": ("n", "m"),
        "weights": ("n",),
        "query_features": ("q", "d_z"),
        "query_readouts": ("q", "m", "d_c"),
        "query_targets": ("q", "m"),
    }
    problems: list[str] = []
    sizes: dict[str, tuple[int, str]] = {}
    batches: dict[str, tuple[int, ...]] = {}
    for name, axis_names in axes.items():
        array = getattr(episode, name)
        shape = np.shape(array)
        if len(shape) < len(axis_names):
            problems.append(f"{name} has shape {shape}, expected [..., {', '.join(axis_names)}]")
            continue
        split = len(shape) - len(axis_names)
        batches[name] = shape[:split]
        for axis, size in zip(axis_names, shape[split:], strict=True):
            seen, where = sizes.setdefault(axis, (size, name))
            if seen != size:
                problems.append(f"axis {axis} is {seen} in {where} but {size} in {name}")
        if holds_nan(array):
            problems.append(f"{name} holds NaN or infinity")
    if len(set(batches.values())) > 1:
        problems.append(f"batch axes differ: {batches}")
    if not is_traced(episode.weights):
        weights = np.asarray(episode.weights)
        if np.any(weights < 0):
            problems.append(f"weights must be at least 0, the smallest is {weights.min()}")
        elif weights.ndim and np.any(weights.sum(axis=-1) == 0):
            problems.append("an episode has all its examples masked (its weights sum to 0)")
    if problems:
        raise InvalidEpisodeError("invalid episode: " + "; ".join(problems))


def normalized_weights(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """`w_i / sum w`; NaN where every example is masked (`validate_episode` refuses those)."""
    return weights / jnp.sum(weights)


def pool_evidence(
    passage_weights: Float[Array, "n k"], values: Float[Array, "n k d_v"]
) -> Float[Array, "n d_v"]:
    """Pools passages with the retriever's weights: `e_i = sum_j a_ij v_ij`."""
    return jnp.einsum("nk,nkv->nv", passage_weights, values)


def projection_features(
    questions: Float[Array, "n d_q"],
    evidence: Float[Array, "n d_v"],
    projection: Float[Array, "d_z d_q+d_v"],
) -> Float[Array, "n d_z"]:
    """Features of the projection interface, `z_i = P [question_i; evidence_i]`."""
    return jnp.concatenate([questions, evidence], axis=-1) @ projection.T


def identity_readouts(n: int, m: int, dtype: jnp.dtype | type) -> Float[Array, "n m m"]:
    """Readouts of the projection interface, `C_i = I`."""
    return jnp.tile(jnp.eye(m, dtype=dtype), (n, 1, 1))


def dot_product_readouts(
    keys: Float[Array, "n k d_c"], values: Float[Array, "n k m"]
) -> Float[Array, "n m d_c"]:
    """Readouts of the dot-product interface, `C_i = values_i^T keys_i`.

    A missing passage is one whose value row is zero.
    """
    return jnp.einsum("nkm,nkc->nmc", values, keys)


def combine_features(
    projection: Float[Array, "n d_p"], dot_product: Float[Array, "n d_q"]
) -> Float[Array, "n d_p+d_q"]:
    """Features of both interfaces side by side."""
    return jnp.concatenate([projection, dot_product], axis=-1)


def combine_readouts(dot_product: Float[Array, "n m d_k"]) -> Float[Array, "n m m+d_k"]:
    """Readouts of both interfaces side by side, `C_i = [I, values_i^T keys_i]`."""
    n, m, _ = dot_product.shape
    return jnp.concatenate([identity_readouts(n, m, dot_product.dtype), dot_product], axis=-1)
