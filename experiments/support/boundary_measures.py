"""How a variant of the boundary sweep is held against its gradient step.

A variant is read twice on every feature distribution:

* *construction*: the construction's weights with the variant's nonlinearity put in, against the
  gradient descent that they would be without it;
* *trained*: the variant trained there, against the best gradient step of its family.

Axes: `laws` feature distributions, `runs = laws * seeds`, law-major.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from experiments.support.boundary_training import (
    Reference,
    Training,
    compile_quickly,
    make_model,
    repeat,
    ridge_of,
    unrolled,
)
from experiments.support.variants import Variant
from icorag_jax.theory import alignment, architectures, constructions, objective
from icorag_jax.theory.alignment import Measures, PreconditionedRates
from icorag_jax.theory.features import Bank
from icorag_jax.theory.tasks import draw_episodes


def measure_construction(
    variant: Variant, reference: Reference, banks: Bank, config: Training, key: PRNGKeyArray
) -> Measures:
    """The construction with the nonlinearity put in against its descent, `[runs, episodes]`."""
    d = banks.train.shape[-1]
    model = make_model(variant, d, config.init_scale)
    arch, outputs = variant.architecture, variant.task.outputs

    def rates(step_size):
        return jnp.full(arch.layers, step_size), jnp.full(arch.layers, 0.1 * step_size)

    def filled(key, step_size):
        step_sizes, curvatures = rates(step_size)
        zero = jnp.zeros((outputs, d))
        if variant.construction == "gd_plus_plus":
            layers = constructions.gd_plus_plus_layers(outputs, d, step_sizes, curvatures)
        elif arch.heads > 1:
            layers = constructions.split_heads_layers(zero, step_sizes, arch.heads)
        else:
            layers = constructions.direct_layers(zero, step_sizes)
        initial = architectures.init_parameters(model, key, outputs)
        return architectures.fill_parameters(model, initial, layers)

    def descend(step_size, episode):
        step_sizes, curvatures = rates(step_size)
        if variant.construction == "gd_plus_plus":
            interface = objective.gd_plus_plus(episode, step_sizes, curvatures)
        else:
            zero = jnp.zeros((outputs, d))
            interface = objective.gradient_descent(zero, episode, step_sizes, ridge_of(variant, d))
        return objective.predict_queries(interface, episode)

    def one(key, step_size, bank):
        fill_key, test_key = jax.random.split(key)
        parameters = filled(fill_key, step_size)
        episodes = draw_episodes(test_key, bank, variant.evaluation, config.test_episodes)
        return alignment.measure(
            lambda episode: architectures.predict(model, parameters, episode, ridge_of(variant, d)),
            functools.partial(descend, step_size),
            episodes,
        )

    step_sizes, tested = (repeat(leaf, config.seeds) for leaf in (reference.step_size, banks.test))
    return _over(one)(jax.random.split(key, step_sizes.shape[0]), step_sizes, tested)


def measure_trained(
    variant: Variant,
    parameters: PyTree,
    reference: Reference,
    banks: Bank,
    config: Training,
    key: PRNGKeyArray,
) -> dict[str, Measures]:
    """The trained models on the law of their training, and on every other.

    Returns:
        `trained`, against the best step of the law of training, and `plain`, against as many of
        the best plain step, `[runs, episodes]` each; `interpolated`, likewise, of the weights half
        way between the trained ones and the best step's, for variants that can be mixed;
        `transfer`, tested on each law against the step of the law of training, `[laws, runs]`,
        means over episodes.
    """
    laws, _, d = banks.test.shape
    model = make_model(variant, d, config.init_scale)
    ridge = ridge_of(variant, d)

    def against(rates, of_run, episodes):
        return alignment.measure(
            lambda episode: architectures.predict(model, of_run, episode, ridge),
            lambda episode: alignment.predict_preconditioned(rates, episode, ridge),
            episodes,
        )

    def on_own_law(key, bank, of_law, families):
        episodes = draw_episodes(key, bank, variant.evaluation, config.test_episodes)

        def of_one(parameters):
            found = {name: against(rates, parameters, episodes) for name, rates in families.items()}
            if variant.mixes:
                mixed = _half_way(parameters, families["trained"], variant.task.outputs)
                found["interpolated"] = against(families["trained"], mixed, episodes)
            return found

        return jax.vmap(of_one)(of_law)

    def on_law(key, bank, best):
        episodes = draw_episodes(key, bank, variant.evaluation, config.transfer_episodes)
        return jax.vmap(against, in_axes=(0, 0, None))(best, parameters, episodes)

    best = unrolled(reference.rates, variant)
    plain = _plain_rates(reference.step_size, variant.architecture.layers, d)
    own_keys, transfer_keys = (jax.random.split(part, laws) for part in jax.random.split(key))
    own = _over(on_own_law)(
        own_keys,
        banks.test,
        jax.tree.map(lambda leaf: leaf.reshape(laws, config.seeds, *leaf.shape[1:]), parameters),
        {"trained": best, "plain": plain},
    )
    own = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), own)
    of_runs = jax.tree.map(lambda leaf: repeat(leaf, config.seeds), best)
    transfer = _over(lambda key, bank: on_law(key, bank, of_runs))(transfer_keys, banks.test)
    return own | {"transfer": jax.tree.map(lambda field: field.mean(axis=-1), transfer)}


def _over(function):
    """Maps over the leading axis of all arguments in one compiled program, one after another."""
    return compile_quickly(lambda *args: jax.lax.map(lambda one: function(*one), args))


def _plain_rates(step_sizes: Float[Array, " laws"], layers: int, d: int) -> PreconditionedRates:
    step = jnp.tile(step_sizes[:, None, None, None] * jnp.eye(d)[None, None], (1, layers, 1, 1))
    return PreconditionedRates(step, jnp.zeros_like(step))


def _half_way(parameters: PyTree, rates: PreconditionedRates, outputs: int) -> PyTree:
    """The model half way, in weights, between a trained one and the best step."""
    step = jax.tree.map(lambda leaf: leaf[:1], alignment.preconditioned_layers(rates, outputs)[0])
    trained = architectures.attention_weights(parameters, 0)
    mixed = architectures.interpolate(trained, step, 0.5)
    return {"layer_0": {"attention": mixed._asdict()}}
