"""What a step of training is made of, beside what the machine can do.

Parts are timed cumulatively, each as a compiled program of its own over all seeds and cores: the
draws of a batch, the loss on it too, and its gradient too. Operations and bytes are the compiler's
own count for that program. The ceilings are a large matrix product and a large copy, timed in the
same process and on the same cores.
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

MATRIX, COPIED, REPEATS = 2048, 2**25, 9


def step_parts(size: Size) -> list[dict[str, str | float]]:
    """Time, operations and bytes of the parts of a step, then of the two ceilings.

    Returns:
        Rows with `part`, `milliseconds`, `gigaflops` (10^9 operations) and `gigabytes` (10^9 bytes
        read and written).
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
        _measure("matrix_product", product, jnp.ones((cores, MATRIX, MATRIX))),
        _measure("copy", copy, jnp.ones((cores, COPIED))),
    ]


def _measure(name: str, function: Callable, *arguments: PyTree) -> dict[str, str | float]:
    arguments = training.shard_runs(arguments)
    compiled = (
        jax.jit(functools.partial(training.spread_runs, function)).lower(*arguments).compile()
    )
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    # The count is of one device's program, and devices do the same.
    cost, devices = compiled.cost_analysis(), len(jax.tree.leaves(arguments)[0].devices())
    assert cost is not None, "the compiler counts operations on every backend"
    return {
        "part": name,
        "milliseconds": 1e3 * float(np.median(seconds)),
        "gigaflops": 1e-9 * devices * cost["flops"],
        "gigabytes": 1e-9 * devices * cost["bytes accessed"],
    }
