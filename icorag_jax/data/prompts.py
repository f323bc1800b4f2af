"""Prompts of evidence and a question, within a number of tokens.

Evidence (instruction and passages) is read by the model before the question and apart from it, so a
prompt is tokenized piece by piece: the instruction, each passage, the question. The tokens of a
piece depend on nothing but the piece.

The best passage stands last, next to the question: models read best what is at the ends of a prompt
(Liu et al. 2024, *Lost in the middle*).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from icorag_jax.data.pieces import FIELD, Piece, PromptTokenizer, cut_piece, tokenize_piece
from icorag_jax.data.records import CorpusPassage, Passage


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """The wording of a prompt.

    A separator belongs to the beginning of a piece, as a passage may be cut at its end.

    Attributes:
        instruction: the first piece, with the token that begins a text if the model has one.
        passage: a passage, with `{title}` and `{text}`.
        untitled: a passage without a title, with `{text}`.
        question: the last piece, with `{question}`; it ends where the answer begins.
    """

    instruction: str
    passage: str = "\n\n{title}: {text}"
    untitled: str = "\n\n{text}"
    question: str = "\n\nQuestion: {question}\nAnswer:"

    def __post_init__(self):
        """Checks that each piece has its fields, once each."""
        for name, fields in (
            ("instruction", []),
            ("passage", ["text", "title"]),
            ("untitled", ["text"]),
            ("question", ["question"]),
        ):
            if sorted(found := FIELD.findall(getattr(self, name))) != fields:
                raise ValueError(f"{name} must have the fields {fields}, found {found}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, and what was left out of it.

    Attributes:
        instruction: whole.
        passages: the best first, whose tokens stand last; the worst may be cut at its end.
        question: whole.
        cut_tokens: tokens that the worst passage was cut by.
        dropped: passages that are left out, all worse than those that are there.
    """

    instruction: Piece
    passages: tuple[Piece, ...]
    question: Piece
    cut_tokens: int
    dropped: int

    @property
    def evidence_tokens(self) -> Int[np.ndarray, " evidence"]:
        """Ids of the instruction and the passages, int32."""
        return _concatenate([self.instruction, *reversed(self.passages)])

    @property
    def question_tokens(self) -> Int[np.ndarray, " question"]:
        """Ids of the question, int32."""
        return _concatenate([self.question])

    @property
    def tokens(self) -> Int[np.ndarray, " tokens"]:
        """All ids, evidence first, int32."""
        return np.concatenate([self.evidence_tokens, self.question_tokens])

    @property
    def passage_spans(self) -> Int[np.ndarray, "passages 2"]:
        """First position of each passage in the prompt, and the one after its last, int32."""
        sizes = [len(piece.tokens) for piece in (self.instruction, *reversed(self.passages))]
        ends = np.cumsum(sizes, dtype=np.int32)
        return np.stack([ends[:-1], ends[1:]], axis=1)[::-1]

    @property
    def question_span(self) -> tuple[int, int]:
        """First position of the question in the prompt, and the one after its last."""
        start = len(self.evidence_tokens)
        return start, start + len(self.question.tokens)


def make_prompt(
    tokenizer: PromptTokenizer,
    template: PromptTemplate,
    passages: Sequence[Passage | CorpusPassage],
    question: str,
    *,
    max_tokens: int,
    min_passage_tokens: int,
) -> Prompt:
    """Makes a prompt of at most `max_tokens` tokens.

    Instruction and question are always whole. Passages are taken in order for as long as they fit.
    The first one that does not is cut at its end, between two characters and not before a combining
    mark (Unicode category M), if at least `min_passage_tokens` of its tokens are left; else it is
    dropped. All after it are dropped.

    Args:
        tokenizer: from `split_tokenizer`.
        template: the wording.
        passages: the best first; title and text may be empty.
        question: the question.
        max_tokens: of the whole prompt.
        min_passage_tokens: fewest tokens of a passage that is cut, at least 1.

    Raises:
        ValueError: instruction and question do not fit, or a text cannot be tokenized.
    """
    if min_passage_tokens < 1:
        raise ValueError(f"min_passage_tokens must be at least 1, got {min_passage_tokens}")
    first = tokenize_piece(tokenizer, template.instruction, {})
    last = tokenize_piece(tokenizer, template.question, {"question": question})
    room = max_tokens - len(first.tokens) - len(last.tokens)
    if room < 0:
        raise ValueError(
            f"instruction and question take {max_tokens - room} tokens, max_tokens is {max_tokens}"
        )
    pieces: list[Piece] = []
    cut_tokens = 0
    for passage in passages:
        piece = tokenize_passage(tokenizer, template, passage)
        size = len(piece.tokens)
        if size > room:
            piece = cut_piece(piece, room)
            cut_tokens = size - len(piece.tokens)
            if len(piece.tokens) < min_passage_tokens:
                cut_tokens = 0
                break
        pieces.append(piece)
        room -= len(piece.tokens)
        if cut_tokens:
            break
    return Prompt(first, tuple(pieces), last, cut_tokens, len(passages) - len(pieces))


def tokenize_passage(
    tokenizer: PromptTokenizer, template: PromptTemplate, passage: Passage | CorpusPassage
) -> Piece:
    """A passage as it stands in every prompt in which it is whole."""
    if passage.title:
        values = {"title": passage.title, "text": passage.text}
        return tokenize_piece(tokenizer, template.passage, values)
    return tokenize_piece(tokenizer, template.untitled, {"text": passage.text})


def _concatenate(pieces: Sequence[Piece]) -> Int[np.ndarray, " tokens"]:
    return np.asarray([token for piece in pieces for token in piece.tokens], np.int32)
