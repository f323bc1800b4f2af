"""The command from question to answers, on a backbone and a method of random weights."""

import dataclasses
import gzip
import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import small_backbones
from rich.console import Console

from icorag_jax.answer.__main__ import main
from icorag_jax.answer.asking import Comparison, Reply, ask, fit, in_order, search
from icorag_jax.answer.views import draw_bar, printable, weight_figure, weight_table
from icorag_jax.backbones.loading import load_backbone
from icorag_jax.data.records import CorpusPassage
from icorag_jax.rag.batches import make_batch
from icorag_jax.retrieval.bm25 import Bm25

QUESTION = "Who lit the lamp?"
PASSAGES = [
    CorpusPassage("1", "Lamp", "The lamp was lit by Mira."),
    CorpusPassage("2", "Rain", "Rain fell on the harbour."),
    CorpusPassage("3", "", "Mira kept the lamp for years."),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A backbone, a method for it, and files of passages."""
    folder = tmp_path_factory.mktemp("answer")
    model = small_backbones.write_backbone(folder / "backbone")
    small_backbones.write_method(folder / "method", model)
    small_backbones.write_method(folder / "other", small_backbones.make_model(5))
    (folder / "empty.txt").write_text("\n")
    (folder / "one.txt").write_text("The lamp was lit by Mira.")
    (folder / "many.txt").write_text("\n".join(f"Lamp {n} is out." for n in range(7)))
    (folder / "long.txt").write_text(f"{'The lamp was lit. ' * 60}\nRain fell.\nMira left.")
    rows = "\n".join(json.dumps({"title": p.title, "text": p.text}) for p in PASSAGES)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    return folder


@pytest.fixture(scope="module")
def backbone(folders):
    return load_backbone(str(folders / "backbone"), jnp.float32)


def run(folders, capsys, *words, code=None):
    """What the command prints, and what goes to standard error, when it ends with `code`."""
    args = ["--backbone", str(folders / "backbone"), *map(str, words)]
    if code is None:
        main(args)
    else:
        with pytest.raises(SystemExit) as ended:
            main(args)
        assert ended.value.code == code
    return capsys.readouterr()


def test_answers_from_given_passages(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    found = run(
        folders, capsys, QUESTION, "--passages", folders / "many.txt",
        "--method", folders / "method", "--plot", tmp_path / "new" / "weights.png",
    )  # fmt: skip
    lines = found.out.splitlines()
    assert lines[0].split(maxsplit=1) == ["question", QUESTION]
    assert [line.split()[0] for line in lines[1:3]] == ["frozen", "updated"]
    assert "weight, frozen" in found.out and "weight, updated" in found.out
    rows = [line for line in lines if re.match(r" *\d ", line)]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    assert all(len(re.findall(r"\d+\.\d%", row)) == 2 for row in rows)
    assert "trained for 4 passages: the first 4 of 7 are used" in found.out
    assert not found.err
    assert (tmp_path / "new" / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_answers_from_a_corpus_without_a_method(folders, capsys):
    found = run(folders, capsys, QUESTION, "--corpus", folders / "corpus.jsonl.gz", "--top", 1)
    assert "updated" not in found.out
    assert re.search(r"^ *1 +Lamp", found.out, re.MULTILINE)
    (weight,) = re.findall(r"(\d+\.\d)%", found.out)
    assert 0 < float(weight) < 100
    assert "no updater is known" in found.out and "train_an_updater.ipynb" in found.out


@pytest.mark.parametrize(("retriever", "first"), [("dense", "Lanterns"), ("sentences", "Diary")])
def test_searches_by_meaning(folders, capsys, tmp_path, retriever, first):
    # The answer is one sentence of many; the other passage is on the subject from end to end.
    diary = "It rained. We had soup. Mira lit the lamp. The boats came in late. The cat slept."
    lanterns = "Lamps are lit with oil. A lamp needs a wick. Lamps give light."
    rows = [{"title": "Lanterns", "text": lanterns}, {"title": "Diary", "text": diary}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run(
        folders, capsys, QUESTION, "--corpus", tmp_path / "corpus.jsonl",
        "--retriever", retriever, "--top", 1,
    )  # fmt: skip
    assert re.search(rf"^ *1 +{first}", found.out, re.MULTILINE)


def test_a_question_may_be_of_a_new_task(folders, capsys):
    words = [QUESTION, "--corpus", folders / "corpus.jsonl.gz", "--method", folders / "method"]
    plain, new = (run(folders, capsys, *words, *more).out for more in ([], ["--new-tasks"]))
    weights = [re.findall(r"(\d+\.\d)%", out) for out in (plain, new)]
    assert weights[0][::2] == weights[1][::2]  # of the frozen model
    assert weights[0][1::2] != weights[1][1::2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["", "--passages", "one.txt"], "the question is empty"),
        ([QUESTION], "one of them"),
        ([QUESTION, "--passages", "one.txt", "--corpus", "one.txt"], "one of them"),
        ([QUESTION, "--passages", "empty.txt"], "is empty"),
        ([QUESTION, "--passages", "none.txt"], "cannot read"),
        ([QUESTION, "--passages", "backbone"], "must end in"),
        ([QUESTION, "--corpus", "one.txt", "--top", "0"], "--top must be at least 1"),
        (["Xyzzy?", "--corpus", "one.txt"], "shares a word"),
        ([QUESTION, "--passages", "one.txt", "--plot", "a.xyz"], "--plot must end"),
        ([QUESTION, "--passages", "one.txt", "--method", "other"], "for another backbone"),
        ([QUESTION, "--passages", "one.txt", "--method", "none"], "cannot read"),
        ([QUESTION, "--passages", "one.txt", "--backbone", "none"], "there is no backbone"),
        ([f"{QUESTION * 400}", "--passages", "one.txt"], "max_tokens"),
    ],
)
def test_what_will_not_do_is_a_line_on_standard_error(folders, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folders)
    found = run(folders, capsys, *words, code=2)
    assert not found.out
    assert found.err.startswith("error: ") and message in found.err
    assert found.err.count("\n") == 1


def test_help(folders, capsys):
    text = run(folders, capsys, "--help", code=0).out
    for option in ("passages", "corpus", "method", "new-tasks", "retriever", "top", "plot"):
        assert f"--{option}" in text


def test_long_passages_are_cut_and_it_says_so(backbone):
    text = "The lamp was lit. " * 200
    passages = [PASSAGES[1], CorpusPassage("9", "Long", text), *PASSAGES[:1]]
    asked = in_order(passages, QUESTION)
    sizes, found, notes = fit(backbone, small_backbones.SIZES, asked)
    assert [passage.id for passage in found.passages] == ["2", "9"]
    assert sizes.passages == len(found.scores) == 2
    assert 112 < sizes.evidence_tokens <= 120
    cut, dropped = notes
    assert re.search(r"passage 2 is cut by \d+ tokens: evidence may take 120 tokens", cut)
    assert "passages from 3 on are left out" in dropped

    # Without a method there is all the model's context.
    sizes, found, notes = fit(backbone, None, asked)
    room = 1024 - sizes.question_tokens - sizes.answer_tokens
    assert room - 8 < sizes.evidence_tokens <= room
    assert f"evidence may take {room} tokens" in notes[0]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_sizes_just_hold_the_prompt(backbone, count):
    asked = in_order([PASSAGES[1]] * count, QUESTION)
    sizes, found, notes = fit(backbone, small_backbones.SIZES, asked)
    batch = make_batch(
        sizes, backbone.model.config, backbone.tokenizer, backbone.template, [found], answers=False
    )
    assert batch.present.all() and batch.present.shape == (1, min(count, 4))
    assert (batch.evidence_positions >= 0).all() and batch.is_question.all()
    assert (len(notes) == 1) == (count > 4)


def test_no_room(backbone):
    asked = in_order(PASSAGES, QUESTION)
    limits = dataclasses.replace(small_backbones.SIZES, evidence_tokens=5)
    with pytest.raises(ValueError, match="no room for a passage"):
        fit(backbone, limits, asked)


@pytest.mark.parametrize(("question", "passages"), [(" ", PASSAGES), (QUESTION, [])])
def test_nothing_to_ask(backbone, question, passages):
    with pytest.raises(ValueError, match=r"the question is empty|there are no passages"):
        ask(backbone, None, in_order(passages, question))


def test_search_finds_the_best_first():
    found = search(Bm25(), PASSAGES, "Rain on the harbour", 2)
    assert found.passages[0].id == "2"
    assert list(found.scores) == sorted(found.scores, reverse=True)


def comparison(updated=True):
    frozen = Reply("[a] $x$", np.asarray([0.5, 0.25, 0.0], np.float32))
    other = Reply("b", np.asarray([0.1, 0.2, 0.4], np.float32))
    return Comparison("[red]Why $x_?", tuple(PASSAGES), frozen, other if updated else None, ())


def test_bars_are_as_long_as_weights():
    assert [draw_bar(share, 4, ascii_only=True) for share in (0.0, 0.5, 1.0)] == ["", "##", "####"]
    assert [draw_bar(share, 4, ascii_only=False) for share in (0.0, 0.125, 0.25, 1.0)] == [
        "", "▌", "█", "████",
    ]  # fmt: skip


def test_nothing_is_printed_that_a_terminal_obeys():
    assert printable("a\x1b[31m b\n\tc\x0f") == "a [31m b c"


@pytest.mark.parametrize("width", [40, 120])
def test_table_has_a_line_a_passage(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(weight_table(comparison(), ascii_only=True))
    lines = console.export_text().splitlines()
    assert len(lines) == 1 + len(PASSAGES)
    assert all(len(line) <= width for line in lines)
    if width == 120:
        bars = [re.findall(r"([\d.]+)% (#*)", line) for line in lines[1:]]
        assert [[float(number) for number, _ in row] for row in bars] == [
            [50.0, 10.0], [25.0, 20.0], [0.0, 40.0],
        ]  # fmt: skip
        assert [[len(bar) for _, bar in row] for row in bars] == [[12, 2], [6, 5], [0, 10]]


def test_table_without_titles_has_no_column_for_them():
    untitled = tuple(dataclasses.replace(passage, title="") for passage in PASSAGES)
    shown = [comparison(), dataclasses.replace(comparison(), passages=untitled)]
    headers = [
        [column.header for column in weight_table(c, ascii_only=True).columns] for c in shown
    ]
    assert headers[0] == ["#", "title", "text", "weight, frozen", "weight, updated"]
    assert headers[1] == ["#", "text", "weight, frozen", "weight, updated"]


def test_figure_has_a_bar_a_weight():
    for updated in (True, False):
        figure = weight_figure(comparison(updated))
        figure.draw_without_rendering()
        widths = [bar.get_width() for bar in figure.axes[0].patches]
        expected = [0.5, 0.25, 0.0] + [0.1, 0.2, 0.4] * updated
        np.testing.assert_allclose(widths, expected, rtol=1e-6)
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == ["1. Lamp", "2. Rain", "3. Mira kept the lamp for years."]
