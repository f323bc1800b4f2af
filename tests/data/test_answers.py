"""Answer scores against SQuAD's definitions, worked out by hand or by loops."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.answers import (
    answer_hits,
    contains_answer,
    exact_match,
    gold_recall_at,
    normalize_answer,
    recall_at,
    score_answers,
    token_f1,
)

words = st.lists(st.sampled_from(["cat", "sat", "mat", "the", "A", "on,"]), max_size=6).map(
    " ".join
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("  \n", ""),
        ("Pelé — 東京", "pelé — 東京"),
    ],
)
def test_normalization(text, expected):
    assert normalize_answer(text) == expected


@given(words)
def test_normalization_is_idempotent(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_exact_match_takes_any_answer():
    assert exact_match("the Eiffel tower.", ["Louvre", "Eiffel Tower"]) == 1.0
    assert exact_match("Eiffel", ["Louvre", "Eiffel Tower"]) == 0.0


def by_loops(prediction, answer):
    """F1 by striking out one token at a time."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not found or not wanted:
        return float(found == wanted)
    left, shared = list(wanted), 0
    for token in found:
        if token in left:
            left.remove(token)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(prediction, answers):
    expected = max(by_loops(prediction, answer) for answer in answers)
    assert token_f1(prediction, answers) == pytest.approx(expected)


def official_normalization(text):
    """As the evaluation script of SQuAD v1.1 does it, step by step."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(st.text() | st.text("aAnN tThHeE.,-'\u00a0\n"))
def test_normalization_is_that_of_the_official_script(text):
    assert normalize_answer(text) == official_normalization(text)


@pytest.mark.parametrize("score", [exact_match, token_f1, contains_answer])
def test_answers_that_are_missing_are_refused(score):
    with pytest.raises(ValueError, match="no answers"):
        score("text", [])
    with pytest.raises(ValueError, match=r"one string, not several; pass \['text'\]"):
        score("text", "text")


def test_hits_are_of_each_text():
    texts = ["Oslo is cold", "tea", "In Oslo."]
    assert answer_hits(texts, ["oslo", "Bergen"]) == [True, False, True]
    assert answer_hits([], ["oslo"]) == []


def test_gold_recall_is_a_share_of_the_gold():
    ranked = {"a": ["x", "g1", "g1", "g2"], "b": ["g"], "c": []}
    gold = {"b": {"g"}, "a": ["g1", "g2"], "c": ["g"]}
    assert gold_recall_at(ranked, gold, 1) == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert gold_recall_at(ranked, gold, 3) == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert gold_recall_at(ranked, gold, 9) == {"a": 1.0, "b": 1.0, "c": 0.0}
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        gold_recall_at(ranked, gold, 0)
    with pytest.raises(ValueError, match="ranked lack questions that gold have: 'd'"):
        gold_recall_at(ranked, {**gold, "d": ["x"]}, 1)
    with pytest.raises(ValueError, match="questions without a gold passage: 'b'"):
        gold_recall_at(ranked, {**gold, "b": []}, 1)


def test_repeated_tokens_count_as_often_as_they_match():
    assert token_f1("cat cat cat", ["cat mat"]) == pytest.approx(2 * 1 / 5)


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("He was born in New York, in 1946.", ["new york"], True),
        ("He was born in New-York", ["New York"], False),
        ("They category", ["cat"], False),
        ("anything", ["the", ""], False),
        ("first Second", ["nothing", "FIRST second"], True),
    ],
)
def test_an_answer_is_found_as_whole_tokens(text, answers, expected):
    assert contains_answer(text, answers) is expected


def test_scores_are_by_question():
    scores = score_answers({"q2": "mat", "q1": "a cat"}, {"q1": ["cat"], "q2": ["cat on mat"]})
    assert scores.exact_match == {"q1": 1.0, "q2": 0.0}
    assert scores.f1 == {"q1": 1.0, "q2": 0.5}


@pytest.mark.parametrize(
    ("predictions", "answers", "message"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "predictions lack questions that answers have: 'b'"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "answers lack questions that predictions have: 'b'"),
        ({"a": "x"}, {"a": []}, "questions without an answer: 'a'"),
        ({}, {str(i): ["x"] for i in range(5)}, "'0', '1', '2' and 2 more"),
    ],
)
def test_questions_that_do_not_pair_are_refused(predictions, answers, message):
    with pytest.raises(ValueError, match=message):
        score_answers(predictions, answers)


def test_recall_looks_at_the_first_ranks():
    hits = {"a": [False, True, False], "b": [False], "c": [True], "d": []}
    assert recall_at(hits, 1) == {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0}
    assert recall_at(hits, 2) == {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall_at(hits, 0)
