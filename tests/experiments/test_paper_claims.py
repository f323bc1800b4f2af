"""Slow: the quick presets as they stand, and commands that are killed for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "exactness": ["--episodes", "40", "--size-sets", "2"],
    "trained_lsa": [
        *("--seeds", "2", "--reference-steps", "200", "--reference-batch", "64"),
        *("--steps", "200", "--batch", "16", "--test-queries", "4000"),
    ],
    "boundary_sweep": [
        *("--architectures", "linear", "depth_2", "softmax"),
        *("--distributions", "gaussian", "text", "--features", "3", "--samples", "256"),
        *("--texts", "40", "--starts", "2", "--start-steps", "20", "--steps", "100"),
        *("--batch", "16", "--fit-episodes", "256", "--bootstrap", "50"),
    ],
}  # fmt: skip


def start(name: str, out: Path, *options: str) -> subprocess.Popen:
    """A command in a process of its own, with JAX as users have it."""
    command = [sys.executable, "-m", f"experiments.{name}", "--out", str(out), *options]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["exactness", "trained_lsa"])
def test_quick_preset_bears_out_its_claims(tmp_path, name):
    assert start(name, tmp_path / "run").wait() == 0
    claims = json.loads((tmp_path / "run" / "summary.json").read_text())["claims"]
    assert [claim["claim"] for claim in claims if not claim["holds"]] == []


def test_quick_sweep_aligns_linear_extensions_where_theory_says(tmp_path):
    """The linear extensions alone; what nonlinear ones do is reported, not claimed."""
    linear = ("linear", "heads", "retriever_weights", "missing_passages", "distractors",
              "label_noise", "anisotropic", "low_rank", "shorter_context", "longer_context",
              "half_scale", "double_scale")  # fmt: skip
    assert start("boundary_sweep", tmp_path / "run", "--architectures", *linear).wait() == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["architectures"]) == set(linear)
    for entry in summary["architectures"].values():
        for law in entry["alignment_by_distribution"].values():
            assert law["mean"] >= 0.99


@pytest.mark.parametrize("name", list(SMALL))
def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path, name):
    assert start(name, tmp_path / "whole", *SMALL[name]).wait() == 0
    expected = contents(tmp_path / "whole")
    cells = [path for path in expected if path.startswith("cells/") and "sha256" not in path]
    assert len(cells) > 1
    # Killed when the first cell is there, and the next is being computed.
    out, kills = tmp_path / "killed", 0
    process = start(name, out, *SMALL[name])
    while process.poll() is None:
        if any((out / cell).exists() for cell in cells):
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        time.sleep(0.02)
    assert kills == 1 and not (out / "summary.json").exists()
    assert start(name, out, *SMALL[name], "--resume").wait() == 0
    assert contents(out) == expected
