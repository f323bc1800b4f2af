"""Attention of a text's tokens to those that came before.

Who sees whom follows from positions alone: a token sees those at its own position and before,
within its layer's window. Tokens at position -1 are padding, which nobody sees. So padding may
stand on either side, and rows of a cache in any order.

Axes: `tokens` query rows, `slots` rows of a cache, `heads` query heads, `kv_heads` key and value
heads, `d` features of a head.
"""

import jax
from jaxtyping import Array, Bool, Float, Int


def sees(
    query_positions: Int[Array, "batch tokens"],
    key_positions: Int[Array, "batch slots"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "batch tokens slots"]:
    """Which rows each token sees; `window` None is no limit."""
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    seen = (key >= 0) & (key <= query)
    return seen if window is None else seen & (key > query - window)


def attend(
    query: Float[Array, "batch tokens heads d"],
    keys: Float[Array, "batch slots kv_heads d"],
    values: Float[Array, "batch slots kv_heads d"],
    mask: Bool[Array, "batch tokens slots"],
) -> Float[Array, "batch tokens heads d"]:
    """Softmax attention, float32 within; a token that sees nothing gets finite numbers."""
    # The library itself mixes bfloat16 with float32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, keys, values, mask=mask[:, None])
