"""Learning of the shared interface and of the updater, on answers of training questions.

The frozen model has read all questions before (`icorag_jax.rag.frozen`): a step differentiates the
question and answer rows of the upper layers, and no more.
"""

import dataclasses
import functools
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
from icorag_jax.rag.frozen import (
    Reading,
    take_readings,
    token_losses,
    upper_decoder,
    upper_states,
)
from icorag_jax.rag.method import MethodConfig, init_method, predict_edit
from icorag_jax.training_checkpoints import open_checkpoints


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How a method is trained.

    Attributes:
        steps: of the optimizer.
        batch: questions a step.
        learning_rate: the highest; reached after a tenth of the steps, then falls to 0.
        weight_decay: of AdamW.
        bias_penalty: weight of the mean square of the logit bias.
        seed: of parameters and batches.
        checkpoint_every: steps from one checkpoint to the next.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    bias_penalty: float
    seed: int
    checkpoint_every: int


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


class LearningLosses(NamedTuple):
    """Of a step.

    Attributes:
        answers: mean cross entropy of answers, a question's tokens summed.
        penalty: mean square of the logit bias.
        exact: share of answers whose tokens are all the likeliest.
        gradient_norm: before clipping.
    """

    answers: Float[Array, ""]
    penalty: Float[Array, ""]
    exact: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def make_optimizer(config: LearningConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients, warm-up and a cosine."""
    warmup = max(config.steps // 10, 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )


def answer_losses(
    decoder: DecoderConfig, frozen: Parameters, reading: Reading, edit: Any
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Cross entropy of each answer, its tokens summed, and whether all were the likeliest.

    Args:
        decoder: from `upper_decoder`.
        frozen: from `upper_decoder`.
        reading: of questions with answers.
        edit: how evidence is seen; None is the frozen model.
    """
    return score_answers(decoder, frozen, upper_states(decoder, frozen, reading, edit), reading)


def score_answers(
    decoder: DecoderConfig,
    frozen: Parameters,
    states: Float[Array, "batch tokens width"],
    reading: Reading,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """`answer_losses` from final states."""
    losses, hits = token_losses(decoder, frozen, states, reading.tokens)
    where = reading.is_answer[:, 1:]
    exact = jnp.all(hits | ~where, axis=1).astype(jnp.float32)
    return jnp.sum(jnp.where(where, losses, 0), axis=1), exact


def method_loss(
    method: MethodConfig,
    decoder: DecoderConfig,
    frozen: Parameters,
    parameters: Any,
    reading: Reading,
    bias_penalty: float,
) -> tuple[Float[Array, ""], LearningLosses]:
    """What learning minimizes.

    Args:
        method: the method.
        decoder: of the whole frozen model.
        frozen: its parameters.
        parameters: of the method.
        reading: of questions with answers.
        bias_penalty: see `LearningConfig`.
    """
    edit = predict_edit(method, decoder, parameters, reading.context)
    upper = upper_decoder(decoder, frozen, method.interface.layer)
    losses, exact = answer_losses(*upper, reading, edit)
    penalty = jnp.mean(jnp.square(edit.logit_bias))
    found = LearningLosses(losses.mean(), penalty, exact.mean(), jnp.float32(0))
    return found.answers + bias_penalty * penalty, found


@functools.partial(jax.jit, static_argnames=("method", "decoder", "config"))
def learning_step(
    method: MethodConfig,
    decoder: DecoderConfig,
    config: LearningConfig,
    frozen: Parameters,
    state: LearningState,
    reading: Reading,
) -> tuple[LearningState, LearningLosses]:
    """One step of the optimizer; the state stays as it was where a gradient is not finite."""
    gradient = jax.value_and_grad(method_loss, argnums=3, has_aux=True)
    (_, losses), slopes = gradient(
        method, decoder, frozen, state.parameters, reading, config.bias_penalty
    )
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
    readings: Reading,
    checkpoints: Path,
    *,
    among: Int[np.ndarray, " questions"] | None = None,
    place: Callable[[Reading], Reading] = lambda reading: reading,
) -> tuple[Any, list[dict[str, int | float]]]:
    """Trains a method, going on from the last checkpoint if there is one.

    Args:
        method: the method.
        decoder: of the frozen model.
        config: how it is trained.
        frozen: the frozen model's parameters.
        readings: of all training questions, on the host.
        checkpoints: folder of this training's states.
        among: which of the readings are trained on; None for all.
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
    if among is None:
        among = np.arange(readings.tokens.shape[0])
    rows: list[dict[str, int | float]] = []
    recent: list[LearningLosses] = []
    with open_checkpoints(checkpoints) as stored:
        restored = stored.restore((state, _empty_history(config)))
        # Bound to no device, so that it can follow the batches to theirs.
        state, history = jax.tree.map(jnp.asarray, jax.device_get(restored))
        done = int(state.step)
        history = np.array(history)
        steps = range(done, config.steps)
        with tqdm(
            steps, initial=done, total=config.steps, unit="step", desc=method.kind
        ) as progress:
            for step in progress:
                picked = np.random.default_rng([config.seed, step]).choice(
                    among, min(config.batch, len(among)), replace=False
                )
                reading = place(take_readings(readings, picked))
                state, losses = learning_step(method, decoder, config, frozen, state, reading)
                recent.append(losses)
                if (step + 1) % config.checkpoint_every and step + 1 < config.steps:
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
                progress.set_postfix(answers=f"{found[0]:.3f}", exact=f"{found[2]:.3f}")
                stored.save(step + 1, (state, jnp.asarray(history)))
                recent = []
    for index, found in enumerate(history):
        last = min((index + 1) * config.checkpoint_every, config.steps)
        names = LearningLosses._fields
        rows.append({"step": last, **dict(zip(names, found.tolist(), strict=True))})
    return state.parameters, rows


def _empty_history(config: LearningConfig) -> Float[Array, "checkpoints losses"]:
    count = -(-config.steps // config.checkpoint_every)
    return jnp.zeros((count, len(LearningLosses._fields)))
