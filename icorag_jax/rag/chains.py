"""Where a read of passages goes on to: chains of passages, each found by what the last one names.

From passage i the read moves on to j by words that both have and that neither the question nor the
passages read before have, the more so if j has words of the question that none of these has. So it
does not turn back, stays where nothing leads on, and goes as many links as there are: it takes the
second as it takes the first.

Axes: `passages` and `others` of a question, `tokens` of the passages, `asked` of the question.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.rag.deviations import apart
from icorag_jax.rag.kernels import AskedWords
from icorag_jax.rag.words import Words, shares_of

# Half of a read moves on where its links add up to this strength.
HALF = 0.05
# Of a link to a passage with nothing that is asked, beside one to a passage with all of it.
LEAST = 0.1


class Links(NamedTuple):
    """What a question's passages are linked by; single tokens alone.

    Attributes:
        new: the words that passages have and the question has not, as vectors of unit length.
        has: 1 for words of the question that passages have, 0 for the others.
        shares: how much of the question each of its words is.
    """

    new: Float[Array, "batch passages tokens"]
    has: Float[Array, "batch passages asked"]
    shares: Float[Array, "batch asked"]


def find_links(question: Words, passages: AskedWords) -> Links:
    """Links of passages against a question, a single text in each row."""
    shares = shares_of(question)[0]
    return Links(passages.new.weights[0], passages.has[0].astype(shares.dtype), shares)


def follow(
    links: Links, before: Float[Array, "batch passages"], present: Bool[Array, "batch passages"]
) -> Float[Array, "batch passages others"]:
    """The share of a read that moves on from each passage to each other one, less what leaves it.

    Its rows add up to 0.

    Args:
        links: of the passages.
        before: how much of each passage was read before, in [0, 1].
        present: which passages there are.
    """
    names = (links.new > 0).astype(links.new.dtype)
    leads_on = jnp.einsum("bit,bt,bjt->bij", links.new, _not_in(names, before), links.new)
    asked = _not_in(links.has, before) * links.shares
    found = jnp.einsum("bia,ba,bja->bij", 1 - links.has, asked, links.has)
    strength = leads_on * (found + LEAST) * (1 - before)[:, None]
    strength = apart(strength[..., None], present, present)[..., 0]
    moves = strength / (HALF + strength.sum(axis=2, keepdims=True))
    return moves - moves.sum(axis=2, keepdims=True) * jnp.eye(moves.shape[1])[None]


def _not_in(
    words: Float[Array, "batch passages words"], before: Float[Array, "batch passages"]
) -> Float[Array, "batch words"]:
    """How much of each word is in no passage that was read before."""
    return jnp.maximum(1 - jnp.einsum("bp,bpw->bw", before, words), 0)
