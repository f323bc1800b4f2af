"""Test-time adaptation: gradient steps for each query, the dear way to what an updater predicts.

Each query has a state of the interface of its own, which starts at the shared one. All queries of a
batch are adapted in one program: no term couples them.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import logits
from icorag_jax.rag.frozen import Reading, mean_where, token_losses, upper_decoder, upper_states
from icorag_jax.rag.interface import Features, InterfaceState
from icorag_jax.rag.method import Method, MethodConfig, state_edit
from icorag_jax.ranges import check_at_least

Objective = Literal["question", "cloze", "entropy", "oracle"]
# What needs no answer to the question.
LABEL_FREE: tuple[Objective, ...] = ("question", "cloze", "entropy")


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """How a query is adapted to.

    Attributes:
        objective: what is minimized: cross entropy of the question's own tokens (`question`) or of
            the second half of its best passage, read once more (`cloze`), both given the evidence;
            the entropy of the first token of the answer (`entropy`); or cross entropy of the right
            answer (`oracle`), which bounds what any adaptation could gain.
        optimizer: `sgd` or `adam`.
        steps: of the optimizer.
        learning_rate: of it.
    """

    objective: Objective
    optimizer: Literal["sgd", "adam"]
    steps: int
    learning_rate: float

    def __post_init__(self):
        """Checks the ranges."""
        if self.objective not in (*LABEL_FREE, "oracle"):
            raise ValueError(f"objective must be one of {LABEL_FREE}, got {self.objective!r}")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be sgd or adam, got {self.optimizer!r}")
        check_at_least(self, steps=1)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


def adapt(
    config: AdaptationConfig,
    method: MethodConfig,
    decoder: DecoderConfig,
    frozen: Parameters,
    parameters: Any,
    reading: Reading,
    objective: Reading,
    learning_rate: Float[Array, ""] | float | None = None,
) -> tuple[Features, InterfaceState, Float[Array, "steps batch"]]:
    """A state of the interface for each query, from gradient steps on its objective.

    Args:
        config: how.
        method: whose interface is adapted; of kind `shared`.
        decoder: of the whole frozen model.
        frozen: its parameters.
        parameters: of the method.
        reading: of the questions: the interface's features come from here.
        objective: of the rows that the objective is on, after the same evidence: of the questions
            themselves, or for `cloze` of `icorag_jax.rag.batches.cloze_rows`; for `oracle` with
            answers.
        learning_rate: in the place of the one of `config`, so that one program serves several.

    Returns:
        The interface's features, its states after each step (every leaf `[steps, batch, ...]`),
        and each query's objective before each step.
    """
    module = Method(method, decoder)
    upper, upper_parameters = upper_decoder(decoder, frozen, method.interface.layer)
    features, start = module.apply({"params": parameters}, reading.context, method=Method.state)

    def total(state: InterfaceState) -> tuple[Float[Array, ""], Float[Array, "batch"]]:
        edit = state_edit(method, decoder, parameters, features, state)
        states = upper_states(upper, upper_parameters, objective, edit)
        each = _objective(config.objective, upper, upper_parameters, objective, states)
        return each.sum(), each

    trajectory, losses = _descend(config, total, start, learning_rate)
    return features, trajectory, losses


def slot(
    config: AdaptationConfig,
    decoder: DecoderConfig,
    frozen: Parameters,
    reading: Reading,
    *,
    layer: int,
    learning_rate: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, "steps batch width"], Float[Array, "steps batch"]]:
    """SLOT (Hu et al. 2025): a vector a query, added to all final states of the frozen model.

    Its objective is the cross entropy of the question's tokens.

    Args:
        config: how; the objective must be `question`.
        decoder: of the whole frozen model.
        frozen: its parameters.
        reading: of the questions.
        layer: the one that the reading goes up to.
        learning_rate: as in `adapt`.

    Returns:
        The vectors after each step, and each query's objective before each step.

    Raises:
        ValueError: another objective.
    """
    if config.objective != "question":
        raise ValueError(f"SLOT's objective is question, got {config.objective}")
    upper, upper_parameters = upper_decoder(decoder, frozen, layer)
    states = upper_states(upper, upper_parameters, reading, None)

    def total(delta: Float[Array, "batch width"]) -> tuple[Array, Float[Array, "batch"]]:
        moved = states + delta[:, None].astype(states.dtype)
        each = _objective("question", upper, upper_parameters, reading, moved)
        return each.sum(), each

    start = jnp.zeros((states.shape[0], states.shape[2]), jnp.float32)
    return _descend(config, total, start, learning_rate)


def _descend(
    config: AdaptationConfig, total: Any, start: Any, learning_rate: Array | float | None
) -> tuple[Any, Any]:
    """States after each step, and each query's objective before it."""
    make = {"sgd": optax.sgd, "adam": optax.adam}[config.optimizer]
    optimizer = make(config.learning_rate if learning_rate is None else learning_rate)

    def step(carry: tuple, _: None) -> tuple:
        state, moments = carry
        slopes, each = jax.grad(total, has_aux=True)(state)
        with jax.numpy_dtype_promotion("standard"):  # Adam of optax counts steps in integers
            updates, moments = optimizer.update(slopes, moments, state)
        state = optax.apply_updates(state, updates)
        return (state, moments), (state, each)

    _, found = jax.lax.scan(step, (start, optimizer.init(start)), None, length=config.steps)
    return found


def _objective(
    name: Objective,
    upper: DecoderConfig,
    parameters: Parameters,
    reading: Reading,
    states: Float[Array, "batch tokens width"],
) -> Float[Array, "batch"]:
    """The objective of each query."""
    if name == "entropy":
        last = jnp.sum(reading.context.is_question, axis=1) - 1
        final = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        predicted = jax.nn.log_softmax(logits(upper, parameters, final), axis=-1)
        return -jnp.sum(jnp.exp(predicted) * predicted, axis=-1)
    losses, _ = token_losses(upper, parameters, states, reading.tokens)
    # Answers follow questions, so that no objective but `oracle` can see one.
    where = reading.is_answer if name == "oracle" else reading.context.is_question
    if name == "cloze":
        asked = jnp.cumsum(where, axis=1)
        where = where & (2 * asked > asked[:, -1:])
    return mean_where(losses, where[:, 1:])
