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
        batch: episodes a step of up to two layers; gradients of deeper models are noisier, and
            their batches larger in proportion.
        learning_rate: Muon's, at the start; falls along a cosine.
        init_scale: variance scaling of the initial weights.
        fit_episodes: episodes that the best step is fitted to.
        test_episodes: episodes of each run's evaluation on the law of its training.
        transfer_episodes: episodes of its evaluation on every law.
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
    transfer_episodes: int


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
    optimization = _optimization(config, variant.architecture.layers)
    init_key, run_key = jax.random.split(key)

    def init(key):
        return architectures.init_parameters(model, key, variant.task.outputs)

    initial = _compile_quickly(jax.vmap(jax.vmap(init)))(
        jax.random.split(init_key, (runs, config.starts))
    )
    trained, losses, start_losses = training.train_best_start(
        _model_loss(model, variant, optimization.batch),
        initial,
        jax.random.split(run_key, runs),
        _repeat(banks.train, config.seeds),
        optimization,
        config.start_steps,
        label,
    )
    # Runs may lie on devices of their own; all else is done on one.
    return Trained(jax.device_put(trained, jax.devices()[0]), losses, start_losses)


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
    optimization = _optimization(config, arch.layers)
    # One run a law rather than one a seed: more episodes for the same work.
    optimization = dataclasses.replace(optimization, batch=config.seeds * optimization.batch)
    rates, _ = training.train(
        _rates_loss(variant, optimization.batch),
        PreconditionedRates(start, jnp.zeros_like(start)),
        jax.random.split(key, banks.shape[0]),
        banks,
        optimization,
        label and f"{label}: reference",
    )
    return Reference(single.step_size, jax.device_put(rates, jax.devices()[0]))


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

    step_sizes, tested = (_repeat(leaf, config.seeds) for leaf in (reference.step_size, banks.test))
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
        `trained`, against the best step of the law of training, and `plain`, against the best
        plain step, `[runs, episodes]` each; `transfer`, tested on each law against the step of
        the law of training, `[laws, runs]`, means over episodes.
    """
    laws, _, d = banks.test.shape
    model = make_model(variant, d, config.init_scale)
    ridge = _ridge(variant, d)

    def against(rates, of_run, episodes):
        return alignment.measure(
            lambda episode: architectures.predict(model, of_run, episode, ridge),
            lambda episode: alignment.predict_preconditioned(rates, episode, ridge),
            episodes,
        )

    def on_own_law(key, bank, of_law, families):
        episodes = draw_episodes(key, bank, variant.evaluation, config.test_episodes)
        of_families = jax.vmap(against, in_axes=(0, None, None))
        return jax.vmap(of_families, in_axes=(None, 0, None))(families, of_law, episodes)

    def on_law(key, bank, best):
        episodes = draw_episodes(key, bank, variant.evaluation, config.transfer_episodes)
        return jax.vmap(against, in_axes=(0, 0, None))(best, parameters, episodes)

    best = _unrolled(reference.rates, variant)
    plain = _plain_rates(reference.step_size, variant.architecture.layers, d)
    own_keys, transfer_keys = (jax.random.split(part, laws) for part in jax.random.split(key))
    own = _over(on_own_law)(
        own_keys,
        banks.test,
        jax.tree.map(lambda leaf: leaf.reshape(laws, config.seeds, *leaf.shape[1:]), parameters),
        jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), best, plain),
    )
    own = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), own)
    of_runs = jax.tree.map(lambda leaf: _repeat(leaf, config.seeds), best)
    transfer = _over(lambda key, bank: on_law(key, bank, of_runs))(transfer_keys, banks.test)
    return {
        "trained": jax.tree.map(lambda field: field[:, 0], own),
        "plain": jax.tree.map(lambda field: field[:, 1], own),
        "transfer": jax.tree.map(lambda field: field.mean(axis=-1), transfer),
    }


def _compile_quickly(function):
    """A jit for programs that run once on little data, where compiling is most of the time."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=options)


def _over(function):
    """Maps over the leading axis of all arguments in one compiled program, one after another."""
    return _compile_quickly(lambda *args: jax.lax.map(lambda one: function(*one), args))


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
        batch=config.batch * max(layers, 2) // 2,
        # Layers multiply: what moves a deep model by as much is a smaller step of each.
        learning_rate=config.learning_rate / layers,
        b1=0.9,
        b2=0.98,
        weight_decay=0.0,
        clip=1.0,
        cosine=True,
        chunk=math.gcd(config.start_steps, config.steps),
    )
