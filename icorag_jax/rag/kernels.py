"""What passages, and their single tokens, have to do with each other passage of a question.

| kernel        | of passages i and j                                                         |
| ------------- | --------------------------------------------------------------------------- |
| words         | the words that both have: of all, and of those that the question has not    |
| completion    | the latter, times what of the question j has and i has not                  |
| order         | which one's number is larger                                                |

Of a passage and a token there are the words that the question has not alone: how heavy the token is
in the passage. A passage shares with another one what its tokens do, all summed.

Axes: `axes` passages by kernels, `token_axes` passages by spans; the passages vary fastest.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.rag.context import Context, passage_rows
from icorag_jax.rag.deviations import apart, contrast
from icorag_jax.rag.traits import order
from icorag_jax.rag.words import (
    SPANS,
    WORD_KERNELS,
    Words,
    completion,
    has_words,
    heaviness,
    similarity,
    similarity_within,
    without,
)

KERNELS = WORD_KERNELS + 1
# Of tokens there is one of each span.
TOKEN_KERNELS = SPANS
# Of `completion` times a similarity, which is a tenth where a passage completes another one. Not in
# deviations: where no passage does, it has to stay small.
COMPLETION_SCALE = 10.0
# Of a token's weight in a passage, which is a few tenths for a name, likewise.
TOKEN_SCALE = 10.0


class AskedWords(NamedTuple):
    """Passages by their words, and by what a question has to do with these.

    Attributes:
        words: all of them.
        new: those that the question does not have.
        has: which words of the question they have, from `has_words`.
    """

    words: Words
    new: Words
    has: Bool[Array, "spans batch passages tokens"]


def ask_words(question: Words, words: Words) -> AskedWords:
    """Passages against a question, a single text in each row."""
    return AskedWords(words, without(words, question), has_words(question, words))


def compare_passages(
    question: Words, passages: AskedWords, others: AskedWords, read: Context, axes: Context
) -> Float[Array, "batch passages axes"]:
    """What each passage has to do with the others, 0 for itself and where there is none.

    Args:
        question: a single text in each row.
        passages: the passages, from `ask_words`.
        others: that they are compared with; the same object where these are the passages.
        read: where the passages are from.
        axes: where the others are from.
    """
    if others is passages:
        all_words = similarity_within(passages.words)
        new_words = similarity_within(passages.new)
    else:
        all_words = similarity(others.words, passages.words)
        new_words = similarity(others.new, passages.new)
    # By single tokens: pairs of a question are seldom in a passage.
    completes = new_words * completion(question, passages.has, others.has)[..., :1]
    shared = jnp.concatenate([all_words, new_words], axis=-1)
    shared = jnp.concatenate(
        [
            contrast(shared, axes.present, read.present),
            COMPLETION_SCALE * apart(completes, axes.present, read.present),
            apart(order(axes.traits, read.traits)[..., None], axes.present, read.present),
        ],
        axis=-1,
    )
    shared = shared.transpose(0, 2, 3, 1).reshape(*read.present.shape, -1)
    return jnp.where(read.present[..., None], shared, 0)


def compare_tokens(others: AskedWords, read: Context) -> Float[Array, "batch evidence token_axes"]:
    """How heavy each token of a passage is in the others, 0 in its own and where it is of none.

    Args:
        others: passages that tokens are looked for in.
        read: where the tokens are from.
    """
    owner = read.passage_of
    heavy = heaviness(others.new, read.evidence_tokens)
    # A pair is of both its tokens, if both are of one passage.
    goes_on = (owner[:, 1:] == owner[:, :-1])[..., None]
    heavy = heavy.at[:, :-1, :, 1].add(jnp.where(goes_on, heavy[:, 1:, :, 1], 0))
    counts = (owner >= 0)[..., None] & ~passage_rows(read).transpose(0, 2, 1)
    heavy = TOKEN_SCALE * jnp.where(counts[..., None], heavy, 0)
    return heavy.transpose(0, 1, 3, 2).reshape(*owner.shape, -1)
