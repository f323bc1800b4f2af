"""Run every experiment on a short preset, print the claims, and write one report.

A run that was interrupted goes on where it stopped; one that is complete is only reported again.
"""

import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from experiments import boundary_sweep, exactness, qa, qa_cost, trained_lsa
from experiments.support.claims import Claim, claims_table
from experiments.support.command import (
    exit_on_user_errors,
    load_preset,
    run_command,
    use_all_cores,
)
from experiments.support.report import Section, write_report

EXPERIMENTS: Mapping[str, ModuleType] = {
    "exactness": exactness,
    "trained_lsa": trained_lsa,
    "qa_cost": qa_cost,
    "boundary_sweep": boundary_sweep,
    "qa": qa,
}
# The whole of these takes a while: `make reproduce` shows a part of it.
_PRESET = {"boundary_sweep": "glance", "qa": "glance", "qa_cost": "glance"}
_LANES = 2
# Wall times are of a machine that does nothing else.
_ALONE = "qa_cost"
# There is but one.
PRESETS: Mapping[str, Mapping[str, Any]] = {"quick": {}}
TITLE = "Retrieval-augmented generation as in-context optimization"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write; each experiment has a folder of its own in it.
        seed: seed of all that is drawn.
        resume: a run that was interrupted always goes on; this is accepted for likeness' sake.
    """

    out: Path
    seed: int = 0
    resume: bool = True


def main(config: Config) -> None:
    """Runs the experiments, then prints the claims and the report's path."""
    settings = {name: _settings(name, config) for name in EXPERIMENTS}
    alone = settings.pop(_ALONE)
    run_all(settings)
    run_all({_ALONE: alone})
    report_all(config.out)


def _settings(name: str, config: Config) -> Any:
    """Settings of an experiment; question answering has its seed among those of its questions."""
    module = EXPERIMENTS[name]
    settings = load_preset(
        module.Config, module.PRESETS, _PRESET.get(name, "quick"),
        out=config.out / name, resume=True,
    )  # fmt: skip
    if hasattr(settings, "questions"):
        questions = dataclasses.replace(settings.questions, seed=config.seed)
        return dataclasses.replace(settings, questions=questions)
    return dataclasses.replace(settings, seed=config.seed)


def run_all(settings: Mapping[str, Any]) -> None:
    """Runs experiments by name: two at a time on CPU, where one keeps little more than a core busy.

    One at a time on an accelerator, which a process takes for itself.

    Raises:
        SystemExit: an experiment failed, and has said why.
    """
    if jax.default_backend() != "cpu":
        for name, config in settings.items():
            EXPERIMENTS[name].main(config)
        return
    spawn = multiprocessing.get_context("spawn")
    names: Any = spawn.SimpleQueue()
    # The longest first, which is the last.
    count = min(_LANES, len(settings))
    for name in [*reversed(list(settings)), *[None] * count]:
        names.put(name)
    lanes = [spawn.Process(target=_work, args=(names, dict(settings))) for _ in range(count)]
    try:
        for position, lane in enumerate(lanes):
            # Progress bars of different processes keep to lines of their own.
            os.environ["TQDM_POSITION"] = str(2 * position)
            lane.start()
        failed = []
        while not failed and (alive := [lane.sentinel for lane in lanes if lane.is_alive()]):
            multiprocessing.connection.wait(alive)
            failed = [lane.exitcode for lane in lanes if lane.exitcode]
    finally:
        os.environ.pop("TQDM_POSITION", None)
        for lane in lanes:
            if lane.is_alive():
                lane.terminate()
                lane.join()
    if failed:
        sys.exit(failed[0])


def _work(names: Any, settings: Mapping[str, Any]) -> None:
    """Runs experiments in a process of its own until none is left."""
    use_all_cores()
    with exit_on_user_errors():
        while (name := names.get()) is not None:
            EXPERIMENTS[name].main(settings[name])


def report_all(out: Path) -> None:
    """Writes the report of all experiments in a folder; prints their claims and its path."""
    sections = [section(name, out / name) for name in EXPERIMENTS]
    report = out / "report.html"
    write_report(report, TITLE, sections)
    print(claims_table([claim for found in sections for claim in found.claims]))
    print(f"\nreport: {report}")


def section(name: str, folder: Path) -> Section:
    """One experiment's part of the report, from the files of its folder."""
    summary = json.loads((folder / "summary.json").read_text())
    return Section(
        title=name.replace("_", " "),
        account=(folder / "account.md").read_text(),
        figures={
            path.stem.replace("_", " "): path for path in sorted((folder / "figures").glob("*.png"))
        },
        claims=[Claim(**row) for row in summary["claims"]],
    )


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
