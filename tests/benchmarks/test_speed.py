"""The contenders train one model alike, and the measurement reports what it timed."""

import json

import pandas as pd
import pytest

from benchmarks import speed
from benchmarks.contenders import CONTENDERS, Size
from benchmarks.speed import Config


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_run(name):
    assert CONTENDERS[name](Size(seeds=2, batch=4, steps=2)) > 0


def test_measurements_are_reported(tmp_path, monkeypatch):
    """With a measurement that is made up: rates and ratios follow from it."""
    seconds = {"one_program": 1.0, "plain_loop": 8.0}

    def measure(contender, size):
        return {
            "episodes_per_second": size.seeds * size.batch * size.steps / seconds[contender],
            "milliseconds_per_step": 1e3 * seconds[contender] / size.steps,
            "peak_mebibytes": 100.0,
            "peak_mebibytes_after_imports": 90.0,
        }

    monkeypatch.setattr(speed, "measure", measure)
    out = tmp_path / "speed"
    config = Config(
        out, batches=(16,), contenders=("one_program", "plain_loop"), examples=(4, 8),
        features=(2, 3), run_counts=(1, 2), steps=10,
    )  # fmt: skip
    speed.main(config)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["batch_16"]["times_as_fast_as"] == {"plain_loop": pytest.approx(8)}
    assert summary["batch_16"]["episodes_per_second"]["one_program"] == 16 * 16 * 10
    table = pd.read_parquet(out / "speed.parquet")
    assert table["axis"].value_counts().to_dict() == {
        "comparison": 2, "n": 2, "d": 2, "seeds": 2,
    }  # fmt: skip
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "scaling_n", "scaling_d", "scaling_seeds",
    }  # fmt: skip


def test_a_measurement_is_of_its_own_process():
    found = speed.measure("one_program", Size(seeds=1, batch=2, steps=1))
    assert found["episodes_per_second"] > 0
    assert found["peak_mebibytes"] >= found["peak_mebibytes_after_imports"] > 50


def test_unknown_contenders_write_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"unknown contenders.*numba"):
        speed.main(Config(tmp_path / "speed", contenders=("numba",)))
    assert not (tmp_path / "speed").exists()
