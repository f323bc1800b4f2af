"""Question answering by a frozen model: with updates of how it sees evidence, and without.

Trains the shared interface, the updater and the context-blind control on training questions, tunes
test-time adaptation on some of them, and answers the evaluation questions by every method:

closed_book: no passages; frozen: retrieved passages, no interface; shared: one interface for all
questions; updater: the shared one changed by a forward-only read of the passages; blind: as many
parameters, no context; updater_shuffled, _random, _empty: the updater fed other questions'
passages, noise, or none; slot, tta: gradient steps on the question alone; oracle: gradient steps on
the right answer.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro

from experiments.support import qa_report
from experiments.support.command import run_command
from experiments.support.qa_data import QaData, QuestionSets, load_questions
from experiments.support.qa_methods import (
    Subject,
    answer_questions,
    best_adaptation,
    train_methods,
    tune_adaptation,
    update_cosines,
)
from experiments.support.qa_settings import MethodName, QaMethods
from experiments.support.qa_tables import PAIRS, comparison_table, score_table
from experiments.support.run_folder import Run, RunFolderError, open_run
from icorag_jax.backbones.loading import load_backbone
from icorag_jax.rag.adaptation import AdaptationConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        resume: go on with the run that the folder holds.
        backbone: name of a shipped one, a folder, or a hub id.
        dtype: of parameters and compute.
        held_out: benchmarks that are not trained on; if there are any, nothing else is evaluated.
        cache: folder of indexes and searches; by default one in the run's own.
        bootstrap: draws of an interval.
        questions: which questions, and how their passages are found.
        use: settings of the methods.
    """

    out: Path
    resume: bool = False
    backbone: str = "llama"
    dtype: Literal["float32", "bfloat16"] = "float32"
    held_out: tuple[str, ...] = ()
    cache: Path | None = None
    bootstrap: int = 10_000
    questions: Annotated[QaData, tyro.conf.arg(name="")] = QaData()  # noqa: RUF009
    use: Annotated[QaMethods, tyro.conf.arg(name="")] = QaMethods()  # noqa: RUF009


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "questions": QaData(train_questions=300, evaluation_questions=300),
    },
    "full": {
        "questions": QaData(train_questions=1000, evaluation_questions=300),
        "use": QaMethods(steps=1200, adapted_questions=300, tuning_questions=20),
    },
}


def main(config: Config) -> None:
    """Runs the experiment and writes its folder.

    Raises:
        ValueError: settings, data or a backbone that are not right.
        RunFolderError: as `open_run`, and where the folder holds a run on other data or with
            another backbone.
    """
    backbone = load_backbone(config.backbone, jnp.dtype(config.dtype))
    with open_run(config.out, "qa", config, resume=config.resume) as run:
        sets = load_questions(config.questions, config.cache or run.path / "cache")
        subject = Subject(backbone, config.use, config.questions.passages)
        _check_inputs(run, subject, sets)
        training = {
            name: asked for name, asked in sets.train.items() if name not in config.held_out
        }
        methods, adaptations, tuned = _fit(run, config, subject, training)
        answers = []
        for name, asked in sets.evaluation.items():
            if config.held_out and name not in config.held_out:
                continue
            cell = run.cell(
                f"answers_{name}",
                lambda asked=asked: answer_questions(subject, methods, adaptations, asked),
            )
            answers.append(cell.assign(benchmark=name))
        found = pd.concat(answers, ignore_index=True)
        scores = score_table(found, config.bootstrap, config.questions.seed)
        compared = comparison_table(found, PAIRS, config.bootstrap, config.questions.seed)
        run.write_table("answers", found)
        run.write_table("scores", scores)
        run.write_table("comparisons", compared)
        cosines = pd.DataFrame()
        if "updater" in methods:
            some = [asked for part in sets.evaluation.values() for asked in part[:10]]
            cosines = run.cell(
                "cosines",
                lambda: pd.DataFrame({"cosine": update_cosines(subject, methods["updater"], some)}),
            )
        for name, figure in qa_report.draw(scores, compared, cosines).items():
            run.write_figure(name, figure)
        summary = qa_report.summarize(scores, compared, tuned, cosines)
        run.write_account(qa_report.account(summary, scores, compared))
        run.write_summary(summary)
        print(qa_report.table(scores))


def _fit(run: Run, config: Config, subject: Subject, training: Mapping[str, Any]) -> Any:
    """Trained methods, tuned adaptations, and how tuning went."""
    everything = [asked for part in training.values() for asked in part]
    if config.use.kinds() and not everything:
        raise ValueError("there are no training questions: pass --train-questions above 0")
    methods = train_methods(subject, everything, run.path / "methods")
    some = [asked for part in training.values() for asked in part[: config.use.tuning_questions]]
    tuned = run.cell("tuning", lambda: tune_adaptation(subject, methods.get("shared"), some))
    run.write_table("tuning", tuned)
    names: list[MethodName] = [
        name for name in ("slot", "tta", "oracle") if name in config.use.methods
    ]
    adaptations: dict[MethodName, AdaptationConfig] = {
        name: best_adaptation(tuned, name) for name in names
    }
    return methods, adaptations, tuned


def _check_inputs(run: Run, subject: Subject, sets: QuestionSets) -> None:
    """Refuses to go on where the folder's run was on another backbone or other questions."""
    digest = hashlib.sha256()
    for part in (sets.train, sets.evaluation):
        for name, questions in part.items():
            for asked in questions:
                ids = [passage.id for passage in asked.passages]
                digest.update(repr((name, asked.question, ids)).encode())
    now = pd.DataFrame(
        {"backbone": [subject.backbone.fingerprint], "questions": [digest.hexdigest()]}
    )
    if not np.array_equal(run.cell("inputs", lambda: now).to_numpy(), now.to_numpy()):
        raise RunFolderError(
            f"{run.path} holds a run on other questions or with another backbone; pass another "
            "--out"
        )


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
