"""Where the pretraining of a small reader starts: random weights, and heads that copy."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm import rotary
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import init_parameters

_PROJECTIONS = ("query", "key", "value", "attention_output", "down")
# How sharply and how widely the heads that are set look; logits are products of two.
_SHARP, _WIDE = 1.5, 0.3
# Deviation of an embedding's features.
_SCALE = 0.03


def init_reader(config: DecoderConfig, key: PRNGKeyArray) -> Parameters:
    """Random parameters but for heads that copy: what reading begins with, and arises last.

    In layer 0 two heads look one and two tokens back, whatever there is. In layer 1 two heads look
    for what followed the same token before, and copy it (induction heads, Olsson et al. 2022). In
    all other heads queries and keys start alike, so tokens look for their equals (mimetic
    initialization, Trockman and Kolter 2023).

    Where queries and keys are normalized, two more heads of layer 0 average over the last dozen
    tokens, and two of layer 1 look for where much the same was said before, as around the subject
    of a question. (Where they are not, these made training worse.)

    Training goes on from there with all parameters.

    Args:
        config: the decoder, with two heads of keys, and four or more of queries.
        key: of the draws.
    """
    width, d = config.hidden_size, config.head_dim
    count, kv = config.num_hidden_layers, config.num_key_value_heads
    group = config.num_attention_heads // kv
    drawn = init_parameters(config, key, jnp.float32)
    keys = jax.random.split(key, 4)
    constant = 8.0  # of the first feature, in deviations of the others
    table = _SCALE * jax.random.normal(keys[0], (config.vocab_size, width))
    table = table.at[:, 0].set(_SCALE * constant)
    kernels = {name: np.array(drawn["layers"][name]["kernel"]) for name in _PROJECTIONS}
    query = kernels["query"].reshape(count, width, kv, group, d)
    key_ = kernels["key"].reshape(count, width, kv, d)
    value = kernels["value"].reshape(count, width, kv, d)
    output = kernels["attention_output"].reshape(count, kv, group, d, width)
    # What layers add is small beside the embedding, so that the heads below see what they look for.
    output *= _SCALE
    kernels["down"] *= _SCALE
    query[...] = key_[:, :, :, None]
    # Orthogonal directions: what a token is, and what the one before it was.
    basis = np.linalg.qr(np.asarray(jax.random.normal(keys[1], (width - 1, width - 1))))[0]
    basis = np.concatenate([np.zeros((1, width - 1)), basis])
    half = d // 2
    slow = np.r_[half // 2 : half, half + half // 2 : d]  # pairs that hardly turn
    of_token, before = basis[:, :d], basis[:, d : 2 * d]
    rates = np.asarray(rotary.frequencies_of(config))
    fast = np.arange(half // 4)
    for place, offset in ((0, 1), (1, 2)):
        query[0, :, 0, place] = 0
        query[0, 0, 0, place, fast] = _SHARP * np.cos(rates[fast] * offset)
        query[0, 0, 0, place, half + fast] = -_SHARP * np.sin(rates[fast] * offset)
    key_[0, :, 0] = 0
    key_[0, 0, 0, fast] = _SHARP
    value[0, :, 0] = of_token
    output[0, 0, 0] = _SCALE * before.T
    output[0, 0, 1] = _SCALE * basis[:, 2 * d : 3 * d].T
    matched = np.zeros((d, d))
    matched[np.arange(len(slow)), slow] = 1.6 * _SHARP
    key_[1, :, 0] = before @ matched
    query[1, :, 0] = (of_token @ matched)[:, None]
    value[1] = of_token[:, None]
    output[1] = 16 * _SCALE * of_token.T
    if config.query_key_norm:
        # What stands around: a wide peak of slow pairs. Pairs that do not turn take up the rest of
        # the norm, and say nothing.
        around = basis[:, 3 * d : 4 * d]
        wide, still = np.arange(half // 4 - 1, half // 4 + 4), np.arange(half - half // 4, half)
        for kernel in (query[0], key_[0][:, :, None]):
            kernel[:, 1] = 0
            kernel[0, 1, :, wide] = _WIDE
            kernel[0, 1, :, still] = 3.1 * _WIDE
        value[0, :, 1] = of_token
        output[0, 1, 0, : around.shape[1]] = 4 * _SCALE * around.T
        key_[1, :, 1] = around @ matched[: around.shape[1]]
        query[1, :, 1] = key_[1, :, 1][:, None]
        output[1, 1] = 2 * _SCALE * of_token.T
    layers = dict(drawn["layers"])
    for name in _PROJECTIONS:
        shape = layers[name]["kernel"].shape
        layers[name] = {**layers[name], "kernel": jnp.asarray(kernels[name].reshape(shape))}
    if config.query_key_norm:
        for name in ("query_norm", "key_norm"):
            layers[name] = {"scale": layers[name]["scale"].at[:2].set(2.5)}
    return {**drawn, "layers": layers, "embedding": {"embedding": table}}
