"""Pretraining of a small reader: what texts are like as arrays, and what a step sees of them."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.support import reader_stages, reader_texts, reader_training
from experiments.support.reader_stages import Stage, stage_reading
from experiments.support.reader_start import init_reader
from experiments.support.reader_texts import END, SEGMENTS, START, TEMPLATE, make_texts
from icorag_jax.data.pieces import split_tokenizer, tokenize_piece
from icorag_jax.data.prompts import tokenize_passage
from icorag_jax.data.records import CorpusPassage
from icorag_jax.data.world import FAMILIES
from icorag_jax.data.world.reading import ReadingConfig, generate_reading
from icorag_jax.lm import decoder
from icorag_jax.retrieval.bm25 import Bm25
from tests.small_backbones import decoder_config

STAGE = Stage(ReadingConfig(2, 2, 1, 0.5), 0.25, mixed=0.0, ranked=False, tokens=160, batch=2)
VOCABULARY = 400
CONFIG = decoder_config(
    vocab_size=VOCABULARY, hidden_size=64, head_dim=16, num_hidden_layers=3, intermediate_size=48
)


@pytest.fixture(scope="module")
def tokenizer():
    return reader_texts.train_tokenizer(reader_texts.plain_texts(STAGE, 0, 40), VOCABULARY)


@pytest.fixture(scope="module")
def texts(tokenizer):
    return make_texts(split_tokenizer(tokenizer), STAGE, seed=0, number=3)


def test_the_tokenizer_has_its_control_tokens_first_and_can_write_anything(tokenizer):
    assert (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) == (0, 1)
    text = "naïve 東京 🙂\n\tend"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_rows_hold_texts_one_after_the_other(tokenizer, texts):
    for row in range(STAGE.batch):
        segments = texts.segments[row]
        real = segments >= 0
        # Padding stands at the end, and segments only grow.
        assert not real[np.argmin(real) :].any() or real.all()
        assert (np.diff(segments[real]) >= 0).all()
        for segment in np.unique(segments[real]):
            at = np.flatnonzero(segments == segment)
            start = texts.positions[row, at[0]]
            np.testing.assert_array_equal(texts.positions[row, at], start + np.arange(len(at)))
            words = tokenizer.decode(texts.tokens[row, at].tolist(), skip_special_tokens=False)
            if segment % SEGMENTS == 0:
                assert start == 0 and words.startswith(START)
                assert not texts.is_answer[row, at].any()
            else:
                evidence = segments == segment // SEGMENTS * SEGMENTS
                assert start == evidence.sum()
                assert "Question: " in words and words.endswith(END)
                answer = texts.tokens[row, at[texts.is_answer[row, at]]][:-1].tolist()
                assert tokenizer.decode(answer).strip() in tokenizer.decode(
                    texts.tokens[row, evidence].tolist()
                )


def test_a_question_alone_sees_what_it_sees_in_a_row(tokenizer):
    # The states of a packed question are those of its evidence and itself as one text.
    split = split_tokenizer(tokenizer)
    texts = make_texts(split, dataclasses.replace(STAGE, family_share=0.0), seed=1, number=0)
    parameters = init_reader(CONFIG, jax.random.key(0))
    mask = reader_training.visible(jnp.asarray(texts.positions), jnp.asarray(texts.segments))
    packed = decoder.forward_texts(
        CONFIG, parameters, jnp.asarray(texts.tokens), jnp.asarray(texts.positions), mask
    )
    segments = texts.segments[0]
    question = segments[(segments > 0) & (segments % SEGMENTS > 0)][-1]
    at = np.flatnonzero((segments == question) | (segments == question // SEGMENTS * SEGMENTS))
    cache = decoder.empty_cache(CONFIG, 1, len(at), jnp.float32)
    alone = decoder.forward(
        CONFIG, parameters, jnp.asarray(texts.tokens[:1, at]),
        jnp.arange(len(at), dtype=jnp.int32)[None], cache,
    )  # fmt: skip
    np.testing.assert_allclose(packed[0, at], alone.states[0], atol=2e-4)


def test_texts_depend_on_seed_and_step_alone(tokenizer, texts):
    split = split_tokenizer(tokenizer)
    again = make_texts(split, STAGE, seed=0, number=3)
    for one, other in zip(texts, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(texts.tokens, make_texts(split, STAGE, seed=0, number=4).tokens)
    assert not np.array_equal(texts.tokens, make_texts(split, STAGE, seed=1, number=3).tokens)


def test_untrained_heads_copy_what_came_before(tokenizer):
    # Random tokens twice: the second time they are likelier, as no untrained model would have it.
    config = decoder_config(
        vocab_size=VOCABULARY, hidden_size=256, head_dim=64, intermediate_size=48
    )
    parameters = init_reader(config, jax.random.key(1))
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, (4, 30))
    tokens = jnp.asarray(np.concatenate([tokens, tokens], axis=1), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(60, dtype=jnp.int32), (4, 60))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((60, 60), bool)), (4, 60, 60))
    states = decoder.forward_texts(config, parameters, tokens, positions, mask)
    found = jax.nn.log_softmax(decoder.logits(config, parameters, states[:, :-1]))
    each = jnp.take_along_axis(found, tokens[:, 1:, None], axis=2)[..., 0]
    assert float(each[:, 32:].mean()) > float(each[:, :28].mean()) + 0.3


def test_the_loss_is_that_of_answers_and_half_of_all_else(tokenizer, texts):
    parameters = init_reader(CONFIG, jax.random.key(0))
    total, losses = reader_training.loss(CONFIG, parameters, texts)
    mask = reader_training.visible(jnp.asarray(texts.positions), jnp.asarray(texts.segments))
    states = decoder.forward_texts(
        CONFIG, parameters, jnp.asarray(texts.tokens), jnp.asarray(texts.positions), mask
    )
    found = np.asarray(jax.nn.log_softmax(decoder.logits(CONFIG, parameters, states)))
    answers, others = [], []
    for row in range(STAGE.batch):
        for column in range(1, STAGE.tokens):
            segment = texts.segments[row, column]
            if segment < 0 or segment != texts.segments[row, column - 1]:
                continue
            part = answers if texts.is_answer[row, column] else others
            part.append(-found[row, column - 1, texts.tokens[row, column]])
    np.testing.assert_allclose(losses.answers, np.mean(answers), rtol=1e-4)
    np.testing.assert_allclose(losses.texts, np.mean(others), rtol=1e-4)
    np.testing.assert_allclose(total, np.mean(answers) + 0.5 * np.mean(others), rtol=1e-4)


def test_answers_are_never_in_a_question():
    reading = generate_reading(STAGE.reading, 0, 5)
    assert all(answer not in question for question, answer in reading.questions)


RANKED = Stage(ReadingConfig(6, 2, 1, 0.8), 0.5, mixed=0.0, ranked=True, tokens=160, batch=2)


def test_passages_stand_as_a_retriever_puts_them_for_the_first_question():
    for index in range(12):
        reading = stage_reading(RANKED, 0, index)
        corpus = [CorpusPassage(str(n), p.title, p.text) for n, p in enumerate(reading.passages)]
        found = Bm25().index(corpus).search([reading.questions[0][0]], len(corpus))
        scores = found.scores[0][found.ids[0] >= 0]
        # From the last passage on backwards; equal scores stand in any order.
        by_place = dict(zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True))
        placed = [by_place.get(place, 0.0) for place in reversed(range(len(corpus)))]
        np.testing.assert_allclose(placed[: len(scores)], scores, rtol=1e-6)


def test_what_is_not_last_is_asked_less():
    plain = dataclasses.replace(RANKED, family_share=0.0, ranked=False)
    ranked = dataclasses.replace(plain, ranked=True)
    there, kept = collections.Counter(), collections.Counter()
    for index in range(150):
        asked, every = (stage_reading(stage, 0, index) for stage in (ranked, plain))
        assert set(asked.questions) <= set(every.questions)
        assert asked.questions[0] == every.questions[0]
        assert sorted(map(repr, asked.passages)) == sorted(map(repr, every.passages))
        corpus = [CorpusPassage(str(n), p.title, p.text) for n, p in enumerate(asked.passages)]
        found = Bm25().index(corpus).search([question for question, _ in every.questions], 2)
        for pair, ids, scores in zip(every.questions, found.ids, found.scores, strict=True):
            # Which of two passages that fit alike is the best is not told.
            if scores[0] > scores[1]:
                rank = len(corpus) - int(ids[0])
                there[rank] += 1
                kept[rank] += pair in asked.questions
    assert kept[1] == there[1]
    for rank in (2, 3, 4):
        share = rank**-5
        deviation = (share * (1 - share) / there[rank]) ** 0.5
        assert abs(kept[rank] / there[rank] - share) < 3.5 * deviation, (rank, kept, there)
    assert kept[2] > 0


def test_a_mixed_text_keeps_a_few_of_its_passages_among_the_like_of_other_texts():
    unmixed = dataclasses.replace(RANKED, family_share=0.0)
    mixed = dataclasses.replace(unmixed, mixed=1.0)
    readings = [stage_reading(unmixed, 0, index) for index in range(64)]
    sizes, kept, answered, found, anyone = set(), set(), [], [], []
    for index, before in enumerate(readings):
        after = stage_reading(mixed, 0, index)
        question, answer = after.questions[0]
        assert (question, answer) == before.questions[0]
        sizes.add(len(after.passages))
        own = [passage for passage in after.passages if passage in before.passages]
        others = [passage for passage in after.passages if passage not in own]
        # No other subject has the name of one that is asked about.
        assert not {p.title for p in others} & {p.title for p in before.passages}
        kept.add(len(own))
        answered.append(any(answer in passage.text for passage in own))
        words = set(question.lower().split())
        strangers = readings[(index + 1) % len(readings)].passages
        for passages, shared in ((others, found), (strangers, anyone)):
            shared += [len(words & set(passage.text.lower().split())) for passage in passages]
    assert sizes == {2, 3, 4, 5, 6}
    assert kept == {1, 2, 3, 4}
    assert np.mean(answered) > 0.8
    assert np.mean(found) > 1.5 * np.mean(anyone), (np.mean(found), np.mean(anyone))


@pytest.mark.parametrize("tokens", [160, 250, 1200])
def test_a_text_that_is_too_long_loses_its_first_passages(tokenizer, tokens):
    split = split_tokenizer(tokenizer)
    stage = dataclasses.replace(RANKED, tokens=tokens)
    texts = make_texts(split, stage, seed=0, number=0)
    instruction = list(tokenize_piece(split, TEMPLATE.instruction, {}).tokens)
    for row in range(stage.batch):
        pieces = [
            list(tokenize_passage(split, TEMPLATE, passage).tokens)
            for passage in stage_reading(stage, 0, row).passages
        ]
        evidence = texts.tokens[row, texts.segments[row] == 0].tolist()
        suffixes = [
            [*instruction, *itertools.chain(*pieces[start:])] for start in range(len(pieces))
        ]
        kept = len(pieces) - suffixes.index(evidence)
        assert kept == len(pieces) if tokens == 1200 else 0 < kept < len(pieces)


def test_the_wording_ends_where_the_answer_begins(tokenizer):
    piece = tokenize_piece(split_tokenizer(tokenizer), TEMPLATE.question, {"question": "Who?"})
    assert piece.text.endswith("Answer:")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_families_have_their_share_of_the_first_texts_of_rows(tokenizer, monkeypatch, share):
    """Long texts leave no room for a second one in a row, so these are what is read."""
    stage = dataclasses.replace(STAGE, family_share=share, batch=4)
    made = reader_stages.generate_family_reading
    families, first = [], []

    def record(config, family, index):
        families.append(family)
        return made(config, family, index)

    def record_text(stage, seed, index):
        before = len(families)
        found = stage_reading(stage, seed, index)
        if index < reader_texts._FIRST_TEXTS:
            first.extend(families[before:] or [None])
        return found

    reader_stages._unmixed.cache_clear()
    monkeypatch.setattr(reader_stages, "generate_family_reading", record)
    monkeypatch.setattr(reader_texts, "stage_reading", record_text)
    for number in range(40):
        make_texts(split_tokenizer(tokenizer), stage, seed=0, number=number)
    asked = [family for family in first if family is not None]
    assert len(first) == 160 and len(asked) == 160 * share
    counts = [asked.count(family) for family in FAMILIES]
    assert max(counts) - min(counts) <= 1
