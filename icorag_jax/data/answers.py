"""Scores of answers as strings, exact match and token F1 as SQuAD has them, and recall at k.

Every score of several questions is a mapping by question id, so that no two lists can be paired
wrongly.
"""

import collections
import re
import string
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScores(NamedTuple):
    """How good an answer is, in [0, 1], by question id.

    Attributes:
        exact_match: 1 where the normalized strings are equal, else 0.
        f1: overlap of normalized tokens.
    """

    exact_match: dict[str, float]
    f1: dict[str, float]


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, English articles and surplus spaces (SQuAD v1.1)."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers after normalization, else 0.

    Raises:
        ValueError: there are no answers, or one string is given for them.
    """
    _check_answers(answers)
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in answers})


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of normalized tokens over the answers.

    Where the prediction or an answer has no token left, that F1 is 1 if both have none, else 0
    (SQuAD v2.0; in v1.1, 0 in either case).

    Raises:
        ValueError: there are no answers, or one string is given for them.
    """
    _check_answers(answers)
    return max(_pair_f1(prediction, answer) for answer in answers)


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer's normalized tokens occur in the text's, in a row.

    An answer without tokens occurs nowhere. Answers such as "yes" occur by chance.

    Raises:
        ValueError: there are no answers, or one string is given for them.
    """
    _check_answers(answers)
    padded = f" {normalize_answer(text)} "
    normalized = (normalize_answer(answer) for answer in answers)
    return any(answer and f" {answer} " in padded for answer in normalized)


def score_answers(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> AnswerScores:
    """Scores predictions by question id.

    Args:
        predictions: an answer a question.
        answers: the right ones of the same questions, at least one each.

    Raises:
        ValueError: questions without a prediction, predictions without a question, or questions
            without an answer; the message has the first ids.
    """
    check_same_questions("predictions", predictions, "answers", answers)
    if empty := [key for key, known in answers.items() if not known]:
        raise ValueError(f"questions without an answer: {_some(empty)}")
    return AnswerScores(
        {key: exact_match(text, answers[key]) for key, text in predictions.items()},
        {key: token_f1(text, answers[key]) for key, text in predictions.items()},
    )


def answer_hits(texts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which texts contain an answer; see `contains_answer`."""
    return [contains_answer(text, answers) for text in texts]


def gold_recall_at(
    ranked: Mapping[str, Sequence[Hashable]], gold: Mapping[str, Collection[Hashable]], k: int
) -> dict[str, float]:
    """The share of a question's gold passages that are among its first k, by question id.

    Args:
        ranked: what each question's passages are known by, the best rank first: ids, say, or pairs
            of title and text. A passage that is there twice counts once.
        gold: what its gold passages are known by, at least one each.
        k: ranks that count; a question may have fewer.

    Raises:
        ValueError: k is below 1, the questions differ, or one has no gold passage.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_same_questions("ranked", ranked, "gold", gold)
    if empty := [key for key, passages in gold.items() if not passages]:
        raise ValueError(f"questions without a gold passage: {_some(empty)}")
    return {
        key: len(set(gold[key]).intersection(ranks[:k])) / len(set(gold[key]))
        for key, ranks in ranked.items()
    }


def recall_at(hits: Mapping[str, Sequence[bool]], k: int) -> dict[str, float]:
    """Whether one of the first k ranks hits, by question id: 1 or 0.

    Args:
        hits: for each question, whether the passage of each rank hits, the best rank first.
        k: ranks that count; a question may have fewer.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return {key: float(any(ranks[:k])) for key, ranks in hits.items()}


def check_same_questions(
    first_name: str, first: Mapping[str, object], second_name: str, second: Mapping[str, object]
) -> None:
    """Checks that two mappings are of the same questions.

    Raises:
        ValueError: they are not; the message has the first ids of each side.
    """
    for name, lacking, other in (
        (first_name, second.keys() - first.keys(), second_name),
        (second_name, first.keys() - second.keys(), first_name),
    ):
        if lacking:
            raise ValueError(f"{name} lack questions that {other} have: {_some(sorted(lacking))}")


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str):
        raise ValueError(f"answers is one string, not several; pass [{answers[:40]!r}]")
    if not answers:
        raise ValueError("there are no answers to compare with")


def _pair_f1(prediction: str, answer: str) -> float:
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
