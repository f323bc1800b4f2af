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

from icorag_jax.rag.chains import Links, follow
from icorag_jax.rag.interface import Features, InterfaceState, passage_scores, token_scores
from icorag_jax.rag.kernels import KERNELS, PASSAGE_KERNELS, TOKEN_KERNELS
from icorag_jax.rag.traits import TRAITS
from icorag_jax.rag.updater import (
    NEW_TASK_MOVES,
    OF_TOKENS,
    Updater,
    UpdaterConfig,
    for_new_tasks,
    read_step,
    without_states,
)
from icorag_jax.rag.words import SPANS, WORD_KERNELS
from icorag_jax.theory.constructions import direct_layers
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.objective import Block, block_mask, gradient, gradient_descent, payloads

SIZES = (
    # Examples, outputs, and the blocks of the interface: one, and both forms at once.
    (5, 2, (Block(3, 4),)),
    (4, 3, (Block(3, 5), Block(4, 2))),
)
sizes = pytest.mark.parametrize(("n", "m", "blocks"), SIZES)
# Of passages and of their tokens.
ALL_KERNELS = KERNELS + TOKEN_KERNELS
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

    Passage j has the features `[0; x_j; y_j; trait; 1]`, those after the zeros as many as traits
    and words have, and they are a token of the direct construction. The updater's key and value
    maps are that construction's key `[I, 0]` and value `[-w, 1]`, with `w` the row of the
    interface's state that the question's constant reads, as the updater's payloads are along it.
    How far to go is linear in the question's features, half of it by one of them. The interface
    and the updater divide by the square root of the number of features, so the maps make up for
    it, and keys are less their mean, so the episode's features are. The retriever's confidence
    comes in by a trait. Then the interface's new state is that of a step of gradient descent from
    its old one, on the objective of all of its forms at once.
    """
    rng, passages, rank, config = np.random.default_rng(0), 4, 3, INTERFACE
    asked, read, axes = config.question_features, config.passage_features, ALL_KERNELS * passages
    said, size = config.word_features, np.sqrt(config.passage_features)
    d, first = said - 3, read - said
    on = slice(first, first + d)
    x, y = rng.normal(size=(passages, d)), rng.normal(size=(passages, 1))
    x -= x.mean(axis=0)
    # The interface is on x alone.
    start_x = rng.normal(size=(asked, d))
    confidence = rng.uniform(0.2, 3.0, passages)
    features = np.zeros((passages + 2, read))  # and two passages that are not there
    features[:passages, first : first + d + 1] = np.concatenate([x, y], axis=1)
    features[:passages, -2], features[:, -1] = np.log(confidence), 1
    features[passages:] = rng.normal(size=(2, read))
    (layer,) = direct_layers(jnp.asarray(start_x[-1:], jnp.float32), jnp.ones(1))
    value = np.asarray(layer.value[0])  # [-w, 1]

    rates = np.asarray([0.3, 0.2, 0.5, 0.1, 0.7, 0.6, 0.25, 0.35, 0.4])
    keys, values = np.zeros((read, read)), np.zeros((read, 1))
    keys[on, on] = size * np.eye(d)
    values[first : first + d + 1] = size * value.T
    values[-1] = -size  # in the place of the 1 that payloads start from
    to_keys, to_values = rng.normal(size=(read, rank)), rng.normal(size=(1, rank))

    # The forms: `W` on x, `V` and `T` on the passages themselves, once a kernel, `S` in frames.
    start_value = rng.normal(size=(rank, rank))
    own = np.tile(np.eye(passages), ALL_KERNELS) * np.repeat(rates[1:-1] / rates[0], passages)
    z = np.concatenate([x, own, x @ to_keys[on] * (rates[-1] / rates[0])], axis=1)
    blocks = (Block(asked, d + axes), Block(rank, rank))
    whole = np.zeros((asked + rank, d + axes + rank))
    whole[:asked, :d], whole[asked:, -rank:] = start_x, start_value
    payload = y - x @ start_x[-1:].T
    along = np.concatenate([np.zeros((passages, asked - 1)), payload, payload @ to_values], axis=1)
    targets = along + z @ whole.T
    episode = Episode(
        features=z, readouts=np.tile(np.eye(asked + rank), (passages, 1, 1)), targets=targets,
        weights=confidence, query_features=np.zeros((1, z.shape[1])),
        query_readouts=np.eye(asked + rank)[None], query_targets=np.zeros((1, asked + rank)),
    )  # fmt: skip
    with jax.enable_x64(True):
        moved = np.asarray(
            gradient_descent(
                *jax.tree.map(jnp.asarray, (whole, episode, rates[:1])),
                mask=block_mask(blocks, jnp.float64),
            )
        )
    step = moved - whole
    present = np.arange(passages + 2) < passages
    question = np.zeros(asked)
    question[0], question[-1] = np.sqrt(asked), 1
    step_sizes = np.zeros((1, ALL_KERNELS + 2, asked))
    step_sizes[0, :, 0] = step_sizes[0, :, -1] = rates / 2
    step_sizes[0, OF_TOKENS] /= 4
    start_bias, weighing = np.zeros((asked, read)), np.zeros(config.word_features)
    start_bias[:, on] = start_x
    # What is asked for is the trait of confidence alone.
    weighing[[TRAITS, TRAITS + SPANS]] = -10
    weighing[-2] += size
    parameters = {
        "keys": keys, "values": values, "value_keys": to_keys, "value_values": to_values,
        "step_sizes": step_sizes, "weighing": weighing, "move_size": np.zeros(asked),
    }  # fmt: skip
    words = np.zeros((passages + 2, PASSAGE_KERNELS * (passages + 2)))
    tokens = np.zeros((7, TOKEN_KERNELS * (passages + 2)))
    own = [np.zeros((asked, each.shape[1])) for each in (words, tokens)]
    old = InterfaceState(start_bias, *own, start_value)
    links = Links(np.zeros((passages + 2, 7)), np.zeros((passages + 2, 5)), np.zeros(5))
    single = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)  # noqa: E731
    found = jax.jit(Updater(UpdaterConfig(steps=1), config).apply)(
        {"params": jax.tree.map(jnp.asarray, parameters)},
        single(Features(question, features, words, tokens, present, np.zeros(7, np.int32), links)),
        single(old),
    )
    np.testing.assert_allclose(
        found.bias[0, :, on] - start_bias[:, on], step[:asked, :d], atol=1e-4
    )
    assert np.abs(step[:asked, :d]).max() > 0.02
    assert not found.words[0, :, -passages - 2 :].any()  # nothing has moved
    by_kernel = np.concatenate([found.words[0, :, : -passages - 2], found.tokens[0]], axis=1)
    by_kernel = by_kernel.reshape(asked, ALL_KERNELS, passages + 2)
    expected = step[:asked, d : d + axes].reshape(asked, ALL_KERNELS, passages)
    np.testing.assert_allclose(by_kernel[..., :passages], expected, atol=1e-4)
    assert not by_kernel[..., passages:].any()
    np.testing.assert_allclose(found.value[0] - start_value, step[asked:, -rank:], atol=1e-4)


def random_features(seed=0):
    rng = np.random.default_rng(seed)
    context = small.random_context(seed)
    rows = context.passage_of.shape[1]
    shapes = [
        (3, INTERFACE.question_features), (3, 3, INTERFACE.passage_features),
        (3, 3, PASSAGE_KERNELS * 3), (3, rows, TOKEN_KERNELS * 3),
    ]  # fmt: skip
    drawn = [rng.normal(size=shape) for shape in shapes]
    new, has = (
        rng.uniform(size=(3, 3, size)) * rng.integers(0, 2, (3, 3, size)) for size in (9, 5)
    )
    links = Links(new / 2, np.ceil(has), rng.dirichlet(np.ones(5), 3))
    drawn, links = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (drawn, links))
    return Features(*drawn, context.present, context.passage_of, links)


MODULE = Updater(UpdaterConfig(2), INTERFACE)
PARAMETERS = small.add_noise(
    jax.jit(MODULE.init)(jax.random.key(1), random_features(), small.random_state())["params"],
    seed=0,
    scale=0.5,
)


# With these all passages weigh the same.
EVEN = jnp.zeros(INTERFACE.word_features).at[jnp.asarray([TRAITS, TRAITS + SPANS])].set(-10)


@jax.jit
def update(features, state, parameters=PARAMETERS):
    return MODULE.apply({"params": parameters}, features, state)


def update_in_numpy(features, state, parameters):
    """The update of one question, from the formulas of the docstrings, float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    bias, words, tokens, value = (np.asarray(leaf, np.float64) for leaf in state)
    a, b, c = (np.asarray(leaf, np.float64) for leaf in features[:3])
    links, present = jax.tree.map(lambda leaf: leaf[None], (features.links, features.present))
    weighing = p["weighing"].copy()
    weighing[[TRAITS, TRAITS + SPANS]] += 10
    there = np.flatnonzero(features.present)
    if not len(there):
        return bias, words, tokens, value
    b, c, size = b[there], c[there], np.sqrt(b.shape[1])
    keys = (b - b.mean(axis=0)) / size @ p["keys"]
    values = np.zeros((len(there), a.shape[0]))
    values[:, -1] = 1 + b / size @ p["values"][:, 0]
    scores = b[:, -INTERFACE.word_features :] @ weighing / size
    weights, before = np.zeros((2, 3))
    weights[there] = np.exp(scores - scores.max())
    weights /= weights.sum()
    question = np.concatenate([a[:-1] / np.sqrt(len(a)), a[-1:]])
    step_sizes, move_size = p["step_sizes"] @ question, 30 * p["move_size"] @ question
    step_sizes[:, OF_TOKENS] *= 4
    for rates in step_sizes:
        moves = np.asarray(follow(links, jnp.asarray(before[None], jnp.float32), present)[0])
        for j, x, rho in zip(there, keys, values, strict=True):
            w = weights[j]
            bias = bias + rates[0] * w * np.outer(rho, x)
            own = np.kron(rates[1 : 1 + KERNELS], np.eye(3)[j])
            words = words + w * np.outer(rho, np.concatenate([own, move_size * moves[j]]))
            tokens = tokens + w * np.outer(rho, np.kron(rates[1 + KERNELS : -1], np.eye(3)[j]))
            value = value + rates[-1] * w * np.outer(
                rho[-1:] @ p["value_values"], x @ p["value_keys"]
            )
        before = np.minimum(before + weights, 1)
        weights = weights + weights @ moves
    return bias, words, tokens, value


@given(seed=seeds)
def test_updates_are_those_of_numpy(seed):
    features, state = random_features(seed), small.random_state(seed)
    found = update(features, state)
    for row in range(3):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], (features, state))
        for leaf, expected in zip(found, update_in_numpy(*one, PARAMETERS), strict=True):
            np.testing.assert_allclose(leaf[row], expected, atol=3e-4, rtol=1e-3)


def test_the_bias_of_a_passage_gains_what_passages_say_of_each_other():
    """`sum_i w_i (1 + m . b_i)(eta x_i . b_j + eta' k(i, j) + eta'' M_ij)`, of one read.

    What moves is on whether passages are the same one.
    """
    features, state = random_features(), small.random_state()
    # The question's constant is 1 in all questions.
    features = features._replace(question=features.question.at[:, -1].set(1))
    one, drawn = Updater(UpdaterConfig(1), INTERFACE), PARAMETERS
    parameters = {
        **drawn, "keys": jnp.eye(len(drawn["keys"])),
        "step_sizes": drawn["step_sizes"][:1], "weighing": EVEN,
    }  # fmt: skip
    new = jax.jit(one.apply)({"params": parameters}, features, state)
    gained = passage_scores(features, new) - passage_scores(features, state)
    moves = np.asarray(follow(features.links, jnp.zeros((3, 3)), features.present), np.float64)
    a, b, c = (np.asarray(leaf, np.float64) for leaf in features[:3])
    size = b.shape[-1]
    for row in range(3):
        question = np.concatenate([a[row, :-1] / np.sqrt(a.shape[1]), a[row, -1:]])
        rates = np.asarray(parameters["step_sizes"][0], np.float64) @ question
        move_size = 30 * np.asarray(parameters["move_size"], np.float64) @ question
        there = np.flatnonzero(features.present[row])
        centred = b[row] - b[row, there].mean(axis=0)
        expected = np.zeros(3)
        for i in there:
            worth = 1 + b[row, i] / np.sqrt(size) @ np.asarray(parameters["values"], np.float64)
            by_kernel = c[row].reshape(3, PASSAGE_KERNELS, 3)[there]
            shared = by_kernel[:, :-1, i] @ rates[1 : 1 + KERNELS]
            moved = move_size * by_kernel[:, -1] @ moves[row, i]
            resembles = rates[0] * (b[row, there] @ centred[i]) / size
            expected[there] += worth / len(there) * (resembles + shared + moved)
        np.testing.assert_allclose(gained[row], expected, atol=1e-3)


def test_the_bias_of_a_token_gains_what_other_passages_say_of_it():
    """`sum_i w_i (1 + m . b_i) eta'' d_ti`, of one read."""
    features, state = random_features(), small.random_state()
    features = features._replace(
        question=features.question.at[:, -1].set(1),
        present=jnp.ones((3, 3), bool),
        passage_of=jnp.maximum(features.passage_of, 0),
    )
    state = state._replace(tokens=jnp.zeros_like(state.tokens))
    parameters = {
        **PARAMETERS,
        "step_sizes": PARAMETERS["step_sizes"][:1],
        "weighing": EVEN,
    }
    one = Updater(UpdaterConfig(1), INTERFACE)
    new = jax.jit(one.apply)({"params": parameters}, features, state)
    # So large a bound bounds nothing; scores are less their mean.
    found = token_scores(features, new, 1e9)
    a, b, _, d = (np.asarray(leaf, np.float64) for leaf in features[:4])
    for row in range(3):
        question = np.concatenate([a[row, :-1] / np.sqrt(a.shape[1]), a[row, -1:]])
        rates = np.asarray(parameters["step_sizes"][0], np.float64) @ question
        worth = 1 + b[row] @ np.asarray(parameters["values"][:, 0]) / np.sqrt(b.shape[-1])
        by_span = d[row].reshape(-1, TOKEN_KERNELS, 3) @ worth / 3
        expected = by_span @ (4 * rates[1 + KERNELS : -1])
        np.testing.assert_allclose(found[row], expected - expected.mean(), atol=1e-3)


def test_no_passage_and_one_passage():
    """No NaN, neither in the state nor in its gradient."""
    state = small.random_state()
    present = jnp.asarray([[False] * 3, [True, False, False], [True] * 3])
    features = random_features(1)._replace(present=present)
    found = update(features, state)
    for leaf, old in zip(found, state, strict=True):
        np.testing.assert_array_equal(leaf[0], old[0])
    # One passage resembles no other.
    np.testing.assert_array_equal(found.bias[1], state.bias[1])
    assert np.abs(found.bias - state.bias)[2].max() > 0.01

    @jax.jit
    @jax.grad
    def slopes(parameters):
        new = update(features, state, parameters)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in new)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(PARAMETERS)))


def test_what_a_step_adds_to_passages_is_along_the_question_s_constant():
    """The question says how far the steps go, and their direction not."""
    features, state = random_features(), small.random_state()
    other = features._replace(question=features.question.at[:, :-1].add(1.0))
    one, two = (update(each, state) for each in (features, other))
    np.testing.assert_array_equal(one.words[:, :-1], state.words[:, :-1])
    np.testing.assert_array_equal(two.words[:, :-1], state.words[:, :-1])
    assert np.abs(one.words[:, -1] - two.words[:, -1]).max() > 0.01


class TestHiddenStates:
    hidden = without_states(INTERFACE, PARAMETERS)

    def test_updates_go_by_no_state_of_the_question(self):
        features, state = random_features(), small.random_state()
        other = features._replace(question=features.question.at[:, :-1].add(1.0))
        one, two = (update(each, state, self.hidden) for each in (features, other))
        small.assert_trees_equal(one, two)
        assert np.abs(one.words - state.words).max() > 0.01

    def test_no_passage_is_worth_more_for_its_states(self):
        features, state = random_features(), small.random_state()
        of_states = INTERFACE.passage_features - INTERFACE.word_features
        other = features._replace(passages=features.passages.at[..., :of_states].add(1.0))
        single = Updater(UpdaterConfig(1), INTERFACE)
        parameters = {**self.hidden, "step_sizes": self.hidden["step_sizes"][:1]}
        one, two = (single.apply({"params": parameters}, each, state) for each in (features, other))
        np.testing.assert_array_equal(one.words, two.words)
        assert np.abs(one.words - state.words).max() > 0.01

    def test_what_is_said_of_passages_and_the_question_s_constant_stay(self):
        for name in PARAMETERS:
            kept = np.asarray(self.hidden[name] == PARAMETERS[name])
            expected = np.ones_like(kept)
            if name in ("step_sizes", "move_size"):
                expected[..., :-1] = False
            if name == "step_sizes":
                expected[:, 1 : 1 + WORD_KERNELS] = expected[:, 1 + KERNELS : -1] = False
            if name == "values":
                expected[: -INTERFACE.word_features] = False
            np.testing.assert_array_equal(kept, expected)


def test_on_new_tasks_states_are_hidden_and_moves_count_twice():
    features, state = random_features(), small.random_state()
    hidden, new = (
        update(features, state, change(INTERFACE, PARAMETERS)).words - state.words
        for change in (without_states, for_new_tasks)
    )
    of_words = KERNELS * features.present.shape[1]
    assert np.abs(hidden[..., of_words:]).max() > 0.01
    np.testing.assert_array_equal(new[..., :of_words], hidden[..., :of_words])
    np.testing.assert_allclose(
        new[..., of_words:], NEW_TASK_MOVES * hidden[..., of_words:], rtol=1e-4, atol=1e-5
    )


def test_wrong_settings():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        UpdaterConfig(steps=0)
