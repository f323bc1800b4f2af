"""Learning: what a step may not do, and that it goes on where it was killed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from small import DECODER

from icorag_jax.rag import frozen, learning
from icorag_jax.rag.interface import InterfaceConfig
from icorag_jax.rag.learning import LearningConfig, LearningState, learn
from icorag_jax.rag.losses import LossWeights, method_loss
from icorag_jax.rag.method import hide_states, init_method, predict_change
from icorag_jax.rag.readings import Pool, take_readings
from icorag_jax.training_checkpoints import TrainingCheckpoints

FROZEN, READINGS = small.parameters(), jax.device_get(small.reading())
CONFIG = LearningConfig(
    selection_steps=0, selection_batch=4, selection_rate=3e-2,
    steps=6, batch=3, learning_rate=3e-2, weight_decay=1e-3, bias_penalty=1e-2,
    selection_weight=0.5, seed=4, checkpoint_every=2,
)  # fmt: skip
METHOD = small.method("updater")


def train(folder, config=CONFIG, method=METHOD, **options):
    pool = Pool(READINGS)
    return learn(method, DECODER, config, FROZEN, pool, pool, folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def trained(folder):
    return train(folder)


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_end(tmp_path, monkeypatch, trained):
    """Killed at the second of three checkpoints, before it is written."""
    save = TrainingCheckpoints.save

    def fail(self, step, state):
        if step > 3:
            raise KilledError
        save(self, step, state)

    monkeypatch.setattr(TrainingCheckpoints, "save", fail)
    with pytest.raises(KilledError):
        train(tmp_path)
    monkeypatch.undo()
    calls = []
    step = learning.learning_step
    monkeypatch.setattr(
        learning,
        "learning_step",
        lambda *inputs, **named: calls.append(inputs) or step(*inputs, **named),
    )
    parameters, history = train(tmp_path)
    assert [int(inputs[4].step) for inputs in calls] == [2, 3, 4, 5]
    small.assert_trees_equal(parameters, trained[0])
    assert history == trained[1]
    # And once more there is nothing left to do.
    again, history = train(tmp_path)
    assert len(calls) == 4 and history == trained[1]
    small.assert_trees_equal(again, trained[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("selection_steps", -1), ("batch", 0), ("learning_rate", 0.0), ("weight_decay", float("nan")),
     ("seed", -1), ("checkpoint_every", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}"):
        dataclasses.replace(CONFIG, **{name: value})


def test_the_history_has_a_row_a_checkpoint(trained):
    _, history = trained
    assert [row["step"] for row in history] == [2, 4, 6]
    assert list(history[0]) == [
        "step", "answers", "penalty", "selection", "tokens", "exact", "gradient_norm",
    ]  # fmt: skip
    assert all(np.isfinite(list(row.values())).all() for row in history)


def test_updates_of_different_questions_differ_after_learning(trained):
    found = np.asarray(
        jax.jit(predict_change, static_argnums=(0, 1))(
            METHOD, DECODER, trained[0], small.reading().context
        )
    )
    assert not found[3].any()  # no passages
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[one] - found[other]).max() > 1e-4


def test_a_training_of_other_sizes_is_refused(folder, trained):
    interface = InterfaceConfig(layer=2, bound=1.5, pools=2, pool_features=5, rank=3)
    other = dataclasses.replace(METHOD, interface=interface)
    message = r"6 is of another training \(0/.*interface.* is float32 \(.*another folder"
    with pytest.raises(ValueError, match=message):
        train(folder, method=other)
    with pytest.raises(ValueError, match=r"6 is of another training .*in this one not there"):
        train(folder, method=small.method("shared"))


def test_a_few_questions_are_learned_by_heart(tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=40, batch=4, checkpoint_every=10, learning_rate=0.05, weight_decay=0.0,
        bias_penalty=0.0, selection_weight=0.0,
    )  # fmt: skip
    _, history = train(tmp_path, config)
    losses = [row["answers"] for row in history]
    assert losses[-1] < 0.8 * losses[0] and losses == sorted(losses, reverse=True)


def start(kind="updater"):
    parameters = small.drawn(kind)
    optimizer = learning.make_optimizer(CONFIG).init(parameters)
    return LearningState(jnp.int32(3), parameters, optimizer)


def test_a_step_without_a_finite_gradient_changes_nothing():
    state = start()
    picked = take_readings(READINGS, np.asarray([0, 1, 2]))
    step = functools.partial(learning.learning_step, METHOD, DECODER, CONFIG, FROZEN)
    states = picked.context.question_states.copy()
    states[1, 0] = np.nan
    poisoned = picked._replace(context=picked.context._replace(question_states=states))
    found, losses = step(state, poisoned)
    assert found.step == 4 and not np.isfinite(losses.gradient_norm)
    small.assert_trees_equal(found.parameters, state.parameters)
    small.assert_trees_equal(found.optimizer, state.optimizer)
    # Steps that have one change all of them, the second that is: the first has a rate of zero.
    found, losses = step(step(state, picked)[0], picked)
    assert found.step == 5 and np.isfinite(losses.gradient_norm)
    for one, other in zip(
        jax.tree.leaves(found.parameters), jax.tree.leaves(state.parameters), strict=True
    ):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("step", [2, 3])
def test_in_every_other_step_states_are_hidden_from_the_updater(step):
    """And so there is no gradient for what goes by them."""
    state, picked = start()._replace(step=jnp.int32(step)), take_readings(READINGS, np.arange(3))
    found, losses = learning.learning_step(METHOD, DECODER, CONFIG, FROZEN, state, picked)
    moments = optax.tree.get(found.optimizer, "mu")
    hidden = hide_states(METHOD, state.parameters)
    shown = state.parameters if step == 2 else hidden
    weights = LossWeights(CONFIG.bias_penalty, CONFIG.selection_weight)
    _, expected = jax.jit(
        functools.partial(method_loss, selection_alone=False), static_argnums=(0, 1)
    )(METHOD, DECODER, weights, FROZEN, shown, picked)
    assert losses.answers == pytest.approx(float(expected.answers), rel=1e-5)
    for name in ("values", "step_sizes", "move_size"):
        moment = np.asarray(moments["updater"][name])
        goes_by_states = np.asarray(hidden["updater"][name] == 0)
        assert moment[~goes_by_states].any()
        assert moment[goes_by_states].any() == (step == 2)


def poison(which):
    """Puts NaN into the batches of some steps on their way to the device."""
    seen = []

    def place(reading):
        seen.append(len(seen))
        if seen[-1] not in which:
            return reading
        states = np.full_like(reading.context.question_states, np.nan)
        return reading._replace(context=reading.context._replace(question_states=states))

    return place


def test_one_bad_batch_is_passed_over(tmp_path):
    """Losses are means over the others, and the parameters stay finite."""
    parameters, history = train(tmp_path, place=poison({2}))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters))
    assert all(np.isfinite(list(row.values())).all() for row in history)


def test_nothing_but_bad_batches_is_an_error(tmp_path):
    message = r"no step of the last 2 up to step 4 had finite losses .*smaller learning rate"
    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, place=poison({2, 3}))


def test_gains_and_frames_do_not_decay(tmp_path):
    """What the first steps have no gradient for stays as it is."""
    config = dataclasses.replace(CONFIG, selection_steps=4, steps=0, weight_decay=1.0)
    parameters, _ = train(tmp_path, config)
    start = init_method(METHOD, DECODER, jax.random.key(CONFIG.seed))
    for name in ("gain", "value_read", "value_write"):
        np.testing.assert_array_equal(parameters["interface"][name], start["interface"][name])
    # One that is not zero, has no gradient either, and is not among them.
    old, new = (tree["updater"]["value_values"] for tree in (start, parameters))
    ratio = np.asarray(new) / np.asarray(old)
    assert ratio.min() > 0.8 and ratio.max() < 0.99


def test_selection_is_learned_before_all_else(tmp_path, trained):
    config = dataclasses.replace(
        CONFIG, selection_steps=30, selection_rate=0.1, steps=2, checkpoint_every=10
    )
    _, history = train(tmp_path, config)
    assert [row["answers"] > 0 for row in history] == [False] * 3 + [True]
    assert history[2]["selection"] < 0.5 * history[0]["selection"]


def test_selection_is_learned_on_a_pool_of_its_own(tmp_path):
    """Of readings without evidence, which other steps never see."""
    below = jax.device_get(frozen.read_below(DECODER, FROZEN, small.batch(), layer=small.LAYER))
    config = dataclasses.replace(CONFIG, selection_steps=2, selection_batch=2, steps=2)
    seen = []

    def place(reading):
        seen.append((reading.tokens.shape[0], reading.evidence.keys.shape[0]))
        return reading

    selection, answers = Pool(below, np.asarray([0, 2])), Pool(READINGS)
    learn(METHOD, DECODER, config, FROZEN, selection, answers, tmp_path, place=place)
    upper = DECODER.num_hidden_layers - small.LAYER
    assert seen == [(2, 0)] * 2 + [(3, upper)] * 2


def test_without_answers_the_pool_makes_no_difference(tmp_path):
    """Steps on selection need nothing of the upper layers."""
    below = jax.device_get(frozen.read_below(DECODER, FROZEN, small.batch(), layer=small.LAYER))
    config = dataclasses.replace(CONFIG, selection_steps=4, steps=0)
    found = [
        learn(METHOD, DECODER, config, FROZEN, Pool(selection), Pool(READINGS), tmp_path / name)
        for name, selection in (("below", below), ("whole", READINGS))
    ]
    small.assert_trees_equal(*(parameters for parameters, _ in found))
