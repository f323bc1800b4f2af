"""Answers of every method to questions with their passages."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm import tqdm

from experiments.support.qa_settings import MethodName
from experiments.support.qa_training import Questions, Subject, fill_batches
from icorag_jax.data.answers import exact_match, token_f1
from icorag_jax.rag.adaptation import AdaptationConfig
from icorag_jax.rag.answering import Answers, answer_adapted, answer_prepared, prepare
from icorag_jax.rag.batches import cloze_rows
from icorag_jax.rag.frozen import read
from icorag_jax.rag.method import Kind, predict_change
from icorag_jax.rag.storage import StoredMethod
from icorag_jax.retrieval.retrieved import RetrievedQuestion


def answer_questions(
    subject: Subject,
    methods: Mapping[Kind, StoredMethod],
    adaptations: Mapping[MethodName, AdaptationConfig],
    questions: Questions,
) -> pd.DataFrame:
    """Answers of every method.

    Returns:
        A row a question and method: `id`, `method`, `prediction`, `exact_match`, `f1`, and `gold`,
        whether all of the question's gold passages were found (None where they are not known).
    """
    settings = subject.settings
    rows = []
    size = min(settings.evaluation_batch, len(questions))
    with tqdm(total=len(questions), unit="question", desc="answer") as progress:
        for number, (some, filled) in enumerate(fill_batches(questions, size)):
            adapted = number * size < settings.adapted_questions
            for name, answers in _answers(subject, methods, adaptations, filled, adapted):
                for asked, text in zip(some, _texts(subject, answers), strict=False):
                    rows.append({"id": asked.question.id, "method": name, **_row(asked, text)})
            progress.update(len(some))
    return pd.DataFrame(rows)


def update_cosines(
    subject: Subject, updater: StoredMethod, questions: Questions
) -> Float[np.ndarray, "pairs"]:
    """Cosines between the updates of any two questions."""
    model = subject.backbone.model
    batch = subject.batch(questions, answers=False)
    reading = read(model.config, model.parameters, batch, layer=subject.layer)
    change = np.asarray(
        jax.jit(predict_change, static_argnums=(0, 1))(
            updater.method, model.config, updater.parameters, reading.context
        )
    )
    unit = change / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-30)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _answers(
    subject: Subject,
    methods: Mapping[Kind, StoredMethod],
    adaptations: Mapping[MethodName, AdaptationConfig],
    questions: Questions,
    adapted: bool,
) -> Iterator[tuple[MethodName, Answers]]:
    """Answers of each method, the questions read once for all."""
    settings, model = subject.settings, subject.backbone.model
    tokens = settings.answer_tokens
    sizes = {"layer": subject.layer, "answer_tokens": tokens}
    key = jax.random.key(settings.method_seed)
    frozen = model.config, model.parameters
    names = settings.methods
    batch = subject.batch(questions, answers=False)
    prepared = prepare(*frozen, batch, **sizes)
    if "closed_book" in names:
        alone = [dataclasses.replace(asked, passages=(), scores=()) for asked in questions]
        instruction = settings.batch_config(1)
        instruction = dataclasses.replace(instruction, evidence_tokens=_CLOSED_BOOK_TOKENS)
        closed = prepare(*frozen, subject.batch(alone, answers=False, sizes=instruction), **sizes)
        yield "closed_book", answer_prepared(*frozen, closed, None, None, **sizes)
    if "frozen" in names:
        yield "frozen", answer_prepared(*frozen, prepared, None, None, **sizes)
    for kind, stored in methods.items():
        if kind in names:
            method = stored.method, stored.parameters
            yield kind, answer_prepared(*frozen, prepared, *method, **sizes)
    for control in ("shuffled", "random", "empty"):
        if (name := f"updater_{control}") in names:
            method = methods["updater"].method, methods["updater"].parameters
            yield (
                name,
                answer_prepared(  # pyright: ignore[reportReturnType]
                    *frozen, prepared, *method, **sizes, control=control, key=key
                ),
            )
    if not adapted:
        return
    for name, adaptation in adaptations.items():
        rows = None
        if adaptation.objective == "cloze":
            rows = cloze_rows(batch)
        elif adaptation.objective == "oracle":
            rows = subject.batch(questions, answers=True)
        method = (None, None)
        if name != "slot":
            method = methods["shared"].method, methods["shared"].parameters
        yield name, answer_adapted(*frozen, prepared, rows, *method, adaptation, **sizes)


# Room for the instruction alone.
_CLOSED_BOOK_TOKENS = 64


def _texts(subject: Subject, answers: Answers) -> list[str]:
    """Answers as strings."""
    tokens, lengths = np.asarray(answers.tokens), np.asarray(answers.lengths)
    return [
        subject.backbone.decode(row[:length].tolist())
        for row, length in zip(tokens, lengths, strict=True)
    ]


def _row(asked: RetrievedQuestion, text: str) -> dict[str, Any]:
    answers = asked.question.answers
    known = [p for p in asked.question.passages if p.is_gold]
    gold = sum(bool(found) for found in asked.gold) >= len(known) if known else None
    return {
        "prediction": text,
        "exact_match": exact_match(text, answers),
        "f1": token_f1(text, answers),
        "gold": gold,
    }
