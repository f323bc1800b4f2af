"""Run every experiment on its quick preset, print the claims, and write one report.

A run that was interrupted goes on where it stopped; one that is complete is only reported again.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from experiments import boundary_sweep, exactness, trained_lsa
from experiments.support.claims import Claim, claims_table
from experiments.support.command import load_preset, run_command
from experiments.support.report import Section, write_report

EXPERIMENTS: Mapping[str, ModuleType] = {
    "exactness": exactness,
    "trained_lsa": trained_lsa,
    "boundary_sweep": boundary_sweep,
}
TITLE = "Retrieval-augmented generation as in-context optimization"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write; each experiment has a folder of its own in it.
        seed: seed of all that is drawn.
    """

    out: Path
    seed: int = 0


def main(config: Config, preset: str = "quick") -> None:
    """Runs the experiments, then prints the claims and the report's path."""
    sections = []
    for name, module in EXPERIMENTS.items():
        folder = config.out / name
        settings = load_preset(
            module.Config, module.PRESETS, preset, out=folder, seed=config.seed, resume=True
        )
        module.main(settings)
        sections.append(section(name, folder))
    claims = [claim for found in sections for claim in found.claims]
    report = config.out / "report.html"
    write_report(report, TITLE, sections)
    print(claims_table(claims))
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
    run_command(main, Config, {"quick": {}})
