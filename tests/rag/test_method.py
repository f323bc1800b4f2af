"""The kinds of methods: what they start at, what they see, and what each one's state depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import DECODER, INTERFACE, KINDS

from icorag_jax.rag import frozen
from icorag_jax.rag.context import control_context
from icorag_jax.rag.kernels import KERNELS, TOKEN_KERNELS
from icorag_jax.rag.method import (
    MethodConfig,
    adjust_to_new_tasks,
    count_parameters,
    hide_states,
    predict_change,
    predict_state,
)
from icorag_jax.rag.words import SPANS

kinds = pytest.mark.parametrize("kind", KINDS)
change_of = jax.jit(predict_change, static_argnums=(0, 1))
state_of = jax.jit(predict_state, static_argnums=(0, 1))


def edit_of(kind, context, fed=None, parameters=None):
    parameters = small.drawn(kind) if parameters is None else parameters
    return small.predict(small.method(kind), DECODER, parameters, context, fed)


@kinds
def test_a_fresh_method_edits_nothing(kind):
    edit = edit_of(kind, small.reading().context, parameters=small.fresh(kind))
    assert not any(leaf.any() for leaf in (edit.logit_bias, edit.token_bias, edit.value_up))
    assert np.isfinite(edit.value_down).all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(small.fresh(kind)))


@kinds
def test_answers_are_not_seen(kind):
    batch = small.batch()
    other = small.other_answers(batch)
    assert not np.array_equal(other.tokens, batch.tokens)
    read = frozen.read(DECODER, small.parameters(), other, layer=small.LAYER)
    states = small.reading().context.question_states
    assert np.abs(read.context.question_states - states).max() > 0.1
    small.assert_trees_equal(edit_of(kind, read.context), edit_of(kind, small.reading().context))


def test_permuted_passages_have_permuted_biases():
    context, order = small.random_context(), np.asarray([2, 0, 1])
    owner = np.asarray(context.passage_of)
    permuted = context._replace(
        passage_of=jnp.asarray(np.where(owner < 0, -1, order[owner]), jnp.int32),
        traits=context.traits[:, np.argsort(order)],
        present=context.present[:, np.argsort(order)],
    )
    one, other = edit_of("updater", context), edit_of("updater", permuted)
    np.testing.assert_allclose(other.logit_bias[..., order], one.logit_bias, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(other.token_bias, one.token_bias, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(other.value_up, one.value_up, atol=1e-4, rtol=1e-4)


def test_a_passage_that_is_not_there_is_not_seen():
    """Whatever its traits, and whatever rows of evidence say of themselves beyond it."""
    context = small.random_context()
    absent = ~np.asarray(context.present)
    assert absent.any()
    other = context._replace(
        traits=jnp.asarray(np.where(absent[..., None], 5, context.traits), jnp.float32)
    )
    for kind in KINDS:
        small.assert_trees_equal(edit_of(kind, other), edit_of(kind, context))


class TestChange:
    @kinds
    def test_is_the_state_without_the_shared_one(self, kind):
        context, parameters = small.reading().context, small.drawn(kind)
        _, state = state_of(small.method(kind), DECODER, parameters, context)
        shared = parameters["interface"]
        expected = [
            state.bias - shared["bias"][None], state.words, state.tokens,
            state.value - shared["value"][None],
        ]  # fmt: skip
        expected = np.concatenate([np.reshape(leaf, (4, -1)) for leaf in expected], axis=1)
        found = change_of(small.method(kind), DECODER, parameters, context)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_of_the_shared_method_is_none(self):
        found = change_of(
            small.method("shared"), DECODER, small.drawn("shared"), small.reading().context
        )
        assert not found.any()

    @pytest.mark.parametrize("kind", ["blind", "feedback"])
    def test_of_learned_vectors_is_the_same_for_all(self, kind):
        # Step sizes are drawn with the rest, and changes of small ones are small.
        found = np.asarray(change_of(
            small.method(kind), DECODER, small.drawn(kind, scale=1.0), small.reading().context
        ))  # fmt: skip
        assert np.abs(found).max() > 0.1
        np.testing.assert_array_equal(found, found[:1].repeat(4, axis=0))

    @pytest.mark.parametrize("kind", ["blind", "feedback"])
    def test_of_feedback_alone_is_on_the_words_of_passages(self, kind):
        """Its coordinates are passages of the question, so that a blind method must have none."""
        context = small.reading().context
        _, state = state_of(small.method(kind), DECODER, small.drawn(kind), context)
        for part in (state.words, state.tokens):
            assert bool(jnp.any(part != 0)) == (kind == "feedback")

    def test_of_the_updater_goes_by_the_passages(self):
        found = np.asarray(change_of(
            small.method("updater"), DECODER, small.drawn("updater"), small.reading().context
        ))  # fmt: skip
        # No passage says nothing: no change.
        some = np.asarray(small.reading().context.present).any(axis=1)
        assert some.sum() == 3
        np.testing.assert_allclose(found[~some], 0, atol=1e-6)
        changes = found[some]
        for one in range(len(changes)):
            for other in range(one):
                assert np.abs(changes[one] - changes[other]).max() > 0.02


class TestControls:
    @pytest.mark.parametrize("control", ["shuffled", "random", "empty"])
    def test_the_updater_alone_is_fed(self, control):
        context = small.reading().context
        fed = control_context(context, control, jax.random.key(0))
        for kind in ("shared", "blind", "feedback"):
            small.assert_trees_equal(edit_of(kind, context, fed), edit_of(kind, context))
        # Changes of small parameters are small.
        drawn = small.drawn("updater", scale=1.0)
        edit, plain = (edit_of("updater", context, each, drawn) for each in (fed, None))
        assert all(np.isfinite(leaf).all() for leaf in edit)
        assert np.abs(edit.value_up - plain.value_up)[:, 0].max() > 1e-2
        assert np.abs(edit.logit_bias - plain.logit_bias)[:, 0].max() > 1e-2
        assert np.abs(edit.token_bias - plain.token_bias)[:, 0].max() > 1e-2
        # The passages that the model reads stay those that biases are of.
        absent = ~np.asarray(context.present)
        assert not np.asarray(edit.logit_bias).transpose(1, 3, 0, 2)[absent].any()

    def test_without_passages_the_updater_is_the_shared_interface(self):
        context = small.reading().context
        fed = control_context(context, "empty", None)
        shared = {"interface": small.drawn("updater")["interface"]}
        expected = edit_of("shared", context, parameters=shared)
        for found, leaf in zip(edit_of("updater", context, fed), expected, strict=True):
            np.testing.assert_allclose(found, leaf, atol=1e-6)

    def test_shuffled_questions_are_updated_by_the_passages_before_theirs(self):
        """A question has the same pooled features in the weights, but another one's evidence."""
        context = small.reading().context
        fed = control_context(context, "shuffled", None)
        # Question 0 is given the passages of question 3, which has none.
        found = edit_of("updater", context, fed).value_up[:, 0]
        empty = edit_of("updater", context, control_context(context, "empty", None))
        np.testing.assert_allclose(found, empty.value_up[:, 0], atol=1e-6)


@pytest.mark.parametrize("change", [hide_states, adjust_to_new_tasks])
def test_new_tasks_and_hidden_states_change_the_updater_alone(change):
    for kind in KINDS:
        drawn = small.drawn(kind)
        hidden = change(small.method(kind), drawn)
        small.assert_trees_equal(hidden["interface"], drawn["interface"])
        assert hidden.keys() == drawn.keys()
        if kind != "shared":
            assert np.array_equal(hidden["updater"]["keys"], drawn["updater"]["keys"])
            assert not np.array_equal(hidden["updater"]["values"], drawn["updater"]["values"])


def test_how_many_parameters_there_are():
    """Controls have those of the updater and their learned vectors."""
    counts = {kind: count_parameters(small.fresh(kind)) for kind in KINDS}
    passages = small.BATCH.passages
    for kind in ("blind", "feedback"):
        assert counts[kind] == counts["updater"] + passages * INTERFACE.passage_features
    pool = DECODER.hidden_size * 2 + 2 * DECODER.hidden_size * 4
    asked, read, rank, width = INTERFACE.question_features, INTERFACE.passage_features, 3, 16
    words = DECODER.hidden_size * SPANS
    shared = 2 * pool + words + 2 * 4 + 2 * 2 * width * rank + asked * read + rank**2
    assert counts["shared"] == shared
    frames, steps = rank * (read + 1), 2 * (KERNELS + TOKEN_KERNELS + 2) * asked
    maps = read * read + read
    weighing = INTERFACE.word_features + asked
    assert counts["updater"] - shared == maps + frames + steps + weighing


def test_initialization_goes_by_its_key():
    one, other = (
        small.init(small.method("updater"), DECODER, jax.random.key(seed)) for seed in (1, 2)
    )
    small.assert_trees_equal(one, small.fresh("updater"))
    one, other = (found["updater"]["value_keys"] for found in (one, other))
    assert not np.array_equal(one, other)


def test_wrong_settings():
    config = small.method("shared")
    with pytest.raises(ValueError, match="passages must be at least 1, got 0"):
        dataclasses.replace(config, passages=0)
    # The types of the constructor are checked in tests alone: a file may say anything.
    wrong = object.__new__(MethodConfig)
    vars(wrong).update(vars(config), kind="none")
    with pytest.raises(ValueError, match=r"kind must be one of \('shared', .*, got 'none'"):
        wrong.__post_init__()
