"""Random retrieval problems, and gradient descent on them by definition, in plain NumPy.

This is what constructions are held against, so nothing here comes from `icorag_jax`: loops over
examples, in float64, written as the formulas read. One `Problem` is one episode before the
interface is chosen; rows `0..n-1` are context examples, the remaining `q` rows are queries.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Interface = Literal["projection", "dot_product", "both"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a problem: `n` examples, `q` queries, `k` passages, `steps` of descent."""

    n: int
    q: int
    m: int
    k: int
    d_question: int
    d_value: int
    d_projection: int
    d_key: int
    steps: int

    def interface_shape(self, interface: Interface) -> tuple[int, int]:
        """`(d_c, d_z)` of the interface."""
        projection, dot_product = (self.m, self.d_projection), (self.d_key, self.d_question)
        if interface == "projection":
            return projection
        if interface == "dot_product":
            return dot_product
        return projection[0] + dot_product[0], projection[1] + dot_product[1]


class Problem(NamedTuple):
    """One retrieval problem, `t = n + q` rows; NumPy arrays here, JAX arrays under test.

    Attributes:
        questions: `[t, d_question]`.
        passages: `[t, k, d_value]`, what the projection interface pools.
        pooling: `[t, k]`, the retriever's weights of the passages.
        projection: `[d_projection, d_question + d_value]`.
        keys: `[t, k, d_key]`, passage keys of the dot-product interface.
        values: `[t, k, m]`, passage values; a missing passage is a zero row, the first never is.
        targets: `[n, m]`.
        weights: `[n]`.
        start: `[d_c, d_z]`, the interface before the first step.
        anchor: `[d_c, d_z]`, what ridge pulls towards.
        ridge: scalar strength of the pull.
        step_sizes: `[steps]`.
        curvatures: `[steps]`, the second rates of GD++.
    """

    questions: Float[Any, "t d_question"]
    passages: Float[Any, "t k d_value"]
    pooling: Float[Any, "t k"]
    projection: Float[Any, "d_projection d_question+d_value"]
    keys: Float[Any, "t k d_key"]
    values: Float[Any, "t k m"]
    targets: Float[Any, "n m"]
    weights: Float[Any, " n"]
    start: Float[Any, "d_c d_z"]
    anchor: Float[Any, "d_c d_z"]
    ridge: Float[Any, ""]
    step_sizes: Float[Any, " steps"]
    curvatures: Float[Any, " steps"]


class Linear(NamedTuple):
    """A problem seen through an interface: features `z`, readouts `C`, context rows first."""

    z: Float[np.ndarray, "t d_z"]
    c: Float[np.ndarray, "t m d_c"]


def draw_sizes(rng: np.random.Generator) -> Sizes:
    """Sizes at random. At least 4 queries, so that an episode has predictions of usual size."""

    def between(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    return Sizes(
        n=between(2, 14),
        q=between(4, 6),
        m=between(1, 3),
        k=between(1, 5),
        d_question=between(2, 6),
        d_value=between(1, 4),
        d_projection=between(2, 6),
        d_key=between(2, 5),
        steps=between(2, 4),
    )


def draw_problem(
    rng: np.random.Generator, sizes: Sizes, interface: Interface, *, masked: float, ridge: bool
) -> Problem:
    """A problem at random, its numbers rounded to float32 so that both precisions see the same.

    Step sizes are a uniform share in [0.3, 1.5] of one over the largest curvature of the
    objective, and so are always stable (stability ends at 2).

    Args:
        rng: source of randomness.
        sizes: sizes of the problem.
        interface: which interface `start` and `anchor` are for.
        masked: chance of an example to have weight 0; the content of those is a hundred times
            larger than that of others, so that a leak shows. One example is always kept.
        ridge: whether to pull towards the anchor.
    """
    t, n, k = sizes.n + sizes.q, sizes.n, sizes.k
    present = rng.random((t, k)) < 0.8
    present[:, 0] = True  # a row has at least one passage
    pooling = present * rng.exponential(size=(t, k)) + 1e-3
    weights = rng.lognormal(sigma=1.0, size=n) * (rng.random(n) >= masked)
    weights[rng.integers(n)] = rng.uniform(0.5, 2.0)
    loud = np.where(weights > 0, 1.0, 100.0)
    loud_rows = np.concatenate([loud, np.ones(sizes.q)])
    d_in = sizes.d_question + sizes.d_value
    shape = sizes.interface_shape(interface)
    problem = Problem(
        questions=rng.normal(size=(t, sizes.d_question)) * loud_rows[:, None],
        passages=rng.normal(size=(t, k, sizes.d_value)),
        pooling=pooling / pooling.sum(axis=1, keepdims=True),
        projection=rng.normal(size=(sizes.d_projection, d_in)) / np.sqrt(d_in),
        keys=rng.normal(size=(t, k, sizes.d_key)),
        values=rng.normal(size=(t, k, sizes.m)) * present[:, :, None] / np.sqrt(k),
        targets=rng.normal(size=(n, sizes.m)) * loud[:, None],
        weights=weights,
        start=rng.normal(size=shape),
        anchor=rng.normal(size=shape),
        ridge=np.asarray(rng.uniform(0.05, 1.0) if ridge else 0.0),
        step_sizes=rng.uniform(0.3, 1.5, size=sizes.steps),
        curvatures=rng.uniform(0.1, 0.8, size=sizes.steps),
    )
    largest = curvature(problem, interface)
    problem = problem._replace(
        step_sizes=problem.step_sizes / largest, curvatures=problem.curvatures / largest
    )
    return Problem(*[np.float32(array).astype(np.float64) for array in problem])


def linearize(problem: Problem, interface: Interface) -> Linear:
    """Features and readouts of all rows: `z = P [question; pooled]`, `C = I`; `C = V^T K`."""
    features, readouts = [], []
    eye = np.eye(problem.targets.shape[1])
    for row, question in enumerate(problem.questions):
        pooled = problem.pooling[row] @ problem.passages[row]
        projected = problem.projection @ np.concatenate([question, pooled])
        attended = problem.values[row].T @ problem.keys[row]
        if interface == "projection":
            features.append(projected)
            readouts.append(eye)
        elif interface == "dot_product":
            features.append(question)
            readouts.append(attended)
        else:
            features.append(np.concatenate([projected, question]))
            readouts.append(np.concatenate([eye, attended], axis=1))
    return Linear(np.stack(features), np.stack(readouts))


def curvature(problem: Problem, interface: Interface) -> float:
    """The largest eigenvalue of the objective's Hessian in `vec(W)`."""
    z, c = linearize(problem, interface)
    total = problem.weights.sum()
    size = problem.start.size
    hessian = float(problem.ridge) * np.eye(size)
    for i, weight in enumerate(problem.weights):
        hessian += weight / total * np.kron(c[i].T @ c[i], np.outer(z[i], z[i]))
    return float(np.linalg.eigvalsh(hessian)[-1])


def gradient(
    problem: Problem, interface: Interface, w: Float[np.ndarray, "d_c d_z"]
) -> Float[np.ndarray, "d_c d_z"]:
    """The gradient of `1/(2 sum w) sum_i w_i |C_i W z_i - y_i|^2 + ridge/2 |W - anchor|^2`."""
    z, c = linearize(problem, interface)
    slope = float(problem.ridge) * (w - problem.anchor)
    total = problem.weights.sum()
    for i, weight in enumerate(problem.weights):
        residual = c[i] @ w @ z[i] - problem.targets[i]
        slope = slope + weight / total * np.outer(c[i].T @ residual, z[i])
    return slope


def descend(problem: Problem, interface: Interface, steps: int) -> Float[np.ndarray, "d_c d_z"]:
    """The interface after `steps` gradient steps; `both` moves its two diagonal blocks alone."""
    w = problem.start
    free = np.ones_like(w)
    if interface == "both":
        m, d_projection = problem.targets.shape[1], problem.projection.shape[0]
        free[:m, d_projection:] = 0
        free[m:, :d_projection] = 0
    for step_size in problem.step_sizes[:steps]:
        w = w - step_size * free * gradient(problem, interface, w)
    return w


def predict_queries(
    problem: Problem, interface: Interface, w: Float[np.ndarray, "d_c d_z"]
) -> Float[np.ndarray, "q m"]:
    """The queries' predictions `C_q W z_q`."""
    z, c = linearize(problem, interface)
    n = len(problem.weights)
    return np.stack([c[row] @ w @ z[row] for row in range(n, len(z))])


def gd_plus_plus(problem: Problem, steps: int) -> Float[np.ndarray, "q m"]:
    """The queries' predictions of GD++ on the projection interface, from `W = 0`.

    Residuals and features of every row are carried along; each step reads both as they were
    before it: `p <- p + eta sum_i w_i r_i (z_i . z)`, `z <- z - gamma sum_i w_i z_i (z_i . z)`.
    """
    z = linearize(problem, "projection").z
    share = problem.weights / problem.weights.sum()
    n = len(share)
    predictions = np.zeros((len(z), problem.targets.shape[1]))
    rates = zip(problem.step_sizes[:steps], problem.curvatures[:steps], strict=True)
    for step_size, curvature_rate in rates:
        residuals = problem.targets - predictions[:n]
        moved, bent = np.zeros_like(predictions), np.zeros_like(z)
        for i in range(n):
            overlap = z @ z[i]
            moved += share[i] * np.outer(overlap, residuals[i])
            bent += share[i] * np.outer(overlap, z[i])
        predictions, z = predictions + step_size * moved, z - curvature_rate * bent
    return predictions[n:]
