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

from icorag_jax.rag.interface import Features, Interface, InterfaceConfig

LAYERS = DECODER.num_hidden_layers - LAYER
MODULE = Interface(INTERFACE, DECODER)
PARAMETERS = small.drawn("shared")["interface"]


@functools.partial(jax.jit, static_argnames="method")
def apply(*inputs, method):
    return MODULE.apply({"params": PARAMETERS}, *inputs, method=method)


def features_of(context):
    return apply(context, method=Interface.features)


def edit_of(features, state):
    return apply(features, state, method=Interface.edit)


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
                expected = np.concatenate([read, context.traits[b, c], [1]])
            np.testing.assert_allclose(found.passages[b, c], expected, atol=2e-5)
    np.testing.assert_array_equal(found.present, context.present)


@given(st.integers(0, 2**31))
def test_an_edit_is_that_of_numpy(seed):
    """`tau a^T W b / sqrt(|b|)` for each head, and `R`, `S U` for each layer."""
    features, state = features_of(small.random_context(seed)), small.random_state(seed)
    edit = edit_of(features, state)
    a, b, w, s = (
        np.asarray(leaf, np.float64)
        for leaf in (features.question, features.passages, state.bias, state.value)
    )
    gain = np.asarray(PARAMETERS["gain"], np.float64)
    read, write = PARAMETERS["value_read"], PARAMETERS["value_write"]
    assert edit.logit_bias.shape == (LAYERS, 3, DECODER.num_attention_heads, 3)
    for n in range(3):
        for j in range(3):
            score = a[n] @ w[n] @ b[n, j] / np.sqrt(b.shape[-1])
            expected = gain * (score if features.present[n, j] else 0)
            np.testing.assert_allclose(edit.logit_bias[:, n, :, j], expected, atol=1e-4, rtol=1e-4)
            if not features.present[n, j]:
                assert not edit.logit_bias[:, n, :, j].any()
        np.testing.assert_array_equal(edit.value_down[:, n], read)
        expected = s[n] @ np.asarray(write, np.float64)
        np.testing.assert_allclose(edit.value_up[:, n], expected, atol=1e-5, rtol=1e-5)


def test_passages_that_are_not_there_get_no_bias_whatever_their_features():
    context, state = small.random_context(), small.random_state()
    features = features_of(context)
    loud = Features(features.question, features.passages + 9.0, context.present)
    bias = np.asarray(edit_of(loud, state).logit_bias)
    absent = ~np.asarray(context.present)
    assert absent.any() and not bias.transpose(1, 3, 0, 2)[absent].any()
    assert bias.transpose(1, 3, 0, 2)[~absent].all()


def test_a_state_of_zeros_is_an_edit_of_zeros():
    state = jax.tree.map(jnp.zeros_like, small.random_state())
    edit = edit_of(features_of(small.random_context()), state)
    assert not edit.logit_bias.any() and not edit.value_up.any() and edit.value_down.any()


def test_the_shared_state_is_the_same_for_all():
    state = MODULE.apply({"params": PARAMETERS}, 2, method=Interface.shared_state)
    for name in ("bias", "value"):
        shared = np.asarray(PARAMETERS[name])
        np.testing.assert_array_equal(getattr(state, name), np.stack([shared] * 2))


def test_permuted_passages_have_permuted_biases():
    context, state = small.random_context(), small.random_state()
    order = np.asarray([2, 0, 1])  # passage j comes to place order[j]
    owner = np.asarray(context.passage_of)
    permuted = context._replace(
        passage_of=jnp.asarray(np.where(owner < 0, -1, order[owner]), jnp.int32),
        traits=context.traits[:, np.argsort(order)],
        present=context.present[:, np.argsort(order)],
    )
    bias = edit_of(features_of(context), state).logit_bias
    found = edit_of(features_of(permuted), state).logit_bias
    np.testing.assert_allclose(found[..., order], bias, atol=1e-5)


@pytest.mark.parametrize("name", ["layer", "pools", "pool_features", "rank"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        dataclasses.replace(INTERFACE, **{name: 0})


def test_a_layer_that_the_decoder_does_not_have():
    module = Interface(InterfaceConfig(layer=4), DECODER)
    with pytest.raises(ValueError, match="layer must be below the decoder's 4, got 4"):
        module.init(jax.random.key(0), small.random_context(), method=Interface.features)
