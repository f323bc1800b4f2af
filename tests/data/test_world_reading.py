"""Plain reading: every question has one passage that answers it. A family's: plain ones too."""

import dataclasses
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.world import FAMILIES, WorldConfig, generate_questions
from icorag_jax.data.world.reading import (
    Reading,
    ReadingConfig,
    generate_family_reading,
    generate_reading,
)

CONFIGS = st.builds(
    ReadingConfig,
    passages=st.integers(1, 8),
    facts=st.integers(1, 3),
    fillers=st.integers(0, 2),
    related=st.floats(0, 1),
)


def sources(reading: Reading, question: str, answer: str) -> list[int]:
    """The passages on the subject of a question that have its answer."""
    return [
        number
        for number, passage in enumerate(reading.passages)
        if re.search(rf"{passage.title}\b", question) and answer in passage.text
    ]


@given(CONFIGS, st.integers(0, 3), st.integers(0, 10_000))
def test_the_answer_stands_in_the_passage_that_the_question_is_about(config, seed, index):
    reading = generate_reading(config, seed, index)
    assert len(reading.passages) == config.passages
    assert len(reading.questions) >= config.passages
    for question, answer in reading.questions:
        assert len(sources(reading, question, answer)) == 1
        assert answer not in question


@given(CONFIGS, st.integers(0, 10_000))
def test_no_question_is_asked_twice(config, index):
    # The same relation of the same subject is stated once, however often it is mentioned.
    reading = generate_reading(config, 0, index)
    stated = [
        (*sources(reading, question, answer), answer) for question, answer in reading.questions
    ]
    assert len(set(stated)) == len(stated)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_question_is_followed_by_plain_ones_that_one_passage_answers(family):
    config = WorldConfig(seed=3, passages=6)
    for index in range(20):
        (expected,) = itertools.islice(
            generate_questions(WorldConfig(3, size=1, passages=6, families=(family,)), "train"), 1
        )
        reading = generate_family_reading(config, family, index)
        (question, answer), *plain = reading.questions
        if index == 0:
            assert (question, answer) == (expected.question, expected.answers[0])
            assert reading.passages == expected.passages
        assert len(plain) >= 2 and len(set(plain)) == len(plain)
        for question, answer in plain:
            assert sources(reading, question, answer), (reading, question, answer)


def test_the_same_numbers_give_the_same_text_and_others_another():
    config = ReadingConfig(passages=4, facts=2, fillers=1, related=0.5)
    assert generate_reading(config, 1, 2) == generate_reading(config, 1, 2)
    assert generate_reading(config, 1, 2) != generate_reading(config, 1, 3)
    assert generate_reading(config, 1, 2) != generate_reading(config, 2, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"passages": 0}, "passages must be at least 1"),
        ({"facts": 0}, "facts must be at least 1"),
        ({"fillers": -1}, "fillers must be at least 0"),
        ({"related": 1.5}, r"related must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    config = ReadingConfig(passages=4, facts=2, fillers=1, related=0.5)
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **changes)
