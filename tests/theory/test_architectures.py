"""Models: constructions fill them, their parts are what they are called, layers follow in turn."""

import dataclasses
import math
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import compiled

from icorag_jax.theory import architectures, attention, constructions
from icorag_jax.theory.architectures import Architecture, Model
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.objective import Ridge, gd_plus_plus, gradient_descent, predict_queries
from icorag_jax.theory.tasks import Task, draw_episodes

D, M = 4, 2
RATES = jnp.asarray([0.4, 0.3, 0.2])
LINEAR = {
    "one layer": Architecture(),
    "three layers": Architecture(layers=3),
    "recurrent": Architecture(layers=3, recurrent=True),
    "heads": Architecture(layers=2, heads=4),
}
NONLINEAR = {
    "softmax": Architecture(kernel="softmax"),
    "tempered": Architecture(kernel="tempered", temperature=0.5),
    "relu": Architecture(kernel="relu"),
    "elu": Architecture(kernel="elu"),
    "cosine": Architecture(kernel="cosine"),
    "layer_norm": Architecture(layer_norm=True),
    "feature_gelu": Architecture(feature_gelu=True),
    "mlp": Architecture(mlp=True),
}
everything = pytest.mark.parametrize("name", [*LINEAR, *NONLINEAR])


def draw(seed=0) -> Episode:
    key = jax.random.key(seed)
    bank = jax.random.normal(key, (256, D))
    task = Task(examples=6, outputs=M, queries=3, retriever_weights=True)
    episodes = draw_episodes(jax.random.fold_in(key, 1), bank, task, 1)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def make(name, init_scale=1.0):
    model = Model((LINEAR | NONLINEAR)[name], D, init_scale)
    return model, architectures.init_parameters(model, jax.random.key(1), M)


def zero():
    return jnp.zeros((M, D))


@pytest.mark.parametrize("ridge", [None, Ridge(jnp.asarray(0.2), 0.1 * jnp.ones((M, D)))])
@pytest.mark.parametrize("name", LINEAR)
def test_a_construction_fills_a_model(name, ridge):
    model, parameters = make(name)
    arch, episode = model.architecture, draw()
    rates = RATES[:1].repeat(arch.layers) if arch.recurrent else RATES[: arch.layers]
    if arch.heads > 1:
        layers = constructions.split_heads_layers(zero(), rates, arch.heads)
    else:
        layers = constructions.direct_layers(zero(), rates)
    filled = architectures.fill_parameters(model, parameters, layers)
    chex.assert_trees_all_equal_shapes_and_dtypes(filled, parameters)
    found = architectures.predict(model, filled, episode, ridge)
    expected = predict_queries(gradient_descent(zero(), episode, rates, ridge), episode)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["equal", "drawn"])
@pytest.mark.parametrize("name", ["softmax", "tempered", "relu", "elu", "cosine"])
def test_readings_of_a_construction(name, weights):
    """Nonlinear attention with a construction's weights, from raw features and targets in NumPy."""
    model, parameters = make(name)
    episode = draw()
    if weights == "equal":
        episode = episode._replace(weights=2 * jnp.ones(6))
    layers = constructions.direct_layers(zero(), RATES[:1])
    filled = architectures.fill_parameters(model, parameters, layers)
    found = np.asarray(architectures.predict(model, filled, episode))

    z, y, zq, w = (
        np.asarray(part, np.float64)
        for part in (episode.features, episode.targets, episode.query_features, episode.weights)
    )
    n, p, t, rate = len(z), w / w.sum(), model.architecture.temperature, float(RATES[0])

    def mix(name, z, t):
        """Coefficients `[q, n]` of keys `z`."""
        s = zq @ z.T
        e = np.exp(s / t)
        if name == "tempered":
            return t * (n + 1) * (e - 1) / (1 + e.sum(axis=-1, keepdims=True))
        if name == "cosine":
            return s / np.linalg.norm(zq, axis=-1)[:, None] / np.linalg.norm(z, axis=-1)
        if name == "relu":
            return np.maximum(zq, 0) @ np.maximum(z, 0).T
        if name == "elu":
            # Keys are as wide as tokens, and elu(0) + 1 is one in each entry that pads them.
            e = M + np.where(zq > 0, zq + 1, np.exp(zq)) @ np.where(z > 0, z + 1, np.exp(z)).T
        return n * e / e.sum(axis=-1, keepdims=True)

    keys = np.sqrt(p)[:, None] * z
    expected = rate * mix(name, keys, t) * np.sqrt(p) @ y
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if weights == "equal":
        # The same by keys `z`: a temperature or a factor of the root of n.
        cold, factor = {
            "tempered": (n**0.5 * t, 1),
            "relu": (t, 1),
            "softmax": (n**0.5 * t, n**0.5),
            "cosine": (t, n**0.5),
            "elu": (t, None),
        }[name]
        if factor:
            expected = factor * rate / n * mix(name, z, cold) @ y
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_all_but_attention_is_set_to_do_least():
    """Whatever it was before: a whole block is its attention on normalized tokens, in NumPy."""
    arch = Architecture(kernel="softmax", layer_norm=True, mlp=True, feature_gelu=True)
    model, episode = Model(arch, D, 1.0), draw()
    parameters = architectures.init_parameters(model, jax.random.key(1), M)
    parameters = jax.tree.map(lambda leaf: leaf + 0.5, parameters)  # no bias or scale is as it was
    layers = constructions.direct_layers(zero(), RATES[:1])
    filled = architectures.fill_parameters(model, parameters, layers)
    chex.assert_trees_all_equal_shapes_and_dtypes(filled, parameters)

    def gelu(x):
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))

    def norm(rows):
        centred = rows - rows.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6)

    share = np.asarray(episode.weights, np.float64) / np.sum(episode.weights)
    root = np.sqrt(share)[:, None]
    context = norm(np.hstack([gelu(root * episode.features), root * episode.targets]))
    queries = norm(np.hstack([gelu(np.float64(episode.query_features)), np.zeros((3, M))]))
    mixing = np.exp(queries[:, :D] @ context[:, :D].T)
    mixing *= len(share) / mixing.sum(axis=-1, keepdims=True)
    expected = RATES[0] * mixing @ context[:, D:]
    found = architectures.predict(model, filled, episode)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_gd_plus_plus_fills_two_heads():
    model = Model(Architecture(layers=2, heads=2), D, 1.0)
    parameters = architectures.init_parameters(model, jax.random.key(0), M)
    rates, curvatures, episode = RATES[:2], 0.2 * RATES[:2], draw()
    layers = constructions.gd_plus_plus_layers(M, D, rates, curvatures)
    filled = architectures.fill_parameters(model, parameters, layers)
    expected = predict_queries(gd_plus_plus(episode, rates, curvatures), episode)
    found = architectures.predict(model, filled, episode)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "tempered", "relu", "elu", "cosine"])
def test_one_layer_is_its_kernel(name):
    """Predictions from the kernel's mixing coefficients, in NumPy."""
    model, parameters = make(name)
    episode = draw()
    tokens = constructions.direct_tokens(episode)
    weights = architectures.attention_weights(parameters, 0)
    w = [np.asarray(leaf[0], np.float64) for leaf in weights]
    context, queries = (np.asarray(part, np.float64) for part in (tokens.context, tokens.queries))
    keys, asked = context @ w[1].T, queries @ w[0].T
    kernel = architectures.kernel_function(model.architecture)
    mixing = np.asarray(
        kernel(
            jnp.asarray(keys, jnp.float32)[None],
            jnp.asarray(asked, jnp.float32)[None],
            tokens.present,
        )[0],
        np.float64,
    )
    expected = -(queries + mixing @ (context @ w[2].T) @ w[3].T)[:, D:]
    found = compiled(lambda p, e: architectures.predict(model, p, e))(parameters, episode)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(mixing - asked @ keys.T).max() > 1e-2


def test_norms_and_gelu_are_theirs():
    """One layer with a norm before attention, or a GELU of features, from their formulas."""
    episode = draw()
    tokens = constructions.direct_tokens(episode)
    present = tokens.present

    def attend(parameters, context, queries, read):
        weights = architectures.attention_weights(parameters, 0)
        added = attention.attend(
            weights, read(queries), read(context), present, attention.linear_kernel
        )
        return -(queries + added)[:, D:]

    def norm(rows):
        centred = rows - rows.mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)

    model, parameters = make("layer_norm")
    expected = attend(parameters, tokens.context, tokens.queries, norm)
    found = architectures.predict(model, parameters, episode)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    model, parameters = make("feature_gelu")
    dense = parameters["feature_dense"]

    def lift(rows):
        x = np.asarray(rows[:, :D] @ dense["kernel"] + dense["bias"][None], np.float64)
        erf = jax.scipy.special.erf(x / 2**0.5)
        gelu = jnp.asarray(0.5 * x * (1 + np.asarray(erf)), jnp.float32)
        return jnp.concatenate([gelu, rows[:, D:]], axis=-1)

    expected = attend(parameters, lift(tokens.context), lift(tokens.queries), lambda rows: rows)
    found = architectures.predict(model, parameters, episode)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_layers_follow_in_turn_and_recurrent_ones_are_one():
    model, parameters = make("three layers")
    episode = draw()
    tokens = constructions.direct_tokens(episode)
    layers = [architectures.attention_weights(parameters, index) for index in range(3)]
    expected = -attention.apply_layers(layers, tokens)[:, D:]
    np.testing.assert_allclose(
        architectures.predict(model, parameters, episode), expected, rtol=1e-4, atol=1e-5
    )
    looped, looped_parameters = make("recurrent")
    assert list(looped_parameters) == ["layer_0"]
    same = {f"layer_{index}": looped_parameters["layer_0"] for index in range(3)}
    np.testing.assert_allclose(
        architectures.predict(looped, looped_parameters, episode),
        architectures.predict(model, same, episode),
        rtol=1e-5,
        atol=1e-6,
    )


@everything
def test_queries_do_not_see_each_other(name):
    model, parameters = make(name)
    episode = draw()
    predict = compiled(lambda p, e: architectures.predict(model, p, e))
    before = predict(parameters, episode)
    moved = episode._replace(query_features=episode.query_features.at[0].add(3.0))
    after = predict(parameters, moved)
    np.testing.assert_allclose(after[1:], before[1:], rtol=1e-5, atol=1e-6)
    assert jnp.abs(after[0] - before[0]).max() > 1e-3


@everything
def test_linear_kinds_are_made_of_products(name):
    """Tokens times a factor: a layer of products alone gives its cube, more layers still odd."""
    model, parameters = make(name)
    kind = model.architecture.kind
    assert kind == ("linear" if name in LINEAR else "nonlinear")
    episode = draw()
    predict = compiled(lambda p, e: architectures.predict(model, p, e))

    def scaled(factor):
        tokens = episode._replace(
            features=factor * episode.features,
            targets=factor * episode.targets,
            query_features=factor * episode.query_features,
        )
        return np.asarray(predict(parameters, tokens))

    if name in LINEAR:
        np.testing.assert_allclose(scaled(-1.0), -scaled(1.0), rtol=1e-4, atol=1e-5)
    if model.architecture.layers == 1:
        stray = np.abs(scaled(-2.0) + 8 * scaled(1.0)).max() / np.abs(scaled(-2.0)).max()
        assert stray < 1e-4 if kind == "linear" else stray > 1e-2


def test_heads_add_up():
    arch = Architecture(heads=2)
    model = Model(arch, D, 1.0)
    parameters = architectures.init_parameters(model, jax.random.key(2), M)
    episode = draw()
    single = Model(Architecture(), D, 1.0)

    def head(index):
        part = {k: v[index : index + 1] for k, v in parameters["layer_0"]["attention"].items()}
        return architectures.predict(single, {"layer_0": {"attention": part}}, episode)

    np.testing.assert_allclose(
        architectures.predict(model, parameters, episode), head(0) + head(1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_small_init_predicts_little(scale):
    _, parameters = make("one layer", init_scale=scale)
    weights = architectures.attention_weights(parameters, 0)
    size = D + M
    for leaf in weights:
        # Variance scaling over the fan-in, for 36 entries: within a factor of two.
        ratio = float(jnp.std(leaf)) / (scale / size) ** 0.5
        assert 0.5 < ratio < 2


def test_interpolation_has_both_ends():
    model, parameters = make("one layer")
    trained = architectures.attention_weights(parameters, 0)
    filled = architectures.fill_parameters(
        model, parameters, constructions.direct_layers(zero(), RATES[:1])
    )
    construction = architectures.attention_weights(filled, 0)
    episode = draw()

    def predict(weights):
        return architectures.predict(model, {"layer_0": {"attention": weights._asdict()}}, episode)

    for share, expected in ((0.0, trained), (1.0, construction)):
        mixed = architectures.interpolate(trained, construction, share)
        np.testing.assert_allclose(predict(mixed), predict(expected), rtol=1e-3, atol=1e-4)
    # Scaling a factor of the trained pair by c and the other by 1 / c changes nothing.
    same = trained._replace(query=3 * trained.query, output=trained.output / 3)
    np.testing.assert_allclose(
        predict(architectures.interpolate(same, construction, 0.5)),
        predict(architectures.interpolate(trained, construction, 0.5)),
        rtol=1e-3,
        atol=1e-4,
    )


def test_what_does_not_fit_is_refused():
    layers = constructions.direct_layers(zero(), RATES)
    for name in ("three layers", "recurrent"):
        model, parameters = make(name)
        for count in (2, 4):
            with pytest.raises(ValueError, match=f"{count} layers of weights do not fit 3"):
                architectures.fill_parameters(model, parameters, [*layers, layers[0]][:count])
    model, parameters = make("recurrent")
    with pytest.raises(ValueError, match="layers of weights differ, but the 3 of"):
        architectures.fill_parameters(model, parameters, layers)
    one, one_parameters = make("one layer")
    with pytest.raises(ValueError, match="do not fit"):
        architectures.fill_parameters(
            one, one_parameters, constructions.split_heads_layers(zero(), RATES[:1], 2)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers and heads"),
        ({"heads": 0}, "layers and heads"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite, got inf"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Architecture(), **change)


def test_unknown_kernels_are_named():
    unknown = Architecture()
    # The tests' type checks would refuse it at the door; users have none.
    object.__setattr__(unknown, "kernel", "quad")
    with pytest.raises(ValueError, match=r"unknown kernel 'quad'; known: linear, softmax"):
        unknown.__post_init__()


@pytest.mark.parametrize("kernel", get_args(architectures.KernelName))
def test_every_known_kernel_has_a_function(kernel):
    assert callable(architectures.kernel_function(Architecture(kernel=kernel)))
