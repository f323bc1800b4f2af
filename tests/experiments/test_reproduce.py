"""All experiments in one go, on tiny settings: claims, report, and what a failure looks like."""

import dataclasses
import json
import re

import pytest

from experiments import boundary_sweep, exactness, reproduce, trained_lsa
from experiments.reproduce import Config

TINY = {
    exactness: {"episodes": 2, "size_sets": 1},
    trained_lsa: {
        "seeds": 2, "reference_steps": 4, "reference_batch": 8, "steps": 5, "batch": 4,
        "test_queries": 16,
    },
    boundary_sweep: {
        "distributions": ("gaussian", "clustered"), "architectures": ("linear", "softmax"),
        "features": 3, "examples": 4, "queries": 2, "temperatures": (1.0,), "depths": (2,),
        "samples": 32, "seeds": 2, "starts": 2, "start_steps": 2, "steps": 4, "batch": 4,
        "fit_episodes": 64, "test_episodes": 8, "transfer_episodes": 4,
        "bootstrap": 20,
    },
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    for module, settings in TINY.items():
        for preset in ("quick", "glance"):
            monkeypatch.setitem(module.PRESETS, preset, settings)


def test_one_command_runs_all_and_reports(tmp_path, capsys, tiny):
    out = tmp_path / "results"
    reproduce.main(Config(out))
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"report: {out / 'report.html'}")
    for name in reproduce.EXPERIMENTS:
        summary = json.loads((out / name / "summary.json").read_text())
        for claim in summary["claims"]:
            assert claim["claim"][:30] in re.sub(r"\s+", " ", printed)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*/figures/*.png")))
    # Nothing is fetched from elsewhere.
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    # A second run finds all done, and reports the same.
    written = {path: path.read_bytes() for path in out.rglob("*.json")}
    reproduce.main(Config(out))
    assert capsys.readouterr().out == printed
    assert {path: path.read_bytes() for path in written} == written


def test_a_failure_ends_the_run_with_its_message(tmp_path, capfd, tiny, monkeypatch):
    bad = dict(TINY[boundary_sweep], seeds=0)
    monkeypatch.setitem(boundary_sweep.PRESETS, "glance", bad)
    with pytest.raises(SystemExit) as stop:
        reproduce.main(Config(tmp_path / "results"))
    assert stop.value.code == 2
    assert "seeds must be at least 1, got 0" in capfd.readouterr().err
    assert not (tmp_path / "results" / "report.html").exists()


def test_every_experiment_has_the_presets_and_settings_of_all():
    for module in reproduce.EXPERIMENTS.values():
        assert {"quick", "paper"} <= set(module.PRESETS)
        assert {"out", "seed", "resume"} <= {f.name for f in dataclasses.fields(module.Config)}
