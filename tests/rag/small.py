"""A small decoder with random weights, and questions of the world that it has read.

All is made once a process and with one set of sizes, so that programs are compiled once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.reader_texts import END, START, TEMPLATE, train_tokenizer
from icorag_jax.data.pieces import PromptTokenizer, split_tokenizer
from icorag_jax.data.records import CorpusPassage
from icorag_jax.data.world import WorldConfig, generate_questions
from icorag_jax.lm import decoder
from icorag_jax.lm.config import DecoderConfig, DefaultRotary
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag import frozen
from icorag_jax.rag.batches import Batch, BatchConfig, make_batch
from icorag_jax.rag.context import Context
from icorag_jax.rag.frozen import Reading
from icorag_jax.rag.interface import InterfaceConfig, InterfaceState
from icorag_jax.rag.kernels import PASSAGE_KERNELS, TOKEN_KERNELS
from icorag_jax.rag.method import Kind, MethodConfig, init_method, predict_edit
from icorag_jax.rag.traits import TRAITS
from icorag_jax.rag.updater import UpdaterConfig
from icorag_jax.retrieval.retrieved import RetrievedQuestion

KINDS: tuple[Kind, ...] = ("shared", "updater", "blind", "feedback")
LAYER = 2  # the interface's first
DECODER = DecoderConfig(
    family="llama", vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    rms_norm_eps=1e-6, tie_word_embeddings=False, rotary=DefaultRotary(10_000.0),
    query_key_value_bias=False, attention_output_bias=False, mlp_bias=False, query_key_norm=False,
    windows=(None,) * 4, eos_token_ids=(1,), bos_token_id=0, pad_token_id=None,
)  # fmt: skip
BATCH = BatchConfig(passages=3, evidence_tokens=112, question_tokens=64, answer_tokens=10)
INTERFACE = InterfaceConfig(layer=LAYER, bound=1.5, pools=2, pool_features=4, rank=3)


def method(kind: Kind, steps: int = 2) -> MethodConfig:
    return MethodConfig(kind, INTERFACE, UpdaterConfig(steps), BATCH.passages)


@functools.cache
def questions() -> tuple[RetrievedQuestion, ...]:
    """With three passages, more than fit, one, and none."""
    config = WorldConfig(
        seed=5, size=1, held_out=0, passages=5, archive_share=0.0, fillers=0, facts=1
    )
    found = []
    for question, count in zip(generate_questions(config, "train"), (3, 5, 1, 0), strict=False):
        passages = tuple(
            CorpusPassage(f"{question.id}/{n}", passage.title, passage.text)
            for n, passage in enumerate(question.passages[:count])
        )
        scores = tuple(2.0 - 0.3 * n**1.5 for n in range(count))
        found.append(RetrievedQuestion(question, passages, scores))
    return tuple(found)


@functools.cache
def tokenizer() -> PromptTokenizer:
    texts = [text for asked in questions() for text in (asked.question.question, *_texts(asked))]
    trained = split_tokenizer(train_tokenizer(texts, DECODER.vocab_size))
    assert (trained.control[START], trained.control[END]) == (0, 1)
    return trained


def _texts(asked: RetrievedQuestion) -> list[str]:
    return [passage.text for passage in asked.question.passages]


@functools.cache
def batch(answers: bool = True) -> Batch:
    made = make_batch(BATCH, DECODER, tokenizer(), TEMPLATE, questions(), answers=answers)
    for array in made:
        array.setflags(write=False)  # all tests share it
    return made


@functools.cache
def parameters(dtype: Any = jnp.float32) -> Any:
    """Of the frozen model, the scales of norms drawn too."""
    drawn = decoder.init_parameters(DECODER, jax.random.key(0), jnp.float32)
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if path[-1].key == "scale":
            leaf = jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, drawn)


@functools.cache
def reading(dtype: Any = jnp.float32, answers: bool = True) -> Reading:
    return frozen.read(DECODER, parameters(dtype), batch(answers), layer=LAYER)


init = jax.jit(init_method, static_argnums=(0, 1))


@functools.cache
def fresh(kind: Kind) -> Any:
    """Parameters of a method that was not trained."""
    return init(method(kind), DECODER, jax.random.key(1))


@functools.cache
def drawn(kind: Kind, seed: int = 0, scale: float = 0.5) -> Any:
    """Parameters of a method with noise on all of them, so that it does something."""
    return add_noise(fresh(kind), seed, scale)


def add_noise(parameters: Any, seed: int, scale: float) -> Any:
    """Parameters with noise on all of them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32),
        parameters,
    )


def assert_trees_equal(found: Any, expected: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def random_context(seed: int = 0, batch: int = 3, passages: int = 3) -> Context:
    """States without a model: evidence of 14 rows, some of no passage, and 9 rows of questions."""
    rng = np.random.default_rng(seed)
    width, evidence, rows = DECODER.hidden_size, 14, 9
    present = np.arange(passages) < rng.integers(1, passages + 1, (batch, 1))
    present[0] = True
    owner = np.sort(rng.integers(-1, passages, (batch, evidence)), axis=1)
    owner[:, -passages:] = np.arange(passages)  # each has a row
    owner = np.where(np.take_along_axis(present, np.maximum(owner, 0), axis=1), owner, -1)
    traits = rng.normal(size=(batch, passages, TRAITS)) * present[..., None]
    traits[..., -1] = present & (rng.uniform(size=present.shape) < 0.8)  # whether there is a number
    lengths = rng.integers(1, rows + 1, (batch, 1))
    return Context(
        evidence_tokens=jnp.asarray(rng.integers(0, 6, (batch, evidence)), jnp.int32),
        evidence_states=jnp.asarray(rng.normal(size=(batch, evidence, width)), jnp.float32),
        passage_of=jnp.asarray(owner, jnp.int32),
        question_tokens=jnp.asarray(rng.integers(0, 6, (batch, rows)), jnp.int32),
        question_states=jnp.asarray(rng.normal(size=(batch, rows, width)), jnp.float32),
        is_question=jnp.asarray(np.arange(rows) < lengths),
        traits=jnp.asarray(traits, jnp.float32),
        present=jnp.asarray(present),
    )


def random_state(seed: int = 0, batch: int = 3) -> InterfaceState:
    rng = np.random.default_rng(seed)
    asked = INTERFACE.question_features
    sizes = INTERFACE.passage_features, PASSAGE_KERNELS * 3, TOKEN_KERNELS * 3
    return InterfaceState(
        *(jnp.asarray(rng.normal(size=(batch, asked, size)), jnp.float32) for size in sizes),
        jnp.asarray(rng.normal(size=(batch, INTERFACE.rank, INTERFACE.rank)), jnp.float32),
    )


def pooled(parameters: Any, states: np.ndarray) -> np.ndarray:
    """A pool's features of the tokens of one text `[tokens, width]`, in NumPy, float64."""
    score, project = (np.asarray(parameters[name], np.float64) for name in ("score", "project"))
    if not len(states):
        return np.zeros(project.shape[0] * project.shape[2])
    normal = unit(np.asarray(states, np.float64))
    weights = np.exp(normal @ score - (normal @ score).max(axis=0))
    weights /= weights.sum(axis=0)
    return unit(np.concatenate([w @ normal @ p for w, p in zip(weights.T, project, strict=True)]))


def unit(states: np.ndarray) -> np.ndarray:
    """Of root mean square 1."""
    return states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + 1e-6)


predict = jax.jit(predict_edit, static_argnums=(0, 1))


@functools.cache
def edit(kind: Kind = "updater") -> EvidenceEdit:
    """Of a method that does something, after `reading`."""
    return predict(method(kind), DECODER, drawn(kind), reading().context)


def other_answers(kept: Batch) -> Batch:
    """The same questions with other tokens in their answers."""
    return kept._replace(tokens=np.where(kept.is_answer, (kept.tokens + 7) % 400, kept.tokens))
