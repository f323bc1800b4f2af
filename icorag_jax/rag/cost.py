"""What a program costs: operations and memory as compiled, and wall time."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float


class ProgramCost(NamedTuple):
    """Of a compiled program.

    Attributes:
        flops: floating-point operations. The compiler counts the body of a loop once, however often
            it runs.
        memory_bytes: arguments, results and temporaries at once.
        compile_seconds: lowering and compilation.
    """

    flops: float
    memory_bytes: int
    compile_seconds: float


def compile_program(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[..., Any], ProgramCost]:
    """Compiles a function for some arguments.

    Args:
        function: of arrays alone.
        *args: its arguments.

    Returns:
        The compiled function, and what it costs.
    """
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    counts: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return compiled, ProgramCost(float(counts["flops"]), int(size), seconds)


def wall_seconds(
    runs: Mapping[str, Callable[[int], Any]], repeats: int
) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Wall times of several programs, in turn within every repeat, so that they share conditions.

    Each runs twice in a row, and the second time counts: after a program with many more steps the
    next one takes longer.

    Args:
        runs: by name; called with the number of the repeat, which picks its inputs.
        repeats: of all.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    names: Sequence[str] = list(runs)
    for repeat in range(repeats):
        # Each time another one comes first.
        turn = repeat % len(names)
        for name in [*names[turn:], *names[:turn]]:
            jax.block_until_ready(runs[name](repeat))
            start = time.perf_counter()
            jax.block_until_ready(runs[name](repeat))
            found[name].append(time.perf_counter() - start)
    return {name: np.asarray(times) for name, times in found.items()}
