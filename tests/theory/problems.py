"""Random problems for the theorems, and the one way they are held: attention against NumPy.

Hypothesis draws what may matter to a theorem: sizes, weights, masks, and a seed for the rest. Sizes
come from a small set, since every new shape is a compilation.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from experiments.support import reference, theorems
from experiments.support.compilation import QUICK_TO_COMPILE
from experiments.support.reference import Interface, Problem, Sizes
from icorag_jax.theory.episodes import Episode

# What counts as equal, by precision, relative to the largest number expected.
LIMITS = {"float64": 1e-10, "float32": 1e-4}
INTERFACES: tuple[Interface, ...] = ("projection", "dot_product", "both")

# Axes of different meaning differ in size, so that no mix-up goes unseen; the second has one
# output and one passage.
SIZES = (
    Sizes(n=7, q=4, m=2, k=3, d_question=5, d_value=1, d_projection=6, d_key=4, steps=3),
    Sizes(n=3, q=5, m=1, k=1, d_question=4, d_value=2, d_projection=2, d_key=3, steps=2),
)

Solve = Callable[[Problem, Episode], Any]


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


@st.composite
def example_weights(draw: st.DrawFn, n: int) -> np.ndarray:
    """Weights over six orders of magnitude, any of them masked but one."""
    weight = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-3, 1e3))
    weights = np.array(draw(st.lists(weight, min_size=n, max_size=n)))
    kept = draw(st.integers(0, n - 1))
    weights[kept] = weights[kept] or 1.0
    return weights


def replace(problem: Problem, interface: Interface, **changes: np.ndarray) -> Problem:
    """The problem with other contents; rates stay the same share of what is stable."""
    before = reference.curvature(problem, interface)
    problem = problem._replace(**changes)
    slack = before / reference.curvature(problem, interface)
    return problem._replace(
        step_sizes=problem.step_sizes * slack, curvatures=problem.curvatures * slack
    )


def scale_rows(problem: Problem, rows: np.ndarray, factor: float) -> Problem:
    """The problem with all contents of some rows multiplied, those of queries included."""

    def scaled(array):
        mine = rows[: len(array)].reshape(-1, *[1] * (array.ndim - 1))
        return np.where(mine, factor * array, array)

    names = ("questions", "passages", "keys", "values", "targets")
    return problem._replace(**{name: scaled(getattr(problem, name)) for name in names})


@st.composite
def problems(
    draw: st.DrawFn,
    interface: Interface,
    *,
    ridge: bool = False,
    masked: bool = False,
    sizes: tuple[Sizes, ...] = SIZES,
) -> Problem:
    """A problem with positive weights; with `masked`, one with any weights.

    Masked examples are ten times larger in every respect than others, so that a leak shows.
    """
    chosen = draw(st.sampled_from(sizes))
    rng = np.random.default_rng(draw(seeds()))
    problem = reference.draw_problem(rng, chosen, interface, masked=0, ridge=ridge)
    if not masked:
        return problem
    weights = draw(example_weights(chosen.n))
    rows = np.concatenate([weights == 0, np.zeros(chosen.q, bool)])
    loud = scale_rows(problem, rows, 10.0)
    return replace(problem, interface, **{**loud._asdict(), "weights": weights})


def cast(numbers: Any, dtype: str) -> Any:
    """A problem or an episode in one of the precisions."""
    return jax.tree.map(lambda array: np.asarray(array, dtype), numbers)


def episode_of(problem: Problem, interface: Interface) -> Episode:
    """The problem as an episode, features and readouts by the reference."""
    z, c = reference.linearize(problem, interface)
    n, m = problem.targets.shape
    unknown = np.zeros((len(z) - n, m))
    return Episode(z[:n], c[:n], problem.targets, problem.weights, z[n:], c[n:], unknown)


@functools.cache
def compiled(function: Callable) -> Callable:
    """`function` must be one of a module: a closure made by a test is compiled every time."""
    return jax.jit(function, compiler_options=QUICK_TO_COMPILE)


def compute(solve: Solve, problem: Problem, interface: Interface, dtype: str) -> Any:
    """Runs a function of a problem and its episode, compiled, in one of the precisions."""
    episode = episode_of(problem, interface)
    with jax.enable_x64(dtype == "float64"):
        found = compiled(solve)(cast(problem, dtype), cast(episode, dtype))
        chex.assert_type(jax.tree.leaves(found), jnp.dtype(dtype))
        return jax.tree.map(lambda array: np.asarray(array).astype(np.float64), found)


def assert_equal(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Equal to within rounding, relative to the largest number expected."""
    assert found.shape == expected.shape
    error = theorems.relative_error(found, expected)
    assert np.all(error <= LIMITS[dtype]), f"relative error {error} in {dtype}"


def descent(problem: Problem, interface: Interface, steps: int | None = None) -> np.ndarray:
    """The queries' predictions after gradient steps (all, or the first few), in NumPy."""
    steps = len(problem.step_sizes) if steps is None else steps
    moved = reference.descend(problem, interface, steps)
    return reference.predict_queries(problem, interface, moved)
