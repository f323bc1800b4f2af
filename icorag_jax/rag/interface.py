"""The evidence-use interface: how question and answer rows of a frozen model see passages.

In the layers from `InterfaceConfig.layer` on, these rows see passage j through the two forms of the
linearized objective (`icorag_jax.theory.objective`), both linear in the state `(W, V, T, S)` up to
the bound on scores:

    dot-product   scores         s_j = a^T (W b_j / sqrt(|b|) + V c_j)    of passage j
                                 s_t = a^T T d_t                          of its token t
                  logit bias     tau[layer, head] bounded(s)_j + mean(tau[layer]) bounded(s)_t / 2
    projection    edited values  v <- v + v R[layer] S U[layer]

Bounding takes off what a question's passages, or all their tokens, have in common, leaves small
scores as they are, and keeps large ones below `InterfaceConfig.bound`
(`icorag_jax.rag.deviations`).

`a` are features of the question and `b_j` of passage j: hidden states of the frozen model, pooled
by learned weights and projected, and what the retriever, its number (`icorag_jax.rag.traits`) and
the words that it shares with the question say of it. `c_j` is what it has to do with each passage,
words that both have, which one's number is larger and whether it is that one, and `d_t` how heavy
token t is in each passage but its own (`icorag_jax.rag.kernels`). `V` and `T` are the part of the
state on vectors of words, which are many more than passages, in terms of the passages' own vectors.
With the state at zero the model is the frozen model, bit for bit.

Axes: as in `icorag_jax.rag.context`; `question` and `passage` features of either, `axes` passages
by kernels, `token_axes` passages by kernels of tokens, `rank` of the edit of values, `layers` those
from the interface's first on.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag.chains import Links, find_links
from icorag_jax.rag.context import Context, passage_rows
from icorag_jax.rag.deviations import bounded, standardize
from icorag_jax.rag.kernels import ask_words, compare_passages, compare_tokens
from icorag_jax.rag.pooling import Pool, normalize
from icorag_jax.rag.traits import TRAITS
from icorag_jax.rag.words import SPANS, Words, coverage, similarity, weigh_by_rarity, weigh_words
from icorag_jax.ranges import check_at_least

# Scores of tokens that select best on their own are twice what attention does best with in all
# layers at once (`docs/method.md`).
TOKEN_GAIN = 0.5


@dataclasses.dataclass(frozen=True)
class InterfaceConfig:
    """Where the interface acts, how large it is, and how much it may do.

    Attributes:
        layer: the first layer with the interface; features come from the residual stream before it.
        pools: ways to weigh the tokens of a text, each with features of its own.
        pool_features: features of a pool.
        rank: of the edit of values.
        bound: what the root mean square of a question's scores of passages stays below, and of
            those of tokens, see `icorag_jax.rag.deviations.bounded`.
    """

    layer: int
    bound: float
    pools: int = 4
    pool_features: int = 16
    rank: int = 8

    def __post_init__(self):
        """Checks the ranges."""
        check_at_least(self, layer=1, pools=1, pool_features=1, rank=1)
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
    """The state `(W, V, T, S)` of the interface.

    Attributes:
        bias: `W`.
        words: `V`. Its axes are passages of one question, so that what all questions share has
            zeros here.
        tokens: `T`, likewise.
        value: `S`.
    """

    bias: Float[Array, "batch question passage"]
    words: Float[Array, "batch question axes"]
    tokens: Float[Array, "batch question token_axes"]
    value: Float[Array, "batch rank rank"]


class Features(NamedTuple):
    """What the interface goes by.

    Attributes:
        question: `a`.
        passages: `b`, 0 where there is no passage.
        words: `c`, likewise.
        tokens: `d`, 0 where a row of evidence is of no passage.
        present: whether there is a passage.
        passage_of: which passage a row of evidence belongs to, -1 where to none.
        links: of the passages.
    """

    question: Float[Array, "batch question"]
    passages: Float[Array, "batch passages passage"]
    words: Float[Array, "batch passages axes"]
    tokens: Float[Array, "batch evidence token_axes"]
    present: Bool[Array, "batch passages"]
    passage_of: Int[Array, "batch evidence"]
    links: Links


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

    def features(self, asked: Context, read: Context, axes: Context | None = None) -> Features:
        """The features of questions and passages, float32.

        Args:
            asked: where the questions are from.
            read: where the passages are from.
            axes: of another question, whose passages those of `read` are compared with, as `c`;
                None compares them with each other.
        """
        is_question = asked.is_question[:, None]
        question = self.question_pool(asked.question_states, is_question)[:, 0]
        pooled = self.passage_pool(read.evidence_states, passage_rows(read))
        words, own = self._passage_words(read), self._question_words(asked)
        asked_words = ask_words(own, words)
        others = None if axes is None else ask_words(own, self._passage_words(axes))
        own = weigh_by_rarity(own, asked_words.has, read.present)
        asked_for = standardize(similarity(own, words)[:, 0], read.present)
        # From the middle, in quarters; not against the question's other passages.
        covered = 4 * coverage(own, asked_words.has) - 2
        parts = [pooled, read.traits, asked_for, covered, jnp.ones_like(pooled[..., :1])]
        passages = jnp.concatenate(parts, axis=-1)
        there = read.present[..., None]
        return Features(
            jnp.concatenate([question, jnp.ones_like(question[:, :1])], axis=-1),
            jnp.where(there, passages, 0),
            compare_passages(asked_words, others, read, axes or read),
            # What tokens are to learn is how far to step (`icorag_jax.rag.updater`), not words.
            jax.lax.stop_gradient(compare_tokens(others or asked_words, read)),
            read.present,
            read.passage_of,
            find_links(own, asked_words),
        )

    def _passage_words(self, context: Context) -> Words:
        states = normalize(context.evidence_states.astype(jnp.float32))
        words = weigh_words(
            context.evidence_tokens, states @ self.importance, passage_rows(context)
        )
        return weigh_by_rarity(words, words.weights > 0, context.present)

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
            jnp.zeros((batch, self.bias.shape[0], features.tokens.shape[2]), self.bias.dtype),
            jnp.broadcast_to(self.value, (batch, *self.value.shape)),
        )

    def edit(self, features: Features, state: InterfaceState) -> EvidenceEdit:
        """How rows of questions and answers see evidence in a state, float32."""
        scores = bias_scores(features, state, self.config.bound)
        by_token = token_scores(features, state, self.config.bound)
        layers, batch = self.gain.shape[0], scores.shape[0]
        gain = self.gain[:, None, :, None]
        read, write = self.value_read[:, None], self.value_write[:, None]
        return EvidenceEdit(
            logit_bias=gain * scores[None, :, None],
            token_bias=TOKEN_GAIN * gain.mean(axis=2, keepdims=True) * by_token[None, :, None],
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


def token_scores(
    features: Features, state: InterfaceState, bound: float
) -> Float[Array, "batch evidence"]:
    """What biases of single tokens are made of: `a^T T d_t`, bounded; 0 for those of no passage."""
    scores = jnp.einsum("bq,bqp,bep->be", features.question, state.tokens, features.tokens)
    return bounded(scores, features.passage_of >= 0, bound)
