"""Tuning of test-time adaptation on training questions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.support.qa_settings import MethodName
from experiments.support.qa_tables import best_settings
from experiments.support.qa_training import READ_AT_ONCE, Questions, Subject
from icorag_jax.rag.adaptation import LABEL_FREE, AdaptationConfig, adapt, slot
from icorag_jax.rag.answering import objective_reading, prepare
from icorag_jax.rag.batches import cloze_rows
from icorag_jax.rag.frozen import Reading, upper_decoder, upper_states
from icorag_jax.rag.losses import answer_losses, score_answers
from icorag_jax.rag.method import state_edit
from icorag_jax.rag.storage import StoredMethod


def tune_adaptation(
    subject: Subject, shared: StoredMethod | None, questions: Questions
) -> pd.DataFrame:
    """How each setting of test-time adaptation does on training questions.

    Args:
        subject: the model.
        shared: the shared interface, which label-free adaptation and the oracle start from.
        questions: training questions.

    Returns:
        A row a setting and number of steps: `method`, `objective`, `optimizer`, `learning_rate`,
        `steps`, `loss` (of the right answer) and `exact`.

    Raises:
        ValueError: there is something to tune, and no question to tune it on.
    """
    rows = []
    grids: list[tuple[MethodName, list[AdaptationConfig]]] = []
    settings = subject.settings
    if "tta" in settings.methods:
        grids.append(("tta", settings.adaptation_grid(LABEL_FREE)))
    if "oracle" in settings.methods:
        grids.append(("oracle", settings.adaptation_grid(("oracle",))))
    if "slot" in settings.methods:
        grids.append(("slot", settings.adaptation_grid(("question",))))
    if grids and not questions:
        raise ValueError(
            "there are no training questions to tune test-time adaptation on: pass "
            "--train-questions and --tuning-questions above 0"
        )
    total = sum(len(grid) for _, grid in grids)
    parts = [
        _read_part(subject, questions[start : start + READ_AT_ONCE])
        for start in range(0, len(questions) if grids else 0, READ_AT_ONCE)
    ]
    with tqdm(total=total, unit="setting", desc="tune") as progress:
        for name, grid in grids:
            for config in grid:
                stored = None if name == "slot" else shared
                scores = _score_trajectory(subject, stored, config, parts)
                for step, (loss, exact) in enumerate(scores, 1):
                    setting = {**dataclasses.asdict(config), "steps": step}
                    rows.append({"method": name, **setting, "loss": loss, "exact": exact})
                progress.update()
    return pd.DataFrame(rows)


def best_adaptation(tuned: pd.DataFrame, name: MethodName) -> AdaptationConfig:
    """The setting with the most right answers on training questions, then the lowest loss."""
    best = best_settings(tuned).set_index("method").loc[name]
    return AdaptationConfig(
        best["objective"], best["optimizer"], int(best["steps"]), float(best["learning_rate"])
    )


class _Part(NamedTuple):
    """Some of the questions, read once for all settings.

    Attributes:
        questions: with their answers.
        cloze: what the objective `cloze` is on.
    """

    questions: Reading
    cloze: Reading


def _read_part(subject: Subject, questions: Questions) -> _Part:
    model, layer = subject.backbone.model, subject.layer
    frozen = model.config, model.parameters
    batch = subject.batch(questions, answers=True)
    prepared = prepare(*frozen, batch, layer=layer, answer_tokens=1)
    cloze = objective_reading(*frozen, prepared, cloze_rows(batch), layer=layer)
    return _Part(prepared.reading, cloze)


def _score_trajectory(
    subject: Subject,
    shared: StoredMethod | None,
    config: AdaptationConfig,
    parts: Sequence[_Part],
) -> list[tuple[float, float]]:
    """Loss and exact share of right answers after each step; of SLOT where `shared` is None."""
    # The rate is an argument of the program, which serves all of the grid's.
    program = dataclasses.replace(config, learning_rate=1.0)
    model = subject.backbone.model
    found = [
        _trajectory_scores(
            model.config, model.parameters, part.questions,
            part.cloze if config.objective == "cloze" else part.questions,
            shared and shared.method, shared and shared.parameters,
            program, jnp.float32(config.learning_rate), layer=subject.layer,
        )
        for part in parts
    ]  # fmt: skip
    means = np.concatenate(found, axis=2).mean(axis=2)
    return [(float(loss), float(exact)) for loss, exact in means.T]


def _trajectory_scores_of(
    decoder: Any, parameters: Any, reading: Reading, objective: Reading, method: Any,
    method_parameters: Any, config: AdaptationConfig, learning_rate: Array, *, layer: int,
) -> Float[Array, "two steps batch"]:  # fmt: skip
    """Loss of the right answer and whether it is the likeliest, after each step."""
    upper = upper_decoder(decoder, parameters, layer)
    if method is None:
        deltas, _ = slot(
            config, decoder, parameters, reading, layer=layer, learning_rate=learning_rate
        )
        states = upper_states(*upper, reading, None)

        def score_delta(delta: Array) -> Array:
            moved = states + delta[:, None].astype(states.dtype)
            return jnp.stack(score_answers(*upper, moved, reading))

        scores = jax.lax.map(score_delta, deltas)
    else:
        features, trajectory, _ = adapt(
            config, method, decoder, parameters, method_parameters, reading, objective,
            learning_rate,
        )  # fmt: skip

        def score_state(state: Any) -> Array:
            edit = state_edit(method, decoder, method_parameters, features, state)
            return jnp.stack(answer_losses(*upper, reading, edit))

        scores = jax.lax.map(score_state, trajectory)
    return jnp.moveaxis(scores, 0, 1)


_trajectory_scores: Callable[..., Array] = jax.jit(
    _trajectory_scores_of, static_argnames=("decoder", "method", "config", "layer")
)
