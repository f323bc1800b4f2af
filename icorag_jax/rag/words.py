"""How similar texts are by the tokens that they share, which the frozen model's ids tell exactly.

A text is the vector of its tokens, or of its pairs of neighbouring tokens, each as heavy as learned
from the frozen model's states: names count, and the words that all texts have do not. What two
texts share is the cosine of their vectors. Pooled states of a few dozen features could not tell one
name from another.

Axes: `texts` of a question, `others` likewise, `spans` single tokens and pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Single tokens, and pairs of neighbours.
SPANS = 2
# Passages are compared by either of all their words, and of those that the question does not have:
# what ties the second of two facts to the first is a name that the question leaves to be found.
KERNELS = 2 * SPANS


class Words(NamedTuple):
    """Texts as vectors of unit length.

    Attributes:
        tokens: token ids of all rows.
        weights: of each text's tokens, 0 elsewhere.
    """

    tokens: Int[Array, "batch tokens"]
    weights: Float[Array, "spans batch texts tokens"]


def weigh_words(
    tokens: Int[Array, "batch tokens"],
    scores: Float[Array, "batch tokens spans"],
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
    return _unit(Words(tokens, jnp.exp(shown - jax.lax.stop_gradient(highest))))


def similarity(one: Words, other: Words) -> Float[Array, "batch texts others spans"]:
    """Cosines of the vectors of texts, in [0, 1]."""
    return jnp.einsum("kbit,kbts,kbjs->bijk", one.weights, _same(one, other), other.weights)


def without(words: Words, text: Words) -> Words:
    """What is left of texts without the words of another one, made unit length again.

    Args:
        words: texts.
        text: a single one in each row.
    """
    in_text = jnp.any((_same(words, text) > 0) & (text.weights > 0), axis=-1)
    return _unit(words._replace(weights=jnp.where(in_text[:, :, None], 0, words.weights)))


def _unit(words: Words) -> Words:
    """Vectors made unit length; zero where nothing is in them."""
    weights = words.weights
    length = jnp.einsum("kbit,kbts,kbis->kbi", weights, _same(words, words), weights)
    return words._replace(weights=weights * jax.lax.rsqrt(length + 1e-6)[..., None])


def _same(one: Words, other: Words) -> Float[Array, "spans batch tokens others"]:
    """Whether tokens are the same, and whether the ones before them are so too."""
    same = one.tokens[:, :, None] == other.tokens[:, None, :]
    pairs = same & jnp.pad(same, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1]
    return jnp.stack([same, pairs]).astype(one.weights.dtype)
