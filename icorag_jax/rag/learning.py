"""Learning of the shared interface and of the updater, on answers of training questions.

Where it is known which passages an answer needs, the interface also learns to prefer them; and at
first nothing else, which does without the frozen model's upper layers and costs a tenth.

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
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.frozen import (
    Reading,
    cut_evidence,
    take_readings,
    token_losses,
    upper_decoder,
    upper_states,
)
from icorag_jax.rag.interface import passage_scores
from icorag_jax.rag.method import MethodConfig, init_method, predict_state, state_edit
from icorag_jax.training_checkpoints import open_checkpoints


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """How a method is trained.

    Attributes:
        gold_steps: steps of the optimizer on the loss `gold` alone, before the others.
        gold_batch: questions of each of these.
        steps: of the optimizer on all losses.
        batch: questions a step.
        gold_rate: the highest learning rate of the first steps; reached after a tenth of them,
            then falls to 0.
        learning_rate: likewise of the others.
        weight_decay: of AdamW.
        bias_penalty: weight of the mean square of the logit bias.
        gold_weight: weight of the loss `gold` of passages that are known to be needed.
        seed: of parameters and batches.
        checkpoint_every: steps from one checkpoint to the next.
    """

    gold_steps: int
    gold_batch: int
    steps: int
    batch: int
    gold_rate: float
    learning_rate: float
    weight_decay: float
    bias_penalty: float
    gold_weight: float
    seed: int
    checkpoint_every: int

    @property
    def all_steps(self) -> int:
        """Of both kinds."""
        return self.gold_steps + self.steps


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
        answers: mean cross entropy of answers, a question's tokens summed; 0 where it was not
            computed.
        penalty: mean square of the logit bias.
        gold: see `gold_losses`; over the questions for which it says something.
        exact: share of answers whose tokens are all the likeliest, likewise.
        gradient_norm: before clipping.
    """

    answers: Float[Array, ""]
    penalty: Float[Array, ""]
    gold: Float[Array, ""]
    exact: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def make_optimizer(config: LearningConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients, warm-up and a cosine, once for each kind of steps."""

    def schedule(steps: int, highest: float) -> optax.Schedule:
        warmup = max(steps // 10, 1)
        return optax.warmup_cosine_decay_schedule(0.0, highest, warmup, max(steps, warmup + 1))

    rate = optax.join_schedules(
        [
            schedule(config.gold_steps, config.gold_rate),
            schedule(config.steps, config.learning_rate),
        ],
        [config.gold_steps],
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


def gold_losses(
    scores: Float[Array, "batch passages"],
    is_gold: Bool[Array, "batch passages"],
    present: Bool[Array, "batch passages"],
) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
    """Cross entropy of the gold passages under the softmax of scores, their mean.

    Args:
        scores: of passages, `icorag_jax.rag.interface.passage_scores`.
        is_gold: which are known to be needed.
        present: which there are.

    Returns:
        The loss, and whether it says something: some passages are gold, and some are not.
    """
    shown = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
    each = jnp.where(is_gold, -jax.nn.log_softmax(shown, axis=-1), 0)
    says = is_gold.any(axis=1) & (present & ~is_gold).any(axis=1)
    count = jnp.maximum(is_gold.sum(axis=1), 1).astype(scores.dtype)
    return jnp.where(says, each.sum(axis=1) / count, 0), says


def method_loss(
    method: MethodConfig,
    decoder: DecoderConfig,
    config: LearningConfig,
    frozen: Parameters,
    parameters: Any,
    reading: Reading,
    *,
    gold_alone: bool,
) -> tuple[Float[Array, ""], LearningLosses]:
    """What learning minimizes.

    Args:
        method: the method.
        decoder: of the whole frozen model.
        config: the weights of the losses.
        frozen: the whole frozen model's parameters.
        parameters: of the method.
        reading: of questions with answers.
        gold_alone: leave the loss of answers out.
    """
    features, state = predict_state(method, decoder, parameters, reading.context)
    edit = state_edit(method, decoder, parameters, features, state)
    penalty = jnp.mean(jnp.square(edit.logit_bias))
    each, says = gold_losses(
        passage_scores(features, state), reading.is_gold, reading.context.present
    )
    gold = each.sum() / jnp.maximum(says.sum(), 1).astype(each.dtype)
    zero = jnp.float32(0)
    if gold_alone:
        # A penalty on biases would but shrink the gains of heads, which nothing else acts on here.
        return config.gold_weight * gold, LearningLosses(zero, penalty, gold, zero, zero)
    upper = upper_decoder(decoder, frozen, method.interface.layer)
    losses, exact = answer_losses(*upper, reading, edit)
    found = LearningLosses(losses.mean(), penalty, gold, exact.mean(), zero)
    total = found.answers + config.bias_penalty * penalty + config.gold_weight * gold
    return total, found


@functools.partial(jax.jit, static_argnames=("method", "decoder", "config", "gold_alone"))
def learning_step(
    method: MethodConfig,
    decoder: DecoderConfig,
    config: LearningConfig,
    frozen: Parameters,
    state: LearningState,
    reading: Reading,
    *,
    gold_alone: bool = False,
) -> tuple[LearningState, LearningLosses]:
    """One step of the optimizer; the state stays as it was where a gradient is not finite."""
    gradient = jax.value_and_grad(method_loss, argnums=4, has_aux=True)
    (_, losses), slopes = gradient(
        method, decoder, config, frozen, state.parameters, reading, gold_alone=gold_alone
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
    # Without keys and values, which the loss of gold passages does not need.
    kept = readings._replace(evidence=cut_evidence(readings.evidence, 0))
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
                gold_alone = step < config.gold_steps
                size = config.gold_batch if gold_alone else config.batch
                picked = np.random.default_rng([config.seed, step]).choice(
                    among, min(size, len(among)), replace=False
                )
                reading = place(take_readings(kept if gold_alone else readings, picked))
                state, losses = learning_step(
                    method, decoder, config, frozen, state, reading, gold_alone=gold_alone
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
                progress.set_postfix(
                    answers=f"{found[0]:.3f}", gold=f"{found[2]:.3f}", exact=f"{found[3]:.3f}"
                )
                stored.save(step + 1, (state, jnp.asarray(history)))
                recent = []
    for index, found in enumerate(history):
        last = min((index + 1) * config.checkpoint_every, config.all_steps)
        names = LearningLosses._fields
        rows.append({"step": last, **dict(zip(names, found.tolist(), strict=True))})
    return state.parameters, rows


def _empty_history(config: LearningConfig) -> Float[Array, "checkpoints losses"]:
    count = -(-config.all_steps // config.checkpoint_every)
    return jnp.zeros((count, len(LearningLosses._fields)))
