"""The theorems of the exact regime as cases to run: attention on one side, NumPy on the other.

A theorem is one or more cases, each an interface, a construction and the descent it must equal.
`measure` runs a case on random problems and returns the errors, one row an episode.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from experiments.support import reference
from experiments.support.compilation import QUICK_TO_COMPILE
from experiments.support.reference import Interface, Problem, Sizes
from icorag_jax.theory import closed_forms, constructions, episodes, objective
from icorag_jax.theory.attention import apply_layers
from icorag_jax.theory.episodes import Episode
from icorag_jax.theory.objective import Block, Ridge

Solve = Callable[[Problem, Episode], Float[Array, "q m"]]
Expect = Callable[[Problem, Interface], Float[np.ndarray, "q m"]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A construction and what it must equal.

    Attributes:
        interface: the interface of the problem.
        solve: the queries' predictions by linear self-attention, for one problem.
        expect: the same by definition, in NumPy.
        ridge: whether problems have a ridge term.
        masked: the chance of a context example to be masked.
    """

    interface: Interface
    solve: Solve
    expect: Expect
    ridge: bool = False
    masked: float = 0.2


def build_episode(problem: Problem, interface: Interface) -> Episode:
    """The problem as an episode, by the library's own features and readouts."""
    n = problem.weights.shape[0]
    pooled = episodes.pool_evidence(problem.pooling, problem.passages)
    projected = episodes.projection_features(problem.questions, pooled, problem.projection)
    attended = episodes.dot_product_readouts(problem.keys, problem.values)
    t, m, _ = attended.shape
    if interface == "projection":
        features = projected
        readouts = episodes.identity_readouts(t, m, projected.dtype)
    elif interface == "dot_product":
        features, readouts = problem.questions, attended
    else:
        features = episodes.combine_features(projected, problem.questions)
        readouts = episodes.combine_readouts(attended)
    return Episode(
        features=features[:n],
        readouts=readouts[:n],
        targets=problem.targets,
        weights=problem.weights,
        query_features=features[n:],
        query_readouts=readouts[n:],
        query_targets=jnp.zeros((t - n, m), projected.dtype),
    )


def _ridge(problem: Problem) -> Ridge:
    return Ridge(problem.ridge, problem.anchor)


def _blocks(problem: Problem) -> list[Block]:
    d_projection = problem.projection.shape[0]
    m, d_key = problem.targets.shape[-1], problem.keys.shape[-1]
    return [Block(m, d_projection), Block(d_key, problem.questions.shape[-1])]


def _direct(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.direct(problem.start, episode, problem.step_sizes)


def _direct_once(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.direct(problem.start, episode, problem.step_sizes[:1])


def _direct_ridge(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.direct(problem.start, episode, problem.step_sizes, _ridge(problem))


def _split_heads(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    heads = (problem.start.shape[-1] + 1) // 2
    layers = constructions.split_heads_layers(problem.start, problem.step_sizes, heads)
    queries = apply_layers(layers, constructions.direct_tokens(episode))
    return constructions.direct_readout(problem.start, episode, queries)


def _gd_plus_plus(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    m, d_z = problem.start.shape
    layers = constructions.gd_plus_plus_layers(m, d_z, problem.step_sizes, problem.curvatures)
    queries = apply_layers(layers, constructions.direct_tokens(episode))
    return -queries[:, d_z:]


def _factored(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.factored(problem.start, episode, problem.step_sizes[:1])


def _factored_ridge(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    step_sizes = problem.step_sizes[:1]
    return constructions.factored(problem.start, episode, step_sizes, _ridge(problem))


def _factored_blocks(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    step_sizes, blocks = problem.step_sizes[:1], _blocks(problem)
    return constructions.factored(problem.start, episode, step_sizes, blocks=blocks)


def _factored_blocks_ridge(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    step_sizes, blocks = problem.step_sizes[:1], _blocks(problem)
    return constructions.factored(problem.start, episode, step_sizes, _ridge(problem), blocks)


def _lifted(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.lifted(problem.start, episode, problem.step_sizes)


def _lifted_once(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.lifted(problem.start, episode, problem.step_sizes[:1])


def _lifted_ridge(problem: Problem, episode: Episode) -> Float[Array, "q m"]:
    return constructions.lifted(problem.start, episode, problem.step_sizes, _ridge(problem))


def _one_step(problem: Problem, interface: Interface) -> Float[np.ndarray, "q m"]:
    moved = reference.descend(problem, interface, 1)
    return reference.predict_queries(problem, interface, moved)


def _all_steps(problem: Problem, interface: Interface) -> Float[np.ndarray, "q m"]:
    moved = reference.descend(problem, interface, len(problem.step_sizes))
    return reference.predict_queries(problem, interface, moved)


def _bent_steps(problem: Problem, interface: Interface) -> Float[np.ndarray, "q m"]:
    assert interface == "projection"
    return reference.gd_plus_plus(problem, len(problem.step_sizes))


def theorems() -> Mapping[str, tuple[Case, ...]]:
    """Every construction by name; the sets of sizes are dealt out to a construction's cases."""
    return {
        "projection_direct": (Case("projection", _direct_once, _one_step),),
        "projection_factored": (Case("projection", _factored, _one_step),),
        "dot_product_factored": (Case("dot_product", _factored, _one_step),),
        "dot_product_lifted": (Case("dot_product", _lifted_once, _one_step),),
        "both_block_heads": (Case("both", _factored_blocks, _one_step),),
        "weighted_masked": (
            Case("projection", _direct, _all_steps, masked=0.6),
            Case("dot_product", _factored, _one_step, masked=0.6),
            Case("dot_product", _lifted, _all_steps, masked=0.6),
            Case("both", _factored_blocks, _one_step, masked=0.6),
        ),
        "ridge_prior_tokens": (
            Case("projection", _direct_ridge, _all_steps, ridge=True),
            Case("dot_product", _factored_ridge, _one_step, ridge=True),
            Case("dot_product", _lifted_ridge, _all_steps, ridge=True),
            Case("both", _factored_blocks_ridge, _one_step, ridge=True),
        ),
        "multi_step_direct": (
            Case("projection", _direct, _all_steps),
            Case("projection", _split_heads, _all_steps),
        ),
        "multi_step_lifted": (Case("dot_product", _lifted, _all_steps),),
        "gd_plus_plus": (Case("projection", _gd_plus_plus, _bent_steps),),
    }


def relative_error(
    predictions: Float[np.ndarray, "*batch q m"], expected: Float[np.ndarray, "*batch q m"]
) -> Float[np.ndarray, "*batch"]:
    """The largest error of an episode over its largest expected prediction, in magnitude."""
    error = np.max(np.abs(predictions - expected), axis=(-2, -1))
    return error / np.max(np.abs(expected), axis=(-2, -1))


def draw(
    rng: np.random.Generator, sizes: Sizes, case: Case, episodes_per_sizes: int
) -> list[Problem]:
    """Problems of one set of sizes."""
    return [
        reference.draw_problem(rng, sizes, case.interface, masked=case.masked, ridge=case.ridge)
        for _ in range(episodes_per_sizes)
    ]


def stack(problems: list[Problem], dtype: str) -> Problem:
    """The problems as arrays of one precision with a leading batch axis."""
    return Problem(*[np.stack(arrays).astype(dtype) for arrays in zip(*problems, strict=True)])


def in_precision(function: Callable, problems: list[Problem], dtype: str) -> np.ndarray:
    """Maps a function of one problem over problems, compiled in `float32` or `float64`."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("float32"):
        batch = jax.tree.map(jnp.asarray, stack(problems, dtype))
        # Run once on little data: quick to compile counts for more than quick to run.
        options = QUICK_TO_COMPILE if jax.default_backend() == "cpu" else None
        compiled = jax.jit(jax.vmap(function), compiler_options=options)
        return np.asarray(compiled(batch)).astype(np.float64)


def expectations(case: Case, problems: list[Problem]) -> Float[np.ndarray, "episodes q m"]:
    """What the construction must predict, by definition."""
    return np.stack([case.expect(problem, case.interface) for problem in problems])


def measure(
    case: Case, problems: list[Problem], expected: Float[np.ndarray, "episodes q m"], dtype: str
) -> Float[np.ndarray, " episodes"]:
    """Relative error of the construction on each problem."""

    def solve(problem):
        return case.solve(problem, build_episode(problem, case.interface))

    return relative_error(in_precision(solve, problems, dtype), expected)


def measure_gradient(
    interface: Interface, problems: list[Problem], dtype: str
) -> Float[np.ndarray, " episodes"]:
    """Relative difference of the written-out gradient from `jax.grad` of the objective."""

    def both(problem):
        episode, ridge = build_episode(problem, interface), _ridge(problem)
        written = objective.gradient(problem.start, episode, ridge)
        return jnp.stack([written, jax.grad(objective.loss)(problem.start, episode, ridge)])

    pairs = in_precision(both, problems, dtype)
    return relative_error(pairs[:, 0], pairs[:, 1])


def measure_gram_bound(problems: list[Problem]) -> pd.DataFrame:
    """Error of two factored steps with the mean Gram matrix, beside its bound, in float64.

    Returns:
        One row an episode: `error` (Frobenius, against NumPy), `bound` and the scale `size` of
        the interface, which says what rounding may amount to.
    """

    def approximate(problem):
        episode = build_episode(problem, "dot_product")
        d_c, d_z = problem.start.shape
        step_sizes, gram = problem.step_sizes[:2], closed_forms.mean_gram(episode)
        layers = constructions.factored_layers([Block(d_c, d_z)], step_sizes, gram)
        tokens = constructions.factored_tokens(problem.start, episode)
        # With basis vectors for queries, what they gather is columns of W_2 - W_0.
        basis = jnp.eye(d_z, tokens.queries.shape[-1], dtype=problem.start.dtype)
        gathered = apply_layers(layers, tokens._replace(queries=basis))[:, -d_c:]
        found = problem.start + gathered.T
        bound = closed_forms.gram_bound(problem.start, episode, step_sizes, gram)
        return jnp.concatenate([found.ravel(), bound[None]])

    result = in_precision(approximate, problems, "float64")
    exact = np.stack([reference.descend(problem, "dot_product", 2) for problem in problems])
    found = result[:, :-1].reshape(exact.shape)
    return pd.DataFrame(
        {
            "error": np.linalg.norm(found - exact, axis=(1, 2)),
            "bound": result[:, -1],
            "size": np.linalg.norm(exact, axis=(1, 2)),
        }
    )
