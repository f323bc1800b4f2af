"""Question answering over benchmarks, retrievers and backbones, and transfer to what was left out.

Every cell of the grid is one backbone and retriever: all methods on all benchmarks, as
`experiments.qa`. For transfer, each benchmark is left out of training in turn, which always trains.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax.numpy as jnp
import pandas as pd
import tyro

from experiments.support import qa_grid_report
from experiments.support.command import run_command
from experiments.support.qa_data import QaData, load_questions
from experiments.support.qa_run import run_cell, run_transfer
from experiments.support.qa_settings import QaMethods
from experiments.support.qa_tables import ALL, PAIRS, comparison_table, score_table
from experiments.support.qa_training import Subject, Training
from experiments.support.retrievers import RetrieverName
from experiments.support.run_folder import open_run
from icorag_jax.backbones.loading import backbone_names, load_backbone


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        resume: go on with the run that the folder holds.
        backbones: names of shipped ones, folders, or hub ids; none for all that are shipped.
        retrievers: which.
        transfer: retrievers with which benchmarks are left out in turn, or none.
        dtype: of parameters and compute.
        cache: folder of indexes and searches; by default one in the run's own.
        bootstrap: draws of an interval.
        questions: which questions, and how their passages are found; the retriever is that of the
            cell.
        use: settings of the methods.
    """

    out: Path
    resume: bool = False
    backbones: tuple[str, ...] = ()
    retrievers: tuple[RetrieverName, ...] = ("bm25", "sentences")
    transfer: tuple[RetrieverName, ...] = ("bm25",)
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache: Path | None = None
    bootstrap: int = 10_000
    questions: Annotated[QaData, tyro.conf.arg(name="")] = QaData()  # noqa: RUF009
    use: Annotated[QaMethods, tyro.conf.arg(name="")] = QaMethods()  # noqa: RUF009


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"questions": QaData(train_questions=300, evaluation_questions=300)},
    "paper": {
        "transfer": ("bm25", "sentences"),
        "questions": QaData(train_questions=1000, evaluation_questions=500),
        "use": QaMethods(
            selection_steps=2000,
            steps=2000,
            adapted_questions=500,
            tuning_questions=30,
            adaptation_steps=10,
        ),
    },
}


def main(config: Config) -> None:
    """Runs the grid and writes its folder.

    Raises:
        ValueError: settings, data or a backbone that are not right.
        RunFolderError: as `open_run`, and where the folder holds a run on other data or with
            another backbone.
    """
    dtype = jnp.dtype(config.dtype)
    names = config.backbones or backbone_names()
    subjects = [
        Subject(load_backbone(name, dtype), config.use, config.questions.passages) for name in names
    ]
    with open_run(config.out, "qa_grid", config, resume=config.resume) as run:
        answers, transferred = [], []
        for retriever in config.retrievers:
            settings = dataclasses.replace(config.questions, retriever=retriever)
            sets = load_questions(settings, config.cache or run.path / "cache")
            for subject in subjects:
                name = f"{subject.backbone.name}_{retriever}"
                labels = {"backbone": subject.backbone.name, "retriever": retriever}
                training = Training(subject, sets.train)
                found = run_cell(run, name, training, sets.evaluation)
                answers.append(found.answers.assign(**labels))
                if retriever in config.transfer:
                    held_out = run_transfer(run, name, training, sets.evaluation)
                    transferred.append(held_out.assign(**labels))
        tables = {"answers": pd.concat(answers, ignore_index=True)}
        if transferred:
            tables["transfer"] = pd.concat(transferred, ignore_index=True)
        results = {}
        for name, table in tables.items():
            run.write_table(name, table)
            results[name] = _measure(table, config)
            for kind, measured in results[name].items():
                run.write_table(f"{name}_{kind}", measured)
        for name, figure in qa_grid_report.draw(results).items():
            run.write_figure(name, figure)
        summary = qa_grid_report.summarize(results)
        run.write_account(qa_grid_report.account(summary, results, config.use.trained))
        run.write_summary(summary)


def _measure(answers: pd.DataFrame, config: Config) -> dict[str, pd.DataFrame]:
    """Scores and comparisons of each cell, and of all cells together."""
    seed = config.questions.seed
    cells = answers.groupby(["backbone", "retriever"], sort=False)
    scores, compared = [], []
    for key, part in cells:
        backbone, retriever = map(str, cast(tuple, key))
        labels = {"backbone": backbone, "retriever": retriever}
        scores.append(score_table(part, config.bootstrap, seed).assign(**labels))
        compared.append(comparison_table(part, PAIRS, config.bootstrap, seed).assign(**labels))
    # Over the whole grid, a family with each backbone and retriever counts as a benchmark.
    names = answers["benchmark"] + " " + answers["backbone"] + " " + answers["retriever"]
    together = comparison_table(answers.assign(benchmark=names), PAIRS, config.bootstrap, seed)
    return {
        "scores": pd.concat(scores, ignore_index=True),
        "comparisons": pd.concat(compared, ignore_index=True),
        "together": together.loc[together["benchmark"] == ALL].reset_index(drop=True),
    }


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
