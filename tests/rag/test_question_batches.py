"""Questions as arrays, against prompts that are put together here piece by piece."""

import dataclasses

import numpy as np
import pytest
import small
from small import BATCH, DECODER, TEMPLATE

from icorag_jax.data.pieces import tokenize_piece
from icorag_jax.data.prompts import tokenize_passage
from icorag_jax.rag.batches import BatchConfig, cloze_rows, make_batch
from icorag_jax.rag.traits import first_number, passage_traits


def make(questions=None, answers=True, template=TEMPLATE, decoder=DECODER, **changes):
    return make_batch(
        dataclasses.replace(BATCH, **changes), decoder, small.tokenizer(), template,
        small.questions() if questions is None else questions, answers=answers,
    )  # fmt: skip


def pieces_of(asked):
    """Tokens of instruction, passages and question."""
    tokenizer = small.tokenizer()
    question = {"question": asked.question.question}
    return (
        list(tokenize_piece(tokenizer, TEMPLATE.instruction, {}).tokens),
        [list(tokenize_passage(tokenizer, TEMPLATE, each).tokens) for each in asked.passages],
        list(tokenize_piece(tokenizer, TEMPLATE.question, question).tokens),
    )


def answer_of(asked):
    text = f" {asked.question.answers[0]}"
    return small.tokenizer().plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("answers", [True, False])
def test_rows_are_the_pieces_one_after_another(answers):
    batch = make(answers=answers)
    assert batch.tokens.shape == (4, 74 if answers else 64)
    for row, asked in enumerate(small.questions()):
        instruction, passages, question = pieces_of(asked)
        passages = passages[: BATCH.passages]
        # The best passage comes last.
        evidence, owners = list(instruction), [-1] * len(instruction)
        for number in reversed(range(len(passages))):
            evidence += passages[number]
            owners += [number] * len(passages[number])
        padding = BATCH.evidence_tokens - len(evidence)
        assert batch.evidence_tokens[row].tolist() == evidence + [0] * padding
        assert batch.evidence_positions[row].tolist() == [*range(len(evidence)), *[-1] * padding]
        assert batch.passage_of[row].tolist() == owners + [-1] * padding

        answer = [*answer_of(asked), 1] if answers else []
        tokens = question + answer
        padding = batch.tokens.shape[1] - len(tokens)
        assert batch.tokens[row].tolist() == tokens + [0] * padding
        start = len(evidence)
        positions = [*range(start, start + len(tokens)), *[-1] * padding]
        assert batch.positions[row].tolist() == positions
        assert np.flatnonzero(batch.is_question[row]).tolist() == [*range(len(question))]
        expected = [*range(len(question), len(tokens))]
        assert np.flatnonzero(batch.is_answer[row]).tolist() == expected


def test_passages_that_there_are_and_what_is_said_of_them():
    """Numbers are those of their texts."""
    questions = list(small.questions())
    stated = [
        dataclasses.replace(passage, text=f"{passage.text} {text}")
        for passage, text in zip(questions[0].passages, ("1834", "none", "12"), strict=True)
    ]
    questions[0] = dataclasses.replace(questions[0], passages=tuple(stated))
    batch = make(questions)
    assert batch.present.sum(axis=1).tolist() == [3, 3, 1, 0]
    scores, numbers = np.zeros((4, 3)), np.full((4, 3), np.nan)
    for row, asked in enumerate(questions):
        scores[row, : len(asked.scores[:3])] = asked.scores[:3]
        texts = [passage.text for passage in asked.passages[:3]]
        numbers[row, : len(texts)] = list(map(first_number, texts))
    assert np.isfinite(numbers[0]).sum() >= 2
    np.testing.assert_array_equal(batch.traits, passage_traits(scores, numbers, batch.present))


def test_passages_with_an_answer_are_marked_for_training_alone():
    batch = make()
    expected = np.zeros((4, 3), bool)
    for row, asked in enumerate(small.questions()):
        expected[row, : len(asked.passages[:3])] = asked.positive[:3]
    assert expected.any() and not expected[:3].all()
    np.testing.assert_array_equal(batch.is_positive, expected)
    assert not make(answers=False).is_positive.any()


def test_words_of_an_answer_are_marked_where_a_positive_passage_states_it():
    """All of an answer's tokens, one after the other; anywhere else it stands by chance."""
    batch = make()
    for row, asked in enumerate(small.questions()):
        answer, expected = answer_of(asked), set()
        for at in range(BATCH.evidence_tokens - len(answer) + 1):
            rows = range(at, at + len(answer))
            owners = {int(batch.passage_of[row, each]) for each in rows}
            if batch.evidence_tokens[row, rows].tolist() == answer and len(owners) == 1:
                (owner,) = owners
                if owner >= 0 and batch.is_positive[row, owner]:
                    expected |= set(rows)
        assert set(np.flatnonzero(batch.states_answer[row])) == expected
        assert bool(expected) == bool(batch.is_positive[row].any())
    assert batch.states_answer.any()
    assert not make(answers=False).states_answer.any()


def test_a_long_passage_is_cut_and_those_after_it_are_left_out():
    asked = small.questions()[1]
    instruction, passages, question = pieces_of(asked)
    room = len(instruction) + len(passages[0]) + len(passages[1]) // 2
    batch = make([asked], evidence_tokens=room, min_passage_tokens=4)
    assert batch.present[0].tolist() == [True, True, False]
    kept = np.flatnonzero(batch.passage_of[0] == 1)
    start = len(instruction) + len(passages[0])
    assert 4 <= len(kept) <= room - start
    assert batch.evidence_tokens[0, kept].tolist() == passages[1][: len(kept)]
    # Traits are of the passages that are left.
    np.testing.assert_allclose(batch.traits[0, :, 0], [1, -1, 0], atol=1e-6)
    assert batch.positions[0, 0] == start + len(kept)
    # A question is whole however little room is left, and fewer tokens than the least are none.
    batch = make([asked], evidence_tokens=len(instruction) + 3, min_passage_tokens=4)
    assert not batch.present.any() and batch.is_question.sum() == len(question)


def test_a_short_question_leaves_no_more_room_for_evidence():
    """The room of the evidence is its own, whatever the question leaves of its own."""
    asked = small.questions()[0]
    instruction, passages, _ = pieces_of(asked)
    room = len(instruction) + len(passages[0]) + len(passages[1])
    batch = make([asked], evidence_tokens=room, question_tokens=90)
    assert batch.present[0].tolist() == [True, True, False]
    assert (batch.evidence_positions >= 0).all()


def test_a_long_answer_is_cut_and_has_no_end():
    asked = small.questions()[0]
    answer = answer_of(asked)
    batch = make([asked], answer_tokens=len(answer) - 1)
    assert batch.tokens[batch.is_answer].tolist() == answer[:-1]


def test_questions_that_do_not_fit():
    asked = small.questions()[1]
    size = len(pieces_of(asked)[2])
    name = asked.question.id
    with pytest.raises(ValueError, match=f"{name} takes {size} tokens, question_tokens is 40"):
        make(question_tokens=40)
    # So few that evidence and question together have no room for it either.
    with pytest.raises(ValueError, match=f"{name} takes {size} tokens, question_tokens is 3"):
        make([asked], question_tokens=3, evidence_tokens=3)


def test_an_instruction_that_does_not_fit():
    template = dataclasses.replace(TEMPLATE, instruction="Answer from what follows. " * 9)
    with pytest.raises(ValueError, match=r"instruction takes \d+ tokens, evidence_tokens is 20"):
        make(template=template, evidence_tokens=20)


def test_a_model_with_too_little_context():
    small_decoder = dataclasses.replace(DECODER, max_position_embeddings=185)
    with pytest.raises(ValueError, match=r"up to 186 tokens.*context is 185.*evidence_tokens"):
        make(decoder=small_decoder)


@pytest.mark.parametrize("answers", [True, False])
def test_cloze_rows_are_the_first_passage_once_more(answers):
    batch = make(answers=answers)
    rows = cloze_rows(batch)
    width = batch.tokens.shape[1]
    for row, asked in enumerate(small.questions()):
        instruction, passages, _ = pieces_of(asked)
        tokens = passages[0][:width] if passages else []
        start = len(instruction) + sum(map(len, passages[: BATCH.passages]))
        padding = width - len(tokens)
        assert rows.tokens[row].tolist() == tokens + [0] * padding
        positions = [*range(start, start + len(tokens)), *[-1] * padding]
        assert rows.positions[row].tolist() == positions
        assert np.flatnonzero(rows.is_question[row]).tolist() == [*range(len(tokens))]
    assert not rows.is_answer.any()
    for name in ("evidence_tokens", "evidence_positions", "passage_of", "traits", "present"):
        assert getattr(rows, name) is getattr(batch, name)


def test_cloze_rows_of_a_long_passage_are_its_beginning():
    batch = make([small.questions()[0]], answers=False, question_tokens=40)
    assert (batch.passage_of == 0).sum() > 20
    short = batch._replace(tokens=batch.tokens[:, :20])
    expected = batch.evidence_tokens[batch.passage_of == 0][:20]
    np.testing.assert_array_equal(cloze_rows(short).tokens[0], expected)


def test_no_questions_and_wrong_sizes():
    with pytest.raises(ValueError, match="there are no questions"):
        make([])
    for field in dataclasses.fields(BatchConfig):
        with pytest.raises(ValueError, match=f"{field.name} must be at least 1"):
            dataclasses.replace(BATCH, **{field.name: 0})
