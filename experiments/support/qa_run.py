"""One cell of question answering: a backbone, a retriever, and every method on every benchmark."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.support.qa_answers import answer_questions, update_cosines
from experiments.support.qa_data import Benchmarks
from experiments.support.qa_settings import MethodName
from experiments.support.qa_training import Training, train_methods
from experiments.support.qa_tuning import best_adaptation, tune_adaptation
from experiments.support.run_folder import Run, RunFolderError
from icorag_jax.rag.adaptation import AdaptationConfig
from icorag_jax.rag.method import Kind
from icorag_jax.rag.storage import StoredMethod

_COSINE_QUESTIONS = 10  # of each benchmark


@dataclasses.dataclass(frozen=True)
class Found:
    """What a cell found.

    Attributes:
        answers: `benchmark`, `id`, `method`, `prediction`, `exact_match`, `f1`, `gold`.
        tuning: as `tune_adaptation`.
        cosines: `cosine` between updates of two questions.
    """

    answers: pd.DataFrame
    tuning: pd.DataFrame
    cosines: pd.DataFrame


def run_cell(run: Run, name: str, training: Training, evaluation: Benchmarks) -> Found:
    """Trains on all benchmarks that have training questions, and evaluates on all.

    What `QaMethods.trained` has is not trained.

    Args:
        run: where results are kept.
        name: of the cell.
        training: the questions to train on, with the model and the settings of the methods.
        evaluation: the questions to evaluate on.

    Raises:
        RunFolderError: the folder has this cell on other questions or with another backbone.
        ValueError: there is nothing to train or tune on, or what was trained before does not fit.
        CheckpointError: likewise, where it is damaged or for another backbone.
    """
    _check_inputs(run, name, training, evaluation)
    subject, train = training.subject, training.questions
    kinds = subject.settings.kinds()
    methods = train_methods(
        training, tuple(train), kinds, run.path / "methods" / name,
        trained=subject.settings.trained,
    )  # fmt: skip
    if subject.settings.new_tasks:
        methods = _for_new_tasks(methods)
    count = subject.settings.tuning_questions
    some = [asked for part in train.values() for asked in part[:count]]
    tuning = run.cell(
        f"tuning_{name}", lambda: tune_adaptation(subject, methods.get("shared"), some)
    )
    adaptations: dict[MethodName, AdaptationConfig] = {
        method: best_adaptation(tuning, method)
        for method in ("slot", "tta", "oracle")
        if method in subject.settings.methods
    }
    answers = [
        run.cell(
            f"answers_{name}_{benchmark}",
            lambda asked=asked: answer_questions(subject, methods, adaptations, asked),
        ).assign(benchmark=benchmark)
        for benchmark, asked in evaluation.items()
    ]
    cosines = pd.DataFrame({"cosine": []})
    if "updater" in methods:
        some = [asked for part in evaluation.values() for asked in part[:_COSINE_QUESTIONS]]
        cosines = run.cell(
            f"cosines_{name}",
            lambda: pd.DataFrame({"cosine": update_cosines(subject, methods["updater"], some)}),
        )
    return Found(pd.concat(answers, ignore_index=True), tuning, cosines)


def run_transfer(run: Run, name: str, training: Training, evaluation: Benchmarks) -> pd.DataFrame:
    """Leaves out each benchmark in turn: trains on the others, and evaluates on it.

    Methods answer as on new tasks, see `icorag_jax.rag.updater.for_new_tasks`.

    Args:
        run: where results are kept.
        name: of the cell.
        training: as for `run_cell`.
        evaluation: likewise.

    Returns:
        As `Found.answers`, of the methods without gradient steps.
    """
    settings = dataclasses.replace(
        training.subject.settings, methods=("frozen", "shared", "updater"), adapted_questions=0
    )
    subject = dataclasses.replace(training.subject, settings=settings)
    answers = []
    for benchmark, asked in evaluation.items():
        others = tuple(other for other in training.questions if other != benchmark)
        folder = run.path / "methods" / f"{name}_without_{benchmark}"

        def compute(others=others, folder=folder, asked=asked) -> pd.DataFrame:
            methods = train_methods(training, others, settings.kinds(), folder)
            return answer_questions(subject, _for_new_tasks(methods), {}, asked)

        cell = run.cell(f"transfer_{name}_{benchmark}", compute)
        answers.append(cell.assign(benchmark=benchmark))
    return pd.concat(answers, ignore_index=True)


def _for_new_tasks(methods: Mapping[Kind, StoredMethod]) -> dict[Kind, StoredMethod]:
    return {kind: stored.for_new_tasks() for kind, stored in methods.items()}


def _check_inputs(run: Run, name: str, training: Training, evaluation: Benchmarks) -> None:
    """Refuses to go on where the folder's cell was on another backbone or other questions."""
    digest = hashlib.sha256()
    for part in (training.questions, evaluation):
        for benchmark, questions in part.items():
            for asked in questions:
                ids = [passage.id for passage in asked.passages]
                digest.update(repr((benchmark, asked.question, ids)).encode())
    now = pd.DataFrame(
        {
            "backbone": [training.subject.backbone.fingerprint],
            "questions": [digest.hexdigest()],
        }
    )
    if not np.array_equal(run.cell(f"inputs_{name}", lambda: now).to_numpy(), now.to_numpy()):
        raise RunFolderError(
            f"{run.path} holds a run on other questions or with another backbone; pass another "
            "--out"
        )
