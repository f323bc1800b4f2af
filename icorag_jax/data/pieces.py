"""Pieces of a prompt: text tokenized on its own, with every token traced to the text it came from.

Control tokens (`<s>`, `<|im_end|>`) are written into a wording by name. Text that is filled in is
never read as one, whatever it says.
"""

import bisect
import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Mapping

import numpy as np
import tokenizers

FIELD = re.compile(r"\{(title|text|question)\}")


@dataclasses.dataclass(frozen=True)
class PromptTokenizer:
    """A language model's tokenizer, parted into text and control tokens.

    Attributes:
        plain: reads any text as nothing but text, and adds nothing to it.
        control: the id of each control token, by name.
    """

    plain: tokenizers.Tokenizer
    control: Mapping[str, int]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds control tokens, the longest where several begin."""
        names = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a prompt that was tokenized on its own.

    Token t brings `text[starts[t] : starts[t + 1]]`. These ranges follow each other without gap or
    overlap. A character of several tokens is brought by the last of them. If the tokenizer
    normalizes text (NFC), a range that begins and ends between combining character sequences
    stands for the normalized form of what it brings; within such a sequence the ranges of single
    tokens may be off by a combining mark, as normalization can change the order of marks.

    Attributes:
        text: all of the piece.
        tokens: of the part of the text that is in the prompt.
        starts: where each token's text begins, and last, where the text in the prompt ends.
        continues: whether the token goes on with a character that the one before it began.
        fields: where the fields of the template are in the text.
    """

    text: str
    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    continues: tuple[bool, ...]
    fields: Mapping[str, tuple[int, int]]

    @property
    def kept(self) -> str:
        """The part of the text that is in the prompt."""
        return self.text[: self.starts[-1]]

    def token_text(self, first: int, last: int) -> str:
        """What the tokens from `first` up to, without, `last` bring."""
        return self.text[self.starts[first] : self.starts[last]]

    def field_tokens(self, field: str) -> tuple[int, int]:
        """The first of the tokens that bring any of a field, and the one after the last.

        Tokens may bring something of what is around the field, too, as a space before it.
        """
        start, stop = self.fields[field]
        stop = min(stop, self.starts[-1])
        if start >= stop:
            return len(self.tokens), len(self.tokens)
        first = bisect.bisect_right(self.starts, start) - 1
        while self.continues[first]:
            first -= 1
        return first, bisect.bisect_left(self.starts, stop)


def split_tokenizer(tokenizer: tokenizers.Tokenizer) -> PromptTokenizer:
    """A tokenizer for prompts.

    Control tokens are all tokens that were added to the tokenizer's model: they are found in text
    before anything else is, which must not happen in text that is filled in.

    Args:
        tokenizer: of the language model; it is not changed.
    """
    state = json.loads(tokenizer.to_str())
    control = {token["content"]: token["id"] for token in state["added_tokens"]}
    removed = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return PromptTokenizer(tokenizers.Tokenizer.from_str(json.dumps(state | removed)), control)


def tokenize_piece(tokenizer: PromptTokenizer, wording: str, values: Mapping[str, str]) -> Piece:
    """A piece of a prompt.

    Args:
        tokenizer: from `split_tokenizer`.
        wording: text with control tokens by name, and fields in braces.
        values: what stands in the fields.

    Raises:
        ValueError: the text has a character that the tokenizer cannot express.
    """
    text, fields, runs = _fill(tokenizer, wording, values)
    tokens: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, stop, control in runs:
        if control is not None:
            tokens.append(control)
            offsets.append((start, stop))
            continue
        encoding = tokenizer.plain.encode(text[start:stop], add_special_tokens=False)
        if wrong := set(encoding.ids) & set(tokenizer.control.values()):
            raise ValueError(f"text became control tokens {sorted(wrong)}: {text[start:stop]!r}")
        tokens += encoding.ids
        offsets += [(start + first, start + last) for first, last in encoding.offsets]
    starts = np.maximum.accumulate([0, *(first for first, _ in offsets[1:]), len(text)])
    reached = np.maximum.accumulate([0, *(last for _, last in offsets)])[:-1]
    if not offsets:
        return Piece(text, (), (len(text),), (), fields)
    return Piece(
        text, tuple(tokens), tuple(starts.tolist()), tuple((reached > starts[:-1]).tolist()), fields
    )


def cut_piece(piece: Piece, room: int) -> Piece:
    """A piece cut at its end to at most `room` tokens, fewer than it has.

    The cut is between two characters, and not before a combining mark (Unicode category M).
    """

    def is_between(size: int) -> bool:
        following = piece.text[piece.starts[size] :][:1]
        # The category, as many marks of Indic scripts and all variation selectors have no
        # combining class.
        is_mark = unicodedata.category(following or " ").startswith("M")
        return not piece.continues[size] and not is_mark

    size = next((size for size in range(room, 0, -1) if is_between(size)), 0)
    return dataclasses.replace(
        piece,
        tokens=piece.tokens[:size],
        starts=piece.starts[: size + 1],
        continues=piece.continues[:size],
    )


def _fill(
    tokenizer: PromptTokenizer, wording: str, values: Mapping[str, str]
) -> tuple[str, dict[str, tuple[int, int]], list[tuple[int, int, int | None]]]:
    """The text of a piece, where its fields are, and its runs: control tokens and text between.

    A run is its start, its stop, and the id of the control token that it is, or None.
    """
    text, fields, runs = "", {}, []
    position = 0
    # The part of the wording after the last control token ends with the wording itself.
    for control in [*tokenizer.pattern.finditer(wording), None]:
        start = len(text)
        stretch = wording[position : control.start() if control else len(wording)]
        # Literal text and names of fields in turn.
        for index, part in enumerate(FIELD.split(stretch)):
            if index % 2:
                fields[part] = (len(text), len(text) + len(values[part]))
                part = values[part]
            text += part
        runs.append((start, len(text), None))
        if control:
            runs.append((len(text), len(text) + len(control[0]), tokenizer.control[control[0]]))
            text += control[0]
            position = control.end()
    return text, fields, runs
