"""The frozen model in two parts is the frozen model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from small import DECODER, LAYER

from icorag_jax.lm import decoder
from icorag_jax.lm.evidence import prefill_rows
from icorag_jax.rag import frozen
from icorag_jax.rag.losses import answer_losses

FROZEN = small.parameters()


@functools.partial(jax.jit, static_argnames="chunk")
def upper(parameters, reading, edit, chunk=None):
    config, parameters = frozen.upper_decoder(DECODER, parameters, LAYER)
    states = frozen.upper_states(config, parameters, reading, edit, chunk=chunk)
    return states, answer_losses(config, parameters, reading, edit)


@jax.jit
def whole(parameters, batch, edit):
    """All layers in one pass, after the evidence."""
    kept = prefill_rows(
        DECODER, parameters, batch.evidence_tokens, batch.evidence_positions, batch.passage_of
    )
    cache = decoder.empty_cache(DECODER, *batch.tokens.shape, kept.keys.dtype)
    return decoder.forward(
        DECODER, parameters, batch.tokens, batch.positions, cache, kept, edit,
        interface_layer=LAYER,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    return whole(FROZEN, small.batch(), small.edit())


def test_reading_and_upper_layers_are_one_pass(expected):
    found, _ = upper(FROZEN, small.reading(), small.edit())
    real = small.batch().positions >= 0
    np.testing.assert_allclose(found[real], expected.states[real], atol=1e-5, rtol=1e-5)
    states = small.reading().context.question_states
    np.testing.assert_allclose(states[real], expected.features[real], atol=1e-5, rtol=1e-5)
    # The edit does something where there are passages, or this would be no test of it.
    plain, _ = upper(FROZEN, small.reading(), None)
    moved = np.abs(plain - found).max(axis=(1, 2))
    assert (moved[:3] > 0.1).all() and moved[3] == 0


def test_layers_in_a_list_and_evidence_in_chunks(expected):
    unstacked = decoder.unstack_layers(FROZEN)
    found, _ = upper(unstacked, small.reading(), small.edit(), chunk=28)
    real = small.batch().positions >= 0
    np.testing.assert_allclose(found[real], expected.states[real], atol=1e-5, rtol=1e-5)


def test_the_upper_decoder_has_the_upper_layers_and_windows():
    config = dataclasses.replace(DECODER, windows=(None, 3, 5, 7))
    found, parameters = frozen.upper_decoder(config, FROZEN, 1)
    assert found.num_hidden_layers == 3 and found.windows == (3, 5, 7)
    for one, all_layers in zip(
        jax.tree.leaves(parameters["layers"]), jax.tree.leaves(FROZEN["layers"]),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(one, all_layers[1:])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fresh_method_is_the_frozen_model_bit_for_bit(dtype):
    """States and losses, with the edit of each kind that was not trained."""
    parameters, reading = small.parameters(dtype), small.reading(dtype)
    plain = upper(parameters, reading, None)
    assert plain[0].dtype == dtype and plain[1][0].dtype == jnp.float32
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(plain))
    for kind in small.KINDS:
        edit = small.predict(small.method(kind), DECODER, small.fresh(kind), reading.context)
        small.assert_trees_equal(upper(parameters, reading, edit), plain)


def test_answers_and_padding_are_seen_by_no_row_before_them():
    other = frozen.read(DECODER, FROZEN, small.other_answers(small.batch()), layer=LAYER)
    one, two = (upper(FROZEN, kept, small.edit())[0] for kept in (
        small.reading(), other
    ))  # fmt: skip
    asked = small.batch().is_question
    np.testing.assert_array_equal(np.asarray(one)[asked], np.asarray(two)[asked])
    assert np.abs(one - two).max() > 0.1


def test_losses_are_those_of_numpy():
    """Of answers, by a softmax over the logits of the token before each."""
    states, (losses, exact) = upper(FROZEN, small.reading(), small.edit())
    kernel = np.asarray(FROZEN["output"]["kernel"], np.float64)
    batch = small.batch()
    for row in range(4):
        places = np.flatnonzero(batch.is_answer[row])
        scores = np.asarray(states, np.float64)[row, places - 1] @ kernel
        likely = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        tokens = batch.tokens[row, places]
        expected = -likely[np.arange(len(places)), tokens].sum()
        np.testing.assert_allclose(losses[row], expected, rtol=1e-5)
        assert exact[row] == float(np.all(scores.argmax(axis=-1) == tokens))


def test_an_answer_that_is_the_likeliest_is_exact():
    states, _ = upper(FROZEN, small.reading(), None)
    scores = np.asarray(states) @ np.asarray(FROZEN["output"]["kernel"])
    batch = small.batch()
    # The first token of each answer becomes the likeliest after its question; no others remain.
    first = batch.is_question.sum(axis=1)
    tokens = batch.tokens.copy()
    tokens[np.arange(4), first] = scores[np.arange(4), first - 1].argmax(axis=-1)
    one = np.arange(tokens.shape[1]) == first[:, None]
    reading = small.reading()._replace(tokens=jnp.asarray(tokens), is_answer=jnp.asarray(one))
    _, (_, exact) = upper(FROZEN, reading, None)
    assert exact.tolist() == [1, 1, 1, 1]


@given(st.integers(0, 2**31))
def test_means_over_some_entries(seed):
    rng = np.random.default_rng(seed)
    values, where = rng.normal(size=(3, 5)), rng.random((3, 5)) < 0.5
    where[0] = False
    values[0, 0] = np.nan  # what is passed over may be anything
    found = frozen.mean_where(jnp.asarray(values, jnp.float32), jnp.asarray(where))
    expected = [row[use].mean() if use.any() else 0 for row, use in zip(values, where, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_below_the_interface_is_all_that_reading_knows_but_for_the_evidence_above():
    found = frozen.read_below(DECODER, FROZEN, small.batch(), layer=LAYER)
    whole = small.reading()
    assert found.evidence.keys.size == found.evidence.values.size == 0
    small.assert_trees_equal(found._replace(evidence=None), whole._replace(evidence=None))
    small.assert_trees_equal(found.evidence[2:], whole.evidence[2:])
