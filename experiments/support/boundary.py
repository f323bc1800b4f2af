"""The variants of the boundary sweep, and how one is trained and held against its gradient step.

A variant is an architecture, a task, the weights a construction gives it, and the family of
gradient steps it is compared with. It is read twice on every feature distribution:

* *construction*: the construction's weights with the variant's nonlinearity put in, against the
  gradient descent that they would be without it;
* *trained*: the variant trained there, against the best gradient step of its family.

Axes: `laws` feature distributions, `runs = laws * seeds`, law-major.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from icorag_jax.theory import alignment, architectures, constructions, objective, training
from icorag_jax.theory.alignment import Measures, PreconditionedRates
from icorag_jax.theory.architectures import Architecture, Model
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.features import Bank
from icorag_jax.theory.objective import Ridge
from icorag_jax.theory.tasks import Task, draw_episodes


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the boundary.

    Attributes:
        name: unique.
        architecture: of the model.
        task: how episodes are drawn for training.
        test_task: how they are drawn for evaluation, where that differs.
        construction: descent that the construction takes, plain or GD++.
        ridge: strength of prior tokens that pull to the zero interface; 0 for none.
    """

    name: str
    architecture: Architecture
    task: Task
    test_task: Task | None = None
    construction: Literal["gd", "gd_plus_plus"] = "gd"
    ridge: float = 0.0

    @property
    def evaluation(self) -> Task:
        """The task of evaluation."""
        return self.test_task or self.task

    @property
    def single_step(self) -> bool:
        """Whether the best step has a closed form: one layer, from zero."""
        return self.architecture.layers == 1


@dataclasses.dataclass(frozen=True)
class Training:
    """How the sweep trains each variant.

    Attributes:
        seeds: runs on each distribution.
        starts: initializations a run chooses from.
        start_steps: steps that each start is tried for.
        steps: steps of the start that was chosen.
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
    """What a variant is held against on each run.

    Attributes:
        step_size: `[runs]`, of the best plain step.
        rates: the best member of the variant's family, `[runs, layers, d, d]` each.
    """

    step_size: Float[Array, " runs"]
    rates: PreconditionedRates


class Trained(NamedTuple):
    """A variant trained on every law.

    Attributes:
        parameters: of the models, every leaf `[runs, ...]`.
        reference: the steps to compare with.
        start_losses: `[runs, starts]`, from which the starts were chosen.
        losses: `[runs, steps]`.
    """

    parameters: PyTree
    reference: Reference
    start_losses: Float[np.ndarray, "runs starts"]
    losses: Float[np.ndarray, "runs steps"]


def make_model(variant: Variant, d: int, init_scale: float) -> Model:
    """The variant's model."""
    return Model(variant.architecture, d, init_scale)


def train_variant(
    variant: Variant, banks: Bank, config: Training, key: PRNGKeyArray, label: str | None
) -> Trained:
    """Trains a variant on every law side by side, and fits the steps to compare it with."""
    laws, _, d = banks.train.shape
    runs = laws * config.seeds
    model = make_model(variant, d, config.init_scale)
    init_key, run_key, fit_key = jax.random.split(key, 3)
    keys = jax.random.split(run_key, runs)
    data = jnp.repeat(banks.train, config.seeds, axis=0)

    init_keys = jax.random.split(init_key, (runs, config.starts))
    initial = jax.vmap(
        jax.vmap(lambda key: architectures.init_parameters(model, key, variant.task.outputs))
    )(init_keys)
    loss = _model_loss(model, variant, config.batch)
    first = _optimization(config, config.start_steps, variant.architecture.layers)
    chosen, start_losses = training.train_best_start(
        loss, initial, keys, data, first, label and f"{label}: starts"
    )
    main = _optimization(config, config.steps, variant.architecture.layers)
    # Other batches than those that chose the start.
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
    parameters, losses = training.train(loss, chosen, keys, data, main, label)
    reference = fit_reference(variant, banks.train, config, fit_key, label)
    return Trained(parameters, reference, start_losses, losses)


def fit_reference(
    variant: Variant,
    banks: Float[Array, "laws samples d"],
    config: Training,
    key: PRNGKeyArray,
    label: str | None,
) -> Reference:
    """The best plain step on every law, and the best step, or steps, of the variant's family.

    One step is fitted by least squares; several are trained like a model.
    """
    laws = banks.shape[0]
    arch = variant.architecture
    fit_keys = jax.random.split(key, laws)

    @jax.jit
    def fit(key, bank):
        episodes = draw_episodes(key, bank, variant.task, config.fit_episodes)
        return alignment.best_step_size(episodes), alignment.best_preconditioner(episodes)

    fitted = [fit(key, bank) for key, bank in zip(fit_keys, banks, strict=True)]
    step_sizes = jnp.stack([step_size for step_size, _ in fitted])
    matrices = jnp.stack([matrix for _, matrix in fitted])[:, None]
    rates = PreconditionedRates(matrices, jnp.zeros_like(matrices))
    if not variant.single_step:
        distinct = 1 if arch.recurrent else arch.layers
        start = jnp.tile(matrices / arch.layers, (1, distinct, 1, 1))
        initial = PreconditionedRates(start, jnp.zeros_like(start))
        loss = _rates_loss(variant, config.batch)
        rates, _ = training.train(
            loss,
            initial,
            jax.vmap(jax.random.fold_in, in_axes=(0, None))(fit_keys, 1),
            banks,
            _optimization(config, config.start_steps + config.steps, arch.layers),
            label and f"{label}: reference",
        )
    return jax.tree.map(
        lambda leaf: jnp.repeat(leaf, config.seeds, axis=0), Reference(step_sizes, rates)
    )


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

    return _over_runs(one, key, (reference.step_size, _repeat(banks.test, config.seeds)))


def measure_trained(
    variant: Variant,
    trained: Trained,
    banks: Bank,
    config: Training,
    key: PRNGKeyArray,
    family: Literal["best", "plain"],
) -> Measures:
    """The trained model against its best step, or the best plain step, `[runs, episodes]`."""
    d = banks.train.shape[-1]
    model = make_model(variant, d, config.init_scale)
    reference = trained.reference
    rates = _plain_rates(reference.step_size, d) if family == "plain" else reference.rates

    def one(key, parameters, rates, bank):
        episodes = draw_episodes(key, bank, variant.evaluation, config.test_episodes)
        return _measure(model, variant, parameters, rates, episodes)

    return _over_runs(one, key, (trained.parameters, rates, _repeat(banks.test, config.seeds)))


def measure_transfer(
    variant: Variant, trained: Trained, banks: Bank, config: Training, key: PRNGKeyArray
) -> Measures:
    """Models trained on law A, tested on law B against the step of A, `[laws, runs]` means."""
    d = banks.train.shape[-1]
    model = make_model(variant, d, config.init_scale)

    def on_law(key, bank):
        episodes = draw_episodes(key, bank, variant.evaluation, config.test_episodes // 4)

        def one(parameters, rates):
            measures = _measure(model, variant, parameters, rates, episodes)
            return jax.tree.map(jnp.mean, measures)

        return jax.vmap(one)(trained.parameters, trained.reference.rates)

    keys = jax.random.split(key, banks.test.shape[0])
    return jax.jit(lambda *args: jax.lax.map(lambda pair: on_law(*pair), args))(keys, banks.test)


def _measure(
    model: Model,
    variant: Variant,
    parameters: PyTree,
    rates: PreconditionedRates,
    episodes: Episode,
) -> Measures:
    ridge = _ridge(variant, model.features)
    return alignment.measure(
        lambda episode: architectures.predict(model, parameters, episode, ridge),
        lambda episode: alignment.predict_preconditioned(_unrolled(rates, variant), episode, ridge),
        episodes,
    )


def _over_runs(function, key: PRNGKeyArray, arguments: tuple) -> Measures:
    """Maps over runs in one compiled program, one run at a time."""
    runs = jax.tree.leaves(arguments)[0].shape[0]
    keys = jax.random.split(key, runs)
    mapped = jax.jit(lambda *args: jax.lax.map(lambda one: function(*one), args))
    return mapped(keys, *arguments)


def _repeat(banks: Float[Array, "laws samples d"], seeds: int) -> Float[Array, "runs samples d"]:
    return jnp.repeat(banks, seeds, axis=0)


def _plain_rates(step_sizes: Float[Array, " runs"], d: int) -> PreconditionedRates:
    step = step_sizes[:, None, None, None] * jnp.eye(d)[None, None]
    return PreconditionedRates(step, jnp.zeros_like(step))


def _unrolled(rates: PreconditionedRates, variant: Variant) -> PreconditionedRates:
    """The rates of every layer, where a recurrent variant keeps those of one."""
    arch = variant.architecture
    if not arch.recurrent:
        return rates
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (arch.layers, 1, 1)), rates)


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


def _optimization(config: Training, steps: int, layers: int) -> training.TrainingConfig:
    chunks = next(count for count in (10, 5, 4, 2, 1) if steps % count == 0)
    return training.TrainingConfig(
        optimizer="muon",
        steps=steps,
        batch=config.batch,
        # Layers multiply: what moves a deep model by as much is a smaller step of each.
        learning_rate=config.learning_rate / layers,
        b1=0.9,
        b2=0.98,
        weight_decay=0.0,
        clip=1.0,
        cosine=True,
        chunk=steps // chunks,
    )
