"""The theorems of the exact regime: linear self-attention is gradient descent.

Expected values are gradient descent by definition, in NumPy (`experiments.support.reference`).
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from problems import (
    LIMITS,
    SIZES,
    assert_equal,
    cast,
    compiled,
    compute,
    descent,
    episode_of,
    problems,
    replace,
    scale_rows,
    seeds,
)

from experiments.support import reference, theorems
from experiments.support.reference import Problem
from icorag_jax.theory import closed_forms, constructions, objective
from icorag_jax.theory.attention import apply_layers
from icorag_jax.theory.objective import Block, Ridge

precisions = pytest.mark.parametrize("dtype", LIMITS)

# The constructions under test. Functions of the module, so that each is compiled once a shape.


def ridge_of(problem):
    return Ridge(problem.ridge, problem.anchor)


def blocks_of(problem):
    d_projection, d_question = problem.projection.shape[0], problem.questions.shape[-1]
    m, d_key = problem.targets.shape[-1], problem.keys.shape[-1]
    return [Block(m, d_projection), Block(d_key, d_question)]


def direct_once(problem, episode):
    return constructions.direct(problem.start, episode, problem.step_sizes[:1])


def direct(problem, episode):
    return constructions.direct(problem.start, episode, problem.step_sizes)


def direct_ridge(problem, episode):
    return constructions.direct(problem.start, episode, problem.step_sizes, ridge_of(problem))


def factored(problem, episode):
    return constructions.factored(problem.start, episode, problem.step_sizes[:1])


def factored_ridge(problem, episode):
    steps = problem.step_sizes[:1]
    return constructions.factored(problem.start, episode, steps, ridge_of(problem))


def factored_blocks(problem, episode):
    steps = problem.step_sizes[:1]
    return constructions.factored(problem.start, episode, steps, blocks=blocks_of(problem))


def factored_blocks_ridge(problem, episode):
    steps, ridge, blocks = problem.step_sizes[:1], ridge_of(problem), blocks_of(problem)
    return constructions.factored(problem.start, episode, steps, ridge, blocks)


def factored_with_gram(problem, episode):
    gram = episode.readouts[0].T @ episode.readouts[0]
    return constructions.factored(problem.start, episode, problem.step_sizes, gram=gram)


def factored_ridge_with_gram(problem, episode):
    gram, steps = episode.readouts[0].T @ episode.readouts[0], problem.step_sizes
    return constructions.factored(problem.start, episode, steps, ridge_of(problem), gram=gram)


def factored_blocks_with_gram(problem, episode):
    gram, blocks = episode.readouts[0].T @ episode.readouts[0], blocks_of(problem)
    return constructions.factored(
        problem.start, episode, problem.step_sizes, blocks=blocks, gram=gram
    )


def factored_with_mean_gram(problem, episode):
    gram = closed_forms.mean_gram(episode)
    return constructions.factored(problem.start, episode, problem.step_sizes, gram=gram)


def lifted_once(problem, episode):
    return constructions.lifted(problem.start, episode, problem.step_sizes[:1])


def lifted(problem, episode):
    return constructions.lifted(problem.start, episode, problem.step_sizes)


def lifted_ridge(problem, episode):
    return constructions.lifted(problem.start, episode, problem.step_sizes, ridge_of(problem))


def lifted_blocks(problem, episode):
    steps, blocks = problem.step_sizes, blocks_of(problem)
    return constructions.lifted(problem.start, episode, steps, blocks=blocks)


def lifted_blocks_ridge(problem, episode):
    steps, ridge, blocks = problem.step_sizes, ridge_of(problem), blocks_of(problem)
    return constructions.lifted(problem.start, episode, steps, ridge, blocks)


def gd_plus_plus(problem, episode):
    m, d_z = problem.start.shape
    layers = constructions.gd_plus_plus_layers(m, d_z, problem.step_sizes, problem.curvatures)
    queries = apply_layers(layers, constructions.direct_tokens(episode))
    # The y slot gathers residuals of queries that start at target 0.
    return -queries[:, d_z:]


@functools.cache
def split_heads(heads):
    def solve(problem, episode):
        layers = constructions.split_heads_layers(problem.start, problem.step_sizes, heads)
        queries = apply_layers(layers, constructions.direct_tokens(episode))
        return constructions.direct_readout(problem.start, episode, queries)

    return solve


# One for each construction and interface: what computes it, for which interface, how many steps.
WEIGHTED = {
    "direct": (direct, "projection", None),
    "factored": (factored, "dot_product", 1),
    "lifted": (lifted, "dot_product", None),
    "blocks": (factored_blocks, "both", 1),
    "lifted_blocks": (lifted_blocks, "both", None),
}
every_construction = pytest.mark.parametrize(
    ("solve", "interface", "steps"), WEIGHTED.values(), ids=WEIGHTED
)


# One step ----------------------------------------------------------------------------------------


@precisions
@given(problem=problems("projection"))
def test_projection_direct(problem, dtype):
    found = compute(direct_once, problem, "projection", dtype)
    assert_equal(found, descent(problem, "projection", 1), dtype)


@precisions
@given(problem=problems("projection"))
def test_projection_factored(problem, dtype):
    found = compute(factored, problem, "projection", dtype)
    assert_equal(found, descent(problem, "projection", 1), dtype)


@precisions
@given(problem=problems("dot_product"))
def test_dot_product_factored(problem, dtype):
    found = compute(factored, problem, "dot_product", dtype)
    assert_equal(found, descent(problem, "dot_product", 1), dtype)


@precisions
@given(problem=problems("dot_product"))
def test_dot_product_lifted(problem, dtype):
    found = compute(lifted_once, problem, "dot_product", dtype)
    assert_equal(found, descent(problem, "dot_product", 1), dtype)


@precisions
@given(problem=problems("both"))
def test_both_block_heads(problem, dtype):
    """One head a block: the reference moves the two diagonal blocks alone."""
    found = compute(factored_blocks, problem, "both", dtype)
    assert_equal(found, descent(problem, "both", 1), dtype)


# Weights and masks -------------------------------------------------------------------------------


@precisions
@every_construction
def test_weighted_masked(solve, interface, steps, dtype):
    @given(problem=problems(interface, masked=True))
    def check(problem):
        assert_equal(
            compute(solve, problem, interface, dtype), descent(problem, interface, steps), dtype
        )

    check()


@precisions
@every_construction
def test_masked_examples_never_matter(solve, interface, steps, dtype):
    """Not by a bit, though a factored payload grows with the fifth power of the content."""
    huge = {"float32": 1e6, "float64": 1e40}[dtype]

    @settings(max_examples=10)
    @given(problem=problems(interface, masked=True))
    def check(problem):
        rows = np.concatenate([problem.weights == 0, np.zeros(len(problem.questions), bool)])
        other = scale_rows(problem, rows, huge)
        np.testing.assert_array_equal(
            compute(solve, other, interface, dtype), compute(solve, problem, interface, dtype)
        )

    check()


@precisions
@every_construction
def test_scale_of_weights_never_matters(solve, interface, steps, dtype):
    @settings(max_examples=10)
    @given(problem=problems(interface, masked=True))
    def check(problem):
        expected = descent(problem, interface, steps)
        for factor in (1e-6, 37.0):
            other = problem._replace(weights=factor * problem.weights)
            assert_equal(compute(solve, other, interface, dtype), expected, dtype)

    check()


# Ridge -------------------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize(
    ("solve", "interface", "steps"),
    [
        (direct_ridge, "projection", None),
        (factored_ridge, "dot_product", 1),
        (lifted_ridge, "dot_product", None),
        (factored_blocks_ridge, "both", 1),
        (lifted_blocks_ridge, "both", None),
    ],
    ids=WEIGHTED,
)
def test_ridge_prior_tokens(solve, interface, steps, dtype):
    """With masks: the strength of the pull must not depend on how many examples are left."""

    @given(problem=problems(interface, ridge=True, masked=True, sizes=SIZES[:1]))
    def check(problem):
        assert_equal(
            compute(solve, problem, interface, dtype), descent(problem, interface, steps), dtype
        )

    check()


# Several steps -----------------------------------------------------------------------------------


@precisions
@given(problem=problems("projection"))
def test_multi_step_direct(problem, dtype):
    assert_equal(
        compute(direct, problem, "projection", dtype), descent(problem, "projection"), dtype
    )


@precisions
@pytest.mark.parametrize(("solve", "interface"), [(lifted, "dot_product"), (lifted_blocks, "both")])
def test_multi_step_lifted(solve, interface, dtype):
    """On both interfaces at once, the start is not block-diagonal: off the blocks it must stay."""

    @given(problem=problems(interface))
    def check(problem):
        found = compute(solve, problem, interface, dtype)
        assert_equal(found, descent(problem, interface), dtype)

    check()


@precisions
@given(problem=problems("projection", masked=True))
def test_gd_plus_plus(problem, dtype):
    found = compute(gd_plus_plus, problem, "projection", dtype)
    assert_equal(found, reference.gd_plus_plus(problem, len(problem.step_sizes)), dtype)


@pytest.mark.parametrize("heads", [1, 4, 6])  # 6 features: one head, an uneven deal, one each
@precisions
def test_split_heads_are_one_head(heads, dtype):
    @settings(max_examples=10)
    @given(problem=problems("projection", sizes=SIZES[:1]))
    def check(problem):
        found = compute(split_heads(heads), problem, "projection", dtype)
        assert_equal(found, descent(problem, "projection"), dtype)

    check()


def test_split_heads_deal_out_the_features():
    split = functools.partial(constructions.split_heads_layers, heads=3)
    layers = compiled(split)(np.ones((2, 7), np.float32), np.ones(2, np.float32))
    for layer in layers:
        chex.assert_shape([layer.query, layer.key], (3, 7, 9))
        reads = np.abs(layer.key).sum(axis=1)[:, :7]
        np.testing.assert_array_equal(reads.sum(axis=0), np.ones(7))  # each feature in one head
        np.testing.assert_array_equal(reads.sum(axis=1), [3, 2, 2])


@pytest.mark.parametrize("heads", [-1, 0, 8])
def test_split_heads_must_have_a_feature_each(heads):
    with pytest.raises(ValueError, match=f"number of features 7, got {heads}"):
        constructions.split_heads_layers(jnp.ones((2, 7)), jnp.ones(2), heads)


def share_gram(problem, interface):
    """The problem with one Gram matrix for all context examples; queries keep their readouts."""
    n, m = problem.targets.shape
    keys, values = problem.keys.copy(), problem.values.copy()
    keys[:n] = keys[0]
    values[:n] = values[0]
    if interface == "dot_product":
        # Readouts that differ by a rotation of the outputs: C_i = Q_i V_0^T K_0. (With both
        # interfaces the identity beside them rules that out.)
        rotations = np.linalg.qr(problem.targets[:, :, None] + np.eye(m))[0]
        values[:n] = np.einsum("kp,nmp->nkm", values[0], rotations)
    return replace(problem, interface, keys=keys, values=values)


@precisions
@pytest.mark.parametrize(
    ("solve", "interface"),
    [
        (factored_with_gram, "projection"),
        (factored_ridge_with_gram, "projection"),  # prior tokens have Gram matrix I as well
        (factored_with_gram, "dot_product"),
        (factored_blocks_with_gram, "both"),
    ],
    ids=["projection", "projection_ridge", "dot_product", "both"],
)
def test_factored_multi_step_exact_with_shared_gram(solve, interface, dtype):
    ridge = solve is factored_ridge_with_gram

    @given(problem=problems(interface, ridge=ridge, sizes=SIZES[:1]))
    def check(problem):
        problem = share_gram(problem, interface)
        assert_equal(compute(solve, problem, interface, dtype), descent(problem, interface), dtype)

    check()


@settings(max_examples=10)
@given(seed=seeds())
def test_factored_multi_step_inexact_without_shared_gram(seed):
    """The condition of the theorem above is needed, so that theorem says something."""
    rng = np.random.default_rng(seed)
    problem = reference.draw_problem(rng, SIZES[0], "dot_product", masked=0, ridge=False)
    found = compute(factored_with_mean_gram, problem, "dot_product", "float64")
    assert theorems.relative_error(found, descent(problem, "dot_product")) > 1e-4


def test_factored_multi_step_needs_gram():
    blocks = [Block(2, 3)]
    make = functools.partial(
        jax.eval_shape, functools.partial(constructions.factored_layers, blocks)
    )
    assert len(make(np.ones(1, np.float32))) == 1
    assert len(make(np.ones(2, np.float32), np.eye(2, dtype=np.float32))) == 2
    with pytest.raises(ValueError, match="Gram matrix"):
        constructions.factored_layers(blocks, jnp.ones(2))


# What layers and queries may see -----------------------------------------------------------------


def make_layers(kind, problem):
    """The layers of a construction, from the start and the step sizes alone."""
    start, rates = problem.start, problem.step_sizes
    if kind == "direct":
        return constructions.direct_layers(start, rates)
    if kind.startswith("lifted"):
        mask = objective.block_mask(blocks_of(problem), start.dtype)
        mask = mask if kind == "lifted_blocks" else None
        return constructions.lifted_layers(start, rates, problem.targets.shape[-1], mask)
    blocks = blocks_of(problem) if kind == "blocks" else [Block(*start.shape)]
    return constructions.factored_layers(blocks, rates[:1])


def apply_to_episode(kind, layers, start, episode):
    """What given layers predict for the queries of any episode."""
    if kind == "direct":
        queries = apply_layers(layers, constructions.direct_tokens(episode))
        return constructions.direct_readout(start, episode, queries)
    if kind.startswith("lifted"):
        lift = constructions.lift(episode)
        queries = apply_layers(layers, constructions.direct_tokens(lift))
        flat = constructions.direct_readout(start.reshape(1, -1), lift, queries)
        return flat.reshape(episode.query_targets.shape)
    queries = apply_layers(layers, constructions.factored_tokens(start, episode))
    return constructions.factored_readout(start, episode, queries)


@pytest.mark.parametrize(("kind", "case"), WEIGHTED.items(), ids=WEIGHTED)
def test_layers_do_not_depend_on_the_episode(kind, case):
    """Layers made once, when the first episode is not yet there, serve every episode."""
    _, interface, steps = case
    rng = np.random.default_rng(0)
    drawn = [
        reference.draw_problem(rng, SIZES[0], interface, masked=0.3, ridge=False) for _ in range(6)
    ]
    # What layers may know; they are made where all else is NaN.
    known = {"start": drawn[0].start, "step_sizes": drawn[0].step_sizes}
    blank = Problem(*[np.full_like(array, np.nan) for array in drawn[0]])._replace(**known)
    with jax.enable_x64(True):
        layers = compiled(functools.partial(make_layers, kind))(blank)
        apply = compiled(functools.partial(apply_to_episode, kind))
        for problem in drawn:
            problem = problem._replace(**known)
            found = np.asarray(apply(layers, problem.start, episode_of(problem, interface)))
            assert_equal(found, descent(problem, interface, steps), "float64")


@precisions
@every_construction
def test_queries_do_not_see_each_other(solve, interface, steps, dtype):
    @settings(max_examples=10)
    @given(problem=problems(interface))
    def check(problem):
        n = len(problem.weights)
        alone = np.arange(len(problem.questions)) > n  # all queries but the first
        other = scale_rows(problem, alone, -1e3)
        expected = descent(problem, interface, steps)
        found = compute(solve, other, interface, dtype)
        # On the scale of the episode: the first prediction alone may happen to be tiny.
        error = np.max(np.abs(found[0] - expected[0])) / np.max(np.abs(expected))
        assert error <= LIMITS[dtype]
        assert_equal(found[1:], descent(other, interface, steps)[1:], dtype)

    check()


# Tokens ------------------------------------------------------------------------------------------


def all_tokens(problem, episode):
    return (
        constructions.factored_tokens(problem.start, episode),
        constructions.factored_tokens(problem.start, episode, ridge_of(problem)),
        constructions.direct_tokens(constructions.lift(episode)),
    )


def test_tokens_have_the_documented_sizes():
    sizes = SIZES[0]
    rng = np.random.default_rng(0)
    problem = reference.draw_problem(rng, sizes, "dot_product", masked=0.5, ridge=True)
    inputs = cast((problem, episode_of(problem, "dot_product")), "float32")
    factored, prior, lifted = compiled(all_tokens)(*inputs)
    n, q, m, (d_c, d_z) = sizes.n, sizes.q, sizes.m, problem.start.shape

    size = d_z + 2 * d_c
    chex.assert_shape([factored.context, factored.queries], [(n, size), (q, size)])
    np.testing.assert_array_equal(factored.present, problem.weights > 0)
    assert not factored.present.all()

    chex.assert_shape([prior.context, prior.queries], [(n + d_z, size), (q, size)])
    assert np.asarray(prior.present)[n:].all()
    np.testing.assert_array_equal(np.asarray(prior.context)[:n], factored.context)

    size = d_c * d_z + 1
    chex.assert_shape([lifted.context, lifted.queries], [(n * m, size), (q * m, size)])
    np.testing.assert_array_equal(np.asarray(lifted.queries)[:, -1], np.zeros(q * m))


@settings(max_examples=10)
@given(problem=problems("dot_product", masked=True, sizes=SIZES[:1]))
def test_lift_divides_the_loss_by_the_outputs(problem):
    z, c = reference.linearize(problem, "dot_product")
    total = 0.0
    for i, weight in enumerate(problem.weights):
        total += weight * np.sum((c[i] @ problem.start @ z[i] - problem.targets[i]) ** 2)
    expected = total / (2 * problem.weights.sum())
    found = compute(lifted_loss, problem, "dot_product", "float64")
    np.testing.assert_allclose(found * problem.targets.shape[1], expected, rtol=1e-10)


def lifted_loss(problem, episode):
    return objective.loss(problem.start.reshape(1, -1), constructions.lift(episode))


# With and without compilation --------------------------------------------------------------------


class VariantsTest(chex.TestCase):
    """The same predictions compiled and run operation by operation."""

    # One output, so that the three share operations, each of which is compiled.
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(
        ("direct", direct_once), ("factored", factored), ("lifted", lifted_once)
    )
    def test_jit_changes_nothing(self, solve):
        rng = np.random.default_rng(0)
        problem = reference.draw_problem(rng, SIZES[1], "projection", masked=0.3, ridge=False)
        inputs = cast((problem, episode_of(problem, "projection")), "float32")
        found = self.variant(solve)(*jax.tree.map(jnp.asarray, inputs))
        chex.assert_type(found, jnp.float32)
        assert_equal(np.asarray(found), descent(problem, "projection", 1), "float32")
