"""Answers through an interface are those of plain generation with the same edit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import BATCH, DECODER, LAYER

from icorag_jax.lm.evidence import prefill_rows
from icorag_jax.lm.generation import generate_rows
from icorag_jax.rag import frozen
from icorag_jax.rag.adaptation import AdaptationConfig, adapt, slot
from icorag_jax.rag.answering import (
    answer_adapted,
    answer_batch,
    answer_prepared,
    fold_edit,
    prepare,
)
from icorag_jax.rag.context import control_context
from icorag_jax.rag.method import Method

FROZEN = small.parameters()
NEW = BATCH.answer_tokens


@functools.cache
def prepared(dtype=jnp.float32):
    return prepare(
        DECODER, small.parameters(dtype), small.batch(False), layer=LAYER, answer_tokens=NEW
    )


def answer(kind, parameters=None, dtype=jnp.float32, **control):
    """Answers of a batch; of the frozen model where `kind` is None."""
    method = kind and small.method(kind)
    if kind and parameters is None:
        parameters = small.drawn(kind)
    return answer_prepared(
        DECODER, small.parameters(dtype), prepared(dtype), method, parameters,
        layer=LAYER, answer_tokens=NEW, **control,
    )  # fmt: skip


def generate(edit):
    """Plain generation after the evidence."""
    batch, parameters = small.batch(False), FROZEN
    kept = prefill_rows(
        DECODER, parameters, *(jnp.asarray(array) for array in batch[:3])
    )  # fmt: skip
    return generate_rows(
        DECODER, parameters, jnp.asarray(batch.tokens), jnp.asarray(batch.positions), kept, edit,
        None, None, max_new_tokens=NEW, interface_layer=LAYER,
    )  # fmt: skip


def assert_same_answers(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)


def edit_of(control=None):
    context = small.reading(answers=False).context
    fed = control and control_context(context, control, jax.random.key(5))
    return small.predict(small.method("updater"), DECODER, small.drawn("updater"), context, fed)


def test_answers_are_those_of_generation_with_the_same_edit():
    edit = edit_of()
    found = answer_batch(
        DECODER, FROZEN, small.batch(False), small.method("updater"), small.drawn("updater"),
        layer=LAYER, answer_tokens=NEW,
    )  # fmt: skip
    assert_same_answers(found, generate(edit))
    np.testing.assert_allclose(found.bias, edit.logit_bias.mean(axis=(0, 2)), atol=1e-5)
    plain = answer(None)
    assert not plain.bias.any()
    same = (np.asarray(plain.tokens) == np.asarray(found.tokens)).all(axis=1)
    assert not same[:3].any() and same[3]  # the last question has no passages


@pytest.mark.slow  # a program of its own; tests of methods have the edit
def test_what_the_updater_is_fed_changes_answers_as_its_edit_does():
    found = answer("updater", control="random", key=jax.random.key(5))
    assert_same_answers(found, generate(edit_of("random")))
    assert not np.array_equal(found.tokens, answer("updater").tokens)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fresh_method_answers_as_the_frozen_model(dtype):
    plain = answer(None, dtype=dtype)
    found = answer("updater", small.fresh("updater"), dtype=dtype)
    small.assert_trees_equal(found, plain)


def test_a_folded_edit_is_the_edit_during_attention():
    reading, edit = small.reading(), small.edit()

    @jax.jit
    def states(evidence, edit):
        upper = frozen.upper_decoder(DECODER, FROZEN, LAYER)
        return frozen.upper_states(*upper, reading._replace(evidence=evidence), edit)

    # The reading's evidence is that of the upper layers alone: its first layer is the edit's.
    edited, rest = fold_edit(reading.evidence, edit, 0)
    assert rest.logit_bias.shape[-1] == rest.value_down.shape[-1] == rest.value_up.shape[2] == 0
    np.testing.assert_allclose(
        states(edited, rest), states(reading.evidence, edit), atol=1e-5, rtol=1e-5
    )
    changed = np.asarray(edited.values != reading.evidence.values).any(axis=(0, 3, 4))
    np.testing.assert_array_equal(changed, np.asarray(reading.evidence.passages) >= 0)


def test_values_below_the_interface_stay_as_they_are():
    batch = small.batch()
    whole = prefill_rows(
        DECODER, FROZEN, *(jnp.asarray(array) for array in batch[:3])
    )  # fmt: skip
    edited, _ = fold_edit(whole, small.edit(), LAYER)
    np.testing.assert_array_equal(edited.values[:LAYER], whole.values[:LAYER])
    upper = whole._replace(keys=whole.keys[LAYER:], values=whole.values[LAYER:])
    expected, _ = fold_edit(upper, small.edit(), 0)
    np.testing.assert_allclose(edited.values[LAYER:], expected.values, atol=1e-6)
    np.testing.assert_array_equal(edited.keys, whole.keys)


ADAPTATION = AdaptationConfig("oracle", "sgd", steps=2, learning_rate=0.5)


def test_adapted_answers_are_those_of_the_last_state():
    method, parameters = small.method("shared"), small.drawn("shared")
    found = answer_adapted(
        DECODER, FROZEN, prepared(), small.batch(), method, parameters,
        ADAPTATION, layer=LAYER, answer_tokens=NEW,
    )  # fmt: skip
    features, trajectory, _ = jax.jit(functools.partial(adapt, ADAPTATION, method, DECODER))(
        FROZEN, parameters, small.reading(answers=False), small.reading()
    )
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    edit = Method(method, DECODER).apply(
        {"params": parameters}, features, last, method=Method.edit
    )  # fmt: skip
    assert_same_answers(found, generate(edit))
    np.testing.assert_allclose(found.bias, edit.logit_bias.mean(axis=(0, 2)), atol=1e-4)


def test_slot_chooses_tokens_from_moved_states():
    """Each token is the likeliest after all before it, by one pass over question and answer."""
    config = AdaptationConfig("question", "adam", steps=2, learning_rate=0.1)
    batch = small.batch(False)
    found = answer_adapted(
        DECODER, FROZEN, prepared(), None, None, None, config,
        layer=LAYER, answer_tokens=NEW,
    )  # fmt: skip
    assert not found.bias.any()
    assert not np.array_equal(found.tokens, answer(None).tokens)
    deltas, _ = jax.jit(functools.partial(slot, config, DECODER, layer=LAYER))(
        FROZEN, small.reading(answers=False)
    )
    asked, lengths = batch.is_question.sum(axis=1), np.asarray(found.lengths)
    rows = small.batch()._replace(
        tokens=small.batch().tokens.copy(), positions=small.batch().positions.copy()
    )
    for row in range(4):
        end = asked[row] + lengths[row]
        rows.tokens[row, asked[row] : end] = found.tokens[row, : lengths[row]]
        start = rows.positions[row, 0]
        rows.positions[row, :end] = start + np.arange(end)
        rows.positions[row, end:] = -1
    reading = frozen.read(DECODER, FROZEN, rows, layer=LAYER)

    @jax.jit
    def likeliest(reading, delta):
        upper = frozen.upper_decoder(DECODER, FROZEN, LAYER)
        states = frozen.upper_states(*upper, reading, None) + delta[:, None]
        return (states @ FROZEN["output"]["kernel"]).argmax(axis=-1)

    chosen = np.asarray(likeliest(reading, deltas[-1]))
    for row in range(4):
        expected = chosen[row, asked[row] - 1 : asked[row] - 1 + lengths[row]]
        np.testing.assert_array_equal(found.tokens[row, : lengths[row]], expected)


@pytest.mark.parametrize("kind", [None, "shared"])
def test_a_backbone_in_half_precision_can_be_adapted(kind):
    """Its programs have no mixed precision that nobody asked for; they are traced alone."""
    method, parameters = (small.method(kind), small.drawn(kind)) if kind else (None, None)
    config = AdaptationConfig("question", "adam", steps=2, learning_rate=0.1)
    half = prepared(jnp.bfloat16)
    found = jax.eval_shape(
        lambda frozen: answer_adapted(
            DECODER, frozen, half, None, method, parameters, config,
            layer=LAYER, answer_tokens=NEW,
        ),
        small.parameters(jnp.bfloat16),
    )  # fmt: skip
    assert found.tokens.shape == (4, NEW) and found.bias.dtype == jnp.float32
