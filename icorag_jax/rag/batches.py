"""Questions with their passages as padded arrays.

Every array's size is fixed by the settings, so that one program serves all batches.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from icorag_jax.data.pieces import PromptTokenizer, tokenize_piece
from icorag_jax.data.prompts import Prompt, PromptTemplate, make_prompt
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.traits import TRAITS, first_number, passage_traits
from icorag_jax.ranges import check_at_least
from icorag_jax.retrieval.retrieved import RetrievedQuestion


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Sizes of a batch.

    Attributes:
        passages: of a question, at most; the interface and the updater take up to so many.
        evidence_tokens: of instruction and passages, at most. What is over is cut: see
            `icorag_jax.data.prompts.make_prompt`.
        question_tokens: of a question, at most.
        answer_tokens: of an answer with the token that ends it, at most.
        min_passage_tokens: fewest tokens that are left of a passage that is cut.
    """

    passages: int
    evidence_tokens: int
    question_tokens: int
    answer_tokens: int
    min_passage_tokens: int = 8

    def __post_init__(self):
        """Checks the ranges."""
        check_at_least(self, **{field.name: 1 for field in dataclasses.fields(self)})


class Batch(NamedTuple):
    """Questions with their passages.

    Attributes:
        evidence_tokens: of instruction and passages, padded at the end.
        evidence_positions: -1 at padding.
        passage_of: which passage an evidence row belongs to, -1 where to none.
        tokens: of question and answer, padded at the end; of the question alone if there is no
            answer.
        positions: -1 at padding.
        is_question: rows of the question.
        is_answer: rows of the answer, the token that ends it included.
        traits: see `icorag_jax.rag.traits`; a passage's number is that of its whole text.
        present: whether there is a passage.
        is_positive: whether an answer is read off a passage (`RetrievedQuestion.positive`); for
            training, nowhere without answers.
        states_answer: whether an evidence row is of an answer's words in such a passage.
    """

    evidence_tokens: Int[np.ndarray, "batch evidence"]
    evidence_positions: Int[np.ndarray, "batch evidence"]
    passage_of: Int[np.ndarray, "batch evidence"]
    tokens: Int[np.ndarray, "batch tokens"]
    positions: Int[np.ndarray, "batch tokens"]
    is_question: Bool[np.ndarray, "batch tokens"]
    is_answer: Bool[np.ndarray, "batch tokens"]
    traits: Float[np.ndarray, "batch passages traits"]
    present: Bool[np.ndarray, "batch passages"]
    is_positive: Bool[np.ndarray, "batch passages"]
    states_answer: Bool[np.ndarray, "batch evidence"]


def make_batch(
    config: BatchConfig,
    decoder: DecoderConfig,
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    questions: Sequence[RetrievedQuestion],
    *,
    answers: bool,
) -> Batch:
    """Questions as arrays, with the first of their answers for training or without.

    Passages beyond `config.passages` are left out, the last in the ranking first. A question
    without passages is asked after the instruction alone.

    Args:
        config: sizes.
        decoder: of the frozen model, which has to have room for all.
        tokenizer: of the frozen model, from `split_tokenizer`.
        template: the wording.
        questions: at least one.
        answers: whether rows go on with an answer; for training on it.

    Raises:
        ValueError: a question is longer than `config.question_tokens` (the message has its id), the
            instruction longer than `config.evidence_tokens`, a prompt may be longer than the
            model's context, or there are no questions.
    """
    if not questions:
        raise ValueError("there are no questions")
    longest = config.evidence_tokens + config.question_tokens + config.answer_tokens
    if longest > decoder.context:
        raise ValueError(
            f"evidence, question and answer take up to {longest} tokens, but the model's context "
            f"is {decoder.context}: pass a smaller evidence_tokens"
        )
    _check_instruction(config, tokenizer, template)
    rows = config.question_tokens + (config.answer_tokens if answers else 0)
    count = len(questions)
    batch = Batch(
        evidence_tokens=np.zeros((count, config.evidence_tokens), np.int32),
        evidence_positions=np.full((count, config.evidence_tokens), -1, np.int32),
        passage_of=np.full((count, config.evidence_tokens), -1, np.int32),
        tokens=np.zeros((count, rows), np.int32),
        positions=np.full((count, rows), -1, np.int32),
        is_question=np.zeros((count, rows), bool),
        is_answer=np.zeros((count, rows), bool),
        traits=np.zeros((count, config.passages, TRAITS), np.float32),
        present=np.zeros((count, config.passages), bool),
        is_positive=np.zeros((count, config.passages), bool),
        states_answer=np.zeros((count, config.evidence_tokens), bool),
    )
    scores = np.zeros((count, config.passages))
    numbers = np.full((count, config.passages), np.nan)
    for row, asked in enumerate(questions):
        first = _question(config, tokenizer, template, asked)
        prompt = make_prompt(
            tokenizer, template, asked.passages[: config.passages], asked.question.question,
            max_tokens=config.evidence_tokens + len(first),
            min_passage_tokens=config.min_passage_tokens,
        )  # fmt: skip
        _fill_evidence(batch, row, prompt)
        shown = len(prompt.passages)
        batch.present[row, :shown] = True
        scores[row, :shown] = asked.scores[:shown]
        numbers[row, :shown] = [first_number(passage.text) for passage in asked.passages[:shown]]
        start = len(prompt.evidence_tokens)
        tokens = [first]
        if answers:
            batch.is_positive[row, :shown] = asked.positive[:shown]
            for answer in asked.question.answers:
                _mark_answer(batch, row, prompt, _words(tokenizer, answer))
            tokens.append(_answer(config, decoder, tokenizer, asked.question.answers[0]))
        filled = np.concatenate(tokens)
        batch.tokens[row, : len(filled)] = filled
        batch.positions[row, : len(filled)] = start + np.arange(len(filled))
        batch.is_question[row, : len(first)] = True
        batch.is_answer[row, len(first) : len(filled)] = True
    return batch._replace(traits=passage_traits(scores, numbers, batch.present))


def cloze_rows(batch: Batch) -> Batch:
    """The same evidence, followed by its first passage once more in the place of the question.

    Args:
        batch: questions; one without passages gets rows of padding.
    """
    count, width = batch.tokens.shape
    rows = batch._replace(
        tokens=np.zeros((count, width), np.int32),
        positions=np.full((count, width), -1, np.int32),
        is_question=np.zeros((count, width), bool),
        is_answer=np.zeros((count, width), bool),
    )
    for row in range(count):
        tokens = batch.evidence_tokens[row][batch.passage_of[row] == 0][:width]
        start = batch.evidence_positions[row].max() + 1
        rows.tokens[row, : len(tokens)] = tokens
        rows.positions[row, : len(tokens)] = start + np.arange(len(tokens))
        rows.is_question[row, : len(tokens)] = True
    return rows


def _check_instruction(
    config: BatchConfig, tokenizer: PromptTokenizer, template: PromptTemplate
) -> None:
    """Raises a ValueError where the instruction leaves no room."""
    size = len(tokenize_piece(tokenizer, template.instruction, {}).tokens)
    if size > config.evidence_tokens:
        raise ValueError(
            f"the instruction takes {size} tokens, evidence_tokens is {config.evidence_tokens}"
        )


def _question(
    config: BatchConfig,
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    asked: RetrievedQuestion,
) -> Int[np.ndarray, " tokens"]:
    """The tokens of a question, after checking how many there are."""
    values = {"question": asked.question.question}
    found = tokenize_piece(tokenizer, template.question, values).tokens
    if len(found) > config.question_tokens:
        raise ValueError(
            f"question {asked.question.id} takes {len(found)} tokens, question_tokens is "
            f"{config.question_tokens}"
        )
    return np.asarray(found, np.int32)


def _fill_evidence(batch: Batch, row: int, prompt: Prompt) -> None:
    """Writes instruction and passages into a row of a batch."""
    tokens = prompt.evidence_tokens
    batch.evidence_tokens[row, : len(tokens)] = tokens
    batch.evidence_positions[row, : len(tokens)] = np.arange(len(tokens))
    for number, (start, stop) in enumerate(prompt.passage_spans):
        batch.passage_of[row, start:stop] = number


def _answer(
    config: BatchConfig, decoder: DecoderConfig, tokenizer: PromptTokenizer, answer: str
) -> Int[np.ndarray, " tokens"]:
    """The tokens of an answer and of its end; a long answer is cut, and then has no end."""
    found = _words(tokenizer, answer)
    return np.asarray([*found, *decoder.eos_token_ids[:1]][: config.answer_tokens], np.int32)


def _words(tokenizer: PromptTokenizer, answer: str) -> list[int]:
    """The tokens of an answer that stands after other words."""
    return tokenizer.plain.encode(f" {answer}", add_special_tokens=False).ids


def _mark_answer(batch: Batch, row: int, prompt: Prompt, words: Sequence[int]) -> None:
    """Marks where an answer stands in the positive passages of a row."""
    for positive, (start, stop) in zip(batch.is_positive[row], prompt.passage_spans, strict=False):
        if positive and 0 < len(words) <= stop - start:
            passage = batch.evidence_tokens[row, start:stop]
            windows = np.lib.stride_tricks.sliding_window_view(passage, len(words))
            for first in start + np.flatnonzero((windows == words).all(axis=1)):
                batch.states_answer[row, first : first + len(words)] = True
