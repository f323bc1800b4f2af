"""What passages, and their single tokens, have to do with each other passage of a question.

| kernel | of passages i and j                                                          |
| ------ | ---------------------------------------------------------------------------- |
| words  | the words that both have: of all, and of those that the question has not     |
| order  | which one's number is larger                                                 |
| itself | whether they are the same one                                                |

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
    has_words,
    heaviness,
    similarity,
    similarity_within,
    without,
)

# Kernels that a step has a size for; on `itself` there are moves alone (`icorag_jax.rag.chains`).
KERNELS = WORD_KERNELS + 1
PASSAGE_KERNELS = KERNELS + 1
# Of tokens there is one of each span.
TOKEN_KERNELS = SPANS
# Of a token's weight in a passage, which is a few tenths for a name. Not in deviations: where no
# passage has a token, it has to stay small.
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
    passages: AskedWords, others: AskedWords | None, read: Context, axes: Context
) -> Float[Array, "batch passages axes"]:
    """What each passage has to do with the others, 0 where there is none.

    Args:
        passages: the passages, from `ask_words`.
        others: those of another question that they are compared with; None for the passages.
        read: where the passages are from.
        axes: where the others are from.
    """
    if others is None:
        parts = [similarity_within(passages.words), similarity_within(passages.new)]
    else:
        parts = [
            similarity(others.words, passages.words), similarity(others.new, passages.new)
        ]  # fmt: skip
    shared = jnp.concatenate(parts, axis=-1)
    # A passage of another question is none of these.
    itself = jnp.eye(shared.shape[1]) if others is None else jnp.zeros(())
    kernels = jnp.concatenate(
        [
            contrast(shared, axes.present, read.present),
            apart(order(axes.traits, read.traits)[..., None], axes.present, read.present),
            jnp.broadcast_to(itself, shared.shape[:-1])[..., None],
        ],
        axis=-1,
    )
    kernels = kernels.transpose(0, 2, 3, 1).reshape(*read.present.shape, -1)
    return jnp.where(read.present[..., None], kernels, 0)


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
