"""Hidden states of a text as features, pooled by learned weights.

Axes: `texts` of a row and their `tokens`, `width` features of the residual stream.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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


def normalize(states: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """States divided by their root mean square; zeros stay zeros."""
    mean_square = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
    return states * jax.lax.rsqrt(mean_square + 1e-6)
