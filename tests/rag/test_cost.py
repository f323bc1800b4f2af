"""Costs of programs that are known by hand."""

import jax.numpy as jnp
import numpy as np

from icorag_jax.rag.cost import compile_program, wall_seconds


def test_flops_and_memory_of_a_product():
    left, right = jnp.ones((64, 32), jnp.float32), jnp.ones((32, 16), jnp.float32)
    program, cost = compile_program(jnp.matmul, left, right)
    np.testing.assert_allclose(program(left, right), 32.0)
    assert 2 * 64 * 32 * 16 <= cost.flops <= 1.1 * 2 * 64 * 32 * 16
    arrays = 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert arrays <= cost.memory_bytes <= 2 * arrays
    assert cost.compile_seconds > 0


def test_every_program_runs_once_a_repeat_on_the_same_inputs():
    called = {"a": [], "b": []}

    def run(name):
        def call(repeat):
            called[name].append(repeat)
            return jnp.zeros(())

        return call

    times = wall_seconds({name: run(name) for name in called}, 4)
    # One more before them, which is not timed.
    assert called == {"a": [0, 0, 1, 2, 3], "b": [0, 0, 1, 2, 3]}
    assert all(len(found) == 4 and (found > 0).all() for found in times.values())
