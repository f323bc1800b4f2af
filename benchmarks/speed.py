"""Training throughput against plain loops and PyTorch, peak memory, growth, and parts of a step.

Each measurement runs in a process of its own, one after another, so that peak memory is its own;
contenders of one size follow each other, so that ratios are of one run on one machine.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from benchmarks import speed_report
from benchmarks.contenders import CONTENDERS, Size, seconds_to_train
from benchmarks.step_parts import step_parts
from experiments.support.command import run_command
from experiments.support.process_memory import peak_mebibytes
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
        parts_batch: episodes of the step whose parts are timed, for the seeds of the comparison.
        ceiling: rows of the matrix whose product and copy stand beside the parts.
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
    parts_batch: int = 2048
    ceiling: int = 2048


PRESETS: Mapping[str, Mapping[str, Any]] = {"quick": {}, "paper": {"steps": 500}}


def main(config: Config) -> None:
    """Measures, and writes the folder.

    Raises:
        ValueError: unknown contenders, or sizes that make no sense; nothing is written.
    """
    _check(config)
    with open_run(config.out, "benchmark_speed", config, resume=config.resume) as run:
        rows = []
        for name, contender, axis, size in tqdm(plan(config), desc="speed", unit="measurement"):
            row = {"contender": contender, "axis": axis, **dataclasses.asdict(size)}
            rows.append(
                run.cell(name, lambda c=contender, s=size, r=row: pd.DataFrame([r | measure(c, s)]))
            )
        speed = pd.concat(rows, ignore_index=True)
        parts = run.cell("step_parts", lambda: measure_parts(config))
        run.write_table("speed", speed)
        run.write_table("step_parts", parts)
        summary = speed_report.summarize(speed, parts)
        for name, figure in speed_report.draw(speed, summary).items():
            run.write_figure(name, figure)
        run.write_account(speed_report.account(speed, summary))
        run.write_summary(summary)


def _check(config: Config) -> None:
    unknown = [name for name in config.contenders if name not in CONTENDERS]
    if unknown:
        raise ValueError(f"unknown contenders {unknown}; known: {', '.join(CONTENDERS)}")
    for name in ("seeds", "scaling_batch", "steps", "parts_batch", "ceiling"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("batches", "examples", "features", "run_counts", "contenders"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, got {list(values)}")
    for name in ("batches", "examples", "features", "run_counts"):
        if min(getattr(config, name)) < 1:
            raise ValueError(f"{name} must be at least 1, got {list(getattr(config, name))}")


def plan(config: Config) -> list[tuple[str, str, str, Size]]:
    """All measurements: name of the cell, contender, axis, size."""
    cells = [
        (f"compare_{batch}_{name}", name, "comparison", Size(config.seeds, batch, steps=steps))
        for batch in config.batches
        for name in config.contenders
        # Large batches take long, and vary little.
        for steps in [min(config.steps, max(5, config.steps // max(1, batch // 256)))]
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
    return _in_own_process(_measure, contender, size)


def measure_parts(config: Config) -> pd.DataFrame:
    """What a step is made of, in a process of its own: a row a part, then the ceilings."""
    size = Size(config.seeds, config.parts_batch)
    parts = pd.DataFrame(_in_own_process(step_parts, size, config.ceiling))
    return parts.assign(seeds=size.seeds, batch=size.batch)


def _in_own_process(function: Callable, *arguments: Any) -> Any:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def _measure(contender: str, size: Size) -> dict[str, float]:
    before = peak_mebibytes()
    seconds = seconds_to_train(contender, size)
    return {
        "episodes_per_second": size.seeds * size.batch * size.steps / seconds,
        "milliseconds_per_step": 1e3 * seconds / size.steps,
        "peak_mebibytes": peak_mebibytes(),
        "peak_mebibytes_after_imports": before,
    }


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
