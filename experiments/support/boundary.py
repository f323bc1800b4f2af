"""How a variant of the boundary sweep is trained and held against its gradient step.

A variant is read twice on every feature distribution:

* *construction*: the construction's weights with the variant's nonlinearity put in, against the
  gradient descent that they would be without it;
* *trained*: the variant trained there, against the best gradient step of its family.

Axes: `laws` feature distributions, `runs = laws * seeds`, law-major.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from experiments.support.variants import Variant
from icorag_jax.theory import alignment, architectures, constructions, objective, training
from icorag_jax.theory.alignment import Measures, PreconditionedRates
from icorag_jax.theory.architectures import Model
from icorag_jax.theory.features import Bank
from icorag_jax.theory.objective import Ridge
from icorag_jax.theory.tasks import Task, draw_episodes


@dataclasses.dataclass(frozen=True)
class Training:
    """How the sweep trains each variant.

    Attributes:
        seeds: runs on each distribution.
        starts: initializations a run chooses from.
        start_steps: the first steps, which each start takes.
        steps: optimizer steps.
        batch: episodes a step.
        learning_rate: Muon's, at the start; falls along a cosine.
        init_scale: variance scaling of the initial weights.
        fit_episodes: episodes that the best step is fitted to.
        test_episodes: episodes of each run's evaluation.
    """

    seeds: int
    starts: int
    start_steps: int
    steps: int
    batch: int
    learning_rate: float
    init_scale: float
    fit_episodes: int
    test_episodes: int


class Reference(NamedTuple):
    """What a variant is held against on each law.

    Attributes:
        step_size: `[laws]`, of the best plain step.
        rates: the best member of the variant's family, `[laws, layers, d, d]` each.
    """

    step_size: Float[Array, " laws"]
    rates: PreconditionedRates


class Trained(NamedTuple):
    """A variant trained on every law.

    Attributes:
        parameters: of the models, every leaf `[runs, ...]`.
        losses: `[runs, steps]`.
        start_losses: `[runs, starts]`, from which the starts were chosen.
    """

    parameters: PyTree
    losses: Float[np.ndarray, "runs steps"]
    start_losses: Float[np.ndarray, "runs starts"]


def make_model(variant: Variant, d: int, init_scale: float) -> Model:
    """The variant's model."""
    return Model(variant.architecture, d, init_scale)


def train_variant(
    variant: Variant, banks: Bank, config: Training, key: PRNGKeyArray, label: str | None
) -> Trained:
    """Trains a variant on every law side by side."""
    laws, _, d = banks.train.shape
    runs = laws * config.seeds
    model = make_model(variant, d, config.init_scale)
    init_key, run_key = jax.random.split(key)

    def init(key):
        return architectures.init_parameters(model, key, variant.task.outputs)

    return Trained(
        *training.train_best_start(
            _model_loss(model, variant, config.batch),
            _compile_quickly(jax.vmap(jax.vmap(init)))(
                jax.random.split(init_key, (runs, config.starts))
            ),
            jax.random.split(run_key, runs),
            jnp.repeat(banks.train, config.seeds, axis=0),
            _optimization(config, variant.architecture.layers),
            config.start_steps,
            label,
        )
    )


def fit_single_step(
    task: Task, banks: Float[Array, "laws samples d"], config: Training, key: PRNGKeyArray
) -> Reference:
    """The best plain and the best preconditioned step of a task on every law: least squares."""

    @_compile_quickly
    def fit(key, bank):
        episodes = draw_episodes(key, bank, task, config.fit_episodes)
        return alignment.best_step_size(episodes), alignment.best_preconditioner(episodes)

    keys = jax.random.split(key, banks.shape[0])
    fitted = [fit(key, bank) for key, bank in zip(keys, banks, strict=True)]
    matrices = jnp.stack([matrix for _, matrix in fitted])[:, None]
    rates = PreconditionedRates(matrices, jnp.zeros_like(matrices))
    return Reference(jnp.stack([step_size for step_size, _ in fitted]), rates)


def train_steps(
    variant: Variant,
    single: Reference,
    banks: Float[Array, "laws samples d"],
    config: Training,
    key: PRNGKeyArray,
    label: str | None,
) -> Reference:
    """The best steps of a family of several layers, trained as a model is, from the single one."""
    arch = variant.architecture
    distinct = 1 if arch.recurrent else arch.layers
    start = jnp.tile(single.rates.step / arch.layers, (1, distinct, 1, 1))
    rates, _ = training.train(
        # One run a law rather than one a seed: twice the batch for the same work.
        _rates_loss(variant, 2 * config.batch),
        PreconditionedRates(start, jnp.zeros_like(start)),
        jax.random.split(key, banks.shape[0]),
        banks,
        _optimization(config, arch.layers),
        label and f"{label}: reference",
    )
    return Reference(single.step_size, rates)


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
            interface = objective.gradient_descent(zero, episode, step_sizes, _ridge(variant, d))
        return objective.predict_queries(interface, episode)

    def one(key, step_size, bank):
        fill_key, test_key = jax.random.split(key)
        parameters = filled(fill_key, step_size)
        episodes = draw_episodes(test_key, bank, variant.evaluation, config.test_episodes)
        return alignment.measure(
            lambda episode: architectures.predict(model, parameters, episode, _ridge(variant, d)),
            functools.partial(descend, step_size),
            episodes,
        )

    of_laws = (reference.step_size, banks.test)
    return _over_runs(one, key, jax.tree.map(lambda leaf: _repeat(leaf, config.seeds), of_laws))


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
        `trained`, against the best step of the law of training, and `plain`, against the best
        plain step, `[runs, episodes]` each; `transfer`, tested on each law against the step of
        the law of training, `[laws, runs]`, means over episodes.
    """
    laws, _, d = banks.test.shape
    model = make_model(variant, d, config.init_scale)
    ridge = _ridge(variant, d)
    families = jax.tree.map(
        lambda *leaves: _repeat(jnp.stack(leaves, axis=1), config.seeds),
        _unrolled(reference.rates, variant),
        _plain_rates(reference.step_size, variant.architecture.layers, d),
    )

    def on_law(key, bank):
        episodes = draw_episodes(key, bank, variant.evaluation, config.test_episodes)

        def one(of_run, rates):
            return alignment.measure(
                lambda episode: architectures.predict(model, of_run, episode, ridge),
                lambda episode: alignment.predict_preconditioned(rates, episode, ridge),
                episodes,
            )

        of_families = jax.vmap(one, in_axes=(None, 0))
        return jax.vmap(of_families)(parameters, families)

    measured = _compile_quickly(lambda *args: jax.lax.map(lambda law: on_law(*law), args))(
        jax.random.split(key, laws), banks.test
    )
    # Every field is [laws, runs, families, episodes].
    own = np.repeat(np.arange(laws), config.seeds), np.arange(laws * config.seeds)
    return {
        "trained": jax.tree.map(lambda field: field[*own, 0], measured),
        "plain": jax.tree.map(lambda field: field[*own, 1], measured),
        "transfer": jax.tree.map(lambda field: field[:, :, 0].mean(axis=-1), measured),
    }


def _compile_quickly(function):
    """A jit for programs that run once on little data, where compiling is most of the time."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=options)


def _over_runs(function, key: PRNGKeyArray, arguments: tuple) -> Measures:
    """Maps over runs in one compiled program, one run at a time."""
    runs = jax.tree.leaves(arguments)[0].shape[0]
    keys = jax.random.split(key, runs)
    mapped = _compile_quickly(lambda *args: jax.lax.map(lambda one: function(*one), args))
    return mapped(keys, *arguments)


def _repeat(of_laws: Float[Array, "laws ..."], seeds: int) -> Float[Array, "runs ..."]:
    return jnp.repeat(of_laws, seeds, axis=0)


def _plain_rates(step_sizes: Float[Array, " laws"], layers: int, d: int) -> PreconditionedRates:
    step = jnp.tile(step_sizes[:, None, None, None] * jnp.eye(d)[None, None], (1, layers, 1, 1))
    return PreconditionedRates(step, jnp.zeros_like(step))


def _unrolled(rates: PreconditionedRates, variant: Variant) -> PreconditionedRates:
    """The rates of every layer, where a recurrent variant keeps those of one."""
    arch = variant.architecture
    if not arch.recurrent:
        return rates
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, arch.layers, axis=-3), rates)


def _ridge(variant: Variant, d: int) -> Ridge | None:
    if variant.ridge == 0:
        return None
    return Ridge(jnp.asarray(variant.ridge), jnp.zeros((variant.task.outputs, d)))


def _model_loss(model: Model, variant: Variant, batch: int) -> training.Loss:
    ridge = _ridge(variant, model.features)
    return _episode_loss(
        lambda parameters, episode: architectures.predict(model, parameters, episode, ridge),
        variant.task,
        batch,
    )


def _rates_loss(variant: Variant, batch: int) -> training.Loss:
    def predict(rates, episode):
        ridge = _ridge(variant, episode.features.shape[-1])
        return alignment.predict_preconditioned(_unrolled(rates, variant), episode, ridge)

    return _episode_loss(predict, variant.task, batch)


def _episode_loss(predict, task: Task, batch: int) -> training.Loss:
    def loss(parameters, key, bank):
        episodes = draw_episodes(key, bank, task, batch)

        def one(episode):
            return alignment.query_loss(predict(parameters, episode), episode.query_targets)

        return jnp.mean(jax.vmap(one)(episodes))

    return loss


def _optimization(config: Training, layers: int) -> training.TrainingConfig:
    return training.TrainingConfig(
        optimizer="muon",
        steps=config.steps,
        batch=config.batch,
        # Layers multiply: what moves a deep model by as much is a smaller step of each.
        learning_rate=config.learning_rate / layers,
        b1=0.9,
        b2=0.98,
        weight_decay=0.0,
        clip=1.0,
        cosine=True,
        chunk=math.gcd(config.start_steps, config.steps),
    )
