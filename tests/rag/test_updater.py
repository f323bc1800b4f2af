"""The updater against NumPy, and against gradient descent on the theory's objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from small import INTERFACE

from icorag_jax.rag.context import Context
from icorag_jax.rag.interface import Features, InterfaceConfig, InterfaceState, passage_scores
from icorag_jax.rag.updater import Updater, UpdaterConfig, read_step
from icorag_jax.theory.constructions import direct_layers
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.objective import Block, block_mask, gradient, gradient_descent, payloads

SIZES = (
    # Examples, outputs, and the blocks of the interface: one, and both forms at once.
    (5, 2, (Block(3, 4),)),
    (4, 3, (Block(3, 5), Block(4, 2))),
)
sizes = pytest.mark.parametrize(("n", "m", "blocks"), SIZES)
seeds = st.integers(0, 2**31)


def draw_episode(seed, n, m, blocks):
    """A start and an episode, its weights normalized and one of them zero, float64."""
    rng = np.random.default_rng(seed)
    d_c, d_z = (sum(getattr(block, name) for block in blocks) for name in ("d_c", "d_z"))
    weights = rng.uniform(0.1, 2, n)
    weights[rng.integers(n)] = 0
    episode = Episode(
        features=rng.normal(size=(n, d_z)), readouts=rng.normal(size=(n, m, d_c)),
        targets=rng.normal(size=(n, m)), weights=weights / weights.sum(),
        query_features=rng.normal(size=(1, d_z)), query_readouts=rng.normal(size=(1, m, d_c)),
        query_targets=np.zeros((1, m)),
    )  # fmt: skip
    return rng.normal(size=(d_c, d_z)), episode


@functools.partial(jax.jit, static_argnames="blocks")
def read_episode(blocks, start, episode):
    """The updater's read of an episode's examples, and the gradient of the objective."""
    step = read_step(
        blocks, episode.features, payloads(start, episode), episode.weights, episode.weights > 0
    )
    return step, gradient(start, episode)


def mask_of(blocks):
    mask = np.zeros((sum(b.d_c for b in blocks), sum(b.d_z for b in blocks)))
    row = column = 0
    for block in blocks:
        mask[row : row + block.d_c, column : column + block.d_z] = 1
        row, column = row + block.d_c, column + block.d_z
    return mask


class TestReadStep:
    @sizes
    @given(seed=seeds)
    def test_is_the_weighted_sum_of_outer_products_on_the_blocks(self, n, m, blocks, seed):
        start, episode = draw_episode(seed, n, m, blocks)
        expected = np.zeros(start.shape)
        for z, c, y, w in zip(*episode[:4], strict=True):
            expected += w * np.outer(c.T @ (y - c @ start @ z), z)
        with jax.enable_x64(True):
            step, _ = read_episode(blocks, start, episode)
            np.testing.assert_allclose(step, mask_of(blocks) * expected, atol=1e-12)

    @sizes
    @given(seed=seeds)
    def test_is_minus_the_gradient_of_the_objective(self, n, m, blocks, seed):
        """One read of the passages is one step of gradient descent, exactly."""
        start, episode = draw_episode(seed, n, m, blocks)
        with jax.enable_x64(True):
            step, slope = read_episode(blocks, start, episode)
            np.testing.assert_allclose(step, -mask_of(blocks) * np.asarray(slope), atol=1e-12)

    def test_does_not_read_passages_that_are_not_there(self):
        """Not even where their weight is not zero."""
        start, episode = draw_episode(0, *SIZES[0])
        there = np.asarray([True, True, False, True, False])
        rho = np.stack([
            c.T @ (y - c @ start @ z) for z, c, y, _ in zip(*episode[:4], strict=True)
        ])  # fmt: skip
        with jax.enable_x64(True):
            inputs = map(jnp.asarray, (episode.features, rho, np.full(5, 0.2), there))
            found = jax.jit(read_step, static_argnums=0)(SIZES[0][2], *inputs)
        expected = 0.2 * rho[there].T @ episode.features[there]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_updater_takes_a_gradient_descent_step_on_the_interface():
    """The whole module, on features that are linear, with the construction's weights.

    Passage j is one token, `[x_j; y_j]` as in the direct construction; so pools are linear but for
    their normalization, and targets are such that it changes nothing: residuals have root mean
    square 1. Features are those less their mean, and the updater divides keys and values by the
    square root of their size, so the episode does too. The retriever's confidence comes in by a
    trait. Then the interface's new state is that of a step of gradient descent from its old one, on
    the objective of both forms at once.
    """
    rng, passages, f, rank = np.random.default_rng(0), 4, 6, 3
    start = InterfaceState(rng.normal(size=(f + 1, f + 3)), rng.normal(size=(rank, rank)))
    confidence = rng.uniform(0.2, 3.0, passages)
    traits = np.stack([np.log(confidence), rng.normal(size=passages)], axis=1)
    x = np.concatenate(
        [small.unit(rng.normal(size=(passages, f))), traits, np.ones((passages, 1))], axis=1
    )
    raw, x = x, (x - x.mean(axis=0)) / np.sqrt(x.shape[1])
    residuals = np.concatenate(
        [small.unit(rng.normal(size=(passages, f))), np.ones((passages, 1))], axis=1
    )
    to_keys, to_values = rng.normal(size=(f + 3, rank)), rng.normal(size=(f + 1, rank))
    said = raw @ start.bias.T + residuals
    targets = x @ start.bias.T + residuals / np.sqrt(f + 1)
    # The projection form reads and asks through frames of its own.
    value_x = (raw - raw.mean(axis=0)) @ to_keys
    value_targets = value_x @ start.value.T + residuals @ to_values

    blocks = (Block(f + 1, f + 3), Block(rank, rank))
    whole = np.block([
        [start.bias, np.zeros((f + 1, rank))], [np.zeros((rank, f + 3)), start.value],
    ])  # fmt: skip
    episode = Episode(
        features=np.concatenate([x, value_x], axis=1),
        readouts=np.tile(np.eye(f + 1 + rank), (passages, 1, 1)),
        targets=np.concatenate([targets, value_targets], axis=1),
        weights=confidence,
        query_features=np.zeros((1, f + 3 + rank)),
        query_readouts=np.eye(f + 1 + rank)[None],
        query_targets=np.zeros((1, f + 1 + rank)),
    )
    rate = 0.3
    with jax.enable_x64(True):
        moved = np.asarray(
            gradient_descent(
                *jax.tree.map(jnp.asarray, (whole, episode, np.asarray([rate]))),
                mask=block_mask(blocks, jnp.float64),
            )
        )
        (layer,) = direct_layers(jnp.asarray(start.bias), jnp.asarray([rate]))
        key, value = np.asarray(layer.key[0]), np.asarray(layer.value[0])  # [I, 0] and [-W, I]

    # Two more passages that are not there.
    tokens = np.concatenate([raw, said], axis=1)
    tokens = np.concatenate([tokens, rng.normal(size=(2, tokens.shape[1]))])
    present = np.arange(passages + 2) < passages
    context = Context(
        evidence_states=tokens[None],
        passage_of=np.arange(passages + 2)[None],
        question_states=np.zeros((1, 1, tokens.shape[1])),
        is_question=np.ones((1, 1), bool),
        traits=np.pad(traits, ((0, 2), (0, 0)))[None],
        present=present[None],
    )
    last = np.eye(f + 1)[-1]  # of the question's features, the constant
    features = Features(
        rng.normal(size=(1, f + 1)), np.zeros((1, passages + 2, f + 3)), present[None]
    )
    features.question[0, -1] = 1
    parameters = {
        "keys": {"score": np.zeros((tokens.shape[1], 1)), "project": key[None, :f].mT},
        "values": {"score": np.zeros((tokens.shape[1], 1)), "project": value[None, :f].mT},
        "confidence": np.sqrt(f + 3) * np.outer(last, np.eye(f + 3)[f]),
        "step_sizes": np.asarray([[rate, rate]]),
        "value_keys": to_keys,
        "value_values": to_values,
    }
    single = functools.partial(jax.tree.map, jnp.asarray)  # float32
    module = Updater(
        UpdaterConfig(steps=1), InterfaceConfig(layer=1, pools=1, pool_features=f, rank=rank)
    )
    old = jax.tree.map(lambda leaf: leaf[None], start)
    found = jax.jit(module.apply)({"params": single(parameters)}, *single((context, features, old)))

    assert np.abs(moved - whole).max() > 0.02
    np.testing.assert_allclose(found.bias[0], moved[: f + 1, : f + 3], atol=1e-4)
    np.testing.assert_allclose(found.value[0], moved[f + 1 :, f + 3 :], atol=1e-4)


MODULE = Updater(UpdaterConfig(steps=2), INTERFACE)
PARAMETERS = small.drawn("updater")["updater"]


@jax.jit
def update(context, features, state, parameters=PARAMETERS):
    return MODULE.apply({"params": parameters}, context, features, state)


def random_features(context, seed=0):
    rng = np.random.default_rng(seed)
    question = rng.normal(size=(len(context.present), INTERFACE.question_features))
    passages = rng.normal(size=(*context.present.shape, INTERFACE.passage_features))
    return Features(
        jnp.asarray(question, jnp.float32), jnp.asarray(passages, jnp.float32), context.present
    )


def update_in_numpy(context, features, state):
    """The update of one question, from the formulas of the docstrings, float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMETERS)
    keys, values = [], []
    for c in np.flatnonzero(context.present):
        tokens = np.asarray(context.evidence_states)[np.asarray(context.passage_of) == c]
        keys.append([*small.pooled(p["keys"], tokens), *context.traits[c], 1])
        values.append([*small.pooled(p["values"], tokens), 1])
    bias, value = (np.asarray(leaf, np.float64) for leaf in state)
    if not keys:
        return bias, value
    keys, values = np.asarray(keys), np.asarray(values)
    centred = keys - keys.mean(axis=0)
    change = np.zeros_like(bias)
    scale = 1 / np.sqrt(keys.shape[1] * values.shape[1])
    for step_sizes in p["step_sizes"]:
        scores = keys @ (p["confidence"] + change).T @ np.asarray(features.question, np.float64)
        weights = np.exp((scores - scores.max()) / np.sqrt(keys.shape[1]))
        weights /= weights.sum()
        for w, x, rho in zip(weights, centred, values, strict=True):
            change = change + step_sizes[0] * w * scale * np.outer(rho, x)
            value = value + step_sizes[1] * w * np.outer(
                rho @ p["value_values"], x @ p["value_keys"]
            )
    return bias + change, value


@given(seeds)
def test_updates_are_those_of_numpy(seed):
    context, state = small.random_context(seed), small.random_state(seed)
    features = random_features(context, seed)
    found = update(context, features, state)
    for row in range(3):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], (context, features, state))
        bias, value = update_in_numpy(*one)
        np.testing.assert_allclose(found.bias[row], bias, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(found.value[row], value, atol=2e-4, rtol=1e-4)


def test_the_bias_of_a_passage_gains_what_passages_say_of_each_other():
    """`eta sum_i w_i (a . rho_i)(x_i . b_j) / sqrt(|b|)`: the cross terms of one read.

    Keys are less their mean, and keys and values divided by the square root of their size.
    """
    context, state = small.random_context(), small.random_state()
    features = random_features(context)
    one = Updater(UpdaterConfig(steps=1), INTERFACE)
    parameters = {**PARAMETERS, "confidence": 0 * PARAMETERS["confidence"]}
    parameters["step_sizes"] = PARAMETERS["step_sizes"][:1]
    new = jax.jit(one.apply)({"params": parameters}, context, features, state)
    gained = passage_scores(features, new.bias) - passage_scores(features, state.bias)
    rate = float(parameters["step_sizes"][0, 0])
    a, b = (np.asarray(leaf, np.float64) for leaf in features[:2])
    for row in range(3):
        there = np.flatnonzero(context.present[row])
        expected, keys, values = np.zeros(3), [], []
        for i in there:
            tokens = np.asarray(context.evidence_states[row])[context.passage_of[row] == i]
            keys.append([*small.pooled(parameters["keys"], tokens), *context.traits[row, i], 1])
            values.append([*small.pooled(parameters["values"], tokens), 1])
        for x, rho in zip(np.asarray(keys) - np.mean(keys, axis=0), values, strict=True):
            share = rate / len(there) * (a[row] @ rho) / np.sqrt(len(rho))
            expected[there] += share * (b[row, there] @ x) / len(x)
        np.testing.assert_allclose(gained[row], expected, atol=1e-4)


def test_no_passage_and_one_passage():
    """No NaN, neither in the state nor in its gradient; one passage has none to differ from."""
    context, state = small.random_context(), small.random_state()
    present = jnp.asarray([[False] * 3, [True, False, False], [True] * 3])
    shown = jnp.take_along_axis(present, jnp.maximum(context.passage_of, 0), axis=1)
    context = context._replace(
        present=present,
        passage_of=jnp.where(shown, context.passage_of, -1),
        traits=jnp.where(present[..., None], context.traits, 0),
    )
    features = random_features(context)
    found = update(context, features, state)
    np.testing.assert_array_equal(found.bias[0], state.bias[0])
    np.testing.assert_array_equal(found.value[0], state.value[0])
    np.testing.assert_array_equal(found.bias[1], state.bias[1])
    assert np.abs(found.bias - state.bias)[2].max() > 0.01
    one = jax.tree.map(lambda leaf: leaf[1], (context, features, state))
    np.testing.assert_allclose(found.bias[1], update_in_numpy(*one)[0], atol=2e-4)

    @jax.jit
    @jax.grad
    def slopes(parameters):
        new = update(context, features, state, parameters)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in new)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(PARAMETERS)))


def test_rows_of_no_passage_are_not_read():
    context, state = small.random_context(), small.random_state()
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.normal(size=context.evidence_states.shape), jnp.float32)
    other = context._replace(
        evidence_states=jnp.where(
            context.passage_of[..., None] < 0, 9 * noise, context.evidence_states
        )
    )
    assert (np.asarray(context.passage_of) < 0).any()
    features = random_features(context)
    small.assert_trees_equal(update(other, features, state), update(context, features, state))


def test_at_least_one_step():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        UpdaterConfig(steps=0)
