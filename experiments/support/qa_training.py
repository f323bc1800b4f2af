"""Training of every method on questions with their passages."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Int
from tqdm import tqdm

from experiments.support.qa_settings import QaMethods
from icorag_jax.backbones.loading import Backbone, find_method
from icorag_jax.files import write_atomically
from icorag_jax.rag.batches import Batch, BatchConfig, make_batch
from icorag_jax.rag.frozen import Reading, read, read_below
from icorag_jax.rag.learning import learn
from icorag_jax.rag.losses import has_selection_loss
from icorag_jax.rag.method import Kind
from icorag_jax.rag.readings import Pool, join_readings, take_readings
from icorag_jax.rag.storage import StoredMethod, load_method, save_method
from icorag_jax.retrieval.retrieved import RetrievedQuestion

Questions = Sequence[RetrievedQuestion]
READ_AT_ONCE = 32


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

    def __post_init__(self):
        """Checks that the model has the interface's first layer.

        Raises:
            ValueError: it has not so many.
        """
        layers = self.backbone.model.config.num_hidden_layers
        if self.layer >= layers:
            raise ValueError(
                f"layer must be below {layers}, the layers of the backbone, got {self.layer}"
            )

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

    def answers(self, names: Collection[str]) -> Pool:
        """Questions of some benchmarks for the loss of answers."""
        return Pool(self._readings, _among(self._answerable, names))

    def selection(self, names: Collection[str]) -> Pool:
        """All questions of some benchmarks for which there is a loss of selection."""
        among = _among(self._selectable, names)
        if not among.size:
            return Pool(self._readings, among)
        positive, present = self._below.is_positive[among], self._below.context.present[among]
        says = has_selection_loss(jnp.asarray(positive), jnp.asarray(present))
        return Pool(self._below, among[np.asarray(says)])

    @functools.cached_property
    def _selectable(self) -> Mapping[str, Questions]:
        """Questions with something to select from; the others are not even read for it."""
        return {
            name: [asked for asked in part if len(set(asked.positive)) == 2]
            for name, part in self.questions.items()
        }

    @functools.cached_property
    def _answerable(self) -> Mapping[str, Questions]:
        """The first questions of each benchmark that have a passage with an answer.

        Where no passage has one, all that a loss of answers teaches is to be less sure. In a
        benchmark whose answers stand in no passage, such as yes and no, the first of all.
        """
        count = self.subject.settings.answered_questions
        return {
            name: ([asked for asked in part if any(asked.positive)] or list(part))[:count]
            for name, part in self.questions.items()
        }

    @functools.cached_property
    def _readings(self) -> Reading:
        return self._read(read, [each for part in self._answerable.values() for each in part])

    @functools.cached_property
    def _below(self) -> Reading:
        return self._read(read_below, [each for part in self._selectable.values() for each in part])

    def _read(self, reader: Callable[..., Reading], questions: Questions) -> Reading:
        """Readings of questions with their answers, on the host."""
        return join_readings(self._parts(reader, questions), len(questions))

    def _parts(self, reader: Callable[..., Reading], questions: Questions) -> Iterator[Reading]:
        model = self.subject.backbone.model
        size = min(READ_AT_ONCE, len(questions))
        with tqdm(total=len(questions), unit="question", desc=reader.__name__) as progress:
            for some, filled in fill_batches(questions, size):
                batch = self.subject.batch(filled, answers=True)
                reading = jax.device_get(
                    reader(model.config, model.parameters, batch, layer=self.subject.layer)
                )
                yield take_readings(reading, np.arange(len(some)))
                progress.update(len(some))


def fill_batches(questions: Questions, size: int) -> Iterator[tuple[Questions, Questions]]:
    """Some questions after the other, and the same ones as many as `size`.

    The last ones are filled up with one of them, so that one program serves all.
    """
    for start in range(0, len(questions), size):
        some = list(questions[start : start + size])
        yield some, some + some[:1] * (size - len(some))


def _among(
    questions: Mapping[str, Questions], names: Collection[str]
) -> Int[np.ndarray, " questions"]:
    """Which of all questions, one benchmark after the other, are of some benchmarks."""
    owners = [name for name, part in questions.items() for _ in part]
    return np.flatnonzero([owner in names for owner in owners])


def train_methods(
    training: Training,
    names: Collection[str],
    kinds: Sequence[Kind],
    folder: Path,
    *,
    trained: Literal["shipped"] | Path | None = None,
) -> dict[Kind, StoredMethod]:
    """Trains methods, or takes what was trained before, here or elsewhere.

    Args:
        training: all training questions.
        names: the benchmarks that are trained on.
        kinds: which methods.
        folder: of methods and their checkpoints.
        trained: where methods are taken from instead, as in `QaMethods`.

    Raises:
        ValueError: there is nothing to train on, or `trained` has no such method, or one of other
            sizes.
        CheckpointError: a method's folder is damaged, or for another backbone.
    """
    found: dict[Kind, StoredMethod] = {}
    backbone = training.subject.backbone
    for kind in kinds:
        path = folder / kind
        if not path.exists():
            if trained is None:
                stored = _train(training, names, kind, folder)
            else:
                stored = _take_trained(training.subject, kind, trained)
            save_method(path, stored)
        found[kind] = load_method(path, backbone.model.config, backbone.fingerprint)
    return found


def _train(training: Training, names: Collection[str], kind: Kind, folder: Path) -> StoredMethod:
    """Trains a method; its losses and checkpoints are left in a folder."""
    if not names:
        raise ValueError("there are no training questions: pass --train-questions above 0")
    subject = training.subject
    model, settings = subject.backbone.model, subject.settings
    config = settings.method_config(kind, model.config, subject.passages)
    selection, answers = training.selection(names), training.answers(names)
    learning = settings.learning_config()
    if selection.among is not None and not selection.among.size:
        learning = dataclasses.replace(learning, selection_steps=0)
    parameters, losses = learn(
        config, model.config, learning, model.parameters, selection, answers,
        folder / "checkpoints" / kind,
    )  # fmt: skip
    table = pd.DataFrame(losses).assign(kind=kind)
    write_atomically(folder / f"losses_{kind}.csv", table.to_csv(index=False).encode())
    batch = settings.batch_config(subject.passages)
    return StoredMethod(config, batch, parameters, subject.backbone.fingerprint)


def _take_trained(subject: Subject, kind: Kind, source: Literal["shipped"] | Path) -> StoredMethod:
    """A method that was trained before."""
    backbone = subject.backbone
    path = find_method(backbone, kind) if source == "shipped" else source / kind
    if path is None or not path.exists():
        where = "what is shipped for this backbone" if path is None else path.parent
        raise ValueError(f"{where} has no method {kind}: leave it out of --methods, or train")
    stored = load_method(path, backbone.model.config, backbone.fingerprint)
    config = subject.settings.method_config(kind, backbone.model.config, subject.passages)
    if stored.method != config:
        raise ValueError(f"{path} has other sizes than this run: {stored.method}, not {config}")
    return stored
