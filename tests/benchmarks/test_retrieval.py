"""The measurement reports what it timed, and refuses what it cannot time."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import retrieval
from benchmarks.retrieval import Config


def tiny(out, **changes):
    sizes = {"passages": 300, "widths": (8,), "batches": (1, 3), "k": 4, "ceiling": 16}
    return Config(out, **{**sizes, "seconds": 1e-6, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks") / "retrieval"
    retrieval.main(tiny(out))
    return out


def test_everything_is_timed(measured):
    times = pd.read_parquet(measured / "times.parquet")
    expected = ["exact_search", "faiss_flat", "numpy", "read", "product"]
    assert times["what"].tolist() == expected * 2
    assert (times["seconds"] > 0).all()
    summary = json.loads((measured / "summary.json").read_text())
    assert set(summary["widths"]["8"]) == {"1", "3"}
    assert (measured / "figures" / "queries_per_second.png").stat().st_size > 1000
    assert "| 8 | 3 | faiss_flat |" in (measured / "account.md").read_text()


def test_a_measurement_is_not_made_twice(measured, monkeypatch):
    monkeypatch.setattr(retrieval, "measure", lambda *arguments: 1 / 0)
    account = (measured / "account.md").read_bytes()
    retrieval.main(tiny(measured, resume=True))
    assert (measured / "account.md").read_bytes() == account


def test_rates_and_shares():
    seconds = {"exact_search": 0.4, "faiss_flat": 0.8, "numpy": 1.6, "read": 0.2, "product": 0.1}
    times = pd.DataFrame({"what": list(seconds), "seconds": list(seconds.values())})
    times = times.assign(batch=8, width=250, passages=1_000_000, k=5)
    entry = retrieval.summarize(times)["widths"]["250"]["8"]["exact_search"]
    assert entry == pytest.approx(
        {
            "milliseconds": 400,
            "queries_per_second": 20,
            "gigabytes_per_second": 1 / 0.4,  # a million vectors of 1,000 bytes
            "gigaflops_per_second": 2 * 250 * 8 * 1e-3 / 0.4,
            "of_ceiling": 0.5,
        }
    )


def test_contenders_that_disagree(tmp_path, monkeypatch):
    def wrong(vectors, k):
        return lambda queries: (None, np.zeros((len(queries), k), np.float32))

    monkeypatch.setattr(retrieval, "_by_numpy", wrong)
    with pytest.raises(FloatingPointError, match="numpy does not find the scores"):
        retrieval.main(tiny(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passages": 0}, "passages must be at least 1"),
        ({"k": 301}, r"k \(301\) must not exceed passages \(300\)"),
        ({"widths": ()}, "widths must be at least one"),
        ({"batches": (4, 4)}, "batches must be .*each once"),
        ({"seconds": 0.0}, "seconds must be above 0"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        retrieval.main(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_faiss_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'icorag_jax\[faiss\]'"):
        retrieval.main(tiny(tmp_path / "run"))
