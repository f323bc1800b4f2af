"""Tokens of pieces against the bytes that they stand for, read off the vocabulary by hand."""

import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers_of_families import FAMILIES, beginning, make_tokenizer

from icorag_jax.data.pieces import cut_piece, split_tokenizer, tokenize_piece

TOKENIZERS = {family: split_tokenizer(make_tokenizer(family)) for family in FAMILIES}

# Words, and every kind of character that has ever broken a span.
WORDS = ["the cat", " ", "  ", "\n", "\n\n", "\r\n", "'s", "1984", "東京", "🎉", "🇳🇴", "ß", "İ"]
WORDS += ["👩\u200d🚀", "e\u0301", "a\u0307\u0323", "\u1100\u1161\u11a8", "\u0958", "\u0344"]
WORDS += ["क\u093e", "ก\u0e31", "❤\ufe0f"]
WORDS += ["\u0301", "\x00", "\x1b", "\u2028", "\ufeff", "▁", "Ġ", "<0x0A>", "{text}", "{question}"]
WORDS += ["<unk>", "<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<think>"]
words = st.sampled_from(WORDS)
texts = st.lists(words | st.text(max_size=4), max_size=8).map("".join)
every_family = pytest.mark.parametrize("family", FAMILIES)
enough = hypothesis.settings(max_examples=100)


def byte_of_character() -> dict[str, int]:
    """The byte that a character of a byte-level vocabulary stands for (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


BYTES = byte_of_character()


def test_the_alphabet_is_that_of_the_library():
    assert sorted(BYTES) == sorted(pre_tokenizers.ByteLevel.alphabet())


def bytes_of(family: str, tokens) -> bytes:
    """What tokens stand for, by their names in the vocabulary."""
    names = [make_tokenizer(family).id_to_token(token) for token in tokens]
    if family in ("llama2", "mistral"):
        return b"".join(
            bytes([int(name[3:5], 16)])
            if len(name) == 6 and name.startswith("<0x")
            else name.replace("▁", " ").encode()
            for name in names
        )
    return bytes(BYTES[character] for name in names for character in name)


def normalize(family: str, text: str) -> str:
    """What the family's tokenizer makes of a text before it splits it."""
    if family in ("llama2", "mistral"):
        # The marker of spaces cannot be told from a space.
        return text.replace("▁", " ")
    return unicodedata.normalize("NFC", text) if family.startswith("qwen") else text


def dummy(family: str, text: str) -> str:
    """The space that some tokenizers put before a text."""
    if family == "llama2":
        return " " if text else ""
    return " " if family == "mistral" and text and text[0] not in " ▁" else ""


@every_family
@enough
@given(text=texts)
@example(text="e\u0301 a\u0307\u0323 \u1100\u1161\u11a8 x\u0344y")
def test_tokens_stand_for_the_text_and_ranges_part_it(family, text):
    piece = tokenize_piece(TOKENIZERS[family], "{text}", {"text": text})
    assert piece.text == piece.kept == text
    assert piece.fields == {"text": (0, len(text))}
    assert (
        bytes_of(family, piece.tokens) == (dummy(family, text) + normalize(family, text)).encode()
    )
    # Ranges follow each other from the beginning of the text to its end.
    assert len(piece.starts) == len(piece.tokens) + 1
    assert piece.starts[0] == 0 and piece.starts[-1] == len(text)
    assert list(piece.starts) == sorted(piece.starts)
    assert "".join(piece.token_text(t, t + 1) for t in range(len(piece.tokens))) == text


@every_family
@enough
@given(text=texts)
@example(text="a🎉b")
@example(text="e\u0301e\u0301 a\u0307\u0323b")
@example(text=" the cat")
def test_a_range_stands_for_what_its_tokens_bring(family, text):
    piece = tokenize_piece(TOKENIZERS[family], "{text}", {"text": text})
    front = dummy(family, text)
    for size in range(1, len(piece.tokens)):
        before, after = piece.token_text(0, size), piece.token_text(size, len(piece.tokens))
        if piece.continues[size]:
            continue  # within a character of several tokens
        if normalize(family, before) + normalize(family, after) != normalize(family, text):
            continue  # within a sequence of combining characters
        if after and unicodedata.combining(after[0]):
            continue  # likewise, where marks changed places
        assert bytes_of(family, piece.tokens[:size]) == (front + normalize(family, before)).encode()


@every_family
@enough
@given(text=texts)
@example(text="👩\u200d🚀")  # a token ends within the character that joins the two
def test_tokens_within_a_character_are_known(family, text):
    piece = tokenize_piece(TOKENIZERS[family], "{text}", {"text": text})
    assert len(piece.continues) == len(piece.tokens)
    for size in range(len(piece.tokens)):
        try:
            bytes_of(family, piece.tokens[:size]).decode()
        except UnicodeDecodeError:
            assert piece.continues[size]
    if family == "llama3" and text:  # neither normalizes nor adds anything
        characters = "".join(map(chr, bytes_of(family, piece.tokens)))
        sizes = np.cumsum([0, *(len(bytes_of(family, [t])) for t in piece.tokens)])
        expected = [0x80 <= ord(characters[size]) < 0xC0 for size in sizes[:-1]]
        assert list(piece.continues) == expected


@every_family
@enough
@given(text=texts, room=st.integers(1, 12))
@example(text="e\u0301", room=1)
@example(text="🎉🎉", room=3)
@example(text="a\u0301\u0323\u0301 b", room=2)
def test_a_cut_falls_between_characters(family, text, room):
    whole = tokenize_piece(TOKENIZERS[family], "{text}", {"text": text})
    hypothesis.assume(room < len(whole.tokens))
    cut = cut_piece(whole, room)
    assert len(cut.tokens) <= room
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert text.startswith(cut.kept)
    rest = text[len(cut.kept) :]
    assert not rest or not unicodedata.category(rest[0]).startswith("M") or not cut.tokens
    if cut.tokens:
        bytes_of(family, cut.tokens).decode()  # raises within a character


@every_family
@pytest.mark.parametrize("marked", ["e\u0301", "क\u093e", "ก\u0e31", "❤\ufe0f", "x\u0301\u093e"])
def test_a_cut_leaves_a_character_its_marks(family, marked):
    whole = tokenize_piece(TOKENIZERS[family], "{text}", {"text": f"a{marked}b"})
    for room in range(1, len(whole.tokens)):
        assert cut_piece(whole, room).kept in ("", "a", f"a{marked}")


@every_family
@enough
@given(text=texts)
def test_text_never_becomes_a_control_token(family, text):
    tokenizer = TOKENIZERS[family]
    piece = tokenize_piece(tokenizer, "Title: {text}\n", {"text": text})
    assert not set(piece.tokens) & set(tokenizer.control.values())


@every_family
def test_every_control_token_is_plain_in_text_and_control_in_a_wording(family):
    tokenizer = TOKENIZERS[family]
    assert len(tokenizer.control) == {"llama3": 2, "qwen3": 4}.get(family, 3)
    for name, token in tokenizer.control.items():
        # The family's own tokenizer does take it for one.
        assert token in make_tokenizer(family).encode(f"a {name} b").ids
        assert token not in tokenize_piece(tokenizer, "a {text}", {"text": name}).tokens
        piece = tokenize_piece(tokenizer, f"a{name}{{text}}{name}", {"text": f" {name}"})
        places = [index for index, found in enumerate(piece.tokens) if found == token]
        assert len(places) == 2
        assert places[1] == len(piece.tokens) - 1
        assert [piece.token_text(place, place + 1) for place in places] == [name, name]
        start, stop = piece.fields["text"]
        assert piece.text[start:stop] == f" {name}"


@every_family
@enough
@given(title=texts, text=texts, room=st.integers(0, 20))
def test_tokens_of_a_field_are_those_that_bring_it(family, title, text, room):
    piece = tokenize_piece(TOKENIZERS[family], "\n{title}: {text}.", {"title": title, "text": text})
    if 0 < room < len(piece.tokens):
        piece = cut_piece(piece, room)
    for field, value in (("title", title), ("text", text)):
        start, stop = piece.fields[field]
        assert piece.text[start:stop] == value
        first, last = piece.field_tokens(field)
        brought = range(start, min(stop, len(piece.kept)))
        by_hand = [
            t
            for t in range(len(piece.tokens))
            if set(brought) & set(range(piece.starts[t], piece.starts[t + 1]))
        ]
        if not by_hand:
            assert first == last == len(piece.tokens)
            continue
        assert last == by_hand[-1] + 1
        # Before the first token that brings any, only tokens that began its character.
        assert first <= by_hand[0] and not piece.continues[first]
        assert all(piece.continues[first + 1 : by_hand[0] + 1])


@every_family
def test_the_tokenizer_given_is_not_changed(family):
    tokenizer = make_tokenizer(family)
    before = tokenizer.to_str()
    split_tokenizer(tokenizer)
    assert tokenizer.to_str() == before
    assert beginning(family) == "" or beginning(family) in before


def test_truncation_and_padding_of_the_tokenizer_do_not_count():
    tokenizer = split_tokenizer(make_tokenizer("qwen2"))
    plain = tokenize_piece(tokenizer, "{text}", {"text": "the cat sat"})
    changed = type(tokenizer.plain).from_str(make_tokenizer("qwen2").to_str())
    changed.enable_truncation(2)
    changed.enable_padding(length=50)
    assert tokenize_piece(split_tokenizer(changed), "{text}", {"text": "the cat sat"}) == plain
