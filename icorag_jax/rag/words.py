"""How similar texts are by the tokens that they share, which the frozen model's ids tell exactly.

A text is the vector of its tokens, or of its pairs of neighbouring tokens, each as heavy as learned
from the frozen model's states: names count, and the words that all texts have do not. What two
texts share is the cosine of their vectors. Pooled states of a few dozen features could not tell one
name from another.

Axes: `texts` of a question, `others` likewise, `kernels` tokens and pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Single tokens, and pairs of neighbours.
KERNELS = 2


class Words(NamedTuple):
    """Texts as vectors of unit length.

    Attributes:
        tokens: token ids of all rows.
        weights: of each text's tokens, 0 elsewhere.
    """

    tokens: Int[Array, "batch tokens"]
    weights: Float[Array, "kernels batch texts tokens"]


def weigh_words(
    tokens: Int[Array, "batch tokens"],
    scores: Float[Array, "batch tokens kernels"],
    owner: Bool[Array, "batch texts tokens"],
) -> Words:
    """Texts with the softmax of scores for weights, made unit length.

    Args:
        tokens: token ids.
        scores: how much a token counts.
        owner: which tokens are of a text; one without any becomes zero.
    """
    shown = jnp.where(owner[None], jnp.moveaxis(scores, -1, 0)[:, :, None], -jnp.inf)
    highest = jnp.max(shown, axis=-1, keepdims=True, initial=jnp.finfo(scores.dtype).min)
    weights = jnp.exp(shown - jax.lax.stop_gradient(highest))
    words = Words(tokens, weights)
    length = jnp.einsum("kbit,kbts,kbis->kbi", weights, _same(words, words), weights)
    # The largest weight is 1, but the first of all tokens is in no pair: lengths may be 0.
    return Words(tokens, weights * jax.lax.rsqrt(length + 1e-6)[..., None])


def similarity(one: Words, other: Words) -> Float[Array, "batch texts others kernels"]:
    """Cosines of the vectors of texts, in [0, 1]."""
    return jnp.einsum("kbit,kbts,kbjs->bijk", one.weights, _same(one, other), other.weights)


def _same(one: Words, other: Words) -> Float[Array, "kernels batch tokens others"]:
    """Whether tokens are the same, and whether the ones before them are so too."""
    same = one.tokens[:, :, None] == other.tokens[:, None, :]
    pairs = same & jnp.pad(same, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1]
    return jnp.stack([same, pairs]).astype(one.weights.dtype)
