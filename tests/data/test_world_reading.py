"""Plain reading: every question has one passage that answers it, and no other that could."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.world.reading import ReadingConfig, generate_reading

CONFIGS = st.builds(
    ReadingConfig,
    passages=st.integers(1, 8),
    facts=st.integers(1, 3),
    fillers=st.integers(0, 2),
    related=st.floats(0, 1),
)


@given(CONFIGS, st.integers(0, 3), st.integers(0, 10_000))
def test_the_answer_stands_in_the_passage_that_the_question_is_about(config, seed, index):
    reading = generate_reading(config, seed, index)
    assert len(reading.passages) == config.passages
    assert len(reading.questions) == len(reading.sources) >= config.passages
    for (question, answer), source in zip(reading.questions, reading.sources, strict=True):
        assert answer in reading.passages[source].text
        assert reading.passages[source].title in question
        assert answer not in question


@given(CONFIGS, st.integers(0, 10_000))
def test_no_question_is_asked_twice(config, index):
    # The same relation of the same subject is stated once, however often it is mentioned.
    reading = generate_reading(config, 0, index)
    stated = [
        (reading.passages[source].title, answer)
        for (_, answer), source in zip(reading.questions, reading.sources, strict=True)
    ]
    assert len(set(stated)) == len(stated)


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
