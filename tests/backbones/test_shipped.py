"""The shipped backbones truly read: answers come from the evidence, and from nowhere else."""

import dataclasses
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import qa
from icorag_jax.backbones.loading import FOLDER, backbone_names, find_method, load_backbone
from icorag_jax.data.answers import exact_match
from icorag_jax.data.records import CorpusPassage
from icorag_jax.data.world import WorldConfig, generate_questions
from icorag_jax.rag.answering import answer_batch
from icorag_jax.rag.batches import BatchConfig, make_batch
from icorag_jax.rag.method import Kind, count_parameters
from icorag_jax.rag.storage import load_method
from icorag_jax.retrieval.retrieved import RetrievedQuestion

LARGEST = 12e6  # bytes
SIZES = BatchConfig(passages=5, evidence_tokens=256, question_tokens=64, answer_tokens=12)
# A world that was neither pretrained nor tuned on, with names that no training text has.
WORLD = WorldConfig(seed=77, size=0, held_out=100, families=("single_fact",))


@pytest.fixture(scope="module")
def asked():
    """Single facts with the passage that states them."""
    found = []
    for question in generate_questions(WORLD, "dev"):
        gold = [p for p in question.passages if p.is_gold]
        passages = tuple(CorpusPassage(str(i), p.title, p.text) for i, p in enumerate(gold))
        found.append(RetrievedQuestion(question, passages, (0.0,) * len(passages)))
    return found


def exact_share(backbone, questions):
    """The share of questions that the frozen model answers right."""
    decoder = backbone.model.config
    batch = make_batch(
        SIZES, decoder, backbone.tokenizer, backbone.template, questions, answers=False
    )
    found = answer_batch(
        decoder, backbone.model.parameters, batch, None, None,
        layer=decoder.num_hidden_layers // 2, answer_tokens=SIZES.answer_tokens,
    )  # fmt: skip
    texts = [
        backbone.decode(row[:length].tolist())
        for row, length in zip(np.asarray(found.tokens), np.asarray(found.lengths), strict=True)
    ]
    return np.mean(
        [exact_match(text, q.question.answers) for text, q in zip(texts, questions, strict=True)]
    )


def test_they_are_small():
    assert backbone_names()
    for name in backbone_names():
        size = sum(p.stat().st_size for p in (FOLDER / name).rglob("*") if p.is_file())
        assert size <= LARGEST
        assert load_backbone(name, jnp.float32).model.config.family == name


@pytest.mark.parametrize("name", backbone_names())
def test_it_reads(name, asked):
    backbone = load_backbone(name, jnp.float32)
    assert exact_share(backbone, asked) >= 0.8
    # Without passages, and with those of another question, nothing is left of that.
    closed = [dataclasses.replace(each, passages=(), scores=()) for each in asked]
    assert exact_share(backbone, closed) <= 0.03
    swapped = [
        dataclasses.replace(each, passages=other.passages)
        for each, other in zip(asked, [*asked[1:], asked[0]], strict=True)
    ]
    assert exact_share(backbone, swapped) <= 0.03


@pytest.mark.parametrize("name", backbone_names())
def test_it_follows_what_the_passages_say(name, asked):
    # Where the passage states another value of the same form, that is the answer.
    backbone = load_backbone(name, jnp.float32)
    answers = [each.question.answers[0] for each in asked]
    changed = []
    for number, each in enumerate(asked):
        answer = answers[number]
        value = next(
            other
            for other in (*answers[number + 1 :], *answers[:number])
            if (other.isdigit(), other.count(" ")) == (answer.isdigit(), answer.count(" "))
        )
        passages = tuple(
            dataclasses.replace(p, text=p.text.replace(answer, value)) for p in each.passages
        )
        question = dataclasses.replace(each.question, answers=(value,))
        changed.append(dataclasses.replace(each, question=question, passages=passages))
    assert exact_share(backbone, changed) >= 0.7


@pytest.mark.parametrize("name", backbone_names())
def test_it_ships_every_method_of_the_sizes_that_a_glance_asks_for(name):
    backbone = load_backbone(name, jnp.float32)
    settings = qa.PRESETS["glance"]
    use, passages = settings["use"], settings["questions"].passages
    assert use.trained == "shipped"
    for kind in get_args(Kind):
        folder = find_method(backbone, kind)
        assert folder is not None
        stored = load_method(folder, backbone.model.config, backbone.fingerprint)
        assert stored.method == use.method_config(kind, backbone.model.config, passages)
        assert stored.batch == use.batch_config(passages)


@pytest.mark.parametrize("name", backbone_names())
def test_it_ships_an_updater_of_its_own_of_less_than_two_percent(name):
    backbone = load_backbone(name, jnp.float32)
    folder = find_method(backbone)
    assert folder is not None
    stored = load_method(folder, backbone.model.config, backbone.fingerprint)
    assert stored.method.kind == "updater"
    size = count_parameters(backbone.model.parameters)
    assert count_parameters(stored.parameters) < 0.02 * size
