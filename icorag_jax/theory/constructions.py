"""Explicit weights with which linear self-attention is gradient descent.

Three constructions. Each is a way to write an episode as tokens, the weights of the layers, and
a readout of the query tokens; the layers' weights depend on the starting interface and the step
sizes alone, never on the episode. Proofs are in `docs/theory.md`.

| construction | context token                               | exact for                          |
| ------------ | ------------------------------------------- | ---------------------------------- |
| direct       | `[z; y]`                                    | projection, any number of steps    |
| factored     | `[z; C^T (y - C W_0 z); 0]`                 | any interface, one step            |
| lifted       | `[vec(C[c, :] (x) z); y_c]`, one a row of C | any interface, any number of steps |

An example enters with its token multiplied by `sqrt(w_i / sum w)`, so that weights and masks need
no change of the layer: linear attention reads a token once as key and once as value. Ridge is
`d_z` more context tokens (*prior tokens*): examples that place the interface at `W_ref`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icorag_jax.theory.attention import AttentionWeights, Tokens, apply_layers
from icorag_jax.theory.episodes import Episode, InvalidEpisodeError, is_traced, normalized_weights
from icorag_jax.theory.objective import (
    Block,
    Ridge,
    block_mask,
    check_episode,
    payloads,
    predict_queries,
)


def _tokens(
    episode: Episode,
    contents: Float[Array, "n d"],
    prior: Float[Array, "p d"] | None,
) -> Tokens:
    """Weighs the context tokens, appends prior tokens, and starts queries as `[z; 0]`."""
    weights = normalized_weights(episode.weights)
    context = jnp.sqrt(weights)[:, None] * contents
    present = weights > 0
    if prior is not None:
        context = jnp.concatenate([context, prior])
        present = jnp.concatenate([present, jnp.ones(prior.shape[0], bool)])
    padding = contents.shape[-1] - episode.query_features.shape[-1]
    queries = jnp.pad(episode.query_features, ((0, 0), (0, padding)))
    return Tokens(context, queries, present)


def _select(size: int, start: int, width: int, dtype) -> Float[Array, "width size"]:
    """The matrix that picks `width` entries from `start` on out of a vector of `size`."""
    return jnp.eye(width, size, k=start, dtype=dtype)


# Direct ------------------------------------------------------------------------------------------


def direct_tokens(episode: Episode, ridge: Ridge | None = None) -> Tokens:
    """Tokens `[z; y]` of size `d_z + m`; prior tokens are `sqrt(lambda) [e_k; W_ref e_k]`.

    Raises:
        InvalidEpisodeError: for readouts other than the identity, the projection interface's.
    """
    check_episode(episode, ridge=ridge)
    *_, m, d_c = episode.readouts.shape
    known = not is_traced(episode.readouts)
    if m != d_c or (known and np.any(np.asarray(episode.readouts) != np.eye(m))):
        raise InvalidEpisodeError("direct tokens are for readouts that are the identity")
    contents = jnp.concatenate([episode.features, episode.targets], axis=-1)
    if ridge is None:
        return _tokens(episode, contents, None)
    d_z = episode.features.shape[-1]
    basis = jnp.eye(d_z, dtype=contents.dtype)
    prior = jnp.concatenate([basis, ridge.reference.T], axis=-1)
    return _tokens(episode, contents, jnp.sqrt(ridge.strength) * prior)


def direct_layers(
    interface: Float[Array, "m d_z"], step_sizes: Float[Array, " steps"]
) -> list[AttentionWeights]:
    """One single-head layer a step: keys and queries `z`, values `[-W_0, I] [z; y] `.

    Layer k subtracts `(W_k - W_{k-1}) z` from the y slot of every token, context and query, so
    that the next layer's values are the residuals at `W_k`.
    """
    m, d_z = interface.shape
    size, dtype = d_z + m, interface.dtype
    features = _select(size, 0, d_z, dtype)
    value = jnp.concatenate([-interface, jnp.eye(m, dtype=dtype)], axis=-1)
    to_targets = _select(size, d_z, m, dtype).T
    return [
        AttentionWeights(
            features[None], features[None], value[None], (-step_size * to_targets)[None]
        )
        for step_size in step_sizes
    ]


def direct_readout(
    interface: Float[Array, "m d_z"], episode: Episode, queries: Float[Array, "q d"]
) -> Float[Array, "q m"]:
    """`W_0 z_q` minus the y slot, which holds `-(W_k - W_0) z_q`."""
    check_episode(episode, interface)
    d_z = interface.shape[-1]
    return episode.query_features @ interface.T - queries[:, d_z:]


def direct(
    interface: Float[Array, "m d_z"],
    episode: Episode,
    step_sizes: Float[Array, " steps"],
    ridge: Ridge | None = None,
) -> Float[Array, "q m"]:
    """Predictions of the direct construction: gradient descent on a projection interface."""
    layers = direct_layers(interface, step_sizes)
    return direct_readout(interface, episode, apply_layers(layers, direct_tokens(episode, ridge)))


def split_heads_layers(
    interface: Float[Array, "m d_z"], step_sizes: Float[Array, " steps"], heads: int
) -> list[AttentionWeights]:
    """The direct layers with the features dealt out to several heads; the sum is the same.

    Raises:
        ValueError: when there are more heads than features.
    """
    d_z = interface.shape[-1]
    if not 1 <= heads <= d_z:
        raise ValueError(f"heads must lie between 1 and the number of features {d_z}, got {heads}")
    owner = (jnp.arange(d_z) * heads) // d_z
    mine = (owner[None, :] == jnp.arange(heads)[:, None]).astype(interface.dtype)

    def split(layer: AttentionWeights) -> AttentionWeights:
        key = mine[:, :, None] * layer.key
        value = jnp.repeat(layer.value, heads, axis=0)
        return AttentionWeights(key, key, value, jnp.repeat(layer.output, heads, axis=0))

    return [split(layer) for layer in direct_layers(interface, step_sizes)]


def gd_plus_plus_layers(
    m: int,
    d_z: int,
    step_sizes: Float[Array, " steps"],
    curvatures: Float[Array, " steps"],
) -> list[AttentionWeights]:
    """GD++ from the zero interface on direct tokens: the direct head, and one that does
    `z <- z - gamma Z Z^T z` for every token, context and query.
    """
    size, dtype = d_z + m, step_sizes.dtype
    features = _select(size, 0, d_z, dtype)
    targets = _select(size, d_z, m, dtype)
    width = max(m, d_z)

    def value(rows):
        return jnp.pad(rows, ((0, width - rows.shape[0]), (0, 0)))

    keys = jnp.stack([features, features])
    values = jnp.stack([value(targets), value(features)])
    return [
        AttentionWeights(
            keys,
            keys,
            values,
            jnp.stack([-step_size * value(targets).T, -curvature * value(features).T]),
        )
        for step_size, curvature in zip(step_sizes, curvatures, strict=True)
    ]


# Factored ----------------------------------------------------------------------------------------


def factored_tokens(
    interface: Float[Array, "d_c d_z"], episode: Episode, ridge: Ridge | None = None
) -> Tokens:
    """Tokens `[z; rho; 0]` of size `d_z + 2 d_c` with `rho = C^T (y - C W_0 z)`.

    The last slot gathers `(W_k - W_0) z`. Prior tokens are `sqrt(lambda) [e_k; (W_ref - W_0) e_k]`.
    """
    check_episode(episode, interface, ridge)
    rho = payloads(interface, episode)
    contents = jnp.concatenate([episode.features, rho, jnp.zeros_like(rho)], axis=-1)
    if ridge is None:
        return _tokens(episode, contents, None)
    gap = (ridge.reference - interface).T
    basis = jnp.eye(gap.shape[0], dtype=gap.dtype)
    prior = jnp.concatenate([basis, gap, jnp.zeros_like(gap)], axis=-1)
    return _tokens(episode, contents, jnp.sqrt(ridge.strength) * prior)


def factored_layers(
    blocks: Sequence[Block],
    step_sizes: Float[Array, " steps"],
    gram: Float[Array, "d_c d_c"] | None = None,
) -> list[AttentionWeights]:
    """One head for each diagonal block of the interface, one layer a step.

    Args:
        blocks: the interface's diagonal blocks; a full interface is one block.
        step_sizes: `[steps]`.
        gram: `[d_c, d_c]`, the Gram matrix `C^T C` that the payloads are updated with between
            steps; needed for two steps or more. Exact where all readouts share it; with ridge,
            where it is the identity, as prior tokens come with that.

    Raises:
        ValueError: for several steps without `gram`.
    """
    if len(step_sizes) > 1 and gram is None:
        raise ValueError("several factored steps need the readouts' Gram matrix")
    d_z, d_c = sum(block.d_z for block in blocks), sum(block.d_c for block in blocks)
    size, dtype = d_z + 2 * d_c, step_sizes.dtype
    if gram is None:
        gram = jnp.zeros((d_c, d_c), dtype)
    write = jnp.concatenate([jnp.zeros((d_z, d_c), dtype), -gram, jnp.eye(d_c, dtype=dtype)])
    owner_z = np.repeat(np.arange(len(blocks)), [block.d_z for block in blocks])
    owner_c = np.repeat(np.arange(len(blocks)), [block.d_c for block in blocks])
    mine_z = jnp.asarray(owner_z == np.arange(len(blocks))[:, None], dtype)
    mine_c = jnp.asarray(owner_c == np.arange(len(blocks))[:, None], dtype)
    key = mine_z[:, :, None] * _select(size, 0, d_z, dtype)[None]
    value = mine_c[:, :, None] * _select(size, d_z, d_c, dtype)[None]
    return [
        AttentionWeights(key, key, value, jnp.tile(step_size * write, (len(blocks), 1, 1)))
        for step_size in step_sizes
    ]


def factored_readout(
    interface: Float[Array, "d_c d_z"], episode: Episode, queries: Float[Array, "q d"]
) -> Float[Array, "q m"]:
    """`C_q (W_0 z_q + gathered)` with `gathered = (W_k - W_0) z_q` from the last slot."""
    d_c, d_z = interface.shape
    gathered = queries[:, d_z + d_c :]
    moved = jnp.einsum("qmc,qc->qm", episode.query_readouts, gathered)
    return predict_queries(interface, episode) + moved


def factored(
    interface: Float[Array, "d_c d_z"],
    episode: Episode,
    step_sizes: Float[Array, " steps"],
    ridge: Ridge | None = None,
    blocks: Sequence[Block] | None = None,
    gram: Float[Array, "d_c d_c"] | None = None,
) -> Float[Array, "q m"]:
    """Predictions of the factored construction: one gradient step on any interface.

    With `blocks`, the step moves the diagonal blocks alone (both interfaces at once).
    """
    check_episode(
        episode, interface, ridge, block_mask(blocks, interface.dtype) if blocks else None
    )
    layers = factored_layers(blocks or [Block(*interface.shape)], step_sizes, gram)
    tokens = factored_tokens(interface, episode, ridge)
    return factored_readout(interface, episode, apply_layers(layers, tokens))


# Lifted ------------------------------------------------------------------------------------------


def lift(episode: Episode) -> Episode:
    """The episode with `vec(W)` as a projection interface with one output.

    Row c of example i becomes an example of its own, with features `vec(C_i[c, :] (x) z_i)` of
    size `d_c d_z`, target `y_ic` and weight `w_i`. Since the lifted weights sum to `m sum w`, the
    lifted data term is `1 / m` of the original one: `lifted` makes up for it.
    """

    check_episode(episode)

    def rows(readouts, features):
        products = jnp.einsum("nmc,nz->nmcz", readouts, features)
        return products.reshape(-1, readouts.shape[-1] * features.shape[-1])

    def ones(count):
        return jnp.ones((count, 1, 1), episode.features.dtype)

    n, m = episode.targets.shape
    q = episode.query_targets.shape[0]
    return Episode(
        features=rows(episode.readouts, episode.features),
        readouts=ones(n * m),
        targets=episode.targets.reshape(-1, 1),
        weights=jnp.repeat(episode.weights, m),
        query_features=rows(episode.query_readouts, episode.query_features),
        query_readouts=ones(q * m),
        query_targets=episode.query_targets.reshape(-1, 1),
    )


def lifted_layers(
    interface: Float[Array, "d_c d_z"],
    step_sizes: Float[Array, " steps"],
    outputs: int,
    mask: Float[Array, "d_c d_z"] | None = None,
) -> list[AttentionWeights]:
    """The direct layers on lifted tokens, with steps `outputs` times as long.

    With a mask of ones and zeros, keys leave out the products `C[c, a] z_b` where it is zero, so
    that a step moves the other entries of the interface alone.
    """
    layers = direct_layers(interface.reshape(1, -1), outputs * step_sizes)
    if mask is None:
        return layers
    return [layer._replace(key=mask.reshape(1, -1, 1) * layer.key) for layer in layers]


def lifted(
    interface: Float[Array, "d_c d_z"],
    episode: Episode,
    step_sizes: Float[Array, " steps"],
    ridge: Ridge | None = None,
    blocks: Sequence[Block] | None = None,
) -> Float[Array, "q m"]:
    """Predictions of the lifted construction: any number of steps on any interface.

    The direct construction on lifted tokens of size `d_c d_z + 1`. With `blocks`, steps move the
    diagonal blocks alone.
    """
    mask = block_mask(blocks, interface.dtype) if blocks else None
    check_episode(episode, interface, ridge, mask)
    m = episode.targets.shape[-1]
    if ridge is not None:
        ridge = Ridge(ridge.strength / m, ridge.reference.reshape(1, -1))
    flat, rows = interface.reshape(1, -1), lift(episode)
    layers = lifted_layers(interface, step_sizes, m, mask)
    queries = apply_layers(layers, direct_tokens(rows, ridge))
    return direct_readout(flat, rows, queries).reshape(episode.query_targets.shape)
