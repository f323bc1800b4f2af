"""The evidence-use interface: how question and answer rows of a frozen model see passages.

In the layers from `InterfaceConfig.layer` on, these rows see passage j through the two forms of the
linearized objective (`icorag_jax.theory.objective`), both linear in the state `(W, S)`:

    dot-product   logit bias     tau[layer, head] * a^T W b_j / sqrt(|b|)
    projection    edited values  v <- v + v R[layer] S U[layer]

`a` are features of the question and `b_j` of passage j: hidden states of the frozen model, pooled
by learned weights and projected. With the state at zero the model is the frozen model, bit for bit.

Axes: as in `icorag_jax.rag.context`; `question` and `passage` features of either, `rank` of the
edit of values, `layers` those from the interface's first on.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag.context import TRAITS, Context


@dataclasses.dataclass(frozen=True)
class InterfaceConfig:
    """Where the interface acts and how large it is.

    Attributes:
        layer: the first layer with the interface; features come from the residual stream before it.
        pools: ways to weigh the tokens of a text, each with features of its own.
        pool_features: features of a pool.
        rank: of the edit of values.
    """

    layer: int
    pools: int = 4
    pool_features: int = 16
    rank: int = 8

    def __post_init__(self):
        """Checks the ranges."""
        for name in ("layer", "pools", "pool_features", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def question_features(self) -> int:
        """Size of `a`: pooled features and a constant."""
        return self.pools * self.pool_features + 1

    @property
    def passage_features(self) -> int:
        """Size of `b`: pooled features, the retriever's traits and a constant."""
        return self.pools * self.pool_features + TRAITS + 1


class InterfaceState(NamedTuple):
    """The state `(W, S)` of the interface.

    Attributes:
        bias: `W`.
        value: `S`.
    """

    bias: Float[Array, "batch question passage"]
    value: Float[Array, "batch rank rank"]


class Features(NamedTuple):
    """What the interface goes by.

    Attributes:
        question: `a`.
        passages: `b`, 0 where there is no passage.
        present: whether there is one.
    """

    question: Float[Array, "batch question"]
    passages: Float[Array, "batch passages passage"]
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
        self.bias = self.param(
            "bias", nn.initializers.zeros, (config.question_features, config.passage_features)
        )
        self.value = self.param("value", nn.initializers.zeros, (config.rank, config.rank))

    def features(self, context: Context) -> Features:
        """The features of questions and passages, float32."""
        asked = self.question_pool(context.question_states, context.is_question[:, None])[:, 0]
        read = self.passage_pool(context.evidence_states, passage_rows(context))
        return Features(
            jnp.concatenate([asked, jnp.ones_like(asked[:, :1])], axis=-1),
            append_traits(context, read),
            context.present,
        )

    def shared_state(self, batch: int) -> InterfaceState:
        """The one state that is learned for all questions, once for each of a batch."""
        return InterfaceState(
            jnp.broadcast_to(self.bias, (batch, *self.bias.shape)),
            jnp.broadcast_to(self.value, (batch, *self.value.shape)),
        )

    def edit(self, features: Features, state: InterfaceState) -> EvidenceEdit:
        """How rows of questions and answers see evidence in a state, float32."""
        scores = passage_scores(features, state.bias)
        layers, batch = self.gain.shape[0], scores.shape[0]
        read, write = self.value_read[:, None], self.value_write[:, None]
        return EvidenceEdit(
            logit_bias=self.gain[:, None, :, None] * scores[None, :, None],
            value_down=jnp.broadcast_to(read, (layers, batch, *read.shape[2:])),
            value_up=jnp.einsum("bij,ljw->lbiw", state.value, write[:, 0]),
        )


def passage_scores(
    features: Features, bias: Float[Array, "batch question passage"]
) -> Float[Array, "batch passages"]:
    """`a^T W b_j / sqrt(|b|)`, 0 where there is no passage."""
    scores = jnp.einsum("bq,bqp,bcp->bc", features.question, bias, features.passages)
    return jnp.where(features.present, scores * features.passages.shape[-1] ** -0.5, 0)


def passage_rows(context: Context) -> Bool[Array, "batch passages evidence"]:
    """Which evidence rows are of a passage."""
    numbers = jnp.arange(context.present.shape[1])
    return context.passage_of[:, None] == numbers[None, :, None]


def append_traits(
    context: Context, pooled: Float[Array, "batch passages pooled"]
) -> Float[Array, "batch passages passage"]:
    """Pooled features with the retriever's traits and a constant, 0 where there is no passage."""
    constant = jnp.ones_like(pooled[..., :1])
    found = jnp.concatenate([pooled, context.traits, constant], axis=-1)
    return jnp.where(context.present[..., None], found, 0)


def normalize(states: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """States divided by their root mean square; zeros stay zeros."""
    mean_square = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
    return states * jax.lax.rsqrt(mean_square + 1e-6)
