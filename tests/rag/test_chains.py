"""Chains of passages against NumPy, and where they end."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.rag.chains import HALF, LEAST, Links, follow

PASSAGES, TOKENS, ASKED = 5, 12, 6
follow_all = jax.jit(follow)


def random_links(seed):
    """Of two questions; a passage of the second is not there."""
    rng = np.random.default_rng(seed)
    new = rng.uniform(size=(2, PASSAGES, TOKENS)) * (rng.uniform(size=(2, PASSAGES, TOKENS)) < 0.4)
    new /= np.linalg.norm(new, axis=2, keepdims=True) + 1e-6
    has = (rng.uniform(size=(2, PASSAGES, ASKED)) < 0.4).astype(float)
    present = np.ones((2, PASSAGES), bool)
    present[1, -1], new[1, -1], has[1, -1] = False, 0, 0
    links = Links(new, has, rng.dirichlet(np.ones(ASKED), 2))
    before = rng.uniform(size=(2, PASSAGES)) * present
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), links), before, present


def follow_in_numpy(links, before, present):
    """Of one question, from the docstrings, float64."""
    new, has, shares = (np.asarray(leaf, np.float64) for leaf in links)
    strength = np.zeros((PASSAGES, PASSAGES))
    # How much of each word is in no passage that was read before.
    unread = [max(0, 1 - before[new[:, t] > 0].sum()) for t in range(TOKENS)]
    unasked = [max(0, 1 - before[has[:, a] > 0].sum()) for a in range(ASKED)]
    for i in range(PASSAGES):
        for j in range(PASSAGES):
            if i == j or not (present[i] and present[j]):
                continue
            names = sum(new[i, t] * new[j, t] * unread[t] for t in range(TOKENS))
            asked = sum(shares[a] * unasked[a] for a in range(ASKED) if has[j, a] and not has[i, a])
            strength[i, j] = names * (asked + LEAST) * (1 - before[j])
    moves = strength / (HALF + strength.sum(axis=1, keepdims=True))
    return moves - np.diag(moves.sum(axis=1))


@given(st.integers(0, 2**31))
def test_moves_are_those_of_numpy(seed):
    links, before, present = random_links(seed)
    found = follow_all(links, jnp.asarray(before, jnp.float32), present)
    for b in range(2):
        one = jax.tree.map(lambda leaf, b=b: leaf[b], links)
        np.testing.assert_allclose(found[b], follow_in_numpy(one, before[b], present[b]), atol=1e-5)


@given(st.integers(0, 2**31))
def test_nothing_of_a_read_is_lost(seed):
    links, before, present = random_links(seed)
    moves = np.asarray(follow_all(links, jnp.asarray(before, jnp.float32), present))
    np.testing.assert_allclose(moves.sum(axis=2), 0, atol=1e-6)
    leaves = -moves[:, np.arange(PASSAGES), np.arange(PASSAGES)]
    assert (leaves >= 0).all() and (leaves < 1).all()
    assert not moves[~present].any() and not moves.transpose(0, 2, 1)[~present].any()


def a_chain():
    """Who asks for 0, 1 and 2 is told 0 and the name 0, then 1 and the name 1, then 2.

    Passage 3 has the question's words 1 and 2 and no name, and 4 a name that no other one has.
    """
    names = np.zeros((1, PASSAGES, TOKENS), np.float32)
    for passage, those in enumerate(([0], [0, 1], [1], [], [2])):
        names[0, passage, those] = max(len(those), 1) ** -0.5
    has = np.zeros((1, PASSAGES, ASKED), np.float32)
    for passage, those in enumerate(([0], [1], [2], [1, 2], [])):
        has[0, passage, those] = 1
    shares = np.asarray([[1, 1, 1, 0, 0, 0]], np.float32) / 3
    return Links(*map(jnp.asarray, (names, has, shares)))


def walk(links, start, reads):
    weights, before = jnp.eye(PASSAGES)[None, start], jnp.zeros((1, PASSAGES))
    for _ in range(reads):
        moves = follow_all(links, before, jnp.ones((1, PASSAGES), bool))
        before = jnp.minimum(before + weights, 1)
        weights = weights + jnp.einsum("bi,bij->bj", weights, moves)
    return np.asarray(weights[0])


def test_a_read_goes_on_to_the_end_of_a_chain_and_stays_there():
    one, two, three = (walk(a_chain(), 0, reads) for reads in (1, 2, 3))
    assert one.argmax() == 1 and one[1] > 0.8
    assert two.argmax() == 2 and two[2] > 0.7
    # It does not turn back, and no other passage gets any of it.
    assert three.argmax() == 2 and three[2] >= two[2]
    np.testing.assert_allclose(three[:3].sum(), 1, atol=1e-6)


def test_a_read_stays_where_no_name_leads_on():
    np.testing.assert_allclose(walk(a_chain(), 4, 3), np.eye(PASSAGES)[4], atol=1e-6)


def test_a_read_goes_rather_where_more_is_asked():
    """Passage 4 has the name that leads to 1, too, and 1 has no word of the question any more."""
    links = a_chain()
    plain = walk(links, 0, 1)
    links = links._replace(
        new=links.new.at[0, 4].set(links.new[0, 1]), has=links.has.at[0, 1].set(0)
    )
    np.testing.assert_allclose(walk(links, 0, 1)[4], walk(links, 0, 1)[1], atol=1e-6)
    links = links._replace(has=links.has.at[0, 4, 2].set(1))
    found = walk(links, 0, 1)
    assert found[4] > 3 * found[1] > 0 and plain[4] == 0


def test_slopes_are_finite_without_passages_words_or_a_question():
    links, present = jax.tree.map(jnp.zeros_like, a_chain()), jnp.zeros((1, PASSAGES), bool)
    slopes = jax.grad(lambda each: jnp.sum(jnp.square(follow(each, jnp.zeros((1, 5)), present))))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(links)))
