"""The objective, its gradient and gradient descent, against NumPy and autodiff."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from problems import (
    INTERFACES,
    LIMITS,
    SIZES,
    assert_equal,
    cast,
    compiled,
    compute,
    descent,
    episode_of,
    problems,
)

from experiments.support import reference
from icorag_jax.theory import objective
from icorag_jax.theory.objective import Block, Ridge

precisions = pytest.mark.parametrize("dtype", LIMITS)
interfaces = pytest.mark.parametrize("interface", INTERFACES)


def numpy_loss(problem, interface, ridge):
    z, c = reference.linearize(problem, interface)
    total = 0.0
    for i, weight in enumerate(problem.weights):
        residual = c[i] @ problem.start @ z[i] - problem.targets[i]
        total += weight * np.sum(residual**2)
    return total / (2 * problem.weights.sum()) + ridge / 2 * np.sum(
        (problem.start - problem.anchor) ** 2
    )


def numpy_payloads(problem, interface):
    z, c = reference.linearize(problem, interface)
    return np.stack(
        [c[i].T @ (y - c[i] @ problem.start @ z[i]) for i, y in enumerate(problem.targets)]
    )


# The functions under test, of the module so that each is compiled once a shape.


def ridge_of(problem):
    return Ridge(problem.ridge, problem.anchor)


def everything(problem, episode):
    """All that needs no step, for one compilation; of a pair, the first is without ridge."""
    start, ridge = problem.start, ridge_of(problem)
    return {
        "losses": (objective.loss(start, episode), objective.loss(start, episode, ridge)),
        "gradients": (
            objective.gradient(start, episode),
            objective.gradient(start, episode, ridge),
        ),
        "autodiff": (
            jax.grad(objective.loss)(start, episode),
            jax.grad(objective.loss)(start, episode, ridge),
        ),
        "payloads": objective.payloads(start, episode),
        "predictions": objective.predict_queries(start, episode),
    }


def descend(problem, episode):
    return objective.gradient_descent(problem.start, episode, problem.step_sizes)


def descend_ridge(problem, episode):
    return objective.gradient_descent(problem.start, episode, problem.step_sizes, ridge_of(problem))


def descend_blocks(problem, episode):
    d_projection, d_question = problem.projection.shape[0], problem.questions.shape[-1]
    m, d_key = problem.targets.shape[-1], problem.keys.shape[-1]
    blocks = [Block(m, d_projection), Block(d_key, d_question)]
    mask = objective.block_mask(blocks, problem.start.dtype)
    steps, ridge = problem.step_sizes, ridge_of(problem)
    return objective.gradient_descent(problem.start, episode, steps, ridge, mask)


def gd_plus_plus(problem, episode):
    found = objective.gd_plus_plus(episode, problem.step_sizes, problem.curvatures)
    return objective.predict_queries(found, episode)


# The objective -----------------------------------------------------------------------------------


@precisions
@interfaces
def test_predictions_match_numpy(interface, dtype):
    @given(problem=problems(interface))
    def check(problem):
        expected = reference.predict_queries(problem, interface, problem.start)
        assert_equal(compute(everything, problem, interface, dtype)["predictions"], expected, dtype)

    check()


@precisions
@interfaces
def test_loss_matches_numpy(interface, dtype):
    @given(problem=problems(interface, ridge=True, masked=True))
    def check(problem):
        expected = [numpy_loss(problem, interface, ridge) for ridge in (0.0, problem.ridge)]
        found = compute(everything, problem, interface, dtype)["losses"]
        np.testing.assert_allclose(found, expected, rtol=LIMITS[dtype])

    check()


@precisions
@interfaces
def test_payloads_match_numpy(interface, dtype):
    """Before the weight, which does not enter: those of masked examples are there too."""

    @given(problem=problems(interface, masked=True))
    def check(problem):
        expected = numpy_payloads(problem, interface)
        assert_equal(compute(everything, problem, interface, dtype)["payloads"], expected, dtype)

    check()


@precisions
@interfaces
def test_gradient_equals_autodiff(interface, dtype):
    @given(problem=problems(interface, ridge=True, masked=True))
    def check(problem):
        found = compute(everything, problem, interface, dtype)
        for written, derived in zip(found["gradients"], found["autodiff"], strict=True):
            assert_equal(written, derived, dtype)

    check()


@precisions
@interfaces
def test_gradient_matches_numpy(interface, dtype):
    @given(problem=problems(interface, ridge=True, masked=True))
    def check(problem):
        plain, ridge = compute(everything, problem, interface, dtype)["gradients"]
        without = problem._replace(ridge=np.zeros(()))
        assert_equal(plain, reference.gradient(without, interface, problem.start), dtype)
        assert_equal(ridge, reference.gradient(problem, interface, problem.start), dtype)

    check()


# Gradient descent --------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize(
    ("solve", "interface", "ridge"),
    [
        (descend, "projection", False),
        (descend_ridge, "dot_product", True),
        (descend_blocks, "both", True),
    ],
    ids=["plain", "ridge", "mask"],
)
def test_gradient_descent_is_repeated_steps(solve, interface, ridge, dtype):
    @given(problem=problems(interface, ridge=ridge, masked=True, sizes=SIZES[:1]))
    def check(problem):
        expected = reference.descend(problem, interface, len(problem.step_sizes))
        assert_equal(compute(solve, problem, interface, dtype), expected, dtype)

    check()


def test_gradient_descent_of_no_steps_stays():
    rng = np.random.default_rng(0)
    problem = reference.draw_problem(rng, SIZES[0], "projection", masked=0, ridge=False)
    problem = problem._replace(step_sizes=np.zeros(0))
    found = compute(descend, problem, "projection", "float32")
    np.testing.assert_array_equal(found, problem.start)


@given(problem=problems("both", ridge=True, masked=True, sizes=SIZES[:1]))
def test_block_mask_keeps_off_diagonal(problem):
    """To the bit, though ridge pulls at every entry; the blocks themselves do move."""
    found = compute(descend_blocks, problem, "both", "float64")
    m, d_projection = problem.targets.shape[1], problem.projection.shape[0]
    np.testing.assert_array_equal(found[:m, d_projection:], problem.start[:m, d_projection:])
    np.testing.assert_array_equal(found[m:, :d_projection], problem.start[m:, :d_projection])
    assert np.all(found[:m, :d_projection] != problem.start[:m, :d_projection])
    assert np.all(found[m:, d_projection:] != problem.start[m:, d_projection:])


def test_block_mask_is_block_diagonal():
    found = objective.block_mask([Block(1, 2), Block(2, 1), Block(1, 1)], jnp.float32)
    expected = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    chex.assert_type(found, jnp.float32)
    np.testing.assert_array_equal(found, expected)


# GD++ --------------------------------------------------------------------------------------------


@precisions
@given(problem=problems("projection", masked=True))
def test_gd_plus_plus_with_zero_curvature_is_gd(problem, dtype):
    problem = problem._replace(
        curvatures=np.zeros_like(problem.curvatures), start=np.zeros_like(problem.start)
    )
    found = compute(gd_plus_plus, problem, "projection", dtype)
    assert_equal(found, descent(problem, "projection"), dtype)


@precisions
@given(problem=problems("projection", masked=True))
def test_gd_plus_plus_matches_numpy(problem, dtype):
    found = compute(gd_plus_plus, problem, "projection", dtype)
    assert_equal(found, reference.gd_plus_plus(problem, len(problem.step_sizes)), dtype)


# Batches and compilation -------------------------------------------------------------------------


def test_vmap_is_a_loop_over_episodes():
    rng = np.random.default_rng(0)
    drawn = [
        reference.draw_problem(rng, SIZES[0], "projection", masked=0.3, ridge=False)
        for _ in range(3)
    ]
    pairs = [(problem, episode_of(problem, "projection")) for problem in drawn]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *pairs)
    with jax.enable_x64(True):
        found = compiled(jax.vmap(descend))(*batch)
    expected = np.stack([reference.descend(each, "projection", SIZES[0].steps) for each in drawn])
    assert_equal(np.asarray(found), expected, "float64")


class VariantsTest(chex.TestCase):
    """The same gradient compiled and run operation by operation."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(("plain", False), ("ridge", True))
    def test_jit_changes_nothing(self, with_ridge):
        rng = np.random.default_rng(0)
        problem = reference.draw_problem(rng, SIZES[1], "dot_product", masked=0.3, ridge=with_ridge)
        inputs = cast((problem, episode_of(problem, "dot_product")), "float32")
        numbers, episode = jax.tree.map(jnp.asarray, inputs)
        ridge = ridge_of(numbers) if with_ridge else None
        found = self.variant(objective.gradient)(numbers.start, episode, ridge)
        chex.assert_type(found, jnp.float32)
        expected = reference.gradient(problem, "dot_product", problem.start)
        assert_equal(np.asarray(found), expected, "float32")
