"""Questions on a mesh: what lies where, and that nothing changes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from icorag_jax.lm import sharding
from icorag_jax.lm.evidence_attention import Evidence
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.context import Context
from icorag_jax.rag.frozen import Reading
from icorag_jax.rag.placement import split_questions


def test_questions_are_split_and_layers_are_not():
    rng = np.random.default_rng(0)
    real = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    whole = lambda *shape: rng.integers(0, 9, shape, np.int32)  # noqa: E731
    true = lambda *shape: rng.random(shape) < 0.5  # noqa: E731
    context = Context(
        whole(4, 6),
        real(4, 6, 8),
        whole(4, 6),
        whole(4, 5),
        real(4, 5, 8),
        true(4, 5),
        real(4, 2, 2),
        true(4, 2),
    )
    evidence = Evidence(real(3, 4, 6, 2, 4), real(3, 4, 6, 2, 4), whole(4, 6), whole(4, 6))
    reading = Reading(
        context, evidence, whole(4, 5), whole(4, 5), true(4, 5), true(4, 2), true(4, 6)
    )
    reading = jax.tree.map(jnp.asarray, reading)
    batch = Batch(
        whole(4, 6), whole(4, 6), whole(4, 6), whole(4, 5), whole(4, 5), true(4, 5), true(4, 5),
        real(4, 2, 2), true(4, 2), true(4, 2), true(4, 6),
    )  # fmt: skip
    mesh = sharding.make_mesh(data=1, tensor=1)
    for questions in (reading, batch):
        placed = split_questions(questions, mesh)
        assert type(placed) is type(questions)
        jax.tree.map(np.testing.assert_array_equal, placed, questions)
        first = {leaf.sharding.spec for leaf in jax.tree.leaves(placed) if leaf.ndim < 5}
        assert first <= {PartitionSpec("data"), PartitionSpec("data", None)}
    keys = split_questions(reading, mesh).evidence.keys
    assert keys.sharding.spec == PartitionSpec(None, "data", None, "tensor")


@pytest.mark.slow
def test_two_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent / "two_devices.py")]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
