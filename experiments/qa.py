"""Question answering by a frozen model: with updates of how it sees evidence, and without.

Trains the shared interface, the updater and the controls of equal size on training questions (or
takes them as trained before, by --trained), tunes test-time adaptation on some of them, and answers
the evaluation questions by every method:

closed_book: no passages; frozen: retrieved passages, no interface; shared: one interface for all
questions; updater: the shared one changed by a forward-only read of the passages; blind: as many
parameters, no context; feedback: as blind, but on the words of the passages that stand first,
weighed by rank alone; updater_shuffled, _random, _empty: the updater fed other questions'
passages, noise, or none; slot, tta: gradient steps on the question alone; oracle: gradient steps on
the right answer.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro

from experiments.support import qa_report
from experiments.support.command import run_command
from experiments.support.qa_data import QaData, load_questions
from experiments.support.qa_run import run_cell
from experiments.support.qa_settings import QaMethods
from experiments.support.qa_tables import PAIRS, comparison_table, score_table
from experiments.support.qa_training import Subject, Training
from experiments.support.run_folder import open_run
from icorag_jax.backbones.loading import load_backbone


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        resume: go on with the run that the folder holds.
        backbone: name of a shipped one, a folder, or a hub id.
        dtype: of parameters and compute.
        cache: folder of indexes and searches; by default one in the run's own.
        bootstrap: draws of an interval.
        questions: which questions, and how their passages are found.
        use: settings of the methods.
    """

    out: Path
    resume: bool = False
    backbone: str = "qwen3"
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache: Path | None = None
    bootstrap: int = 10_000
    questions: Annotated[QaData, tyro.conf.arg(name="")] = QaData()  # noqa: RUF009
    use: Annotated[QaMethods, tyro.conf.arg(name="")] = QaMethods()  # noqa: RUF009


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"questions": QaData(train_questions=300, evaluation_questions=300)},
    # Of methods that were trained before: docs/method.md says how.
    "glance": {
        "questions": QaData(train_questions=2, evaluation_questions=90),
        "use": QaMethods(
            methods=(
                "closed_book", "frozen", "shared", "blind", "updater", "updater_shuffled", "tta",
            ),
            trained="shipped", tuning_questions=2, adaptation_steps=3, adapted_questions=30,
            evaluation_batch=30,
        ),
    },
    "paper": {
        "questions": QaData(train_questions=1000, evaluation_questions=500),
        "use": QaMethods(
            selection_steps=2000, steps=2000, adapted_questions=500, tuning_questions=30,
            adaptation_steps=10,
        ),
    },
}  # fmt: skip


def main(config: Config) -> None:
    """Runs the experiment and writes its folder.

    Raises:
        ValueError: settings, data or a backbone that are not right.
        RunFolderError: as `open_run`, and where the folder holds a run on other data or with
            another backbone.
    """
    backbone = load_backbone(config.backbone, jnp.dtype(config.dtype))
    subject = Subject(backbone, config.use, config.questions.passages)
    with open_run(config.out, "qa", config, resume=config.resume) as run:
        sets = load_questions(config.questions, config.cache or run.path / "cache")
        training = Training(subject, sets.train)
        found = run_cell(run, config.questions.retriever, training, sets.evaluation)
        scores = score_table(found.answers, config.bootstrap, config.questions.seed)
        compared = comparison_table(found.answers, PAIRS, config.bootstrap, config.questions.seed)
        run.write_table("answers", found.answers)
        run.write_table("tuning", found.tuning)
        run.write_table("scores", scores)
        run.write_table("comparisons", compared)
        for name, figure in qa_report.draw(scores, compared, found.cosines).items():
            run.write_figure(name, figure)
        summary = qa_report.summarize(scores, compared, found.tuning, found.cosines)
        run.write_account(qa_report.account(summary, scores, compared, config.use.trained))
        run.write_summary(summary)
        print(qa_report.table(scores))


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
