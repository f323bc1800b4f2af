"""The measurement reports what it timed, and refuses what it cannot time."""

import dataclasses
import json

import pandas as pd
import pytest

from benchmarks import speed, speed_report
from benchmarks.contenders import CONTENDERS, Size
from benchmarks.speed import Config
from benchmarks.step_parts import step_parts

SECONDS = {"one_program": 1.0, "plain_loop": 8.0, "plain_loop_same_draws": 4.0, "pytorch": 5.0}


def made_up(contender, size):
    return {
        "episodes_per_second": size.seeds * size.batch * size.steps / SECONDS[contender],
        "milliseconds_per_step": 1e3 * SECONDS[contender] / size.steps,
        "peak_mebibytes": 100.0,
        "peak_mebibytes_after_imports": 90.0,
    }


def tiny(out, **changes):
    sizes = {"batches": (16, 512), "examples": (4, 8), "features": (2, 3), "run_counts": (1, 2)}
    return Config(out, **{**sizes, "steps": 10, "parts_batch": 4, "ceiling": 8, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with contenders' measurements that are made up, and parts that are timed."""
    out = tmp_path_factory.mktemp("benchmarks") / "speed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "measure", made_up)
        speed.main(tiny(out))
    return out


def test_rates_and_ratios_are_reported(measured):
    entry = json.loads((measured / "summary.json").read_text())["comparison"]["16"]
    assert entry["times_as_fast_as"] == pytest.approx(
        {"plain_loop": 8, "plain_loop_same_draws": 4, "pytorch": 5}
    )
    assert entry["times_as_fast_as_the_faster_loop"] == pytest.approx(4)
    assert entry["faster_loop"] == "plain_loop_same_draws"
    assert entry["episodes_per_second"]["one_program"] == 16 * 16 * 10
    table = pd.read_parquet(measured / "speed.parquet")
    assert table["axis"].value_counts().to_dict() == {
        "comparison": 8, "n": 2, "d": 2, "seeds": 2,
    }  # fmt: skip
    account = (measured / "account.md").read_text()
    assert "16 episodes a step: one program is 4.0 times as fast as the faster plain" in account
    assert "| 16 | plain_loop | 320 | 8.0x as fast | 100 |" in account


def test_parts_of_a_step_are_reported_beside_the_ceilings(measured):
    step = json.loads((measured / "summary.json").read_text())["step_parts"]
    table = pd.read_parquet(measured / "step_parts.parquet").set_index("part")
    assert (step["batch"], step["seeds"]) == (4, 16)
    assert list(step["parts"]) == list(table.index) == [
        "draws", "draws_and_loss", "draws_and_gradient", "matrix_product", "copy",
    ]  # fmt: skip
    for name, entry in step["parts"].items():
        assert entry["milliseconds"] > 0
        rate = 1e3 * table.loc[name, "gigaflops"] / table.loc[name, "milliseconds"]
        assert entry["gigaflops_per_second"] == pytest.approx(rate)
    rates = {name: entry["gigaflops_per_second"] for name, entry in step["parts"].items()}
    account = (measured / "account.md").read_text()
    share = rates["draws"] / rates["matrix_product"]
    assert f"| draws | {step['parts']['draws']['milliseconds']:.2f} |" in account
    assert f"({share:.0%})" in account


def test_figures_are_written(measured):
    assert {path.stem for path in (measured / "figures").glob("*.png")} == {
        "throughput", "peak_memory", "step_parts", "growth",
    }  # fmt: skip


def test_a_measurement_is_not_made_twice(measured, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(speed, "measure", refuse)
    monkeypatch.setattr(speed, "measure_parts", refuse)
    account = (measured / "account.md").read_bytes()
    speed.main(tiny(measured, resume=True))
    assert (measured / "account.md").read_bytes() == account


def test_operations_and_bytes_are_counted():
    size = Size(seeds=3, batch=5, d=4, n=6)
    rows = {row["part"]: row for row in step_parts(size, ceiling=16)}
    product, copy = rows["matrix_product"], rows["copy"]
    # This process has one device. A product of square matrices, and a read and a write.
    assert product["gigaflops"] == pytest.approx(2e-9 * 16**3)
    assert copy["gigabytes"] == pytest.approx(1e-9 * 2 * 4 * 8 * 16**2)
    numbers = 3 * 5 * (4 * 7 + 4)
    # Threefry takes 20 rounds of 5 operations for two numbers.
    assert rows["draws"]["gigaflops"] > 1e-9 * 50 * numbers
    for less, more in (("draws", "draws_and_loss"), ("draws_and_loss", "draws_and_gradient")):
        assert rows[less]["gigaflops"] < rows[more]["gigaflops"]


def test_a_measurement_is_of_its_own_process():
    found = speed.measure("one_program", Size(seeds=1, batch=2, steps=1))
    assert found["episodes_per_second"] > 0
    assert found["peak_mebibytes"] >= found["peak_mebibytes_after_imports"] > 50


def test_a_plan_times_no_more_steps_than_asked(tmp_path):
    config = tiny(tmp_path, batches=(16, 2048), steps=3)
    assert {size.steps for _, _, _, size in speed.plan(config)} == {3}
    config = dataclasses.replace(config, steps=100)
    steps = {size.batch: size.steps for _, _, axis, size in speed.plan(config) if axis != "n"}
    assert (steps[16], steps[2048]) == (100, 12)


def test_bars_show_every_number_under_its_label():
    figure = speed_report.bars({"a": {"x_y": 1234.0, "z": 0.5}, "b": {"z": 7.0}}, "unit", ("z",))
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["1,234", "0.5"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["x y", "z"]
    (bar,) = second.patches
    assert bar.get_y() + bar.get_height() / 2 == pytest.approx(1)
    assert bar.get_facecolor() == first.patches[1].get_facecolor()
    assert bar.get_facecolor() != first.patches[0].get_facecolor()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contenders": ("numba",)}, r"unknown contenders.*numba"),
        ({"contenders": ()}, "contenders must be at least one"),
        ({"contenders": (*CONTENDERS, "pytorch")}, "contenders must be .*each once"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
        ({"scaling_batch": 0}, "scaling_batch must be at least 1"),
        ({"parts_batch": 0}, "parts_batch must be at least 1"),
        ({"ceiling": 0}, "ceiling must be at least 1"),
        ({"batches": ()}, "batches must be at least one"),
        ({"batches": (16, 16)}, "batches must be .*each once"),
        ({"batches": (16, 0)}, r"batches must be at least 1, got \[16, 0\]"),
        ({"examples": (0,)}, "examples must be at least 1"),
        ({"features": (-5, 5)}, "features must be at least 1"),
        ({"run_counts": (0, 1)}, "run_counts must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        speed.main(tiny(tmp_path / "speed", **changes))
    assert not (tmp_path / "speed").exists()
