"""Gradient steps for each query: their gradients, their independence, and what they look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import DECODER, LAYER

from icorag_jax.rag import adaptation, frozen
from icorag_jax.rag.adaptation import LABEL_FREE, AdaptationConfig, adapt, slot
from icorag_jax.rag.batches import cloze_rows
from icorag_jax.rag.method import Method, predict_state, state_edit
from icorag_jax.rag.readings import take_readings

FROZEN = small.parameters()
SHARED = small.drawn("shared")
READING = small.reading()
STEPS, RATE = 3, 0.3
OBJECTIVES = (*LABEL_FREE, "oracle")
objectives = pytest.mark.parametrize("objective", OBJECTIVES)


@functools.cache
def config(objective, optimizer="sgd"):
    return AdaptationConfig(objective, optimizer, STEPS, RATE)


@functools.partial(jax.jit, static_argnums=0)
def compiled(settings, parameters, reading, rows):
    return adapt(settings, small.method("shared"), DECODER, FROZEN, parameters, reading, rows)


@functools.partial(jax.jit, static_argnums=0)
def compiled_slot(settings, reading):
    return slot(settings, DECODER, FROZEN, reading, layer=LAYER)


@functools.cache
def cloze_reading():
    return frozen.read(DECODER, FROZEN, cloze_rows(small.batch()), layer=LAYER)


def rows_of(objective):
    return cloze_reading() if objective == "cloze" else READING


def run(objective, shared=None, reading=None, rows=None, optimizer="sgd"):
    """States after each step and objectives before it, from another shared state if wanted."""
    parameters = SHARED
    if shared is not None:
        parameters = {"interface": {**parameters["interface"], **shared}}
    reading = READING if reading is None else reading
    rows = rows_of(objective) if rows is None else rows
    _, trajectory, losses = compiled(config(objective, optimizer), parameters, reading, rows)
    return jax.tree.map(np.asarray, (trajectory, losses))


def start(name):
    return np.asarray(SHARED["interface"][name])


def first_gradient(objective, name):
    """Of each query, from the first step."""
    trajectory, _ = run(objective)
    return (start(name)[None] - getattr(trajectory, name)[0]) / RATE


@objectives
@pytest.mark.parametrize("name", ["bias", "value"])
def test_gradients_are_those_of_differences(objective, name):
    """Of the entry that matters most to a query; objectives are those before the first step."""
    slopes = first_gradient(objective, name)
    for query in range(3):
        entry = np.unravel_index(np.abs(slopes[query]).argmax(), slopes[query].shape)
        step = 2e-2
        ahead, behind = start(name).copy(), start(name).copy()
        ahead[entry] += step
        behind[entry] -= step
        high, low = (
            run(objective, {name: jnp.asarray(moved)})[1][0, query] for moved in (ahead, behind)
        )
        slope = (high - low) / (2 * step)
        np.testing.assert_allclose(slopes[query][entry], slope, rtol=2e-2, atol=2e-4)


@functools.partial(jax.jit, static_argnums=0)
def slopes_at(objective, state, rows):
    """Gradients and objectives of all queries in a state."""
    method, upper = small.method("shared"), frozen.upper_decoder(DECODER, FROZEN, LAYER)
    features, _ = predict_state(method, DECODER, SHARED, READING.context)

    def total(state):
        edit = state_edit(method, DECODER, SHARED, features, state)
        each = adaptation._objective(
            objective, *upper, rows, frozen.upper_states(*upper, rows, edit)
        )
        return each.sum(), each

    return jax.grad(total, has_aux=True)(state)


@objectives
def test_steps_follow_one_another_and_queries_are_apart(objective):
    """Whatever states the others are in, a query goes on from where a step has left it."""
    trajectory, losses = run(objective)
    assert np.abs(trajectory.words[-1]).max() > 1e-3
    for query in range(4):
        for step in range(STEPS - 1):
            alone = jax.tree.map(
                lambda leaf, at=(step, query): jnp.stack([jnp.asarray(leaf[at])] * 4), trajectory
            )
            slopes, found = slopes_at(objective, alone, rows_of(objective))
            np.testing.assert_allclose(found[query], losses[step + 1, query], rtol=1e-4)
            for slope, leaf in zip(slopes, trajectory, strict=True):
                expected = leaf[step, query] - RATE * np.asarray(slope)[query]
                np.testing.assert_allclose(leaf[step + 1, query], expected, atol=2e-4, rtol=1e-3)


@objectives
def test_a_batch_in_another_order(objective):
    order = np.asarray([2, 3, 1, 0])
    reading, rows = (
        take_readings(jax.device_get(kept), order) for kept in (READING, rows_of(objective))
    )
    trajectory, losses = run(objective)
    turned, others = run(objective, reading=reading, rows=rows)
    np.testing.assert_allclose(others, losses[:, order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turned.bias, trajectory.bias[:, order], atol=1e-4, rtol=1e-4)


def likely(states):
    """Log-probabilities of the tokens after final states, float64."""
    kernel = np.asarray(FROZEN["output"]["kernel"], np.float64)
    scores = np.asarray(states, np.float64) @ kernel
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


@jax.jit
def states_of(rows):
    """Final states, the evidence seen in the shared state."""
    module = Method(small.method("shared"), DECODER)
    edit = module.apply({"params": SHARED}, READING.context)
    upper = frozen.upper_decoder(DECODER, FROZEN, LAYER)
    return frozen.upper_states(*upper, rows, edit)


@objectives
def test_objectives_are_those_of_numpy(objective):
    rows, batch = rows_of(objective), small.batch()
    if objective == "cloze":
        batch = cloze_rows(batch)
    predicted = likely(states_of(rows))
    for query, found in enumerate(run(objective)[1][0]):
        asked = int(batch.is_question[query].sum())
        if objective == "entropy":
            last = predicted[query, asked - 1]
            np.testing.assert_allclose(found, -(np.exp(last) * last).sum(), rtol=1e-4)
            continue
        places = np.arange(1, asked)
        if objective == "cloze":
            places = np.arange(asked // 2, asked)  # the second half
        if objective == "oracle":
            places = np.flatnonzero(batch.is_answer[query])
        chosen = predicted[query, places - 1, batch.tokens[query, places]]
        expected = -chosen.mean() if len(places) else 0
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("objective", ["question", "entropy"])
def test_without_labels_answers_make_no_difference(objective):
    other = frozen.read(DECODER, FROZEN, small.other_answers(small.batch()), layer=LAYER)
    small.assert_trees_equal(run(objective, reading=other, rows=other), run(objective))


def test_the_oracle_sees_answers_and_cloze_rows_have_none():
    other = frozen.read(DECODER, FROZEN, small.other_answers(small.batch()), layer=LAYER)
    _, losses = run("oracle", reading=other, rows=other)
    difference = np.abs(losses - run("oracle")[1])
    assert (difference.max(axis=0) > 1e-2).all()  # of each query
    assert difference.min() > 1e-3
    for name, array in small.batch()._asdict().items():
        kept = getattr(cloze_rows(small.other_answers(small.batch())), name)
        np.testing.assert_array_equal(kept, getattr(cloze_rows(small.batch()), name), name)
        assert array.shape == kept.shape


@objectives
def test_a_query_without_passages_stays_where_it_is(objective):
    """And the others move; a single passage, which biases say nothing of, by its values alone."""
    trajectory, losses = run(objective)
    for name, moving in (("bias", 2), ("value", 3)):
        found = getattr(trajectory, name)
        moved = np.abs(found[-1] - start(name)[None]).max(axis=(1, 2))
        np.testing.assert_array_equal(found[:, 3], np.stack([start(name)] * STEPS))
        assert (moved[:moving] > 1e-5).all()
        np.testing.assert_allclose(moved[moving:], 0, atol=1e-7)
    assert np.isfinite(losses).all() and np.ptp(losses[:, 3]) == 0


def test_the_oracle_falls():
    _, losses = run("oracle")
    assert (losses[-1, :3] < losses[0, :3] - 1e-3).all()


def test_a_first_step_of_adam_is_the_sign_of_the_gradient():
    trajectory, _ = run("question", optimizer="adam")
    slopes = first_gradient("question", "bias")[:2]  # of more than one passage
    moved = trajectory.bias[0, :2] - start("bias")[None]
    expected = -RATE * slopes / (np.abs(slopes) + 1e-8)
    large = np.abs(slopes) > 1e-3
    assert large.any(axis=(1, 2)).all()
    np.testing.assert_allclose(moved[large], expected[large], rtol=1e-3)


class TestSlot:
    def test_its_first_step_is_the_gradient_in_closed_form(self):
        """The mean over tokens of `U (softmax - one-hot)`, `U` the output projection."""
        deltas, losses = compiled_slot(config("question"), READING)
        upper = frozen.upper_decoder(DECODER, FROZEN, LAYER)
        states = jax.jit(lambda reading: frozen.upper_states(*upper, reading, None))(READING)
        kernel = np.asarray(FROZEN["output"]["kernel"], np.float64)
        batch = small.batch()
        for query in range(4):
            places = np.arange(1, batch.is_question[query].sum())
            tokens = batch.tokens[query, places]
            predicted = likely(states[query])[places - 1]
            np.testing.assert_allclose(
                losses[0, query], -predicted[np.arange(len(tokens)), tokens].mean(), rtol=1e-4
            )
            wrong = np.exp(predicted) - np.eye(DECODER.vocab_size)[tokens]
            slope = (wrong @ kernel.T).mean(axis=0)
            np.testing.assert_allclose(deltas[0, query], -RATE * slope, atol=1e-5, rtol=1e-3)
        assert deltas.shape == (STEPS, 4, DECODER.hidden_size)
        assert (losses[-1] < losses[0]).all()

    def test_queries_are_apart_and_answers_are_not_seen(self):
        found = compiled_slot(config("question"), READING)
        other = frozen.read(DECODER, FROZEN, small.other_answers(small.batch()), layer=LAYER)
        small.assert_trees_equal(compiled_slot(config("question"), other), found)
        order = np.asarray([2, 3, 1, 0])
        turned = take_readings(jax.device_get(READING), order)
        for one, leaf in zip(compiled_slot(config("question"), turned), found, strict=True):
            np.testing.assert_allclose(one, leaf[:, order], atol=1e-5)

    def test_another_objective(self):
        with pytest.raises(ValueError, match="SLOT's objective is question, got oracle"):
            compiled_slot(config("oracle"), READING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
    ],
)
def test_wrong_settings(changes, message):
    settings = {"objective": "question", "optimizer": "sgd", "steps": 1, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=message):
        AdaptationConfig(**{**settings, **changes})
