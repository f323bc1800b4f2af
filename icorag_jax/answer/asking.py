"""One question asked to a frozen model, as it is and with evidence seen through a method."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from icorag_jax.backbones.loading import Backbone
from icorag_jax.checkpoint import Parameters
from icorag_jax.data.prompts import Prompt, make_prompt
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.answering import answer_batch
from icorag_jax.rag.batches import Batch, BatchConfig, make_batch
from icorag_jax.rag.frozen import read, upper_decoder
from icorag_jax.rag.method import MethodConfig, predict_edit
from icorag_jax.rag.storage import StoredMethod
from icorag_jax.rag.weighing import passage_weights
from icorag_jax.retrieval.retrieved import RetrievedQuestion, retrieve
from icorag_jax.retrieval.retriever import Retriever

_ANSWER_TOKENS = 32
_MIN_PASSAGE_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer, and what it was read from.

    Attributes:
        answer: the text.
        weights: of the passages, see `icorag_jax.rag.weighing.passage_weights`.
    """

    answer: str
    weights: Float[np.ndarray, " passages"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A question answered from passages.

    Attributes:
        question: the question.
        passages: those that the model has read, the best first; the last one may be cut.
        frozen: of the model as it is.
        updated: with evidence seen through the method, None where there is none.
        notes: what was left out, in words.
    """

    question: str
    passages: tuple[CorpusPassage, ...]
    frozen: Reply
    updated: Reply | None
    notes: tuple[str, ...]


def search(
    retriever: Retriever, corpus: Sequence[CorpusPassage], question: str, top: int
) -> RetrievedQuestion:
    """The best passages of a corpus for a question.

    Args:
        retriever: how to search.
        corpus: what to search.
        question: the question.
        top: passages, at most.

    Raises:
        ValueError: none is found, `top` is below 1, or the corpus cannot be searched.
    """
    (found,) = retrieve(retriever.index(corpus), corpus, [_question(question)], top, 1)
    if not found.passages:
        raise ValueError(
            f"no passage of the corpus shares a word with {question!r}: ask in its words, or "
            "search by meaning with dense retrieval"
        )
    return found


def in_order(passages: Sequence[CorpusPassage], question: str) -> RetrievedQuestion:
    """A question with given passages, the best first; as nobody searched, their scores are equal.

    Args:
        passages: at least one.
        question: the question.
    """
    return RetrievedQuestion(_question(question), tuple(passages), (0.0,) * len(passages))


def ask(backbone: Backbone, method: StoredMethod | None, asked: RetrievedQuestion) -> Comparison:
    """Answers a question with the frozen model and, if there is a method, with that.

    Passages beyond those that the method was trained for are left out, and evidence beyond its
    size, or without a method beyond the model's context, is cut as
    `icorag_jax.data.prompts.make_prompt` says; the notes tell.

    Args:
        backbone: the frozen model.
        method: trained for it, or None.
        asked: the question with its passages.

    Raises:
        ValueError: the question is blank, there is no passage, or there is no room for either.
    """
    if not asked.question.question.strip():
        raise ValueError("the question is empty")
    if not asked.passages:
        raise ValueError("there are no passages to answer from")
    config, kept, notes = fit(backbone, method and method.batch, asked)
    decoder, parameters = backbone.model.config, backbone.model.parameters
    batch = make_batch(
        config, decoder, backbone.tokenizer, backbone.template, [kept], answers=False
    )
    layer = decoder.num_hidden_layers // 2 if method is None else method.method.interface.layer

    def reply(settings: MethodConfig | None, numbers: Any) -> Reply:
        found = answer_batch(
            decoder, parameters, batch, settings, numbers,
            layer=layer, answer_tokens=config.answer_tokens,
        )  # fmt: skip
        tokens = np.asarray(found.tokens)[0, : int(found.lengths[0])].tolist()
        weights = _weigh(decoder, parameters, batch, settings, numbers, layer=layer)
        return Reply(backbone.decode(tokens), np.asarray(weights)[0])

    frozen = reply(None, None)
    updated = None if method is None else reply(method.method, method.parameters)
    return Comparison(asked.question.question, kept.passages, frozen, updated, notes)


def fit(
    backbone: Backbone, limits: BatchConfig | None, asked: RetrievedQuestion
) -> tuple[BatchConfig, RetrievedQuestion, tuple[str, ...]]:
    """Sizes that just hold a prompt, the passages that are in it, and notes on what is not.

    Args:
        backbone: the frozen model.
        limits: sizes that a method was trained on; None leaves the model's context.
        asked: the question with its passages.

    Raises:
        ValueError: there is no room for the question, or for a passage.
    """
    given = len(asked.passages)
    context = backbone.model.config.context
    answer_tokens = limits.answer_tokens if limits else _ANSWER_TOKENS
    least = limits.min_passage_tokens if limits else _MIN_PASSAGE_TOKENS
    count = min(given, limits.passages) if limits else given

    def prompt(passages: Sequence[CorpusPassage], max_tokens: int) -> Prompt:
        return make_prompt(
            backbone.tokenizer, backbone.template, passages, asked.question.question,
            max_tokens=max_tokens, min_passage_tokens=least,
        )  # fmt: skip

    room = context - answer_tokens
    question_tokens = len(prompt((), room).question_tokens)
    evidence_tokens = room - question_tokens
    if limits:
        evidence_tokens = min(evidence_tokens, limits.evidence_tokens)
    made = prompt(asked.passages[:count], evidence_tokens + question_tokens)
    kept = len(made.passages)
    if not kept:
        raise ValueError(
            f"evidence may take {evidence_tokens} tokens, which is no room for a passage"
        )
    notes = []
    if count < given:
        notes.append(
            f"the method was trained for {count} passages: the first {count} of {given} are used"
        )
    if made.cut_tokens:
        notes.append(
            f"passage {kept} is cut by {made.cut_tokens} tokens: evidence may take "
            f"{evidence_tokens} tokens"
        )
    if made.dropped:
        notes.append(
            f"passages from {kept + 1} on are left out: evidence may take {evidence_tokens} tokens"
        )
    sizes = BatchConfig(
        passages=kept,
        evidence_tokens=len(made.evidence_tokens),
        question_tokens=question_tokens,
        answer_tokens=answer_tokens,
        min_passage_tokens=least,
    )
    used = RetrievedQuestion(asked.question, asked.passages[:kept], asked.scores[:kept])
    return sizes, used, tuple(notes)


@functools.partial(jax.jit, static_argnames=("decoder", "method", "layer"))
def _weigh(
    decoder: DecoderConfig,
    parameters: Parameters,
    batch: Batch,
    method: MethodConfig | None,
    method_parameters: Any,
    *,
    layer: int,
) -> Float[Array, "batch passages"]:
    """`passage_weights` from a batch."""
    reading = read(decoder, parameters, batch, layer=layer)
    edit = None
    if method is not None:
        edit = predict_edit(method, decoder, method_parameters, reading.context)
    return passage_weights(*upper_decoder(decoder, parameters, layer), reading, edit)


def _question(text: str) -> Question:
    # Its answers are not known.
    return Question("asked", text, (), ())
