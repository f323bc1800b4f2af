"""Learning of the shared interface and of the updater, on answers of training questions.

Where it is known which passages an answer needs, the interface also learns to prefer them; and at
first nothing else, which does without the frozen model's upper layers and costs a tenth. So there
may be many more questions for these steps than for the others.

The frozen model has read all questions before (`icorag_jax.rag.frozen`): a step differentiates the
question and answer rows of the upper layers, and no more. In every other step the updater does
without hidden states (`icorag_jax.rag.method.hide_states`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.frozen import Reading
from icorag_jax.rag.losses import LearningLosses, LossWeights, method_loss
from icorag_jax.rag.method import MethodConfig, hide_states, init_method
from icorag_jax.rag.readings import Pool, cut_evidence
from icorag_jax.ranges import check_at_least
from icorag_jax.training_checkpoints import open_checkpoints


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How a method is trained.

    Attributes:
        selection_steps: steps of the optimizer on the loss `selection` alone, before the others.
        selection_batch: questions of each of these.
        steps: of the optimizer on all losses.
        batch: questions a step.
        selection_rate: the highest learning rate of the first steps; reached after a tenth of them,
            then falls to 0.
        learning_rate: likewise of the others.
        weight_decay: of AdamW, on what scores of passages are made of; see `make_optimizer`.
        bias_penalty: weight of the mean squares of biases.
        selection_weight: weight of the loss `selection`.
        seed: of parameters and batches.
        checkpoint_every: steps from one checkpoint to the next.
    """

    selection_steps: int
    selection_batch: int
    steps: int
    batch: int
    selection_rate: float
    learning_rate: float
    weight_decay: float
    bias_penalty: float
    selection_weight: float
    seed: int
    checkpoint_every: int

    def __post_init__(self):
        """Checks the ranges."""
        check_at_least(
            self,
            selection_steps=0,
            selection_batch=1,
            steps=0,
            batch=1,
            weight_decay=0,
            bias_penalty=0,
            selection_weight=0,
            seed=0,
            checkpoint_every=1,
        )
        for name in ("selection_rate", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def all_steps(self) -> int:
        """Of both kinds."""
        return self.selection_steps + self.steps


class LearningState(NamedTuple):
    """What learning goes on from.

    Attributes:
        step: steps done.
        parameters: of the method.
        optimizer: its state.
    """

    step: Int[Array, ""]
    parameters: Any
    optimizer: Any


def make_optimizer(config: LearningConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients, warm-up and a cosine, once for each kind of steps.

    Gains of heads and frames of values do not decay: they would through all of the first steps,
    which have no gradient for them.
    """

    def schedule(steps: int, highest: float) -> optax.Schedule:
        warmup = max(steps // 10, 1)
        return optax.warmup_cosine_decay_schedule(0.0, highest, warmup, max(steps, warmup + 1))

    rate = optax.join_schedules(
        [
            schedule(config.selection_steps, config.selection_rate),
            schedule(config.steps, config.learning_rate),
        ],
        [config.selection_steps],
    )
    adamw = optax.adamw(rate, weight_decay=config.weight_decay, mask=_decays)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def _decays(parameters: Any) -> Any:
    """Which parameters do."""
    kept = ("gain", "value_read", "value_write")
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in kept, parameters)


@functools.partial(jax.jit, static_argnames=("method", "decoder", "config", "selection_alone"))
def learning_step(
    method: MethodConfig,
    decoder: DecoderConfig,
    config: LearningConfig,
    frozen: Parameters,
    state: LearningState,
    reading: Reading,
    *,
    selection_alone: bool = False,
) -> tuple[LearningState, LearningLosses]:
    """One step of the optimizer; the state stays as it was where a gradient is not finite."""
    weights = LossWeights(config.bias_penalty, config.selection_weight)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient(parameters: Any) -> tuple[Float[Array, ""], LearningLosses]:
        hidden = hide_states(method, parameters)
        is_hidden = state.step % 2 == 1
        parameters = jax.tree.map(lambda a, b: jnp.where(is_hidden, a, b), hidden, parameters)
        return method_loss(
            method, decoder, weights, frozen, parameters, reading, selection_alone=selection_alone
        )

    (_, losses), slopes = gradient(state.parameters)
    norm = optax.tree.norm(slopes)
    with jax.numpy_dtype_promotion("standard"):  # Adam of optax counts steps in integers
        updates, optimizer = make_optimizer(config).update(
            slopes, state.optimizer, state.parameters
        )
    new = LearningState(state.step, optax.apply_updates(state.parameters, updates), optimizer)
    kept = jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(norm), a, b), new, state)
    return kept._replace(step=state.step + 1), losses._replace(gradient_norm=norm)


def learn(
    method: MethodConfig,
    decoder: DecoderConfig,
    config: LearningConfig,
    frozen: Parameters,
    selection: Pool,
    answers: Pool,
    checkpoints: Path,
    *,
    place: Callable[[Reading], Reading] = lambda reading: reading,
) -> tuple[Any, list[dict[str, int | float]]]:
    """Trains a method, going on from the last checkpoint if there is one.

    Args:
        method: the method.
        decoder: of the frozen model.
        config: how it is trained.
        frozen: the frozen model's parameters.
        selection: what the steps on that loss alone are on; for these, readings without
            the evidence of the upper layers will do (`icorag_jax.rag.frozen.read_below`).
        answers: what the other steps are on.
        checkpoints: folder of this training's states.
        place: puts a batch on devices, as `icorag_jax.rag.placement.split_questions` does.

    Returns:
        The method's parameters, and the losses from checkpoint to checkpoint: means over the steps
        in which all were finite; the others have changed nothing.

    Raises:
        FloatingPointError: there was no such step from one checkpoint to the next.
        ValueError: the last checkpoint is damaged, or of another training.
    """
    key = jax.random.key(config.seed)
    parameters = init_method(method, decoder, key)
    state = LearningState(jnp.int32(0), parameters, make_optimizer(config).init(parameters))
    kept = selection.readings._replace(evidence=cut_evidence(selection.readings.evidence, 0))
    selection = selection._replace(readings=kept)
    rows: list[dict[str, int | float]] = []
    recent: list[LearningLosses] = []
    with open_checkpoints(checkpoints) as stored:
        restored = stored.restore((state, _empty_history(config)))
        # Bound to no device, so that it can follow the batches to theirs.
        state, history = jax.tree.map(jnp.asarray, jax.device_get(restored))
        done = int(state.step)
        history = np.array(history)
        last = config.all_steps
        steps = range(done, last)
        with tqdm(steps, initial=done, total=last, unit="step", desc=method.kind) as progress:
            for step in progress:
                selection_alone = step < config.selection_steps
                pool, size = answers, config.batch
                if selection_alone:
                    pool, size = selection, config.selection_batch
                reading = place(pool.pick(size, (config.seed, step)))
                state, losses = learning_step(
                    method, decoder, config, frozen, state, reading, selection_alone=selection_alone
                )
                recent.append(losses)
                if (step + 1) % config.checkpoint_every and step + 1 < last:
                    continue
                found = np.asarray(jax.device_get(recent))
                finite = np.isfinite(found).all(axis=1)
                if not finite.any():
                    raise FloatingPointError(
                        f"no step of the last {len(found)} up to step {step + 1} had finite losses "
                        "and gradients: pass a smaller learning rate"
                    )
                found = found[finite].mean(axis=0)
                history[step // config.checkpoint_every] = found
                shown = {name: f"{loss:.3f}" for name, loss in _named(found).items()}
                progress.set_postfix(shown)
                stored.save(step + 1, (state, jnp.asarray(history)))
                recent = []
    for index, found in enumerate(history):
        last = min((index + 1) * config.checkpoint_every, config.all_steps)
        rows.append({"step": last, **_named(found)})
    return state.parameters, rows


def _named(losses: Float[np.ndarray, " losses"]) -> dict[str, float]:
    return dict(zip(LearningLosses._fields, losses.tolist(), strict=True))


def _empty_history(config: LearningConfig) -> Float[Array, "checkpoints losses"]:
    count = -(-config.all_steps // config.checkpoint_every)
    return jnp.zeros((count, len(LearningLosses._fields)))
