"""How similar texts are by the tokens that they share, which the frozen model's ids tell exactly.

A text is the vector of its tokens, or of its pairs of neighbouring tokens, each as heavy as learned
from the frozen model's states, times how few of a question's passages have it (inverse document
frequency): names count, and the words that all texts have do not. What two texts share is the
cosine of their vectors. Pooled states of a few dozen features could not tell one name from another.

Axes: `texts` of a question, `others` likewise, `spans` single tokens and pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Single tokens, and pairs of neighbours.
SPANS = 2
# Passages are compared by either of all their words, and of those that the question does not have.
WORD_KERNELS = 2 * SPANS


class Words(NamedTuple):
    """Texts as vectors of unit length.

    Attributes:
        tokens: token ids of all rows.
        weights: of each different token of the rows where it comes first, 0 elsewhere; likewise of
            pairs, by their second tokens.
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
    weights = jnp.exp(shown - jax.lax.stop_gradient(highest))
    # Once for all: what comes after would grow with the square of the rows each time.
    first = jax.nn.one_hot(_first(tokens, tokens), tokens.shape[1], dtype=scores.dtype)
    return _unit(Words(tokens, jnp.einsum("kbit,kbts->kbis", weights, first)))


def weigh_by_rarity(
    words: Words,
    has: Bool[Array, "spans batch passages tokens"],
    present: Bool[Array, "batch passages"],
) -> Words:
    """Texts whose words count `log((1 + passages) / passages with it)` times as much.

    A word that no passage has counts nothing: it is not to be found.

    Args:
        words: the passages, or a single text in each row.
        has: which of the words passages have.
        present: which passages there are.
    """
    dtype = words.weights.dtype
    passages = 1 + jnp.sum(present, axis=1)[None, :, None, None].astype(dtype)
    frequency = jnp.sum(has, axis=2, keepdims=True).astype(dtype)
    rarity = jnp.where(frequency > 0, jnp.log(passages / jnp.maximum(frequency, 1)), 0)
    return _unit(words._replace(weights=words.weights * rarity))


def similarity(one: Words, other: Words) -> Float[Array, "batch texts others spans"]:
    """Cosines of the vectors of texts, in [0, 1]."""
    same = _same(one.tokens, other.tokens).astype(one.weights.dtype)
    return jnp.einsum("kbit,kbts,kbjs->bijk", one.weights, same, other.weights)


def heaviness(
    texts: Words, tokens: Int[Array, "batch rows"]
) -> Float[Array, "batch rows texts spans"]:
    """How heavy each token is in texts, or the pair that ends with it; 0 where they have none.

    `similarity` is the sum of this over the words of another text, times their weights there.

    Args:
        texts: the texts.
        tokens: ids, one after the other.
    """
    # All of a word's weight is where it comes first.
    first = _first(tokens, texts.tokens)[:, :, None]
    found = jnp.take_along_axis(texts.weights, first, axis=-1, mode="fill", fill_value=0)
    return found.transpose(1, 3, 2, 0)


def similarity_within(words: Words) -> Float[Array, "batch texts texts spans"]:
    """`similarity` of texts with each other, which takes far less."""
    return jnp.einsum("kbit,kbjt->bijk", words.weights, words.weights)


def without(words: Words, text: Words) -> Words:
    """What is left of texts without the words of another one, made unit length again.

    Args:
        words: texts.
        text: a single one in each row.
    """
    in_text = jnp.any(_same(words.tokens, text.tokens) & (text.weights > 0), axis=-1)
    return _unit(words._replace(weights=jnp.where(in_text[:, :, None], 0, words.weights)))


def has_words(text: Words, others: Words) -> Bool[Array, "spans batch others tokens"]:
    """Which words of a single text in each row others have.

    Args:
        text: a single one in each row.
        others: texts.
    """
    same = _same(text.tokens, others.tokens).astype(others.weights.dtype)
    there = (others.weights > 0).astype(others.weights.dtype)
    return jnp.einsum("kbts,kbjs->kbjt", same, there) > 0


def coverage(
    text: Words, has: Bool[Array, "spans batch others tokens"]
) -> Float[Array, "batch others spans"]:
    """Share of the words of a single text that others have, in [0, 1].

    Args:
        text: a single one in each row.
        has: which they have, from `has_words`.
    """
    return jnp.einsum("kbjt,kbt->bjk", has.astype(text.weights.dtype), shares_of(text))


def shares_of(text: Words) -> Float[Array, "spans batch tokens"]:
    """How much each word of a single text is of it, their sum 1."""
    return jnp.square(text.weights[:, :, 0])


def _unit(words: Words) -> Words:
    """Vectors made unit length; zero where nothing is in them."""
    length = jnp.sum(jnp.square(words.weights), axis=-1, keepdims=True)
    return words._replace(weights=words.weights * jax.lax.rsqrt(length + 1e-6))


def _same(
    one: Int[Array, "batch tokens"], other: Int[Array, "batch others"]
) -> Bool[Array, "spans batch tokens others"]:
    """Whether tokens are the same, and whether the ones before them are so too."""
    same = one[:, :, None] == other[:, None, :]
    pairs = same & jnp.pad(same, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1]
    return jnp.stack([same, pairs])


def _first(
    tokens: Int[Array, "batch tokens"], others: Int[Array, "batch others"]
) -> Int[Array, "spans batch tokens"]:
    """Where tokens, and the pairs that end with them, come first in others; past these if not."""
    count = others.shape[1]
    # A minimum takes a fraction of the time of `argmax`.
    return jnp.min(jnp.where(_same(tokens, others), jnp.arange(count), count), axis=-1)
