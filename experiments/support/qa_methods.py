"""Training, tuning and answering: every method on questions with their passages."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from experiments.support.qa_settings import MethodName, QaMethods
from experiments.support.qa_tables import best_settings
from icorag_jax.backbones.loading import Backbone
from icorag_jax.data.answers import exact_match, token_f1
from icorag_jax.files import write_atomically
from icorag_jax.rag.adaptation import LABEL_FREE, AdaptationConfig, adapt, slot
from icorag_jax.rag.answering import (
    Answers,
    answer_adapted,
    answer_prepared,
    objective_reading,
    prepare,
)
from icorag_jax.rag.batches import Batch, BatchConfig, cloze_rows, make_batch
from icorag_jax.rag.frozen import (
    Reading,
    join_readings,
    read,
    take_readings,
    upper_decoder,
    upper_states,
)
from icorag_jax.rag.learning import answer_losses, learn, score_answers
from icorag_jax.rag.method import Kind, predict_change, state_edit
from icorag_jax.rag.storage import StoredMethod, load_method, save_method
from icorag_jax.retrieval.retrieved import RetrievedQuestion

Questions = Sequence[RetrievedQuestion]
_READ_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Subject:
    """A frozen model with the settings that it is asked under.

    Attributes:
        backbone: the model.
        settings: of the methods.
        passages: of a question, at most.
    """

    backbone: Backbone
    settings: QaMethods
    passages: int

    @property
    def layer(self) -> int:
        """The interface's first layer."""
        return self.settings.first_layer(self.backbone.model.config)

    def batch(
        self, questions: Questions, *, answers: bool, sizes: BatchConfig | None = None
    ) -> Batch:
        """Questions as arrays."""
        return make_batch(
            sizes or self.settings.batch_config(self.passages),
            self.backbone.model.config,
            self.backbone.tokenizer,
            self.backbone.template,
            questions,
            answers=answers,
        )


class Training:
    """Training questions by benchmark, read by the frozen model when that is first needed."""

    def __init__(self, subject: Subject, questions: Mapping[str, Questions]):
        """Those questions.

        Args:
            subject: the model that reads them.
            questions: by benchmark.
        """
        self.subject, self.questions = subject, questions

    def among(self, names: Collection[str]) -> Int[np.ndarray, " questions"]:
        """Which readings are of some benchmarks."""
        owners = [name for name, part in self.questions.items() for _ in part]
        return np.flatnonzero([owner in names for owner in owners])

    @functools.cached_property
    def readings(self) -> Reading:
        """Readings of all questions with their answers, on the host."""
        everything = [asked for part in self.questions.values() for asked in part]
        return join_readings(self._parts(everything), len(everything))

    def _parts(self, questions: Questions) -> Iterator[Reading]:
        model = self.subject.backbone.model
        size = min(_READ_AT_ONCE, len(questions))
        with tqdm(total=len(questions), unit="question", desc="read") as progress:
            for start in range(0, len(questions), size):
                some = list(questions[start : start + size])
                # The last batch is filled up, so that one program serves all.
                filled = some + some[:1] * (size - len(some))
                batch = self.subject.batch(filled, answers=True)
                reading = jax.device_get(
                    read(model.config, model.parameters, batch, layer=self.subject.layer)
                )
                yield take_readings(reading, np.arange(len(some)))
                progress.update(len(some))


def train_methods(
    training: Training, names: Collection[str], kinds: Sequence[Kind], folder: Path
) -> dict[Kind, StoredMethod]:
    """Trains methods, or loads what was trained before.

    Args:
        training: all training questions.
        names: the benchmarks that are trained on.
        kinds: what is trained.
        folder: of methods and their checkpoints.
    """
    found: dict[Kind, StoredMethod] = {}
    subject = training.subject
    model, settings = subject.backbone.model, subject.settings
    for kind in kinds:
        path = folder / kind
        if not path.exists():
            config = settings.method_config(kind, model.config, subject.passages)
            parameters, losses = learn(
                config, model.config, settings.learning_config(), model.parameters,
                training.readings, folder / "checkpoints" / kind, among=training.among(names),
            )  # fmt: skip
            stored = StoredMethod(
                config, settings.batch_config(subject.passages), parameters,
                subject.backbone.fingerprint,
            )  # fmt: skip
            table = pd.DataFrame(losses).assign(kind=kind)
            write_atomically(folder / f"losses_{kind}.csv", table.to_csv(index=False).encode())
            save_method(path, stored)
        found[kind] = load_method(path, model.config, subject.backbone.fingerprint)
    return found


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
    total = sum(len(grid) for _, grid in grids)
    with tqdm(total=total, unit="setting", desc="tune") as progress:
        for name, grid in grids:
            for config in grid:
                stored = None if name == "slot" else shared
                scores = _score_trajectory(subject, stored, config, questions)
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


def answer_questions(
    subject: Subject,
    methods: Mapping[Kind, StoredMethod],
    adaptations: Mapping[MethodName, AdaptationConfig],
    questions: Questions,
) -> pd.DataFrame:
    """Answers of every method.

    Returns:
        A row a question and method: `id`, `method`, `prediction`, `exact_match`, `f1`, and `gold`,
        whether all of the question's gold passages were found (None where they are not known).
    """
    settings = subject.settings
    rows = []
    size = min(settings.evaluation_batch, len(questions))
    with tqdm(total=len(questions), unit="question", desc="answer") as progress:
        for start in range(0, len(questions), size):
            some = list(questions[start : start + size])
            filled = some + some[:1] * (size - len(some))
            adapted = start < settings.adapted_questions
            for name, answers in _answers(subject, methods, adaptations, filled, adapted):
                for asked, text in zip(some, _texts(subject, answers), strict=False):
                    rows.append({"id": asked.question.id, "method": name, **_row(asked, text)})
            progress.update(len(some))
    return pd.DataFrame(rows)


def update_cosines(
    subject: Subject, updater: StoredMethod, questions: Questions
) -> Float[np.ndarray, "pairs"]:
    """Cosines between the updates of any two questions."""
    model = subject.backbone.model
    batch = subject.batch(questions, answers=False)
    reading = read(model.config, model.parameters, batch, layer=subject.layer)
    change = np.asarray(
        jax.jit(predict_change, static_argnums=(0, 1))(
            updater.method, model.config, updater.parameters, reading.context
        )
    )
    unit = change / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-30)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _answers(
    subject: Subject,
    methods: Mapping[Kind, StoredMethod],
    adaptations: Mapping[MethodName, AdaptationConfig],
    questions: Questions,
    adapted: bool,
) -> Iterator[tuple[MethodName, Answers]]:
    """Answers of each method, the questions read once for all."""
    settings, model = subject.settings, subject.backbone.model
    tokens = settings.answer_tokens
    sizes = {"layer": subject.layer, "answer_tokens": tokens}
    key = jax.random.key(settings.method_seed)
    frozen = model.config, model.parameters
    names = settings.methods
    batch = subject.batch(questions, answers=False)
    prepared = prepare(*frozen, batch, **sizes)
    if "closed_book" in names:
        alone = [dataclasses.replace(asked, passages=(), scores=()) for asked in questions]
        instruction = settings.batch_config(1)
        instruction = dataclasses.replace(instruction, evidence_tokens=_CLOSED_BOOK_TOKENS)
        closed = prepare(*frozen, subject.batch(alone, answers=False, sizes=instruction), **sizes)
        yield "closed_book", answer_prepared(*frozen, closed, None, None, **sizes)
    if "frozen" in names:
        yield "frozen", answer_prepared(*frozen, prepared, None, None, **sizes)
    for kind, stored in methods.items():
        if kind in names:
            method = stored.method, stored.parameters
            yield kind, answer_prepared(*frozen, prepared, *method, **sizes)
    for control in ("shuffled", "random", "empty"):
        if (name := f"updater_{control}") in names:
            method = methods["updater"].method, methods["updater"].parameters
            yield (
                name,
                answer_prepared(  # pyright: ignore[reportReturnType]
                    *frozen, prepared, *method, **sizes, control=control, key=key
                ),
            )
    if not adapted:
        return
    for name, adaptation in adaptations.items():
        rows = None
        if adaptation.objective == "cloze":
            rows = cloze_rows(batch)
        elif adaptation.objective == "oracle":
            rows = subject.batch(questions, answers=True)
        method = (None, None)
        if name != "slot":
            method = methods["shared"].method, methods["shared"].parameters
        yield name, answer_adapted(*frozen, prepared, rows, *method, adaptation, **sizes)


# Room for the instruction alone.
_CLOSED_BOOK_TOKENS = 64


def _score_trajectory(
    subject: Subject,
    shared: StoredMethod | None,
    config: AdaptationConfig,
    questions: Questions,
) -> list[tuple[float, float]]:
    """Loss and exact share of right answers after each step; of SLOT where `shared` is None."""
    found = []
    # The rate is an argument of the program, which serves all of the grid's.
    program = dataclasses.replace(config, learning_rate=1.0)
    for start in range(0, len(questions), _READ_AT_ONCE):
        some = questions[start : start + _READ_AT_ONCE]
        batch = subject.batch(some, answers=True)
        rows = cloze_rows(batch) if config.objective == "cloze" else None
        model = subject.backbone.model
        scores = _trajectory_scores(
            model.config, model.parameters, batch, rows,
            shared and shared.method, shared and shared.parameters,
            program, jnp.float32(config.learning_rate), layer=subject.layer,
        )  # fmt: skip
        found.append(np.asarray(scores))
    means = np.concatenate(found, axis=2).mean(axis=2)
    return [(float(loss), float(exact)) for loss, exact in means.T]


def _trajectory_scores_of(
    decoder: Any, parameters: Any, batch: Batch, rows: Batch | None, method: Any,
    method_parameters: Any, config: AdaptationConfig, learning_rate: Array, *, layer: int,
) -> Float[Array, "two steps batch"]:  # fmt: skip
    """Loss of the right answer and whether it is the likeliest, after each step."""
    prepared = prepare(decoder, parameters, batch, layer=layer, answer_tokens=1)
    reading = prepared.reading
    upper = upper_decoder(decoder, parameters, layer)
    if method is None:
        deltas, _ = slot(
            config, decoder, parameters, reading, layer=layer, learning_rate=learning_rate
        )
        states = upper_states(*upper, reading, None)

        def score(delta: Array) -> Array:
            moved = states + delta[:, None].astype(states.dtype)
            return jnp.stack(score_answers(*upper, moved, reading))

        scores = jax.lax.map(score, deltas)
    else:
        objective = objective_reading(decoder, parameters, prepared, rows, layer=layer)
        features, trajectory, _ = adapt(
            config, method, decoder, parameters, method_parameters, reading, objective,
            learning_rate,
        )  # fmt: skip

        def score(state: Any) -> Array:
            edit = state_edit(method, decoder, method_parameters, features, state)
            return jnp.stack(answer_losses(*upper, reading, edit))

        scores = jax.lax.map(score, trajectory)
    return jnp.moveaxis(scores, 0, 1)


_trajectory_scores: Callable[..., Array] = jax.jit(
    _trajectory_scores_of, static_argnames=("decoder", "method", "config", "layer")
)


def _texts(subject: Subject, answers: Answers) -> list[str]:
    """Answers as strings."""
    tokens, lengths = np.asarray(answers.tokens), np.asarray(answers.lengths)
    return [
        subject.backbone.decode(row[:length].tolist())
        for row, length in zip(tokens, lengths, strict=True)
    ]


def _row(asked: RetrievedQuestion, text: str) -> dict[str, Any]:
    answers = asked.question.answers
    known = [p for p in asked.question.passages if p.is_gold]
    gold = sum(bool(found) for found in asked.gold) >= len(known) if known else None
    return {
        "prediction": text,
        "exact_match": exact_match(text, answers),
        "f1": token_f1(text, answers),
        "gold": gold,
    }
