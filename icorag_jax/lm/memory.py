"""What a decoder takes of each device's memory, on paper."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from icorag_jax.lm import sharding
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import init_parameters


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device.

    Attributes:
        weights: its part of the parameters.
        cache: its part of keys and values.
        activations: what a pass needs beside these, about.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.activations


def plan_memory(
    config: DecoderConfig,
    dtype: Any,
    *,
    data: int,
    tensor: int,
    batch: int,
    slots: int,
    tokens: int,
) -> MemoryPlan:
    """What inference takes on each device of a mesh `data` x `tensor`.

    Weights and cache are exact. Activations are those of one layer: three copies of the residual
    stream; queries, keys, values and what attention reads; attention logits and weights in
    float32; two activations of the MLP; the float32 logits of one row a text; and the weights of
    the layer, or a tied embedding if that is larger, gathered along `data`. Neither gradients nor
    what a compiler adds are in it.

    Args:
        config: the decoder.
        dtype: of parameters, cache and compute.
        data: devices along `data`.
        tensor: devices along `tensor`.
        batch: texts, of all devices together.
        slots: rows of the cache a text, evidence, prompt and answer together.
        tokens: rows of a text that are run at a time, 1 when decoding.

    Raises:
        ValueError: a size is below 1.
    """
    sizes = {"data": data, "tensor": tensor, "batch": batch, "slots": slots, "tokens": tokens}
    if wrong := [
        f"{name} must be at least 1, got {size}" for name, size in sizes.items() if size < 1
    ]:
        raise ValueError("; ".join(wrong))
    mesh = AbstractMesh((data, tensor), (sharding.DATA, sharding.TENSOR))
    item = jnp.dtype(dtype).itemsize
    template = jax.eval_shape(lambda key: init_parameters(config, key, dtype), jax.random.key(0))
    leaves = jax.tree.leaves(sharding.shard_template(config, template, mesh))
    weights = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * item for leaf in leaves)

    def split(size: int, count: int) -> int:
        """The part of a device: all of it, if it does not divide."""
        return size if size % count else size // count

    texts = split(batch, data)
    heads = split(config.num_attention_heads, tensor)
    kv_heads = split(config.num_key_value_heads, tensor)
    inner = split(config.intermediate_size, tensor)
    vocabulary = split(config.vocab_size, tensor)
    width, d = config.hidden_size, config.head_dim
    cache = 2 * config.num_hidden_layers * texts * slots * kv_heads * d * item

    layer = width * (2 * (heads + kv_heads) * d + 3 * inner)
    table = width * vocabulary if config.tie_word_embeddings else 0
    gathered = 0 if data == 1 else max(layer, table) * item
    row = (3 * width + 2 * (heads + kv_heads) * d + 2 * inner) * item
    attention = 2 * heads * slots * 4
    activations = gathered + texts * (tokens * (row + attention) + vocabulary * 4)
    return MemoryPlan(weights, cache, activations)
