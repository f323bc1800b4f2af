"""Texts that a small reader is pretrained on, as arrays.

A text is evidence (passages) and several questions. Each stands right after the evidence
and sees it and itself alone, as if it were the only one: one pass over it serves them all.
A row of a batch holds as many texts as it has room for, none of which sees another.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from experiments.support.reader_stages import Stage, stage_reading
from icorag_jax.data.pieces import PromptTokenizer, tokenize_piece
from icorag_jax.data.prompts import PromptTemplate, tokenize_passage
from icorag_jax.data.world.reading import Reading

START, END = "<|start|>", "<|end|>"
TEMPLATE = PromptTemplate(
    instruction=START,
    passage="\n{title}: {text}",
    untitled="\n{text}",
    question="\nQuestion: {question} Answer:",
)
# Segments of a text: the first is its evidence, the others are its questions.
SEGMENTS = 64
_PADDING = -1
# Where numbers of a row's second text begin, of its third, ...
_FIRST_TEXTS = 1_000_000
# Texts that do not fit after which a row is done.
_MISFITS = 4
# Room that is left for a question after passages.
_LEAST_QUESTION = 40


class Texts(NamedTuple):
    """A batch of texts.

    Attributes:
        tokens: token ids.
        positions: of the tokens in their text, -1 at padding.
        segments: of the n-th text of a row, `SEGMENTS n` is its evidence, and `SEGMENTS n + k` its
            k-th question with the answer; -1 is padding.
        is_answer: whether the token is of an answer, the token that ends it included.
    """

    tokens: Int[np.ndarray, "batch tokens"]
    positions: Int[np.ndarray, "batch tokens"]
    segments: Int[np.ndarray, "batch tokens"]
    is_answer: Bool[np.ndarray, "batch tokens"]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE: no text is out of its vocabulary.

    Args:
        texts: what it is trained on.
        vocabulary: tokens, `START` and `END` among them.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def plain_texts(stage: Stage, seed: int, count: int) -> Iterator[str]:
    """Texts of a stage as strings, for a tokenizer to be trained on."""
    for index in range(count):
        reading = stage_reading(stage, seed, index)
        for passage in reading.passages:
            yield TEMPLATE.passage.format(title=passage.title, text=passage.text)
        for question, answer in reading.questions:
            yield TEMPLATE.question.format(question=question) + f" {answer}"


def make_texts(tokenizer: PromptTokenizer, stage: Stage, seed: int, number: int) -> Texts:
    """A batch; the same numbers give the same one.

    Args:
        tokenizer: from `split_tokenizer`.
        stage: what texts are like.
        seed: of all texts.
        number: of the batch.
    """
    batch = _padding(stage.batch, stage.tokens)
    for row in range(stage.batch):
        filled, misfits = 0, 0
        for place in range(SEGMENTS):
            # The first texts of rows are numbered on end: mostly a row has no room for more.
            index = number * stage.batch + row + place * _FIRST_TEXTS
            reading = stage_reading(stage, seed, index)
            row_of = Texts(*(array[row, filled:] for array in batch))
            added = _fill(row_of, place, tokenizer, reading)
            filled += added
            misfits += not added
            if misfits == _MISFITS:
                break
    return batch


def make_rows(tokenizer: PromptTokenizer, readings: Sequence[Reading], tokens: int) -> Texts:
    """A row for each text.

    Args:
        tokenizer: from `split_tokenizer`.
        readings: the texts.
        tokens: in a row; a text loses the first passages where not all fit.
    """
    batch = _padding(len(readings), tokens)
    for row, reading in enumerate(readings):
        _fill(Texts(*(array[row] for array in batch)), 0, tokenizer, reading)
    return batch


def _padding(rows: int, tokens: int) -> Texts:
    shape = (rows, tokens)
    return Texts(
        tokens=np.zeros(shape, np.int32),
        positions=np.full(shape, -1, np.int32),
        segments=np.full(shape, _PADDING, np.int32),
        is_answer=np.zeros(shape, bool),
    )


def _fill(row: Texts, number: int, tokenizer: PromptTokenizer, reading: Reading) -> int:
    """Writes a text into the rest of a row; how many tokens it took, 0 if it does not fit.

    The first text of a row loses the first passages where not all fit.
    """
    room = len(row.tokens)
    instruction = tokenize_piece(tokenizer, TEMPLATE.instruction, {}).tokens
    evidence, kept = [], ""
    for passage in reversed(reading.passages):
        tokens = tokenize_passage(tokenizer, TEMPLATE, passage).tokens
        if len(instruction) + len(tokens) + len(evidence) > room - _LEAST_QUESTION:
            if number:
                return 0
            break
        evidence = [*tokens, *evidence]
        kept += passage.text
    evidence = [*instruction, *evidence]
    filled = len(evidence)
    if filled > room:
        return 0
    row.tokens[:filled] = evidence
    row.positions[:filled] = np.arange(filled)
    row.segments[:filled] = SEGMENTS * number
    for place, (question, answer) in enumerate(reading.questions[: SEGMENTS - 1], 1):
        if answer not in kept:
            continue
        asked = tokenize_piece(tokenizer, TEMPLATE.question, {"question": question}).tokens
        answered = tokenizer.plain.encode(f" {answer}", add_special_tokens=False).ids
        tokens = [*asked, *answered, tokenizer.control[END]]
        stop = filled + len(tokens)
        if stop > room:
            break
        row.tokens[filled:stop] = tokens
        row.positions[filled:stop] = len(evidence) + np.arange(len(tokens))
        row.segments[filled:stop] = SEGMENTS * number + place
        row.is_answer[filled + len(asked) : stop] = True
        filled = stop
    return filled
