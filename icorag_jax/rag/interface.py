"""The evidence-use interface: how question and answer rows of a frozen model see passages.

In the layers from `InterfaceConfig.layer` on, these rows see passage j through the two forms of the
linearized objective (`icorag_jax.theory.objective`), both linear in the state `(W, V, S)` up to the
bound on scores:

    dot-product   scores         s_j = a^T (W b_j / sqrt(|b|) + V c_j)
                  logit bias     tau[layer, head] * bounded(s)_j
    projection    edited values  v <- v + v R[layer] S U[layer]

Bounding takes off what a question's passages have in common, leaves small scores as they are, and
keeps large ones below `InterfaceConfig.bound` (`icorag_jax.rag.deviations`).

`a` are features of the question and `b_j` of passage j: hidden states of the frozen model, pooled
by learned weights and projected, and what the retriever, its number (`icorag_jax.rag.traits`) and
the words that it shares with the question say of it. `c_j` is what it has to do with each other
passage: words that both have, all of them and those that the question does not have
(`icorag_jax.rag.words`), and which one's number is larger. `V` is the part of the state on vectors
of words, which are many more than passages, in terms of the passages' own vectors. With the state
at zero the model is the frozen model, bit for bit.

Axes: as in `icorag_jax.rag.context`; `question` and `passage` features of either, `axes` passages
by kernels, `rank` of the edit of values, `layers` those from the interface's first on.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag.context import Context
from icorag_jax.rag.deviations import apart, bounded, contrast, standardize
from icorag_jax.rag.traits import TRAITS, order
from icorag_jax.rag.words import (
    SPANS,
    WORD_KERNELS,
    Words,
    completion,
    coverage,
    has_words,
    similarity,
    similarity_within,
    weigh_words,
    without,
)

# Of `completion` times a similarity, which is a tenth where a passage completes another one. Not in
# deviations: where no passage does, it has to stay small.
COMPLETION_SCALE = 10.0
# What passages are compared by: words, and the order of their numbers.
KERNELS = WORD_KERNELS + 1


@dataclasses.dataclass(frozen=True)
class InterfaceConfig:
    """Where the interface acts, how large it is, and how much it may do.

    Attributes:
        layer: the first layer with the interface; features come from the residual stream before it.
        pools: ways to weigh the tokens of a text, each with features of its own.
        pool_features: features of a pool.
        rank: of the edit of values.
        bound: what the root mean square of a question's scores of passages stays below, see
            `icorag_jax.rag.deviations.bounded`.
    """

    layer: int
    bound: float
    pools: int = 4
    pool_features: int = 16
    rank: int = 8

    def __post_init__(self):
        """Checks the ranges."""
        for name in ("layer", "pools", "pool_features", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound must be above 0 and finite, got {self.bound}")

    @property
    def question_features(self) -> int:
        """Size of `a`: pooled features and a constant."""
        return self.pools * self.pool_features + 1

    @property
    def passage_features(self) -> int:
        """Size of `b`: pooled features, and those of `word_features`."""
        return self.pools * self.pool_features + self.word_features

    @property
    def word_features(self) -> int:
        """Size of what comes last in `b`: traits, words shared with the question, a constant."""
        return TRAITS + 2 * SPANS + 1


class InterfaceState(NamedTuple):
    """The state `(W, V, S)` of the interface.

    Attributes:
        bias: `W`.
        words: `V`. Its axes are passages of one question, so that what all questions share has
            zeros here.
        value: `S`.
    """

    bias: Float[Array, "batch question passage"]
    words: Float[Array, "batch question axes"]
    value: Float[Array, "batch rank rank"]


class Features(NamedTuple):
    """What the interface goes by.

    Attributes:
        question: `a`.
        passages: `b`, 0 where there is no passage.
        words: `c`, likewise.
        present: whether there is one.
    """

    question: Float[Array, "batch question"]
    passages: Float[Array, "batch passages passage"]
    words: Float[Array, "batch passages axes"]
    present: Bool[Array, "batch passages"]


class Pool(nn.Module):
    """Hidden states pooled over the tokens of each text, projected and normalized.

    Attributes:
        pools: ways to weigh tokens.
        features: of each.
    """

    pools: int
    features: int

    @nn.compact
    def __call__(
        self, states: Float[Array, "batch tokens width"], owner: Bool[Array, "batch texts tokens"]
    ) -> Float[Array, "batch texts pooled"]:
        """Features `[batch, texts, pools * features]` of root mean square 1, float32.

        Args:
            states: of tokens.
            owner: which tokens are of a text; a text without any gets zeros.
        """
        width = states.shape[-1]
        score = self.param("score", nn.initializers.normal(width**-0.5), (width, self.pools))
        project = self.param(
            "project",
            nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0),
            (self.pools, width, self.features),
        )
        normal = normalize(states.astype(jnp.float32))
        scores = jnp.where(owner[..., None], (normal @ score)[:, None], jnp.finfo(jnp.float32).min)
        weights = jnp.where(owner[..., None], jax.nn.softmax(scores, axis=2), 0)
        pooled = jnp.einsum("bctk,btw->bckw", weights, normal)
        found = jnp.einsum("bckw,kwf->bckf", pooled, project)
        return normalize(found.reshape(*found.shape[:2], -1))


class Interface(nn.Module):
    """The interface's own parameters: its features, where its state acts, and the shared state.

    Attributes:
        config: sizes.
        decoder: the frozen model's.
    """

    config: InterfaceConfig
    decoder: DecoderConfig

    def setup(self):
        """Names the parameters."""
        config, decoder = self.config, self.decoder
        if config.layer >= decoder.num_hidden_layers:
            raise ValueError(
                f"the interface's layer must be below the decoder's {decoder.num_hidden_layers}, "
                f"got {config.layer}"
            )
        layers = decoder.num_hidden_layers - config.layer
        width = decoder.num_key_value_heads * decoder.head_dim
        self.question_pool = Pool(config.pools, config.pool_features)
        self.passage_pool = Pool(config.pools, config.pool_features)
        self.gain = self.param("gain", nn.initializers.ones, (layers, decoder.num_attention_heads))
        frame = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        self.value_read = self.param("value_read", frame, (layers, width, config.rank))
        self.value_write = self.param("value_write", frame, (layers, config.rank, width))
        self.importance = self.param(
            "importance", nn.initializers.zeros, (decoder.hidden_size, SPANS)
        )
        self.bias = self.param(
            "bias", nn.initializers.zeros, (config.question_features, config.passage_features)
        )
        self.value = self.param("value", nn.initializers.zeros, (config.rank, config.rank))

    def features(self, asked: Context, read: Context, axes: Context) -> Features:
        """The features of questions and passages, float32.

        Args:
            asked: where the questions are from.
            read: where the passages are from.
            axes: the passages that those of `read` are compared with, as `c`.
        """
        is_question = asked.is_question[:, None]
        question = self.question_pool(asked.question_states, is_question)[:, 0]
        pooled = self.passage_pool(read.evidence_states, passage_rows(read))
        words, own = self._passage_words(read), self._question_words(asked)
        new, has = without(words, own), has_words(own, words)
        if axes is read:
            all_words, new_words = similarity_within(words), similarity_within(new)
            others_have = has
        else:
            others = self._passage_words(axes)
            all_words = similarity(others, words)
            new_words = similarity(without(others, own), new)
            others_have = has_words(own, others)
        # By single tokens: pairs of a question are seldom in a passage.
        completes = new_words * completion(own, has, others_have)[..., :1]
        shared = jnp.concatenate([all_words, new_words], axis=-1)
        shared = jnp.concatenate(
            [
                contrast(shared, axes.present, read.present),
                COMPLETION_SCALE * apart(completes, axes.present, read.present),
                apart(order(axes.traits, read.traits)[..., None], axes.present, read.present),
            ],
            axis=-1,
        )
        shared = shared.transpose(0, 2, 3, 1).reshape(*read.present.shape, -1)
        asked_for = standardize(similarity(own, words)[:, 0], read.present)
        # From the middle, in quarters; not against the question's other passages.
        covered = 4 * coverage(own, has) - 2
        parts = [pooled, read.traits, asked_for, covered, jnp.ones_like(pooled[..., :1])]
        passages = jnp.concatenate(parts, axis=-1)
        there = read.present[..., None]
        return Features(
            jnp.concatenate([question, jnp.ones_like(question[:, :1])], axis=-1),
            jnp.where(there, passages, 0),
            jnp.where(there, shared, 0),
            read.present,
        )

    def _passage_words(self, context: Context) -> Words:
        states = normalize(context.evidence_states.astype(jnp.float32))
        return weigh_words(context.evidence_tokens, states @ self.importance, passage_rows(context))

    def _question_words(self, context: Context) -> Words:
        states = normalize(context.question_states.astype(jnp.float32))
        return weigh_words(
            context.question_tokens, states @ self.importance, context.is_question[:, None]
        )

    def shared_state(self, features: Features) -> InterfaceState:
        """The one state that is learned for all questions, once for each of a batch."""
        batch, _, axes = features.words.shape
        return InterfaceState(
            jnp.broadcast_to(self.bias, (batch, *self.bias.shape)),
            jnp.zeros((batch, self.bias.shape[0], axes), self.bias.dtype),
            jnp.broadcast_to(self.value, (batch, *self.value.shape)),
        )

    def edit(self, features: Features, state: InterfaceState) -> EvidenceEdit:
        """How rows of questions and answers see evidence in a state, float32."""
        scores = bias_scores(features, state, self.config.bound)
        layers, batch = self.gain.shape[0], scores.shape[0]
        read, write = self.value_read[:, None], self.value_write[:, None]
        return EvidenceEdit(
            logit_bias=self.gain[:, None, :, None] * scores[None, :, None],
            value_down=jnp.broadcast_to(read, (layers, batch, *read.shape[2:])),
            value_up=jnp.einsum("bij,ljw->lbiw", state.value, write[:, 0]),
        )


def passage_scores(features: Features, state: InterfaceState) -> Float[Array, "batch passages"]:
    """`a^T (W b_j / sqrt(|b|) + V c_j)`, 0 where there is no passage."""
    asked, read, words = features.question, features.passages, features.words
    scores = jnp.einsum("bq,bqp,bcp->bc", asked, state.bias, read) * read.shape[-1] ** -0.5
    scores += jnp.einsum("bq,bqp,bcp->bc", asked, state.words, words)
    return jnp.where(features.present, scores, 0)


def bias_scores(
    features: Features, state: InterfaceState, bound: float
) -> Float[Array, "batch passages"]:
    """What logit biases are made of: scores of passages, bounded (`InterfaceConfig`)."""
    return bounded(passage_scores(features, state), features.present, bound)


def passage_rows(context: Context) -> Bool[Array, "batch passages evidence"]:
    """Which evidence rows are of a passage."""
    numbers = jnp.arange(context.present.shape[1])
    return context.passage_of[:, None] == numbers[None, :, None]


def normalize(states: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """States divided by their root mean square; zeros stay zeros."""
    mean_square = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
    return states * jax.lax.rsqrt(mean_square + 1e-6)
