"""The interface's features and its two forms, against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from small import DECODER, INTERFACE, LAYER

from icorag_jax.rag.interface import (
    Interface,
    InterfaceConfig,
    bias_scores,
    passage_scores,
)
from icorag_jax.rag.kernels import PASSAGE_KERNELS, TOKEN_KERNELS
from icorag_jax.rag.words import SPANS

LAYERS = DECODER.num_hidden_layers - LAYER
MODULE = Interface(INTERFACE, DECODER)
PARAMETERS = small.drawn("shared")["interface"]


@functools.partial(jax.jit, static_argnames="method")
def apply(*inputs, method):
    return MODULE.apply({"params": PARAMETERS}, *inputs, method=method)


def features_of(context):
    return apply(context, context, method=Interface.features)


def edit_of(features, state):
    return apply(features, state, method=Interface.edit)


def vectors(tokens, states, rows, scores):
    """A text as vectors of its tokens and of its pairs, dictionaries of unit length."""
    rows = np.flatnonzero(rows)
    found = []
    for span, ids in enumerate((
        [(tokens[row],) for row in rows],
        [(tokens[row - 1], tokens[row]) if row else None for row in rows],
    )):  # fmt: skip
        score = small.unit(np.asarray(states[rows], np.float64)) @ scores[:, span]
        weights = np.exp(score - score.max(initial=-np.inf))
        vector = {}
        for name, weight in zip(ids, weights, strict=True):
            if name is not None:
                vector[name] = vector.get(name, 0) + weight
        found.append(unit_vector(vector))
    return found


def unit_vector(vector):
    length = np.sqrt(sum(weight**2 for weight in vector.values()) + 1e-6)
    return {name: weight / length for name, weight in vector.items()}


def rare(text, passages):
    """A text's vectors, each word times how few of the passages there are have it."""
    found = []
    for span, vector in enumerate(text):
        having = {name: sum(name in one[span] for one in passages) for name in vector}
        found.append(unit_vector({
            name: weight * np.log((1 + len(passages)) / having[name]) if having[name] else 0
            for name, weight in vector.items()
        }))  # fmt: skip
    return found


def question_vectors(context, b):
    scores = np.asarray(PARAMETERS["importance"], np.float64)
    return vectors(*(np.asarray(leaf[b]) for leaf in context[3:6]), scores)


def rare_question_vectors(context, b):
    there = np.flatnonzero(context.present[b])
    return rare(question_vectors(context, b), [passage_vectors(context, b)[c] for c in there])


def without_question(text, question):
    """A text's vectors without the tokens, and the pairs, that the question has."""
    return [
        unit_vector({name: weight for name, weight in one.items() if name not in other})
        for one, other in zip(text, question, strict=True)
    ]


def passage_vectors(context, b):
    scores = np.asarray(PARAMETERS["importance"], np.float64)
    tokens, states, owner = (
        np.asarray(leaf[b])
        for leaf in (context.evidence_tokens, context.evidence_states, context.passage_of)
    )
    found = [vectors(tokens, states, owner == c, scores) for c in range(3)]
    there = [found[c] for c in np.flatnonzero(context.present[b])]
    return [rare(text, there) for text in found]


def product(one, other, span):
    return sum(weight * other[span].get(name, 0) for name, weight in one[span].items())


def shared_words(context, axes, b):
    """`[kernels, passages, axes]`: what passages share with the others, in deviations."""
    read, others = passage_vectors(context, b), passage_vectors(axes, b)
    question = question_vectors(context, b)
    new = [[without_question(text, question) for text in texts] for texts in (read, others)]
    found = np.asarray([
        [[product(one, other, span) for other in those] for one in these]
        for these, those in ((read, others), new)
        for span in range(SPANS)
    ])  # fmt: skip
    pairs = np.asarray(context.present[b])[:, None] & np.asarray(axes.present[b])
    pairs &= ~np.eye(3, dtype=bool)
    means = np.where(pairs, found, 0).sum(axis=-1) / np.maximum(pairs.sum(axis=-1), 1)
    found = np.where(pairs, found - means[..., None], 0)
    variance = (found**2).sum(axis=(1, 2)) / max(pairs.sum(), 1)
    found = found / np.sqrt(variance + 1e-4)[:, None, None]
    itself = np.eye(3) if axes is context else np.zeros((3, 3))
    return np.concatenate([found, [np.where(pairs, larger_number(context, axes, b), 0), itself]])


def shared_tokens(context, axes, b):
    """`[evidence, spans, axes]`: how heavy a token, or the pairs it is in, are in the others."""
    tokens, owner = np.asarray(context.evidence_tokens[b]), np.asarray(context.passage_of[b])
    question = question_vectors(context, b)
    new = [without_question(text, question) for text in passage_vectors(axes, b)]
    found = np.zeros((len(tokens), SPANS, 3))
    for row, (token, of) in enumerate(zip(tokens, owner, strict=True)):
        pairs = [(tokens[row - 1], token)] * (row > 0)
        if row + 1 < len(tokens) and owner[row + 1] == of:
            pairs.append((token, tokens[row + 1]))
        for other in {0, 1, 2} - {of} if of >= 0 else ():
            found[row, 0, other] = new[other][0].get((token,), 0)
            found[row, 1, other] = sum(new[other][1].get(pair, 0) for pair in pairs)
    return 10 * found


def larger_number(context, axes, b):
    """`[passages, axes]`: the sign of the difference of numbers, where both have one."""
    (own, has), (other, other_has) = (
        np.asarray(each.traits[b, :, 2:], np.float64).T for each in (context, axes)
    )
    return np.sign(own[:, None] - other) * has[:, None] * other_has


def covered_by(question, text, span):
    """Share of a question's words that a text has."""
    return sum(weight**2 for name, weight in question[span].items() if name in text[span])


def with_question(context, b):
    question = rare_question_vectors(context, b)
    read, there = passage_vectors(context, b), np.asarray(context.present[b])
    found = np.asarray([[product(question, one, span) for span in range(SPANS)] for one in read])
    found = found - found[there].mean(axis=0)
    found = found / np.sqrt((found[there] ** 2).mean(axis=0) + 1e-4)
    covered = [[covered_by(question, one, span) for span in range(SPANS)] for one in read]
    return np.concatenate([found, 4 * np.asarray(covered) - 2], axis=1)


@given(st.integers(0, 2**31))
def test_features_are_those_of_numpy(seed):
    context = small.random_context(seed)
    found = features_of(context)
    states, questions, owner, asked = map(np.asarray, (
        context.evidence_states, context.question_states, context.passage_of, context.is_question,
    ))  # fmt: skip
    for b in range(3):
        expected = small.pooled(PARAMETERS["question_pool"], questions[b, asked[b]])
        np.testing.assert_allclose(found.question[b], [*expected, 1], atol=2e-5)
        for c in range(3):
            expected = np.zeros(INTERFACE.passage_features)
            if context.present[b, c]:
                read = small.pooled(PARAMETERS["passage_pool"], states[b, owner[b] == c])
                traits = *context.traits[b, c], *with_question(context, b)[c]
                expected = np.concatenate([read, traits, [1]])
            np.testing.assert_allclose(found.passages[b, c], expected, atol=1e-4)
            shared = shared_words(context, context, b)[:, c].ravel()
            expected = shared if context.present[b, c] else 0 * shared
            np.testing.assert_allclose(found.words[b, c], expected, atol=1e-4)
        expected = shared_tokens(context, context, b).reshape(len(owner[b]), -1)
        np.testing.assert_allclose(found.tokens[b], expected, atol=1e-4)
    np.testing.assert_array_equal(found.present, context.present)


@given(st.integers(0, 2**31))
def test_an_edit_is_that_of_numpy(seed):
    """`tau bounded(a^T (W b / sqrt(|b|) + V c))` for each head; for each layer
    `mean(tau) / 2 bounded(a^T T d)`, `R` and `S U`.
    """
    features, state = features_of(small.random_context(seed)), small.random_state(seed)
    edit = edit_of(features, state)
    a, b, c, d, _, owner, w, v, t, s = (
        np.asarray(leaf, np.float64) for leaf in (*features[:6], *state)
    )
    gain = np.asarray(PARAMETERS["gain"], np.float64)
    read, write = PARAMETERS["value_read"], PARAMETERS["value_write"]
    assert edit.logit_bias.shape == (LAYERS, 3, DECODER.num_attention_heads, 3)
    for n in range(3):
        there = np.asarray(features.present[n])
        scores = np.asarray([
            a[n] @ (w[n] @ one / np.sqrt(b.shape[-1]) + v[n] @ other)
            for one, other in zip(b[n], c[n], strict=True)
        ])  # fmt: skip
        expected = gain[..., None] * bound(scores, there)
        np.testing.assert_allclose(edit.logit_bias[:, n], expected, atol=1e-4, rtol=1e-4)
        assert not edit.logit_bias[:, n][..., ~there].any()
        scores = bound(np.asarray([a[n] @ t[n] @ one for one in d[n]]), owner[n] >= 0)
        np.testing.assert_allclose(
            edit.token_bias[:, n, 0], gain.mean(axis=1)[:, None] / 2 * scores, atol=1e-4, rtol=1e-4
        )
        np.testing.assert_array_equal(edit.value_down[:, n], read)
        expected = s[n] @ np.asarray(write, np.float64)
        np.testing.assert_allclose(edit.value_up[:, n], expected, atol=1e-5, rtol=1e-5)


def bound(scores, there):
    if not there.any():
        return 0 * scores
    scores = scores - scores[there].mean()
    scores = scores / np.sqrt(1 + (scores[there] ** 2).mean() / INTERFACE.bound**2)
    return np.where(there, scores, 0)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_however_large_the_state_bounded_biases_are_not(size):
    """A head's are its gain times scores whose root mean square is below the bound."""
    module = Interface(dataclasses.replace(INTERFACE, bound=0.5), DECODER)
    features, state = features_of(small.random_context()), small.random_state()
    state = jax.tree.map(lambda leaf: size * leaf, state)
    edit = module.apply({"params": PARAMETERS}, features, state, method=Interface.edit)
    scores = np.asarray(edit.logit_bias / PARAMETERS["gain"][:, None, :, None], np.float64)
    raw, present = np.asarray(passage_scores(features, state), np.float64), features.present
    assert (present.sum(axis=1) > 1).all()
    for n in range(3):
        there = np.asarray(present[n])
        centred = raw[n, there] - raw[n, there].mean()
        spread = np.sqrt((centred**2).mean())
        expected = centred / np.sqrt(1 + spread**2 / 0.5**2)
        for found in scores[:, n].reshape(-1, len(there)):  # of each layer and head
            found_spread = np.sqrt((found[there] ** 2).mean())
            np.testing.assert_allclose(found[there], expected, rtol=1e-3, atol=1e-5 * found_spread)
            assert not found[~there].any()
            assert found_spread < 0.5 + 1e-4
            if size == 1e-3:  # as they are, but for their mean
                np.testing.assert_allclose(found[there], centred, rtol=1e-2)
            if size == 1e3:
                assert found_spread > 0.5 - 1e-3


def test_a_bound_takes_off_what_all_passages_share():
    """And so a single passage has no bias."""
    features, state = features_of(small.random_context()), small.random_state()
    same = features._replace(
        passages=jnp.broadcast_to(features.passages[:, :1], features.passages.shape),
        words=jnp.broadcast_to(features.words[:, :1], features.words.shape),
        present=jnp.asarray([[True] * 3, [True, True, False], [False, True, False]]),
    )
    assert np.abs(passage_scores(same, state)).max() > 0.1
    np.testing.assert_allclose(bias_scores(same, state, 0.5), np.zeros((3, 3)), atol=1e-5)


def test_passages_that_are_not_there_get_no_bias_whatever_their_features():
    context, state = small.random_context(), small.random_state()
    features = features_of(context)
    loud = features._replace(passages=features.passages + 9.0, words=features.words + 9.0)
    bias = np.asarray(edit_of(loud, state).logit_bias)
    absent = ~np.asarray(context.present)
    assert absent.any() and not bias.transpose(1, 3, 0, 2)[absent].any()
    assert bias.transpose(1, 3, 0, 2)[~absent].all()


def test_a_state_of_zeros_is_an_edit_of_zeros():
    state = jax.tree.map(jnp.zeros_like, small.random_state())
    edit = edit_of(features_of(small.random_context()), state)
    assert not edit.logit_bias.any() and not edit.token_bias.any()
    assert not edit.value_up.any() and edit.value_down.any()


def test_the_shared_state_is_the_same_for_all():
    features = features_of(small.random_context())
    state = MODULE.apply({"params": PARAMETERS}, features, method=Interface.shared_state)
    for name in ("bias", "value"):
        shared = np.asarray(PARAMETERS[name])
        np.testing.assert_array_equal(getattr(state, name), np.stack([shared] * 3))
    assert state.words.shape == (3, INTERFACE.question_features, PASSAGE_KERNELS * 3)
    assert state.tokens.shape == (3, INTERFACE.question_features, TOKEN_KERNELS * 3)
    assert not state.words.any() and not state.tokens.any()


def test_permuted_passages_have_permuted_biases():
    context, state = small.random_context(), small.random_state()
    order = np.asarray([2, 0, 1])  # passage j comes to place order[j]
    owner = np.asarray(context.passage_of)
    permuted = context._replace(
        passage_of=jnp.asarray(np.where(owner < 0, -1, order[owner]), jnp.int32),
        traits=context.traits[:, np.argsort(order)],
        present=context.present[:, np.argsort(order)],
    )

    def move(leaf):
        axes = leaf.reshape(*leaf.shape[:2], -1, 3)[..., np.argsort(order)]
        return axes.reshape(leaf.shape)

    moved = state._replace(words=move(state.words), tokens=move(state.tokens))
    edit, found = edit_of(features_of(context), state), edit_of(features_of(permuted), moved)
    np.testing.assert_allclose(found.logit_bias[..., order], edit.logit_bias, atol=1e-5)
    # Rows are where they were.
    assert np.abs(edit.token_bias).max() > 0.1
    np.testing.assert_allclose(found.token_bias, edit.token_bias, atol=1e-4)


def test_passages_are_compared_with_those_of_another_context():
    context, other = small.random_context(0), small.random_context(1)
    found = apply(context, context, other, method=Interface.features)
    plain = features_of(context)
    np.testing.assert_allclose(found.passages, plain.passages, atol=1e-6)
    for b in range(3):
        expected = shared_words(context, other, b)
        for c in np.flatnonzero(context.present[b]):
            np.testing.assert_allclose(found.words[b, c], expected[:, c].ravel(), atol=1e-4)
        expected = shared_tokens(context, other, b).reshape(found.tokens.shape[1], -1)
        np.testing.assert_allclose(found.tokens[b], expected, atol=1e-4)


def test_features_have_finite_slopes_where_there_is_nothing():
    """No passages, no question, and passages without a token in common."""
    context = small.random_context()
    nothing = context._replace(
        evidence_tokens=jnp.broadcast_to(jnp.arange(100, 114), context.evidence_tokens.shape),
        passage_of=context.passage_of.at[1].set(-1),
        present=context.present.at[1].set(False),
        is_question=context.is_question.at[2].set(False),
    )

    @jax.jit
    @jax.grad
    def slopes(parameters):
        found = MODULE.apply(
            {"params": parameters}, nothing, nothing, nothing, method=Interface.features
        )
        return sum(jnp.sum(jnp.square(leaf)) for leaf in found[:4])

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(PARAMETERS)))


@pytest.mark.parametrize("bound", [0.0, -1.0, np.inf, np.nan])
def test_a_bound_that_bounds_nothing(bound):
    with pytest.raises(ValueError, match=f"bound must be above 0 and finite, got {bound}"):
        dataclasses.replace(INTERFACE, bound=bound)


@pytest.mark.parametrize("name", ["layer", "pools", "pool_features", "rank"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        dataclasses.replace(INTERFACE, **{name: 0})


def test_a_layer_that_the_decoder_does_not_have():
    module = Interface(InterfaceConfig(layer=4, bound=1.5), DECODER)
    with pytest.raises(ValueError, match="layer must be below the decoder's 4, got 4"):
        module.init(jax.random.key(0), *[small.random_context()] * 3, method=Interface.features)
