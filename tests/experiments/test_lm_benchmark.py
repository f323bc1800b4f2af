"""The measurement of speed: what it times, what it counts, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import lm_benchmark
from experiments.lm_benchmark import Config
from experiments.support import lm_contenders, lm_speed
from experiments.support.lm_contenders import CONTENDERS, OURS, Size

TINY = {
    "vocabulary": 50, "hidden": 16, "intermediate": 24, "layers": 2, "heads": 4, "kv_heads": 2,
    "prompt": 8, "new": 6, "ceiling_rows": 32, "ceiling_mebibytes": 1,
}  # fmt: skip


def tiny(out, **changes):
    return Config(out, **{**TINY, **changes})


def table(seconds):
    """Timings of two repeats that are made up: `seconds` by contender are prefill and decode."""
    rows = [
        {
            "batch": 2, "prompt": 8, "new": 6, "repeat": repeat, "contender": name,
            "prefill_seconds": prefill * (1 + repeat), "decode_seconds": decode * (1 + repeat),
            "tokens": [[1] * 6] * 2, "peak_mebibytes": 100.0 + repeat, "software": "none",
        }
        for repeat in range(2)
        for name, (prefill, decode) in seconds.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


CEILINGS = pd.DataFrame(
    {
        "library": ["jax", "torch"],
        "gigaflops_per_second": [1.0, 2.0],
        "gigabytes_per_second": [4.0, 3.0],
    }
)


def test_contenders_write_the_same_tokens(tmp_path):
    """In this process: what is timed is the same work."""
    config = tiny(tmp_path / "run")
    model = lm_benchmark._check(config)
    folder = lm_benchmark._write_checkpoint(config, model, tmp_path)
    found = {
        name: lm_contenders.measure(name, folder, "float32", Size(2, 8, 6)) for name in CONTENDERS
    }
    first = np.asarray(found["unrolled"]["tokens"])
    assert first.shape == (2, 6)
    for entry in found.values():
        np.testing.assert_array_equal(entry["tokens"], first)
        assert entry["prefill_seconds"] > 0
        assert not entry["decode_seconds"] <= 0
        assert entry["peak_mebibytes"] > 50


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_ceilings_are_measured(library):
    found = lm_contenders.measure_ceilings(library, rows=32, mebibytes=1, dtype="float32")
    assert set(found) == {"gigaflops_per_second", "gigabytes_per_second"}
    assert min(found.values()) > 0


def test_the_command_end_to_end_and_once_more(tmp_path, monkeypatch):
    """Ours alone, each in a process of its own; a second run measures nothing."""
    out = tmp_path / "run"
    lm_benchmark.main(tiny(out, contenders=OURS, batches=(1, 2), repeats=1))
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["batches"]) == ["1", "2"]
    for entry in summary["batches"].values():
        assert list(entry["contenders"]) == list(OURS)
        assert entry["ratios"] == {"prefill": None, "decode": None}
        assert entry["contenders"]["scanned"]["tokens_as_the_first_contender"] == 1
    assert summary["claims"] == []
    assert min(summary["ceilings"].values()) > 0
    speed = pd.read_parquet(out / "speed.parquet")
    assert speed["contender"].tolist() == list(OURS) * 2
    assert (out / "figures" / "speed.png").stat().st_size > 1000
    account = (out / "account.md").read_bytes()
    monkeypatch.setattr(lm_contenders, "measure", None)
    lm_benchmark.main(tiny(out, contenders=OURS, batches=(1, 2), repeats=1, resume=True))
    assert (out / "account.md").read_bytes() == account


def test_rates_and_ratios():
    """The fastest of ours against the fastest in PyTorch, for prefill and decode apart."""
    model = lm_benchmark._check(tiny("unused"))
    speed = table(
        {
            "unrolled": (0.2, 1.0), "scanned": (0.1, 2.0),
            "torch_dynamic_cache": (0.4, 0.5), "torch_static_cache": (0.3, 0.8),
        }
    )  # fmt: skip
    summary = lm_speed.summarize(model, "float32", speed, CEILINGS)
    entry = summary["batches"]["2"]
    # The median of a repeat and one that takes twice as long.
    scanned = entry["contenders"]["scanned"]
    assert scanned["seconds_to_first_token"] == pytest.approx(0.15)
    assert scanned["prefill_tokens_per_second"] == pytest.approx(2 * 8 / 0.15)
    assert scanned["decode_tokens_per_second"] == pytest.approx(2 * 5 / 3.0)
    assert scanned["peak_mebibytes"] == 101
    prefill, decode = entry["ratios"]["prefill"], entry["ratios"]["decode"]
    assert (prefill["ours"], prefill["torch"]) == ("scanned", "torch_static_cache")
    assert (decode["ours"], decode["torch"]) == ("unrolled", "torch_dynamic_cache")
    for ratio, expected in ((prefill, 3.0), (decode, 0.5)):
        assert ratio["times_as_fast"] == pytest.approx(expected)
        assert ratio["least_of_the_repeats"] == pytest.approx(expected)
    assert [row["holds"] for row in summary["claims"]] == [True, False]
    assert summary["ceilings"] == {"gigaflops_per_second": 2.0, "gigabytes_per_second": 4.0}
    share = 1e-9 * lm_speed.prefill_flops(model, 2, 8) / 0.15 / 2.0
    assert scanned["share_of_matmul_ceiling"] == pytest.approx(share)
    assert "3.00 times as fast (scanned against" in lm_speed.account(summary)


def test_operations_and_bytes():
    """Counted by hand: width 16, heads of 4, 4 and 2 of them, MLP of 24, 50 tokens, 2 layers."""
    model = lm_benchmark._check(tiny("unused"))
    layer = 16 * 16 + 16 * 8 + 16 * 8 + 16 * 16 + 3 * 16 * 24
    assert lm_speed.parameter_count(model) == 2 * layer + 50 * 16
    # Three tokens see 1, 2 and 3 others; a pair costs 2 operations a feature, twice.
    one = 2 * (2 * layer * 3) + 2 * 4 * 16 * (1 + 2 + 3) + 2 * 50 * 16
    assert lm_speed.prefill_flops(model, 5, 3) == 5 * one
    # Four new tokens take three steps, which see 3, 4 and 5 tokens before their own.
    cache = 2 * 2 * 8 * (3 + 4 + 5) / 3
    assert lm_speed.decode_bytes(model, 5, 3, 4, itemsize=2) == pytest.approx(
        2 * (2 * layer + 50 * 16 + 5 * cache)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contenders": ("numba",)}, r"unknown contenders.*numba"),
        ({"contenders": ()}, "contenders must be at least one"),
        ({"batches": (2, 2)}, "batches must be .*each once"),
        ({"batches": (0,)}, "batches must be at least 1"),
        ({"new": 1}, "new must be at least 2"),
        ({"heads": 3}, r"heads \(3\) must divide hidden \(16\)"),
        ({"kv_heads": 3}, "num_key_value_heads .* must divide"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        lm_benchmark.main(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_without_pytorch_ours_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(lm_benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: torch.*--contenders unrolled scanned"):
        lm_benchmark.main(tiny(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert lm_benchmark._check(tiny(tmp_path / "run", contenders=OURS)).num_hidden_layers == 2
