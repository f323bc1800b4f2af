"""Strict settings for every test: typed shapes, no silent promotion, CPU in full precision."""

import hypothesis
import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")

install_import_hook("icorag_jax", "beartype.beartype")

hypothesis.settings.register_profile(
    "project",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")
