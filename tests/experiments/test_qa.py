"""Question answering end to end on a tiny random backbone: every method, the grid, and cost."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import qa, qa_cost, qa_grid
from experiments.support import qa_run
from experiments.support.qa_data import QaData, load_questions
from experiments.support.qa_settings import QaMethods
from experiments.support.qa_training import Subject, Training, train_methods
from experiments.support.run_folder import RunFolderError
from icorag_jax.backbones.loading import load_backbone
from tests.small_backbones import write_backbone

pytestmark = pytest.mark.slow

QUESTIONS = QaData(
    benchmarks=("single_fact", "bridge"), train_questions=3, evaluation_questions=3, passages=3
)
USE = QaMethods(
    pools=2, pool_features=3, rank=2, evidence_tokens=240, question_tokens=100, answer_tokens=4,
    selection_steps=1, selection_batch=2, steps=3, batch=2, tuning_questions=1, adaptation_steps=2,
    adapted_questions=2, evaluation_batch=2, answered_questions=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones") / "tiny"
    write_backbone(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    config = qa.Config(
        tmp_path_factory.mktemp("qa") / "run", backbone=backbone, bootstrap=50,
        questions=QUESTIONS, use=USE,
    )  # fmt: skip
    qa.main(config)
    return config


def test_every_method_answers_every_question(finished):
    answers = pd.read_parquet(finished.out / "answers.parquet")
    counts = answers.groupby(["method", "benchmark"])["id"].nunique().unstack()
    assert set(counts.index) == set(USE.methods)
    gradient_steps = counts.index.isin(["slot", "tta", "oracle"])
    assert (counts[~gradient_steps] == 3).all(axis=None)
    # Those with gradient steps answer the first questions alone.
    assert (counts[gradient_steps] == 2).all(axis=None)
    scores = pd.read_parquet(finished.out / "scores.parquet")
    frozen = answers[(answers["method"] == "frozen") & (answers["benchmark"] == "bridge")]
    row = scores[
        (scores["method"] == "frozen")
        & (scores["benchmark"] == "bridge")
        & (scores["measure"] == "f1")
    ]
    assert row["mean"].item() == pytest.approx(frozen["f1"].mean())
    assert {path.name for path in (finished.out / "figures").glob("*.png")} >= {
        "scores.png", "gains.png", "cosines.png",
    }  # fmt: skip
    tuned = json.loads((finished.out / "summary.json").read_text())["tuned"]
    assert {row["method"] for row in tuned} == {"tta", "oracle", "slot"}


def test_a_resumed_run_trains_nothing_and_finds_the_same(finished, monkeypatch):
    before = {path: path.read_bytes() for path in finished.out.rglob("*.parquet")}
    monkeypatch.setattr(qa_run, "answer_questions", lambda *_: pytest.fail("answered again"))
    qa.main(dataclasses.replace(finished, resume=True))
    assert {path: path.read_bytes() for path in before} == before


def test_methods_that_were_trained_before_answer_the_same(finished, tmp_path):
    questions = dataclasses.replace(QUESTIONS, train_questions=0)
    methods = ("frozen", "shared", "updater", "updater_shuffled")
    use = dataclasses.replace(USE, methods=methods, trained=finished.out / "methods" / "bm25")
    config = dataclasses.replace(finished, out=tmp_path / "run", questions=questions, use=use)
    qa.main(config)
    before, now = (pd.read_parquet(out / "answers.parquet") for out in (finished.out, config.out))
    before = before[before["method"].isin(methods)].reset_index(drop=True)
    pd.testing.assert_frame_equal(before, now)
    assert not list((tmp_path / "run").rglob("checkpoints"))
    assert str(use.trained) in (config.out / "account.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 3}, "updater has other sizes than this run"),
        ({"trained": "shipped"}, "shipped for this backbone has no method updater"),
    ],
)
def test_methods_that_do_not_fit_are_refused(finished, tmp_path, change, message):
    use = dataclasses.replace(USE, methods=("updater",), trained=finished.out / "methods" / "bm25")
    use = dataclasses.replace(use, **change)
    with pytest.raises(ValueError, match=message):
        qa.main(dataclasses.replace(finished, out=tmp_path / "run", use=use))


@pytest.mark.parametrize("left_out", [False, True])
def test_an_updater_answers_as_on_new_tasks_where_it_is_asked_to_or_was_not_trained(
    finished, backbone, tmp_path, monkeypatch, left_out
):
    seen = []
    answer = qa_run.answer_questions

    def spy(subject, methods, *rest):
        seen.append(methods["updater"])
        return answer(subject, methods, *rest)

    monkeypatch.setattr(qa_run, "answer_questions", spy)
    use = dataclasses.replace(USE, methods=("frozen", "shared", "updater"))
    if left_out:
        config = qa_grid.Config(
            tmp_path / "grid", backbones=(backbone,), retrievers=("bm25",), bootstrap=50,
            questions=QUESTIONS, use=use,
        )  # fmt: skip
        qa_grid.main(config)
    else:
        use = dataclasses.replace(use, trained=finished.out / "methods" / "bm25")
        for name, is_new in (("known", False), ("new", True)):
            used = dataclasses.replace(use, new_tasks=is_new)
            qa.main(dataclasses.replace(finished, out=tmp_path / name, use=used))
    # Two benchmarks each time.
    of_states = [stored.parameters["updater"]["step_sizes"][..., :-1] for stored in seen]
    assert [bool(jnp.any(sizes != 0)) for sizes in of_states] == [True, True, False, False]


def test_another_backbone_of_the_same_name_is_refused(finished, tmp_path):
    # The path is the same in the settings, the weights are not.
    folder = tmp_path / "tiny"
    write_backbone(folder, seed=1)
    inputs = pd.read_parquet(finished.out / "cells" / "inputs_bm25.parquet")
    assert len(inputs) == 1
    config = dataclasses.replace(finished, backbone=str(folder), resume=True)
    with pytest.raises(RunFolderError, match="holds another run"):
        qa.main(config)


def test_answers_are_learned_from_the_first_questions_and_selection_from_all(backbone, tmp_path):
    # As many passages as the second hop of a bridge wants to be among them.
    questions = dataclasses.replace(QUESTIONS, passages=10)
    use = dataclasses.replace(USE, evidence_tokens=900)
    sets = load_questions(questions, tmp_path)
    subject = Subject(load_backbone(backbone, jnp.float32), use, questions.passages)
    training = Training(subject, sets.train)
    tokens = subject.batch([*sets.train["single_fact"], *sets.train["bridge"]], answers=True).tokens

    def rows(pool):
        return pool.readings.tokens[pool.among].tolist()

    assert rows(training.answers(["bridge"])) == tokens[3:5].tolist()
    assert rows(training.answers(sets.train)) == tokens[[0, 1, 3, 4]].tolist()
    found = np.asarray([any(asked.positive) for part in sets.train.values() for asked in part])
    few = np.asarray([not all(asked.positive) for part in sets.train.values() for asked in part])
    assert found.sum() > 3
    assert rows(training.selection(sets.train)) == tokens[found & few].tolist()
    assert rows(training.selection(["bridge"])) == tokens[3:][(found & few)[3:]].tolist()
    assert not training.selection(["bridge"]).readings.evidence.keys.size


def test_answers_are_learned_where_a_passage_has_one(backbone, tmp_path):
    questions = dataclasses.replace(QUESTIONS, passages=10)
    use = dataclasses.replace(USE, evidence_tokens=900)
    train = load_questions(questions, tmp_path).train
    assert all(any(asked.positive) for asked in train["single_fact"])
    nothing = [dataclasses.replace(asked, passages=(), scores=()) for asked in train["bridge"]]
    # Of single facts the first is passed over; of bridges none is better than another.
    found = [dataclasses.replace(train["single_fact"][0], passages=(), scores=())]
    train = {"single_fact": (*found, *train["single_fact"][1:]), "bridge": nothing}
    subject = Subject(load_backbone(backbone, jnp.float32), use, questions.passages)
    pool = Training(subject, train).answers(train)
    expected = subject.batch([*train["single_fact"][1:], *nothing[:2]], answers=True).tokens
    assert pool.readings.tokens[pool.among].tolist() == expected.tolist()


def test_without_passages_to_select_all_steps_are_on_answers(backbone, tmp_path):
    sets = load_questions(QUESTIONS, tmp_path)
    nothing = {
        name: [dataclasses.replace(asked, passages=(), scores=()) for asked in part]
        for name, part in sets.train.items()
    }
    training = Training(Subject(load_backbone(backbone, jnp.float32), USE, 3), nothing)
    assert not len(training.selection(nothing).among)
    train_methods(training, tuple(nothing), ("shared",), tmp_path / "methods")
    losses = pd.read_csv(tmp_path / "methods" / "losses_shared.csv")
    assert losses["step"].max() == USE.steps and (losses["answers"] > 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("methods", ("frozen", "none")), ("layer", 0), ("bound", 0.0), ("pools", 0), ("rank", 0),
     ("updater_steps", 0), ("evidence_tokens", 0), ("answered_questions", -1),
     ("selection_rate", 0.0), ("steps", -1), ("adapted_questions", -1), ("evaluation_batch", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_before_anything_is_read(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        dataclasses.replace(USE, **{name: value})


def test_a_layer_that_the_backbone_does_not_have_is_refused(backbone):
    with pytest.raises(ValueError, match=r"layer must be below 3, .*, got 3"):
        Subject(load_backbone(backbone, jnp.float32), dataclasses.replace(USE, layer=3), 3)


def test_nothing_to_train_on_is_an_error(backbone, tmp_path):
    questions = dataclasses.replace(QUESTIONS, train_questions=0)
    with pytest.raises(ValueError, match="there are no training questions"):
        qa.main(qa.Config(tmp_path / "run", backbone=backbone, questions=questions, use=USE))


def test_nothing_to_tune_on_is_an_error(finished, tmp_path):
    questions = dataclasses.replace(QUESTIONS, train_questions=0)
    use = dataclasses.replace(USE, methods=("tta",), trained=finished.out / "methods" / "bm25")
    config = dataclasses.replace(finished, out=tmp_path / "run", questions=questions, use=use)
    with pytest.raises(ValueError, match="no training questions to tune"):
        qa.main(config)


def test_what_is_left_out_is_always_trained(backbone, finished, tmp_path):
    questions = dataclasses.replace(QUESTIONS, train_questions=0)
    use = dataclasses.replace(
        USE, methods=("frozen", "updater"), trained=finished.out / "methods" / "bm25"
    )
    config = qa_grid.Config(
        tmp_path / "grid", backbones=(backbone,), retrievers=("bm25",), bootstrap=50,
        transfer=(), questions=questions, use=use,
    )  # fmt: skip
    qa_grid.main(config)
    assert str(use.trained) in (config.out / "account.md").read_text()
    config = dataclasses.replace(config, out=tmp_path / "transfer", transfer=("bm25",))
    with pytest.raises(ValueError, match="there are no training questions"):
        qa_grid.main(config)


def test_the_grid_has_a_row_for_each_cell_and_family_left_out(backbone, tmp_path):
    use = dataclasses.replace(USE, methods=("frozen", "shared", "updater"))
    qa_grid.main(
        qa_grid.Config(
            tmp_path / "grid", backbones=(backbone,), retrievers=("bm25",), bootstrap=50,
            questions=QUESTIONS, use=use,
        )
    )  # fmt: skip
    for name in ("answers", "transfer"):
        table = pd.read_parquet(tmp_path / "grid" / f"{name}.parquet")
        counts = table.groupby(["backbone", "retriever", "benchmark", "method"])["id"].nunique()
        assert len(counts) == 2 * 3 and (counts == 3).all()
    claims = json.loads((tmp_path / "grid" / "summary.json").read_text())["claims"]
    assert any("Left out of training" in claim["claim"] for claim in claims)


def test_costs_grow_with_the_steps_and_the_updater_is_cheap(backbone, tmp_path):
    questions = dataclasses.replace(QUESTIONS, train_questions=0)
    qa_cost.main(
        qa_cost.Config(
            tmp_path / "cost", backbone=backbone, repeats=3, timed_steps=(1, 2),
            questions=questions, use=USE,
        )
    )  # fmt: skip
    costs = pd.read_parquet(tmp_path / "cost" / "costs.parquet").set_index("method")
    assert list(costs.index) == ["frozen", "shared", "updater", "tta_1", "tta_2"]
    flops = costs["flops"]
    assert flops["frozen"] < flops["shared"] < flops["updater"] < flops["tta_2"]
    step = flops["tta_1"] - flops["shared"]
    assert flops["tta_2"] - flops["tta_1"] == pytest.approx(step, rel=1e-6)
    assert np.isfinite(costs.to_numpy()).all()
