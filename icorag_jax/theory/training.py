"""Training many runs of one model in one compiled program.

Runs (seeds, feature distributions) are a leading axis that `jax.vmap` maps over and that is
sharded over the devices there are; steps are a `jax.lax.scan`. The scan is cut into chunks only so
that a progress bar can move and a NaN be found early: a step's randomness comes from its number.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree
from optax.contrib import MuonDimensionNumbers

from icorag_jax.ranges import check_at_least

# Loss(parameters, key, data) -> scalar; draws its own batch from `key`.
Loss = Callable[[PyTree, PRNGKeyArray, PyTree], Float[Array, ""]]

Optimizer = Literal["adamw", "muon"]


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

    Raises:
        ValueError: for an optimizer that is not known, or numbers out of range.
    """

    optimizer: Optimizer
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
        """Checks the optimizer and ranges; NaN is in no range."""
        if self.optimizer not in get_args(Optimizer):
            known = ", ".join(get_args(Optimizer))
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        check_at_least(self, steps=1, batch=1, chunk=1)
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
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
        muon = optax.contrib.muon(
            rate,
            beta=config.b1,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
        update = _stacked(muon)
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def _matrices(parameters: PyTree) -> PyTree:
    """The last two axes of each leaf are a matrix to Muon, if two are left beside the stack's."""

    def axes(leaf):
        return MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2) if leaf.ndim >= 3 else None

    return jax.tree.map(axes, parameters)


def _stacked(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer on matrices of one shape as one array: half as much to compile."""

    def groups(tree):
        found: dict[tuple, list[int]] = {}
        for index, leaf in enumerate(jax.tree.leaves(tree)):
            found.setdefault(leaf.shape if leaf.ndim >= 2 else ("leaf", index), []).append(index)
        return found.values()

    def stack(tree):
        leaves = jax.tree.leaves(tree)
        return [jnp.stack([leaves[index] for index in group]) for group in groups(tree)]

    def init(params):
        return optimizer.init(stack(params))

    def update(updates, state, params=None):
        stacked, state = optimizer.update(stack(updates), state, stack(params))
        leaves, structure = jax.tree.flatten(updates)
        for group, rows in zip(groups(updates), jax.tree.leaves(stacked), strict=True):
            for position, index in enumerate(group):
                leaves[index] = rows[position]
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformation(init, update)


def shard_runs(tree: PyTree) -> PyTree:
    """Spreads the leading axis of every leaf over as many devices as divide it."""
    mesh = _run_mesh(jax.tree.leaves(tree)[0].shape[0])
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("runs")))


def spread_runs(run: Callable, *arguments: PyTree) -> PyTree:
    """`jax.vmap(run)(*arguments)`, every device with a program of its own for its share of runs.

    Within one device the older way to draw random bits is several times faster than the newer,
    which is for draws spread over devices: it is what `run` draws with.

    Args:
        run: a pure function of one run.
        *arguments: every leaf `[runs, ...]`, spread as `shard_runs` does.
    """
    mesh = _run_mesh(jax.tree.leaves(arguments)[0].shape[0])
    spec = PartitionSpec("runs")
    spread = jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    with jax.threefry_partitionable(False):
        return spread(*arguments)


def _run_mesh(runs: int) -> Mesh:
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if runs % n == 0)
    return Mesh(np.asarray(devices[:count]), ("runs",))


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

    return spread_runs(run, state, keys, data)


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
    one_start = jax.tree.map(lambda leaf: leaf[:, None], parameters)
    trained, losses, _ = train_best_start(loss, one_start, keys, data, config, config.chunk, label)
    return trained, losses


def train_best_start(
    loss: Loss,
    parameters: PyTree,
    keys: Key[Array, " runs"],
    data: Any,
    config: TrainingConfig,
    start_steps: int,
    label: str | None = None,
) -> tuple[PyTree, Float[np.ndarray, "runs steps"], Float[np.ndarray, "runs starts"]]:
    """Trains each run from several starts for its first steps, then goes on from the best one.

    Even one layer of linear attention has poor local minima where features are far from isotropic
    (docs/theory.md); which start leads where shows early. All starts go through one program, one
    after another, and those of a run see the same batches.

    Args:
        loss: as for `train`.
        parameters: initial parameters, every leaf `[runs, starts, ...]`.
        keys: `[runs]`.
        data: every leaf `[runs, ...]`.
        config: how to train.
        start_steps: the first of `config.steps`, which every start takes; a multiple of
            `config.chunk`.
        label: of the progress bar; None for no bar.

    Returns:
        Trained parameters `[runs, ...]`, the training losses from the best start, and the loss of
        each start that decided: its mean over the last chunk, infinite where it diverged.

    Raises:
        ValueError: `start_steps` is not a multiple of the chunk, or more than all steps.
        DivergedError: naming the runs whose loss became NaN or infinite.
    """
    if start_steps % config.chunk or not 0 < start_steps <= config.steps:
        raise ValueError(
            f"start_steps {start_steps} must be a multiple of chunk {config.chunk}, and at most "
            f"the {config.steps} steps"
        )
    runs, starts = jax.tree.leaves(parameters)[0].shape[:2]
    keys, data = shard_runs((keys, data))
    total = start_steps * starts + config.steps - start_steps
    bar = tqdm.tqdm(total=total, desc=label, unit="step", disable=label is None, leave=False)
    with bar:

        def go_on(state, chunks):
            losses = []
            for _ in range(chunks):
                state, values = train_chunk(state, keys, data, loss=loss, config=config)
                losses.append(np.asarray(values))
                bar.update(config.chunk)
                bar.set_postfix_str(f"loss {np.mean(losses[-1][:, -1]):.4f}")
            return state, losses

        tried = []
        for start in range(starts):
            # The state is donated to each chunk: train on a copy, so that the caller keeps its own.
            first = jax.tree.map(lambda leaf, start=start: jnp.copy(leaf[:, start]), parameters)
            tried.append(
                go_on(shard_runs(start_training(first, config)), start_steps // config.chunk)
            )
        start_losses = np.stack([losses[-1].mean(axis=-1) for _, losses in tried], axis=-1)
        start_losses = np.where(np.isfinite(start_losses), start_losses, np.inf)
        best = start_losses.argmin(axis=-1)

        def pick(*leaves):
            return jnp.stack(leaves)[best, np.arange(runs)]

        states, begun = zip(*tried, strict=True)
        state = shard_runs(jax.tree.map(pick, *states))
        chosen = [np.stack(chunk)[best, np.arange(runs)] for chunk in zip(*begun, strict=True)]
        for _ in range((config.steps - start_steps) // config.chunk):
            if not np.all(np.isfinite(chosen[-1])):
                break
            state, more = go_on(state, 1)
            chosen += more
    losses = np.concatenate(chosen, axis=-1)
    if not np.all(np.isfinite(losses)):
        raise DivergedError(_divergence(losses, config))
    return state.parameters, losses, start_losses


def _divergence(losses: Float[np.ndarray, "runs steps"], config: TrainingConfig) -> str:
    finite = np.isfinite(losses).all(axis=-1)
    first = int(np.argmax(~np.isfinite(losses).all(axis=0)))
    return (
        f"training diverged at step {first} in runs {np.flatnonzero(~finite).tolist()}; "
        f"lower the learning rate ({config.learning_rate})"
    )
