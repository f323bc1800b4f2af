"""Prompts: their parts are where the spans say, and what is left out is what does not fit."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers_of_families import FAMILIES, beginning, make_tokenizer

from icorag_jax.data.pieces import split_tokenizer, tokenize_piece
from icorag_jax.data.prompts import PromptTemplate, make_prompt, tokenize_passage
from icorag_jax.data.records import CorpusPassage, Passage

TOKENIZERS = {family: split_tokenizer(make_tokenizer(family)) for family in FAMILIES}
TEMPLATES = {
    family: PromptTemplate(instruction=f"{beginning(family)}Answer the question.")
    for family in FAMILIES
}
texts = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "the cat sat on the mat",
        "東京 🎉🎉",
        "e\u0301 a\u0307\u0323",
        "<|im_end|></s><think>",
        "\x00",
    ]
)
fields = st.lists(st.tuples(texts, texts), max_size=5)


def passages_of(pairs):
    return [Passage(title, text) for title, text in pairs]


@given(
    family=st.sampled_from(FAMILIES),
    pairs=fields,
    question=texts,
    room=st.integers(0, 80),
    least=st.integers(1, 8),
)
@example("llama2", [("", ""), ("🎉", "")], "", 80, 1)
def test_spans_and_truncation(family, pairs, question, room, least):
    tokenizer, template = TOKENIZERS[family], TEMPLATES[family]
    passages = passages_of(pairs)
    instruction = tokenize_piece(tokenizer, template.instruction, {})
    asked = tokenize_piece(tokenizer, template.question, {"question": question})
    fixed = len(instruction.tokens) + len(asked.tokens)
    prompt = make_prompt(
        tokenizer,
        template,
        passages,
        question,
        max_tokens=fixed + room,
        min_passage_tokens=least,
    )
    # Instruction and question are whole, and everything is in its place.
    assert prompt.instruction == instruction and prompt.question == asked
    assert len(prompt.tokens) <= fixed + room
    assert prompt.tokens.dtype == prompt.passage_spans.dtype == np.int32
    np.testing.assert_array_equal(
        prompt.tokens, np.concatenate([prompt.evidence_tokens, prompt.question_tokens])
    )
    start, stop = prompt.question_span
    assert tuple(prompt.tokens[start:stop]) == asked.tokens and stop == len(prompt.tokens)
    assert prompt.passage_spans.shape == (len(prompt.passages), 2)
    # The best passage is next to the question, the worst one to the instruction.
    end = start
    for (first, last), piece in zip(prompt.passage_spans, prompt.passages, strict=True):
        assert last == end
        assert tuple(prompt.tokens[first:last]) == piece.tokens
        end = first
    assert end == len(instruction.tokens)

    # The rule, told anew: whole passages while they fit, then one that is cut, then none.
    whole = [tokenize_passage(tokenizer, template, passage) for passage in passages]
    sizes = np.cumsum([len(piece.tokens) for piece in whole])
    fit = int(np.sum(sizes <= room))
    assert list(prompt.passages[:fit]) == whole[:fit]
    assert len(prompt.passages) <= fit + 1
    assert prompt.dropped == len(passages) - len(prompt.passages)
    if len(prompt.passages) > fit:
        cut = prompt.passages[fit]
        assert least <= len(cut.tokens) < len(whole[fit].tokens)
        assert cut.tokens == whole[fit].tokens[: len(cut.tokens)]
        assert prompt.cut_tokens == len(whole[fit].tokens) - len(cut.tokens)
        assert whole[fit].text.startswith(cut.kept)
    else:
        assert prompt.cut_tokens == 0


@given(family=st.sampled_from(FAMILIES), pairs=fields, question=texts)
def test_spans_map_back_to_the_fields(family, pairs, question):
    prompt = make_prompt(
        TOKENIZERS[family],
        TEMPLATES[family],
        passages_of(pairs),
        question,
        max_tokens=10_000,
        min_passage_tokens=1,
    )
    assert prompt.dropped == prompt.cut_tokens == 0
    for (title, text), piece in zip(pairs, prompt.passages, strict=True):
        assert piece.kept == (f"\n\n{title}: {text}" if title else f"\n\n{text}")
        values = {"title": title, "text": text} if title else {"text": text}
        assert piece.fields.keys() == values.keys()
        for field, value in values.items():
            start, stop = piece.fields[field]
            assert piece.text[start:stop] == value
            assert value in piece.token_text(*piece.field_tokens(field))
    start, stop = prompt.question.fields["question"]
    assert prompt.question.text[start:stop] == question
    assert prompt.question.kept == f"\n\nQuestion: {question}\nAnswer:"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_a_passage_do_not_depend_on_its_neighbours(family):
    tea, oslo = Passage("Tea", "Tea is a drink."), CorpusPassage("7", "", "Oslo, 東京 🎉")

    def passages_in(passages):
        return make_prompt(
            TOKENIZERS[family],
            TEMPLATES[family],
            passages,
            "where?",
            max_tokens=500,
            min_passage_tokens=1,
        ).passages

    assert passages_in([tea, oslo]) == passages_in([oslo, tea])[::-1]
    assert passages_in([oslo]) == passages_in([tea, oslo])[1:]


@pytest.mark.parametrize("family", ["llama2", "mistral", "llama3"])
def test_a_prompt_begins_as_the_tokenizer_begins_a_text(family):
    prompt = make_prompt(
        TOKENIZERS[family], TEMPLATES[family], [], "who?", max_tokens=99, min_passage_tokens=1
    )
    expected = make_tokenizer(family).encode("Answer the question.").ids
    assert list(prompt.evidence_tokens) == expected


def test_a_chat_template_has_control_tokens_of_its_own_only():
    template = PromptTemplate(
        instruction="<|im_start|>user\nAnswer.",
        question="\n\n{question}<|im_end|>\n<|im_start|>assistant\n<think>",
    )
    tokenizer = TOKENIZERS["qwen3"]
    prompt = make_prompt(
        tokenizer,
        template,
        [Passage("<|im_start|>", "<|im_end|> <think>")],
        "<|im_start|>system <|endoftext|>",
        max_tokens=999,
        min_passage_tokens=1,
    )
    names = {token: name for name, token in tokenizer.control.items()}
    found = [names[token] for token in prompt.tokens.tolist() if token in names]
    assert found == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>"]


def test_what_cannot_be_made_is_refused():
    tokenizer, template = TOKENIZERS["llama3"], TEMPLATES["llama3"]
    whole = make_prompt(tokenizer, template, [], "who?", max_tokens=99, min_passage_tokens=1)
    size = len(whole.tokens)
    exact = make_prompt(
        tokenizer, template, [Passage("", "x")], "who?", max_tokens=size, min_passage_tokens=1
    )
    assert exact.dropped == 1 and len(exact.tokens) == size
    with pytest.raises(ValueError, match=f"question take {size} tokens, max_tokens is {size - 1}"):
        make_prompt(tokenizer, template, [], "who?", max_tokens=size - 1, min_passage_tokens=1)
    with pytest.raises(ValueError, match="min_passage_tokens must be at least 1, got 0"):
        make_prompt(tokenizer, template, [], "who?", max_tokens=99, min_passage_tokens=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"instruction": "{question}"},
        {"passage": "{title}"},
        {"passage": "{title}{text}{text}"},
        {"untitled": "{title} {text}"},
        {"question": "Answer:"},
    ],
)
def test_templates_without_their_fields_are_refused(changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"{name} must have the fields"):
        PromptTemplate(**{"instruction": "", **changes})
