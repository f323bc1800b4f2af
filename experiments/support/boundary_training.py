"""How a variant of the boundary sweep is trained, and the best gradient steps of its family.

Axes: `laws` feature distributions, `runs = laws * seeds`, law-major.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from experiments.support.variants import Variant
from icorag_jax.theory import alignment, architectures, training
from icorag_jax.theory.alignment import PreconditionedRates
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

    initial = compile_quickly(jax.vmap(jax.vmap(init)))(
        jax.random.split(init_key, (runs, config.starts))
    )
    trained, losses, start_losses = training.train_best_start(
        _model_loss(model, variant, optimization.batch),
        initial,
        jax.random.split(run_key, runs),
        repeat(banks.train, config.seeds),
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

    @compile_quickly
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


def compile_quickly(function):
    """A jit for programs that run once on little data, where compiling is most of the time."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=options)


def repeat(of_laws: Float[Array, "laws ..."], seeds: int) -> Float[Array, "runs ..."]:
    """What is one a law, for every run."""
    return jnp.repeat(of_laws, seeds, axis=0)


def unrolled(rates: PreconditionedRates, variant: Variant) -> PreconditionedRates:
    """The rates of every layer, where a recurrent variant keeps those of one."""
    arch = variant.architecture
    if not arch.recurrent:
        return rates
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, arch.layers, axis=-3), rates)


def ridge_of(variant: Variant, d: int) -> Ridge | None:
    """The pull to zero of a variant that has one."""
    if variant.ridge == 0:
        return None
    return Ridge(jnp.asarray(variant.ridge), jnp.zeros((variant.task.outputs, d)))


def _model_loss(model: Model, variant: Variant, batch: int) -> training.Loss:
    ridge = ridge_of(variant, model.features)
    return _episode_loss(
        lambda parameters, episode: architectures.predict(model, parameters, episode, ridge),
        variant.task,
        batch,
    )


def _rates_loss(variant: Variant, batch: int) -> training.Loss:
    def predict(rates, episode):
        ridge = ridge_of(variant, episode.features.shape[-1])
        return alignment.predict_preconditioned(unrolled(rates, variant), episode, ridge)

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
