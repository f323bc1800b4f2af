"""Correction of a small reader: what it misreads, and steps on that."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import correct_reader
from experiments.correct_reader import Config
from experiments.support import reader_correction, reader_texts
from experiments.support.reader_correction import score_answers
from experiments.support.reader_folder import write_reader
from experiments.support.reader_lookalikes import generate_lookalikes
from experiments.support.reader_start import init_reader
from icorag_jax.backbones.loading import load_backbone
from icorag_jax.data.pieces import split_tokenizer
from icorag_jax.files import is_leftover
from icorag_jax.lm import decoder
from icorag_jax.lm.pretrained import LanguageModel
from tests.interruption import interrupted
from tests.small_backbones import decoder_config

CONFIG = decoder_config(
    vocab_size=400, hidden_size=64, head_dim=16, num_hidden_layers=3, intermediate_size=48
)
SETTINGS = {
    "rounds": 2, "steps": 3, "texts": 12, "searched": 14, "batch": 2, "warmup_steps": 1,
    "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    stage = correct_reader.CURRICULUM[0]
    return reader_texts.train_tokenizer(reader_texts.plain_texts(stage, 0, 60), 400)


@pytest.fixture(scope="module")
def reader(tokenizer):
    return LanguageModel(CONFIG, init_reader(CONFIG, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def start(reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader") / "start"
    write_reader(folder, reader)
    return folder


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("corrected") / "run"
    correct_reader.main(Config(start, out, **SETTINGS))
    return out


def test_lookalikes_are_found_by_pieces_of_names(tokenizer):
    readings = generate_lookalikes(tokenizer, 0, 40, 140)
    shared, last = [], 0
    for reading in readings:
        ((question, answer),) = reading.questions
        subjects = {p.title for p in reading.passages if answer in p.text and p.title in question}
        assert len(subjects) == 1 and 2 <= len(reading.passages) <= 6
        (subject,) = subjects
        last += reading.passages[-1].title == subject
        others = [p.title for p in reading.passages if p.title != subject]
        shared += [_pieces(tokenizer, subject) & _pieces(tokenizer, other) for other in others]
    assert 30 <= last <= 40
    drawn = [
        _pieces(tokenizer, one.passages[-1].title) & _pieces(tokenizer, other.passages[0].title)
        for one, other in itertools.pairwise(readings)
    ]
    assert np.mean(list(map(len, shared))) > 1.5 * np.mean(list(map(len, drawn)))
    assert readings == generate_lookalikes(tokenizer, 0, 40, 140)
    assert readings != generate_lookalikes(tokenizer, 1, 40, 140)


def _pieces(tokenizer, text):
    return set(tokenizer.encode(f" {text}").ids)


def test_an_answer_scores_as_it_does_token_by_token(reader, tokenizer, monkeypatch):
    monkeypatch.setattr(reader_correction, "_ROWS", 4)
    readings = generate_lookalikes(tokenizer, 3, 6, 14)
    texts = reader_texts.make_rows(split_tokenizer(tokenizer), readings, 500)
    scores = score_answers(CONFIG, reader.parameters, texts)
    assert scores.loss.shape == scores.wrong.shape == (6,)
    for row in range(6):
        length = int((texts.segments[row] >= 0).sum())
        tokens = jnp.asarray(texts.tokens[row : row + 1, :length])
        places = jnp.arange(length, dtype=jnp.int32)[None]
        cache = decoder.empty_cache(CONFIG, 1, length, jnp.float32)
        states = decoder.forward(CONFIG, reader.parameters, tokens, places, cache).states
        found = jax.nn.log_softmax(decoder.logits(CONFIG, reader.parameters, states))[0]
        answer = np.flatnonzero(texts.is_answer[row])
        likelihoods = found[answer - 1, tokens[0, answer]]
        np.testing.assert_allclose(scores.loss[row], -likelihoods.sum(), rtol=1e-3)
        greedy = np.argmax(found[answer - 1], axis=1)
        assert scores.wrong[row] == (greedy != tokens[0, answer]).any()


def test_losses_are_logged_and_the_model_loads(finished):
    rows = [json.loads(line) for line in (finished / "losses.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kind"]) for row in rows] == [
        (step, kind) for step in (2, 3, 4, 6) for kind in ("misread", "plain")
    ]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["wrong"].keys() == {"before", "after"}
    backbone = load_backbone(str(finished / "model"), jnp.float32)
    assert backbone.template.question.endswith("Answer:")


def test_a_run_that_was_stopped_ends_with_the_same_weights(finished, start, tmp_path):
    with interrupted(correct_reader, "correction_step", after=5):
        correct_reader.main(Config(start, tmp_path / "run", **SETTINGS))
    correct_reader.main(Config(start, tmp_path / "run", resume=True, **SETTINGS))
    for name in ("losses.jsonl", "model/model.safetensors", "summary.json"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert not [path for path in (tmp_path / "run").rglob("*") if is_leftover(path)]


def test_the_newest_texts_come_twice_as_often(start, tmp_path):
    config = Config(start, tmp_path, **SETTINGS | {"steps": 15, "batch": 4})
    old, new = (_numbered(range(first, last)) for first, last in ((0, 5), (5, 10)))
    batches = list(correct_reader._batches_of_round(config, [old, new]))
    assert [step for step, _ in batches] == list(range(15, 30))
    seen = np.concatenate([texts.tokens[:, 0] for _, texts in batches])
    assert np.bincount(seen).tolist() == [4] * 5 + [8] * 5


def test_a_reader_without_mistakes_is_said_to_be_one(start, tmp_path):
    config = Config(start, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="misreads none of these texts"):
        next(correct_reader._batches_of_round(config, [_numbered(range(0))]))


def _numbered(numbers):
    tokens = np.array(numbers, np.int32)[:, None]
    return reader_texts.Texts(tokens, tokens, tokens, tokens > 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rounds": 100}, "rounds must be at most 99, got 100"),
        ({"texts": 0}, "texts must be at least 1, got 0"),
        ({"family_share": 1.5}, "family_share must be at most 1, got 1.5"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        Config(tmp_path, tmp_path, **wrong)
