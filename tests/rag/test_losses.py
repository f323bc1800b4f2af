"""What learning minimizes, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small
from small import DECODER

from icorag_jax.rag import frozen, losses
from icorag_jax.rag.interface import bias_scores, token_scores
from icorag_jax.rag.losses import LossWeights
from icorag_jax.rag.method import predict_state
from icorag_jax.rag.updater import OF_TOKENS

FROZEN = small.parameters()
METHOD = small.method("updater")
WEIGHTS = LossWeights(bias=1e-2, selection=0.5)


def test_the_loss_of_selection():
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    present = np.asarray([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0] * 4], bool)
    positive = np.asarray([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0] * 4], bool)
    each, says = losses.selection_losses(*map(jnp.asarray, (scores, positive, present)))
    # Without a positive passage, and with nothing but those, there is nothing to learn.
    np.testing.assert_array_equal(says, [True, False, True, False, False])
    for row in range(5):
        shares = np.exp(scores[row].astype(np.float64)) * present[row]
        expected = -np.log(shares[positive[row]] / shares.sum()).mean() if says[row] else 0
        np.testing.assert_allclose(each[row], expected, atol=1e-6)


def test_the_loss_of_selected_tokens():
    """Of the tokens of positive passages alone."""
    reading = small.reading()
    scores = np.random.default_rng(0).normal(size=reading.states_answer.shape).astype(np.float32)
    each, says = losses.token_selection_losses(jnp.asarray(scores), reading)
    owner, positive = np.asarray(reading.context.passage_of), np.asarray(reading.is_positive)
    states = np.asarray(reading.states_answer)
    assert states.any(axis=1).sum() >= 2
    np.testing.assert_array_equal(says, states.any(axis=1))
    for row in np.flatnonzero(states.any(axis=1)):
        there = (owner[row] >= 0) & positive[row, np.maximum(owner[row], 0)]
        assert 0 < states[row].sum() < there.sum() < (owner[row] >= 0).sum()
        shares = np.exp(scores[row].astype(np.float64)) * there
        expected = -np.log(shares[states[row]] / shares.sum()).mean()
        np.testing.assert_allclose(each[row], expected, atol=1e-5)


def test_steps_on_selection_are_those_of_the_loss_without_answers():
    parameters = small.drawn("updater")
    selection = functools.partial(
        losses.method_loss, METHOD, DECODER, WEIGHTS, FROZEN, reading=small.reading()
    )
    loss, slopes = jax.jit(
        jax.value_and_grad(lambda p: selection(p, selection_alone=True)[0])
    )(parameters)  # fmt: skip
    _, terms = jax.jit(lambda p: selection(p, selection_alone=False))(parameters)
    expected = WEIGHTS.selection * (terms.selection + terms.tokens)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert not slopes["interface"]["gain"].any()
    assert not slopes["interface"]["value_read"].any()
    assert np.abs(slopes["updater"]["step_sizes"]).max() > 0


def test_tokens_teach_their_own_sizes_of_steps_and_nothing_else():
    """Words and passages are weighed as if there were no loss of tokens."""
    parameters, reading = small.drawn("updater"), small.reading()

    @jax.jit
    @jax.grad
    def slopes(parameters):
        _, terms = losses.method_loss(
            METHOD, DECODER, WEIGHTS, FROZEN, parameters, reading, selection_alone=True
        )
        return terms.tokens

    found = slopes(parameters)
    sizes = np.array(found["updater"]["step_sizes"])
    assert np.abs(sizes[:, OF_TOKENS]).max(axis=-1).min() > 0
    sizes[:, OF_TOKENS] = 0
    found["updater"]["step_sizes"] = sizes
    for leaf in jax.tree.leaves(found):
        assert not np.asarray(leaf).any()


def test_the_loss_is_that_of_answers_of_selection_and_a_penalty_on_biases():
    """Against NumPy, from the edit and the losses that other tests hold."""
    reading, parameters = small.reading(), small.drawn("updater")
    weights = LossWeights(bias=0.25, selection=0.7)

    @jax.jit
    def loss(parameters):
        return losses.method_loss(
            METHOD, DECODER, weights, FROZEN, parameters, reading, selection_alone=False
        )

    @jax.jit
    def answers(edit):
        upper = frozen.upper_decoder(DECODER, FROZEN, small.LAYER)
        return losses.answer_losses(*upper, reading, edit)

    total, found = loss(parameters)
    edit = small.edit("updater")
    each, exact = answers(edit)
    biases = edit.logit_bias, edit.token_bias
    penalty = sum(np.square(np.asarray(bias, np.float64)).mean() for bias in biases)
    np.testing.assert_allclose(found.answers, np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(found.penalty, penalty, rtol=1e-4)
    assert found.exact == np.mean(exact)
    features, state = predict_state(METHOD, DECODER, parameters, reading.context)
    scores = bias_scores(features, state, METHOD.interface.bound)
    selection, says = losses.selection_losses(scores, reading.is_positive, reading.context.present)
    assert says.sum() >= 2
    selection = np.asarray(selection)[np.asarray(says)].mean()
    np.testing.assert_allclose(found.selection, selection, rtol=1e-4)
    scores = token_scores(features, state, METHOD.interface.bound)
    of_tokens, says = losses.token_selection_losses(scores, reading)
    of_tokens = np.asarray(of_tokens)[np.asarray(says)].mean()
    np.testing.assert_allclose(found.tokens, of_tokens, rtol=1e-4)
    expected = np.mean(each) + 0.25 * penalty + 0.7 * (selection + of_tokens)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
