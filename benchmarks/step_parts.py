"""What a step of training is made of, beside what the machine can do.

Parts are timed cumulatively, each as a compiled program of its own over all seeds and cores: the
draws of a batch, the loss on it too, and its gradient too. Operations and bytes are the compiler's
own count for that program with its loops unrolled: what has to be computed, and what has to be read
and written at least. The ceilings are a large matrix product and a large copy, timed in the same
process and on the same cores.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks.contenders import Size, draw_batch, model_and_loss
from experiments.support.command import use_all_cores
from icorag_jax.theory import architectures, training

REPEATS = 9


def step_parts(size: Size, ceiling: int) -> list[dict[str, str | float]]:
    """Time, operations and bytes of the parts of a step, then of the two ceilings.

    Args:
        size: what is trained; its steps do not matter.
        ceiling: rows of the square matrix, one a core, that is multiplied by itself; what is
            copied is eight times as large.

    Returns:
        Rows with `part`, `milliseconds`, `gigaflops` (10^9 operations), `gigabytes` (10^9 bytes
        read and written), `gigaflops_per_second` and `gigabytes_per_second`.
    """
    use_all_cores()
    model, loss = model_and_loss(size)
    keys = jax.random.split(jax.random.key(0), size.seeds)
    parameters = jax.vmap(lambda key: architectures.init_parameters(model, key, 1))(keys)
    parameters, keys = training.shard_runs((parameters, keys))

    def draws(parameters, key):
        return draw_batch(size, key)

    def draws_and_loss(parameters, key):
        return loss(parameters, key, None)

    def draws_and_gradient(parameters, key):
        return jax.grad(loss)(parameters, key, None)

    def product(matrix):
        return matrix @ matrix

    def copy(values):
        return values + 1

    rows = [
        _measure(part.__name__, part, parameters, keys)
        for part in (draws, draws_and_loss, draws_and_gradient)
    ]
    cores = jax.device_count()
    return [
        *rows,
        _measure("matrix_product", product, jnp.ones((cores, ceiling, ceiling))),
        _measure("copy", copy, jnp.ones((cores, 8, ceiling, ceiling)), in_place=True),
    ]


def _measure(
    name: str, function: Callable, *arguments: PyTree, in_place: bool = False
) -> dict[str, str | float]:
    """A part's row; with `in_place`, its only argument makes room for its result.

    A large result in fresh memory would take the time of the pages that it is given first.
    """
    arguments = training.shard_runs(arguments)
    devices = len(jax.tree.leaves(arguments)[0].devices())
    program = jax.jit(
        functools.partial(training.spread_runs, function), donate_argnums=0 if in_place else ()
    ).trace(*arguments)
    # The compiler counts the body of a loop once. Lowered for CPU, the rounds of random bits are a
    # loop; lowered for TPU, they are not. Either compiles here.
    cost = program.lower(lowering_platforms=("tpu",)).compile().cost_analysis()
    assert cost is not None, "the compiler counts operations on every backend"
    # The count is of one device's program, and devices do the same.
    gigaflops, gigabytes = (1e-9 * devices * cost[key] for key in ("flops", "bytes accessed"))
    compiled = program.lower().compile()
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        arguments = (result,) if in_place else arguments
    # The first call warms up.
    median = float(np.median(seconds[1:]))
    return {
        "part": name,
        "milliseconds": 1e3 * median,
        "gigaflops": gigaflops,
        "gigabytes": gigabytes,
        "gigaflops_per_second": gigaflops / median,
        "gigabytes_per_second": gigabytes / median,
    }
