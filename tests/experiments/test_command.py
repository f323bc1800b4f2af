"""Documentation of the experiment that stands in these tests."""

import dataclasses
import importlib
import os
import sys
from pathlib import Path

import jax
import pytest

import experiments
from experiments.support.command import load_preset, run_command, use_all_cores
from experiments.support.run_folder import RunFolderError


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
        out: folder to write.
        seed: seed of all that is drawn.
        resume: go on.
        sizes: sizes to sweep.
        step_size: rate of a step.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    sizes: tuple[int, ...] = (1, 2)
    step_size: float | None = None

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


PRESETS = {"quick": {"sizes": (3,)}, "paper": {"sizes": (4, 5), "seed": 7, "step_size": 0.5}}

EXPERIMENTS = [
    path.stem
    for path in sorted(Path(experiments.__file__).parent.glob("*.py"))
    if path.stem != "__init__"
]


def parsed(*args: str) -> Config:
    found = []
    run_command(lambda config: found.append(config), Config, PRESETS, args)
    return found[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_command_line(name, capsys):
    experiment = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit) as stopped:
        run_command(experiment.main, experiment.Config, experiment.PRESETS, ["--help"])
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), Config(Path("x"), sizes=(3,))),
        (("--preset", "quick"), Config(Path("x"), sizes=(3,))),
        (("--preset=paper",), Config(Path("x"), seed=7, sizes=(4, 5), step_size=0.5)),
        (
            ("--seed", "0", "--preset", "paper", "--sizes", "8", "9", "--resume"),
            Config(Path("x"), seed=0, resume=True, sizes=(8, 9), step_size=0.5),
        ),
        (
            ("--preset", "paper", "--step-size", "None"),
            Config(Path("x"), seed=7, sizes=(4, 5)),
        ),
    ],
)
def test_explicit_options_win_over_the_preset_over_defaults(args, expected):
    assert parsed("--out", "x", *args) == expected


def test_the_process_arguments_are_the_default(monkeypatch):
    found = []
    monkeypatch.setattr(sys, "argv", ["experiment", "--out", "x", "--seed", "4"])
    run_command(lambda config: found.append(config), Config, PRESETS)
    assert found[0].seed == 4


def test_help_shows_everything(capsys):
    with pytest.raises(SystemExit) as raised:
        parsed("--preset", "paper", "--help")
    shown = capsys.readouterr().out
    assert raised.value.code == 0
    for part in (
        *(f"usage: python -m {__name__}", "Documentation of the experiment"),
        *("--preset {quick,paper}", "--out PATH", "(required)"),
        *("--seed INT", "seed of all that is drawn. (default: 7)", "--resume", "sizes to sweep."),
        *("(default: 4 5)", "--step-size", "rate of a step."),
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ((), "--out"),
        (("--out", "x", "--preset", "none"), "paper"),
        (("--out", "x", "--bogus", "1"), "--bogus"),
        (("--out", "x", "--seed", "q"), "--seed"),
        (("--out", "x", "--seed", "-1"), "error: seed must be at least 0, got -1"),
    ],
)
def test_a_bad_command_line_exits_with_2(capsys, args, part):
    with pytest.raises(SystemExit) as raised:
        parsed(*args)
    assert raised.value.code == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("sizes is empty"), 2, "error: sizes is empty\n"),
        (RunFolderError("x is not a folder"), 2, "error: x is not a folder\n"),
        (FloatingPointError("the loss is NaN at step 3"), 2, "error: the loss is NaN at step 3\n"),
        (OSError(28, "No space left"), 2, "error: [Errno 28] No space left\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (KeyboardInterrupt(), 130, "interrupted; run again with --resume to go on\n"),
    ],
)
def test_user_errors_are_a_line_and_a_code(capsys, error, code, message):
    def main(_):
        raise error

    with pytest.raises(SystemExit) as raised:
        run_command(main, Config, PRESETS, ["--out", "x"])
    assert raised.value.code == code
    assert capsys.readouterr().err == message


def test_other_errors_are_left_alone():
    def main(_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(main, Config, PRESETS, ["--out", "x"])


def test_matrix_products_are_in_full_precision():
    precision = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", None)
    try:
        seen = []
        run_command(
            lambda _: seen.append(jax.config.values["jax_default_matmul_precision"]),
            Config,
            PRESETS,
            ["--out", "x"],
        )
        assert seen == ["float32"]
    finally:
        jax.config.update("jax_default_matmul_precision", precision)


def test_load_preset():
    assert load_preset(Config, PRESETS, "paper", out=Path("x"), seed=1) == Config(
        Path("x"), seed=1, sizes=(4, 5), step_size=0.5
    )
    with pytest.raises(ValueError, match="one of quick, paper, got fast"):
        load_preset(Config, PRESETS, "fast", out=Path("x"))
    with pytest.raises(TypeError, match="out"):
        load_preset(Config, PRESETS, "quick")
    with pytest.raises(TypeError, match="bogus"):
        load_preset(Config, PRESETS, "quick", out=Path("x"), bogus=1)


def test_cores_are_those_the_process_may_run_on(monkeypatch):
    settings = []
    monkeypatch.setattr(jax.config, "update", lambda *setting: settings.append(setting))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    use_all_cores()
    monkeypatch.delattr(os, "sched_getaffinity")
    use_all_cores()
    assert settings == [("jax_num_cpu_devices", 3), ("jax_num_cpu_devices", 8)]
