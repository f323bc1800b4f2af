"""Training many runs of one model in one compiled program.

Runs (seeds, feature distributions) are a leading axis that `jax.vmap` maps over and that is
sharded over the devices there are; steps are a `jax.lax.scan`. The scan is cut into chunks only so
that a progress bar can move and a NaN be found early: a step's randomness comes from its number.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree
from optax.contrib import MuonDimensionNumbers

# Loss(parameters, key, data) -> scalar; draws its own batch from `key`.
Loss = Callable[[PyTree, PRNGKeyArray, PyTree], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        optimizer: AdamW, or Muon (orthogonalized momentum for matrices, AdamW for the rest), which
            converges quickly where directions of the features differ much in energy.
        steps: optimizer steps.
        batch: episodes a step.
        learning_rate: the peak of the schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        weight_decay: of either optimizer.
        clip: largest global norm of a gradient.
        cosine: let the learning rate fall to zero along a cosine rather than keep it.
        chunk: steps between two moves of the progress bar.
    """

    optimizer: Literal["adamw", "muon"]
    steps: int
    batch: int
    learning_rate: float
    b1: float
    b2: float
    weight_decay: float
    clip: float
    cosine: bool
    chunk: int

    def __post_init__(self):
        """Checks ranges."""
        for name in ("steps", "batch", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps % self.chunk:
            raise ValueError(f"chunk {self.chunk} must divide steps {self.steps}")


class DivergedError(FloatingPointError):
    """A loss became NaN or infinite."""


class TrainingState(NamedTuple):
    """All that training carries from step to step; every leaf has a leading axis `[runs]`."""

    parameters: PyTree
    optimizer: PyTree
    step: Array


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clipped AdamW or Muon with a constant or cosine learning rate."""
    rate = (
        optax.cosine_decay_schedule(config.learning_rate, config.steps)
        if config.cosine
        else config.learning_rate
    )
    if config.optimizer == "adamw":
        update = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    else:
        update = optax.contrib.muon(
            rate,
            beta=config.b1,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def _matrices(parameters: PyTree) -> PyTree:
    """The last two axes of each leaf that has them are a matrix to Muon."""

    def axes(leaf):
        return MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2) if leaf.ndim >= 2 else None

    return jax.tree.map(axes, parameters)


def shard_runs(tree: PyTree) -> PyTree:
    """Spreads the leading axis of every leaf over as many devices as divide it."""
    runs = jax.tree.leaves(tree)[0].shape[0]
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if runs % n == 0)
    if count == 1:
        return tree
    mesh = Mesh(np.asarray(devices[:count]), ("runs",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("runs")))


def start_training(parameters: PyTree, config: TrainingConfig) -> TrainingState:
    """The state before the first step, for parameters with a leading axis `[runs]`."""
    runs = jax.tree.leaves(parameters)[0].shape[0]
    optimizer = jax.vmap(make_optimizer(config).init)(parameters)
    return TrainingState(parameters, optimizer, jnp.zeros(runs, jnp.int32))


@functools.partial(jax.jit, static_argnames=("loss", "config"), donate_argnames=("state",))
def train_chunk(
    state: TrainingState,
    keys: Key[Array, " runs"],
    data: PyTree,
    *,
    loss: Loss,
    config: TrainingConfig,
) -> tuple[TrainingState, Float[Array, "runs chunk"]]:
    """Trains every run for `config.chunk` steps; returns the state and each step's loss."""
    optimizer = make_optimizer(config)

    def run(state, key, data):
        def step(state, _):
            step_key = jax.random.fold_in(key, state.step)
            value, slope = jax.value_and_grad(loss)(state.parameters, step_key, data)
            # optax mixes integer step counts with floats, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                updates, moments = optimizer.update(slope, state.optimizer, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
            return TrainingState(parameters, moments, state.step + 1), value

        return jax.lax.scan(step, state, length=config.chunk)

    # The older way to draw bits is several times faster on one device; the newer one is for draws
    # that are themselves spread over devices.
    with jax.threefry_partitionable(jax.device_count() > 1):
        return jax.vmap(run)(state, keys, data)


def train(
    loss: Loss,
    parameters: PyTree,
    keys: Key[Array, " runs"],
    data: Any,
    config: TrainingConfig,
    label: str | None = None,
) -> tuple[PyTree, Float[np.ndarray, "runs steps"]]:
    """Trains all runs side by side.

    Args:
        loss: a pure function of one run's parameters, a key and the run's data.
        parameters: initial parameters, every leaf `[runs, ...]`.
        keys: `[runs]`, one a run.
        data: what a run draws its batches from, every leaf `[runs, ...]`.
        config: how to train.
        label: name of the progress bar; None for no bar.

    Returns:
        Trained parameters and the training losses.

    Raises:
        DivergedError: naming the runs whose loss became NaN or infinite.
    """
    parameters, losses = _train_chunks(loss, parameters, keys, data, config, label)
    if not np.all(np.isfinite(losses)):
        raise DivergedError(_divergence(losses, config))
    return parameters, losses


def train_best_start(
    loss: Loss,
    parameters: PyTree,
    keys: Key[Array, " runs"],
    data: Any,
    config: TrainingConfig,
    label: str | None = None,
) -> tuple[PyTree, Float[np.ndarray, "runs starts"]]:
    """Trains each run from several starts for a while and keeps the start of the least loss.

    Even one layer of linear attention has poor local minima where features are far from isotropic
    (docs/theory.md); which start leads where shows early.

    Args:
        loss: as for `train`.
        parameters: initial parameters, every leaf `[runs, starts, ...]`.
        keys: `[runs]`; the starts of a run see the same batches.
        data: every leaf `[runs, ...]`.
        config: of this first phase.
        label: of the progress bar; None for no bar.

    Returns:
        The parameters of the best start after the phase, every leaf `[runs, ...]`, and the mean
        loss of each start over the last quarter of the phase, infinite where it diverged.

    Raises:
        DivergedError: every start of a run diverged.
    """
    runs, starts = jax.tree.leaves(parameters)[0].shape[:2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(runs * starts, *leaf.shape[2:]), parameters)
    repeat = functools.partial(jnp.repeat, repeats=starts, axis=0)
    trained, losses = _train_chunks(
        loss, flat, repeat(keys), jax.tree.map(repeat, data), config, label
    )
    final = losses[:, -max(1, config.steps // 4) :].mean(axis=-1).reshape(runs, starts)
    final = np.where(np.isfinite(final), final, np.inf)
    if np.isinf(final).all(axis=-1).any():
        raise DivergedError(_divergence(losses, config))
    best = np.arange(runs) * starts + final.argmin(axis=-1)
    return jax.tree.map(lambda leaf: leaf[best], trained), final


def _train_chunks(
    loss: Loss,
    parameters: PyTree,
    keys: Key[Array, " runs"],
    data: Any,
    config: TrainingConfig,
    label: str | None,
) -> tuple[PyTree, Float[np.ndarray, "runs steps"]]:
    """Trains with a progress bar; stops early once every run has diverged."""
    # The state is donated to each chunk: train on a copy, so that the caller keeps its own.
    parameters = jax.tree.map(jnp.copy, parameters)
    state, keys, data = shard_runs((start_training(parameters, config), keys, data))
    losses: list[np.ndarray] = []
    bar = tqdm.tqdm(total=config.steps, desc=label, unit="step", disable=label is None, leave=False)
    with bar:
        for _ in range(config.steps // config.chunk):
            state, values = train_chunk(state, keys, data, loss=loss, config=config)
            losses.append(np.asarray(values))
            if not np.any(np.isfinite(losses[-1][:, -1])):
                break
            bar.update(config.chunk)
            bar.set_postfix_str(f"loss {np.nanmean(losses[-1][:, -1]):.4f}")
    return state.parameters, np.concatenate(losses, axis=-1)


def _divergence(losses: Float[np.ndarray, "runs steps"], config: TrainingConfig) -> str:
    finite = np.isfinite(losses).all(axis=-1)
    first = int(np.argmax(~np.isfinite(losses).all(axis=0)))
    return (
        f"training diverged at step {first} in runs {np.flatnonzero(~finite).tolist()}; "
        f"lower the learning rate ({config.learning_rate})"
    )
