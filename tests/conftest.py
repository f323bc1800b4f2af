"""Strict settings for every test: typed shapes, no silent promotion, CPU in full precision."""

import os

import hypothesis
import jax
from jaxtyping import install_import_hook

from experiments.support.compilation import QUICK_TO_COMPILE

# Programs under test run a few times on little data: quick to compile counts for more than quick
# to run. Read when JAX starts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        *(f"--{name}={str(value).lower()}" for name, value in QUICK_TO_COMPILE.items()),
    ]
)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")
jax.devices()  # starts JAX: one device for all tests of a process, whichever test comes first

install_import_hook("icorag_jax", "beartype.beartype")

hypothesis.settings.register_profile(
    "project",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")
