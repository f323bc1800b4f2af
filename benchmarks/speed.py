"""Training throughput against a plain loop and PyTorch, peak memory, and how time scales.

Each measurement runs in a process of its own, one after another, so that peak memory is its own;
contenders of one size follow each other, so that ratios are of one run on one machine.
"""

import dataclasses
import multiprocessing
import resource
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from benchmarks.contenders import CONTENDERS, Size
from experiments.support import figures
from experiments.support.command import run_command
from experiments.support.run_folder import open_run


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement.

    Attributes:
        out: folder to write.
        seed: not used by what is measured; kept as all commands have it.
        resume: continue a run that was interrupted.
        seeds: runs of the comparison.
        batches: batch sizes of the comparison.
        contenders: who is compared.
        scaling_batch: episodes a step where scaling is measured.
        examples: context sizes N to scale over.
        features: feature sizes d to scale over.
        run_counts: numbers of seeds to scale over.
        steps: optimizer steps that are timed.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    seeds: int = 16
    batches: tuple[int, ...] = (16, 2048)
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    scaling_batch: int = 64
    examples: tuple[int, ...] = (10, 20, 40, 80, 160)
    features: tuple[int, ...] = (5, 10, 20, 40, 80)
    run_counts: tuple[int, ...] = (1, 4, 16, 64)
    steps: int = 100


PRESETS: Mapping[str, Mapping[str, Any]] = {"quick": {}, "paper": {"steps": 500}}


def main(config: Config) -> None:
    """Measures, and writes the folder.

    Raises:
        ValueError: unknown contenders, or sizes that make no sense; nothing is written.
    """
    unknown = [name for name in config.contenders if name not in CONTENDERS]
    if unknown:
        raise ValueError(f"unknown contenders {unknown}; known: {', '.join(CONTENDERS)}")
    with open_run(config.out, "benchmark_speed", config, resume=config.resume) as run:
        cells = plan(config)
        rows = []
        for name, contender, axis, size in tqdm(cells, desc="speed", unit="measurement"):
            row = {"contender": contender, "axis": axis, **dataclasses.asdict(size)}
            rows.append(
                run.cell(name, lambda c=contender, s=size, r=row: pd.DataFrame([r | measure(c, s)]))
            )
        table = pd.concat(rows, ignore_index=True)
        run.write_table("speed", table)
        for axis in ("n", "d", "seeds"):
            part = table.loc[table["axis"] == axis]
            figure = figures.curves(
                part, axis, "milliseconds_per_step", "contender",
                x_label=axis, y_label="milliseconds a step, all seeds", log_x=True,
            )  # fmt: skip
            run.write_figure(f"scaling_{axis}", figure)
        summary = summarize(table)
        run.write_account(account(table, summary))
        run.write_summary(summary)


def plan(config: Config) -> list[tuple[str, str, str, Size]]:
    """All measurements: name of the cell, contender, axis, size."""
    cells = [
        (f"compare_{batch}_{name}", name, "comparison", Size(config.seeds, batch, steps=steps))
        for batch in config.batches
        for name in config.contenders
        # Large batches take long, and vary little.
        for steps in [max(5, config.steps // max(1, batch // 256))]
    ]
    ours, batch, steps = "one_program", config.scaling_batch, config.steps
    axes = {
        "n": [Size(4, batch, n=n, steps=steps) for n in config.examples],
        "d": [Size(4, batch, d=d, steps=steps) for d in config.features],
        "seeds": [Size(count, batch, steps=steps) for count in config.run_counts],
    }
    for axis, sizes in axes.items():
        cells += [(f"{axis}_{getattr(size, axis)}", ours, axis, size) for size in sizes]
    return cells


def measure(contender: str, size: Size) -> dict[str, float]:
    """Throughput, time a step and peak memory of one contender, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_measure, contender, size).result()


def _measure(contender: str, size: Size) -> dict[str, float]:
    before = _peak_mebibytes()
    seconds = CONTENDERS[contender](size)
    return {
        "episodes_per_second": size.seeds * size.batch * size.steps / seconds,
        "milliseconds_per_step": 1e3 * seconds / size.steps,
        "peak_mebibytes": _peak_mebibytes(),
        "peak_mebibytes_after_imports": before,
    }


def _peak_mebibytes() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """Throughput by batch and contender, ratios to the plain loop, and peak memory."""
    found: dict[str, Any] = {}
    comparison = table.loc[table["axis"] == "comparison"]
    for batch in dict.fromkeys(comparison["batch"]):
        part = comparison.loc[comparison["batch"] == batch].set_index("contender")
        rates = {name: float(part.loc[name, "episodes_per_second"]) for name in part.index}
        ours = rates.get("one_program")
        found[f"batch_{batch}"] = {
            "episodes_per_second": rates,
            "times_as_fast_as": {
                name: ours / rate for name, rate in rates.items() if ours and name != "one_program"
            },
            "peak_mebibytes": {
                name: float(part.loc[name, "peak_mebibytes"]) for name in part.index
            },
        }
    return found


def account(table: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """The measurement in words."""
    lines = [
        "# Speed",
        "",
        "Episodes a second, all seeds together, and peak memory of the process.",
        "",
        "| batch | contender | episodes/s | one program is | peak MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for batch, entry in summary.items():
        for name, rate in entry["episodes_per_second"].items():
            times = entry["times_as_fast_as"].get(name)
            ratio = f"{times:.1f}x as fast" if times else ""
            peak = entry["peak_mebibytes"][name]
            lines.append(f"| {batch[6:]} | {name} | {rate:,.0f} | {ratio} | {peak:,.0f} |")
    lines += ["", "| axis | size | ms a step | peak MiB |", "| --- | --- | --- | --- |"]
    scaling = table.loc[table["axis"] != "comparison"]
    for _, row in scaling.iterrows():
        axis = str(row["axis"])
        milliseconds, peak = row["milliseconds_per_step"], row["peak_mebibytes"]
        lines.append(f"| {axis} | {row[axis]} | {milliseconds:.2f} | {peak:,.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
