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


def test_every_program_runs_twice_a_repeat_on_the_same_inputs():
    called = []

    def run(name):
        def call(repeat):
            called.append((name, repeat))
            return jnp.zeros(())

        return call

    times = wall_seconds({name: run(name) for name in ("a", "b")}, 3)
    # Another one first each time; the first run of two is not timed.
    order = [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert called == [each for each in order for _ in range(2)]
    assert all(len(found) == 3 and (found > 0).all() for found in times.values())
