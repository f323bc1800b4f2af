"""Self-attention over context and query tokens, linear and not.

A layer adds `P sum_i a_ij V e_i` to token j, summed over heads, where i runs over the context
alone: queries are kept apart as a second token array, so that no query is ever a key or a value.
Linear self-attention (LSA) has `a_ij = (K e_i)^T (Q e_j)`.

Axes: `n` context tokens, `q` query tokens, `d` token size, `h` heads, `d_key`, `d_value`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# From keys [h, n, d_key], queries [h, t, d_key] and which context tokens are present [n]
# to the mixing coefficients a [h, t, n].
Kernel = Callable[
    [Float[Array, "h n d_key"], Float[Array, "h t d_key"], Bool[Array, " n"]],
    Float[Array, "h t n"],
]


class Tokens(NamedTuple):
    """Token arrays of one episode.

    Attributes:
        context: `[n, d]`, what attention reads.
        queries: `[q, d]`, what it writes the answers to.
        present: `[n]`, False for a context token that is to be passed over.
    """

    context: Float[Array, "n d"]
    queries: Float[Array, "q d"]
    present: Bool[Array, " n"]


class AttentionWeights(NamedTuple):
    """The weights of one layer.

    Attributes:
        query: `[h, d_key, d]`.
        key: `[h, d_key, d]`.
        value: `[h, d_value, d]`.
        output: `[h, d, d_value]`.
    """

    query: Float[Array, "h d_key d"]
    key: Float[Array, "h d_key d"]
    value: Float[Array, "h d_value d"]
    output: Float[Array, "h d d_value"]


def attend(
    weights: AttentionWeights,
    rows: Float[Array, "t d"],
    context: Float[Array, "n d"],
    present: Bool[Array, " n"],
    kernel: Kernel,
) -> Float[Array, "t d"]:
    """What a layer adds to `rows` when they read `context`."""
    keys = jnp.einsum("hkd,nd->hnk", weights.key, context)
    queries = jnp.einsum("hkd,td->htk", weights.query, rows)
    values = jnp.einsum("hvd,nd->hnv", weights.value, context)
    mixing = kernel(keys, queries, present)
    return jnp.einsum("hdv,htn,hnv->td", weights.output, mixing, values)


def linear_kernel(
    keys: Float[Array, "h n d_key"],
    queries: Float[Array, "h t d_key"],
    present: Bool[Array, " n"],
) -> Float[Array, "h t n"]:
    """`a_ij = k_i^T q_j`, and 0 where token i is not present."""
    return jnp.where(present[None, None, :], jnp.einsum("hnk,htk->htn", keys, queries), 0)


def apply_layers(
    layers: Sequence[AttentionWeights], tokens: Tokens, kernel: Kernel = linear_kernel
) -> Float[Array, "q d"]:
    """Runs layers one after the other and returns the query tokens.

    The context is updated too, but for the last layer, which nothing would read.
    """
    context, queries = tokens.context, tokens.queries
    for index, weights in enumerate(layers):
        added = attend(weights, queries, context, tokens.present, kernel)
        if index + 1 < len(layers):
            context = context + attend(weights, context, context, tokens.present, kernel)
        queries = queries + added
    return queries


def _scores(
    keys: Float[Array, "h n d_key"], queries: Float[Array, "h t d_key"]
) -> Float[Array, "h t n"]:
    return jnp.einsum("hnk,htk->htn", keys, queries)


def softmax_kernel(temperature: float) -> Kernel:
    """Softmax attention, `n softmax(k_i^T q_j / temperature)` over the tokens present.

    The factor `n` (the number of tokens present) makes coefficients one on average, whatever `n`;
    a layer's output weights can absorb it. It is not the linear kernel's scale: with the tokens of
    a construction, which hold `sqrt(p_i)` times the example, coefficients of linear attention
    shrink by `1 / sqrt(n)` and these do not (docs/theory.md, section 8).
    """

    def kernel(keys, queries, present):
        scores = jnp.where(present[None, None, :], _scores(keys, queries) / temperature, -jnp.inf)
        return jnp.sum(present).astype(keys.dtype) * jax.nn.softmax(scores, axis=-1)

    return kernel


def tempered_kernel(temperature: float) -> Kernel:
    """An axis from linear to hard attention through softmax.

        a_ij = T (n + 1) (exp(s_ij / T) - 1) / (1 + sum_i exp(s_ij / T))

    with scores `s_ij = k_i^T q_j` and temperature `T`: softmax attention with a null token of score
    zero beside the `n` tokens present, less the share that the null token gets. At infinite
    temperature it is `s_ij`, linear attention; towards zero it is a hard choice of the largest
    score, where one is positive. (Plain softmax has no linear limit: it tends to a uniform average.
    Without the null token the sum could vanish, where all scores are far below zero.)
    """

    def kernel(keys, queries, present):
        scores = jnp.where(present[None, None, :], _scores(keys, queries) / temperature, -jnp.inf)
        # Stable for large scores: numerator and denominator share the factor exp(-top).
        top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), 0)
        below = jnp.exp(-top)
        # The branch for small scores must not overflow where it is not taken, or gradients are NaN.
        small = jnp.expm1(jnp.minimum(scores, 1)) * below
        shares = jnp.where(top > 1, jnp.exp(scores - top) - below, small)
        total = below + jnp.sum(jnp.exp(scores - top), axis=-1, keepdims=True)
        count = jnp.sum(present).astype(keys.dtype) + 1
        return jnp.where(present[None, None, :], temperature * count * shares / total, 0)

    return kernel


def relu_kernel(
    keys: Float[Array, "h n d_key"],
    queries: Float[Array, "h t d_key"],
    present: Bool[Array, " n"],
) -> Float[Array, "h t n"]:
    """Kernel attention with features `relu(x)`, not normalized."""
    return linear_kernel(jax.nn.relu(keys), jax.nn.relu(queries), present)


def elu_kernel(
    keys: Float[Array, "h n d_key"],
    queries: Float[Array, "h t d_key"],
    present: Bool[Array, " n"],
) -> Float[Array, "h t n"]:
    """Kernel attention with features `elu(x) + 1`, normalized (Katharopoulos et al. 2020).

    As with softmax, a factor of the number of tokens present keeps the scale of a sum.
    """

    def features(x):
        # `elu(x) + 1` without the loss of digits below zero.
        return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))

    scores = linear_kernel(features(keys), features(queries), present)
    count = jnp.sum(present).astype(keys.dtype)
    total = jnp.sum(scores, axis=-1, keepdims=True)
    # Features far below zero underflow; a row of zeros stays one.
    return jnp.where(total > 0, count * scores / jnp.where(total > 0, total, 1), 0)


def cosine_kernel(
    keys: Float[Array, "h n d_key"],
    queries: Float[Array, "h t d_key"],
    present: Bool[Array, " n"],
) -> Float[Array, "h t n"]:
    """`a_ij = cos(k_i, q_j)`; a zero vector has cosine zero with everything."""

    def unit(x):
        squared = jnp.sum(x * x, axis=-1, keepdims=True)
        return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)

    return linear_kernel(unit(keys), unit(queries), present)
