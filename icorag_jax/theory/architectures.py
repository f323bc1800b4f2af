"""Architectures on both sides of the boundary, as one Linen module with a frozen configuration.

A model reads the direct construction's tokens `[z; y]` and predicts minus the y slot of the
query tokens, so that a construction can fill its parameters and training can find them.

Axes: `n` context examples, `q` queries, `d_z` features, `m` outputs, `d = d_z + m` token size.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from icorag_jax.theory import attention
from icorag_jax.theory.attention import AttentionWeights, Tokens
from icorag_jax.theory.constructions import direct_tokens
from icorag_jax.theory.episodes import Episode, is_traced
from icorag_jax.theory.objective import Ridge

KernelName = Literal["linear", "softmax", "tempered", "relu", "elu", "cosine"]
Parameters = PyTree[Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model is made of; the defaults are one layer of single-head linear attention.

    Attributes:
        kernel: how keys and queries make mixing coefficients (`icorag_jax.theory.attention`).
        temperature: of the softmax and tempered kernels.
        layers: number of layers.
        recurrent: all layers share one set of weights.
        heads: attention heads, each with keys and values of the whole token size.
        feature_gelu: pass the features through a dense layer and a GELU before attention.
        layer_norm: normalize tokens before attention (and before the MLP).
        mlp: follow attention by an MLP of four times the token size.

    Raises:
        ValueError: for a kernel that is not known, or numbers out of range.
    """

    kernel: KernelName = "linear"
    temperature: float = 1.0
    layers: int = 1
    recurrent: bool = False
    heads: int = 1
    feature_gelu: bool = False
    layer_norm: bool = False
    mlp: bool = False

    def __post_init__(self):
        """Checks the kernel and ranges."""
        if self.kernel not in get_args(KernelName):
            known = ", ".join(get_args(KernelName))
            raise ValueError(f"unknown kernel {self.kernel!r}; known: {known}")
        if self.layers < 1 or self.heads < 1:
            raise ValueError(f"layers and heads must be at least 1: {self}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")

    @property
    def kind(self) -> Literal["linear", "nonlinear"]:
        """Linear where tokens meet in products and sums alone: a prediction is a polynomial."""
        plain = self.kernel == "linear" and not (self.feature_gelu or self.layer_norm or self.mlp)
        return "linear" if plain else "nonlinear"


def kernel_function(architecture: Architecture) -> attention.Kernel:
    """The kernel an architecture names, with its temperature."""
    kernels: Mapping[KernelName, attention.Kernel] = {
        "linear": attention.linear_kernel,
        "softmax": attention.softmax_kernel(architecture.temperature),
        "tempered": attention.tempered_kernel(architecture.temperature),
        "relu": attention.relu_kernel,
        "elu": attention.elu_kernel,
        "cosine": attention.cosine_kernel,
    }
    return kernels[architecture.kernel]


class SelfAttention(nn.Module):
    """One attention layer whose parameters are an `AttentionWeights`.

    Attributes:
        heads: attention heads.
        kernel: mixing of keys and queries.
        init_scale: variance of a layer's outputs relative to its inputs at initialization.
    """

    heads: int
    kernel: attention.Kernel
    init_scale: float

    @nn.compact
    def __call__(
        self,
        rows: Sequence[Float[Array, "_ d"]],
        context: Float[Array, "n d"],
        present: Array,
    ) -> list[Float[Array, "_ d"]]:
        """What each array of rows gains by reading the context."""
        size = context.shape[-1]
        init = nn.initializers.variance_scaling(
            self.init_scale, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2, batch_axis=0
        )
        shape = (self.heads, size, size)
        weights = AttentionWeights(*(self.param(n, init, shape) for n in AttentionWeights._fields))
        return [attention.attend(weights, r, context, present, self.kernel) for r in rows]


class Model(nn.Module):
    """A stack of attention layers over direct tokens.

    Attributes:
        architecture: what the layers are made of.
        features: `d_z`, the size of the features slot of a token.
        init_scale: variance scaling of the attention weights, for one layer; `init_scale / layers`
            is used for each.
    """

    architecture: Architecture
    features: int
    init_scale: float

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "q m"]:
        """Predictions: minus the y slot of the query tokens after the last layer."""
        arch = self.architecture
        context, queries = tokens.context, tokens.queries
        if arch.feature_gelu:
            dense = nn.Dense(self.features, name="feature_dense")

            def lift(rows):
                features = nn.gelu(dense(rows[:, : self.features]), approximate=False)
                return jnp.concatenate([features, rows[:, self.features :]], axis=-1)

            context, queries = lift(context), lift(queries)
        layer = None
        for index in range(arch.layers):
            if layer is None or not arch.recurrent:
                layer = _Layer(arch, self.init_scale / arch.layers, name=f"layer_{index}")
            context, queries = layer(context, queries, tokens.present, index + 1 == arch.layers)
        return -queries[:, self.features :]


class _Layer(nn.Module):
    """Attention, then an MLP if there is one. The last layer leaves the context as it is."""

    architecture: Architecture
    init_scale: float

    @nn.compact
    def __call__(self, context, queries, present, last: bool):
        arch = self.architecture
        rows = [queries] if last else [queries, context]

        def normalized(parts, name):
            return [*map(nn.LayerNorm(name=name), parts)] if arch.layer_norm else parts

        read = normalized([*rows, context], "attention_norm")
        attend = SelfAttention(arch.heads, kernel_function(arch), self.init_scale, name="attention")
        added = attend(read[:-1], read[-1], present)
        rows = [row + gain for row, gain in zip(rows, added, strict=True)]
        if arch.mlp:
            size = context.shape[-1]
            expand = nn.Dense(4 * size, name="mlp_expand")
            contract = nn.Dense(size, name="mlp_contract")
            read = normalized(rows, "mlp_norm")
            rows = [
                row + contract(nn.gelu(expand(part), approximate=False))
                for row, part in zip(rows, read, strict=True)
            ]
        return (context, rows[0]) if last else (rows[1], rows[0])


def init_parameters(model: Model, key: PRNGKeyArray, outputs: int) -> Parameters:
    """Random parameters for episodes of `outputs` targets."""
    size = model.features + outputs
    row = jnp.zeros((1, size))
    return model.init(key, Tokens(row, row, jnp.ones(1, bool)))["params"]


def predict(
    model: Model, parameters: Parameters, episode: Episode, ridge: Ridge | None = None
) -> Float[Array, "q m"]:
    """A model's predictions for an episode's queries, from the zero interface."""
    return cast(Array, model.apply({"params": parameters}, direct_tokens(episode, ridge)))


def fill_parameters(
    model: Model, parameters: Parameters, layers: Sequence[AttentionWeights]
) -> Parameters:
    """Puts a construction's attention weights into a model's parameters.

    Keys, values and missing heads are padded with zeros. The rest is set to do least: a norm's
    scale to one, biases to zero, the dense layer before the GELU to the identity; an MLP adds
    nothing, so that what is read is the attention alone.

    Args:
        model: whose parameters they are.
        parameters: its parameters, of any values.
        layers: one for each layer of the model, all the same for a recurrent one.

    Raises:
        ValueError: where the construction does not fit the architecture.
    """
    arch = model.architecture
    if len(layers) != arch.layers:
        raise ValueError(f"{len(layers)} layers of weights do not fit {arch.layers}: {arch}")
    if arch.recurrent and any(_known_to_differ(layers[0], layer) for layer in layers):
        raise ValueError(f"layers of weights differ, but the {arch.layers} of {arch} are one")

    def least(path, leaf):
        *_, module, name = [part.key for part in path]
        if name == "scale":
            return jnp.ones_like(leaf)
        if name == "bias" or (module, name) == ("mlp_contract", "kernel"):
            return jnp.zeros_like(leaf)
        if (module, name) == ("feature_dense", "kernel"):
            return jnp.eye(model.features, dtype=leaf.dtype)
        return leaf

    filled = jax.tree_util.tree_map_with_path(least, parameters)
    for index in range(1 if arch.recurrent else arch.layers):
        layer = filled[f"layer_{index}"]
        shape = layer["attention"]["key"].shape

        def fit(array, shape=shape):
            if any(have > room for have, room in zip(array.shape, shape, strict=True)):
                raise ValueError(f"weights of shape {array.shape} do not fit {shape}")
            return jnp.pad(
                array, [(0, room - have) for have, room in zip(array.shape, shape, strict=True)]
            )

        layer["attention"] = {name: fit(array) for name, array in layers[index]._asdict().items()}
    return filled


def _known_to_differ(one: AttentionWeights, other: AttentionWeights) -> bool:
    pairs = zip(one, other, strict=True)
    return any(not (is_traced(a) or is_traced(b)) and not np.array_equal(a, b) for a, b in pairs)


def attention_weights(parameters: Parameters, index: int) -> AttentionWeights:
    """The attention weights of one layer of a model."""
    return AttentionWeights(**parameters[f"layer_{index}"]["attention"])


def interpolate(
    trained: AttentionWeights, construction: AttentionWeights, share: float
) -> AttentionWeights:
    """Mixes two single-head linear layers by the products that they compute with.

    A layer is the pair of `A = K^T Q` and `B = P V`; `c A, B / c` is the same layer for any `c`,
    so the trained pair is first put on the construction's scale (von Oswald et al. 2023).

    Args:
        trained: a single-head layer with `d_key = d_value = d`.
        construction: likewise.
        share: of the construction in the mix, in [0, 1].
    """

    def products(weights):
        mixing = jnp.einsum("hki,hkj->hij", weights.key, weights.query)
        return mixing, jnp.einsum("hiv,hvj->hij", weights.output, weights.value)

    trained_mixing, trained_writing = products(trained)
    mixing, writing = products(construction)
    scale = jnp.sum(trained_mixing * mixing) / jnp.sum(mixing**2)
    identity = jnp.eye(mixing.shape[-1], dtype=mixing.dtype)[None]
    return AttentionWeights(
        query=(1 - share) * trained_mixing / scale + share * mixing,
        key=identity,
        value=identity,
        output=(1 - share) * trained_writing * scale + share * writing,
    )
