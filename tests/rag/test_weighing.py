"""Weights of passages against a decoder written in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_backbones

from icorag_jax.data.pieces import split_tokenizer
from icorag_jax.data.prompts import PromptTemplate
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.lm.decoder import unstack_layers
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag.batches import BatchConfig, make_batch
from icorag_jax.rag.frozen import read, upper_decoder
from icorag_jax.rag.weighing import passage_weights
from icorag_jax.retrieval.retrieved import RetrievedQuestion

LAYER = 1
SIZES = BatchConfig(passages=3, evidence_tokens=64, question_tokens=20, answer_tokens=4)
TEXTS = ("the lamp", "was lit by a keeper", "rain fell on the harbour wall")


def asked(number, passages):
    found = tuple(CorpusPassage(str(i), "", text) for i, text in enumerate(TEXTS[:passages]))
    question = Question(str(number), "who lit it?"[number:], ("a keeper",), ())
    return RetrievedQuestion(question, found, tuple(map(float, range(passages, 0, -1))))


def normalize(states, scale, epsilon):
    return states / np.sqrt((states**2).mean(-1, keepdims=True) + epsilon) * scale


def rotate(heads, positions, d):
    """Rotary embeddings, the features of a head in halves."""
    angles = positions[:, None, None] * 10_000.0 ** (-np.arange(d // 2) / (d // 2))
    first, second = heads[..., : d // 2], heads[..., d // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def weights_by_numpy(config, parameters, tokens, passage_of, asks, edit):
    """One text of evidence and a question, in one pass of all its tokens.

    `asks` marks the question's tokens; `edit` is of this text, for layers from `LAYER` on.
    """
    kernel = lambda at, layer, name: at[name]["kernel"][layer]  # noqa: E731
    d, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    layers, positions = parameters["layers"], np.arange(len(tokens))
    states = parameters["embedding"]["embedding"][tokens]
    given = np.zeros(len(tokens))
    for layer in range(config.num_hidden_layers):
        normal = normalize(states, layers["input_norm"]["scale"][layer], config.rms_norm_eps)
        query, key, value = (
            (normal @ kernel(layers, layer, name)).reshape(len(tokens), -1, d)
            for name in ("query", "key", "value")
        )
        query, key = rotate(query, positions, d), rotate(key, positions, d)
        read = np.zeros_like(query)
        window = config.windows[layer] or len(tokens)
        for row in range(len(tokens)):
            values, bias = value, np.zeros((query.shape[1], len(tokens)))
            if asks[row] and layer >= LAYER and edit is not None:
                of_passage = passage_of >= 0
                logit_bias, token_bias, down, up = (leaf[layer - LAYER] for leaf in edit)
                bias = logit_bias[:, np.maximum(passage_of, 0)] + token_bias
                bias = np.where(of_passage, bias, 0)
                flat = value.reshape(len(tokens), -1)
                change = np.where(of_passage[:, None], flat @ down @ up, 0)
                values = (flat + change).reshape(value.shape)
            for head in range(query.shape[1]):
                logits = key[:, head // group] @ query[row, head] / np.sqrt(d) + bias[head]
                seen = (positions <= row) & (positions > row - window)
                weights = np.where(seen, np.exp(logits - logits[seen].max()), 0)
                weights /= weights.sum()
                read[row, head] = weights @ values[:, head // group]
                if row == len(tokens) - 1 and layer >= LAYER:
                    given += weights
        states = states + read.reshape(len(tokens), -1) @ kernel(layers, layer, "attention_output")
        normal = normalize(states, layers["mlp_norm"]["scale"][layer], config.rms_norm_eps)
        gate = normal @ kernel(layers, layer, "gate")
        inner = gate / (1 + np.exp(-gate)) * (normal @ kernel(layers, layer, "up"))
        states = states + inner @ kernel(layers, layer, "down")
    evidence = given[~asks].sum()
    return [given[passage_of == passage].sum() / evidence for passage in range(SIZES.passages)]


def edit_of_text(edit, row, evidence, question):
    """An edit of a text's tokens, those of its question after those of its evidence."""
    edit = jax.tree.map(lambda leaf: leaf[:, row].astype(np.float64), edit)
    token_bias = np.pad(edit.token_bias[..., evidence], ((0, 0), (0, 0), (0, question.sum())))
    return edit._replace(token_bias=token_bias)


@pytest.mark.parametrize("windows", [(None, None, None), (None, 40, 12)])
@pytest.mark.parametrize("edited", [False, True])
def test_weights_are_those_of_numpy(windows, edited):
    model = small_backbones.make_model(windows=windows, family="mistral")
    config, tokenizer = model.config, split_tokenizer(model.tokenizer)
    template = PromptTemplate("<|start|>read", "\n{title}{text}", "\n{text}", " {question}:")
    questions = [asked(0, 3), asked(1, 2), asked(2, 1)]
    # Rows of an answer follow the question in the batch, but not in what is weighed.
    batch = make_batch(SIZES, config, tokenizer, template, questions, answers=True)
    edit = None
    if edited:
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=(2, 3, *shape)).astype(np.float32)  # noqa: E731
        edit = EvidenceEdit(draw(4, 3), draw(1, 64), draw(8, 2), draw(2, 8))
    parameters = small_backbones.random_like(model.parameters, 1, 0.5)
    reading = read(config, parameters, batch, layer=LAYER)
    compute = jax.jit(passage_weights, static_argnums=0)
    found = compute(
        *upper_decoder(config, parameters, LAYER), reading, edit and jax.tree.map(jnp.asarray, edit)
    )

    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    for row in range(len(questions)):
        evidence, question = batch.evidence_positions[row] >= 0, batch.is_question[row]
        expected = weights_by_numpy(
            config, exact,
            np.concatenate([batch.evidence_tokens[row][evidence], batch.tokens[row][question]]),
            np.concatenate([batch.passage_of[row][evidence], np.full(question.sum(), -1)]),
            np.repeat([False, True], [evidence.sum(), question.sum()]),
            edit and edit_of_text(edit, row, evidence, question),
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(found)[row], expected, atol=2e-5)
        assert (np.asarray(found)[row, len(questions) - row :] == 0).all()
    assert np.ptp(np.asarray(found)) > 0.1


def test_a_list_of_layers_gives_the_same():
    model = small_backbones.make_model()
    config, tokenizer = model.config, split_tokenizer(model.tokenizer)
    template = PromptTemplate("<|start|>", question=" {question}:")
    batch = make_batch(SIZES, config, tokenizer, template, [asked(0, 3)], answers=False)
    reading = read(config, model.parameters, batch, layer=LAYER)
    compute = jax.jit(passage_weights, static_argnums=0)
    stacked = compute(*upper_decoder(config, model.parameters, LAYER), reading, None)
    unstacked = unstack_layers(model.parameters)
    listed = compute(*upper_decoder(config, unstacked, LAYER), reading, None)
    np.testing.assert_allclose(stacked, listed, atol=1e-6)
    half = dataclasses.replace(config, num_hidden_layers=2, windows=(None, None))
    assert upper_decoder(config, model.parameters, LAYER)[0] == half
