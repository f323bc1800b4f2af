"""Rotary position embeddings (Su et al. 2021), and the four ways to stretch them.

Pair i of a head is features i and i + d/2, rotated by an angle that is its frequency times the
position. Frequencies are worked out in float64 and used in float32.

Axes: `half` is d/2, the pairs of a head.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icorag_jax.lm.config import (
    DecoderConfig,
    DefaultRotary,
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    YarnRotary,
)


def rotations(
    config: DecoderConfig, positions: Int[Array, "batch tokens"]
) -> tuple[Float[Array, "batch tokens half"], Float[Array, "batch tokens half"]]:
    """Cosines and sines of the angles at some positions, float32.

    With `DynamicRotary` the frequencies depend on the last position in the whole batch, as in the
    reference implementation, once that is past `max_position_embeddings`: rows of such a batch are
    not independent, and keys that a cache holds keep the rotation that they were given.

    Args:
        config: the decoder.
        positions: where the tokens stand; negative ones count as 0.
    """
    positions = jnp.maximum(positions, 0)
    rotary = config.rotary
    if isinstance(rotary, DynamicRotary):
        frequencies = _dynamic_frequencies(config, rotary, positions.max() + 1)
    else:
        frequencies = jnp.asarray(frequencies_of(config), jnp.float32)
    angles = positions[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
    scale = attention_scale(rotary)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    states: Float[Array, "batch tokens heads d"],
    cosines: Float[Array, "batch tokens half"],
    sines: Float[Array, "batch tokens half"],
) -> Float[Array, "batch tokens heads d"]:
    """Queries or keys turned to their positions; computed in float32, in the dtype of `states`."""
    first, second = jnp.split(states.astype(jnp.float32), 2, axis=-1)
    cosines, sines = cosines[:, :, None, :], sines[:, :, None, :]
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(turned, axis=-1).astype(states.dtype)


def frequencies_of(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Radians a position by which each pair turns, float64; see the classes of `config.rotary`."""
    rotary, width = config.rotary, config.head_dim
    trained = rotary.rope_theta ** (-np.arange(0, width, 2) / width)
    match rotary:
        case LinearRotary():
            return trained / rotary.factor
        case Llama3Rotary():
            return _llama3_frequencies(rotary, trained)
        case YarnRotary():
            return _yarn_frequencies(rotary, trained)
    return trained


def attention_scale(rotary: DefaultRotary) -> float:
    """What YaRN multiplies rotated queries and keys by; 1 for all others."""
    if not isinstance(rotary, YarnRotary):
        return 1.0
    if rotary.attention_factor is not None:
        return rotary.attention_factor
    if rotary.mscale and rotary.mscale_all_dim:
        return _yarn_scale(rotary.factor, rotary.mscale) / _yarn_scale(
            rotary.factor, rotary.mscale_all_dim
        )
    return _yarn_scale(rotary.factor, 1.0)


def _yarn_scale(factor: float, strength: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0


def _dynamic_frequencies(
    config: DecoderConfig, rotary: DynamicRotary, length: Int[Array, ""]
) -> Float[Array, "half"]:
    """Frequencies for a text of `length` tokens, float32."""
    width, trained = config.head_dim, config.max_position_embeddings
    longer = jnp.maximum(length, trained).astype(jnp.float32) / trained
    base = rotary.rope_theta * (rotary.factor * longer - (rotary.factor - 1)) ** (
        width / (width - 2)
    )
    return base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _llama3_frequencies(
    rotary: Llama3Rotary, trained: Float[np.ndarray, "half"]
) -> Float[np.ndarray, "half"]:
    turns = rotary.original_max_position_embeddings * trained / (2 * np.pi)
    kept = (turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * trained + (1 - kept) * trained / rotary.factor


def _yarn_frequencies(
    rotary: YarnRotary, trained: Float[np.ndarray, "half"]
) -> Float[np.ndarray, "half"]:
    width, original = 2 * len(trained), rotary.original_max_position_embeddings

    def pair(turns: float) -> float:
        """The pair, as a real number, that turns so often over the original context."""
        wavelength = original / turns
        return width * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rotary.rope_theta))

    low, high = pair(rotary.beta_fast), pair(rotary.beta_slow)
    if rotary.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (np.arange(width // 2) - low) / (high - low if high != low else 0.001)
    kept = 1 - np.clip(ramp, 0.0, 1.0)
    return kept * trained + (1 - kept) * trained / rotary.factor
