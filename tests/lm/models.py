"""A small decoder with random weights, without PyTorch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icorag_jax.lm import decoder
from icorag_jax.lm.config import DecoderConfig, DefaultRotary

SMALL = DecoderConfig(
    family="llama", vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, max_position_embeddings=64,
    rms_norm_eps=1e-6, tie_word_embeddings=False, rotary=DefaultRotary(10_000.0),
    query_key_value_bias=False, attention_output_bias=False, mlp_bias=False, query_key_norm=False,
    windows=(None, None, None), eos_token_ids=(), bos_token_id=None, pad_token_id=None,
)  # fmt: skip


def small(**settings: Any) -> DecoderConfig:
    return dataclasses.replace(SMALL, **settings)


def parameters(config: DecoderConfig = SMALL, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """Random parameters, the scales of norms among them."""
    template = decoder.init_parameters(config, jax.random.key(seed), dtype)
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        if path[-1].key == "scale":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.4, dtype)

    return jax.tree_util.tree_map_with_path(draw, template)


def rows(lengths: list[int], seed: int = 0, vocabulary: int = 50) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, length).tolist() for length in lengths]
