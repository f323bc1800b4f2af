"""All experiments in one go, on tiny settings: claims, report, and what a failure looks like."""

import dataclasses
import json
import re

import pytest

from experiments import boundary_sweep, exactness, qa, qa_cost, reproduce, trained_lsa
from experiments.reproduce import Config
from experiments.support.qa_data import QaData
from experiments.support.qa_settings import QaMethods
from tests.small_backbones import write_backbone

USE = QaMethods(
    methods=("frozen", "shared", "updater"), pools=2, pool_features=3, rank=2,
    evidence_tokens=200, question_tokens=100, answer_tokens=4, steps=2, batch=2,
    evaluation_batch=2,
)  # fmt: skip

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
    qa: {
        "questions": QaData(
            benchmarks=("single_fact", "bridge"), train_questions=2, evaluation_questions=2,
            passages=2,
        ),
        "use": USE, "bootstrap": 20,
    },
    qa_cost: {
        "questions": QaData(
            benchmarks=("single_fact",), train_questions=0, evaluation_questions=1, passages=2
        ),
        "use": USE, "repeats": 2, "timed_steps": (1,),
    },
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    write_backbone(tmp_path / "backbone")
    for module, settings in TINY.items():
        if module in (qa, qa_cost):
            settings = {**settings, "backbone": str(tmp_path / "backbone")}
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
        fields = {f.name for f in dataclasses.fields(module.Config)}
        assert {"out", "resume"} <= fields and fields & {"seed", "questions"}
