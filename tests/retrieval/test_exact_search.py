"""Exact search against NumPy: the same rows in the same order, however they are split up.

Where embeddings are small whole numbers every sum is exact, so ties are true ties.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.retrieval import exact_search


def brute_force(embeddings: np.ndarray, queries: np.ndarray, k: int):
    """Every inner product in float64, sorted, equal ones in the rows' order."""
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def place(embeddings: np.ndarray, precision="float32"):
    return exact_search.place(
        lambda start, end: embeddings[start:end], *embeddings.shape,
        mesh=exact_search.device_mesh(), precision=precision,
    )  # fmt: skip


def check_whole_numbers(count, block_scores, queries, k, batch, precision, seed):
    """Embeddings of few values, so that most scores have equals."""
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-1, 2, (count, 4)).astype(np.float32)
    asked = rng.integers(-2, 3, (queries, 4)).astype(np.float32)
    ids, scores = exact_search.search(
        place(embeddings, precision), asked, k, batch=batch, block_scores=block_scores
    )
    expected_ids, expected_scores = brute_force(embeddings, asked, k)
    kept = min(k, count)
    assert ids.shape == scores.shape == (queries, k)
    np.testing.assert_array_equal(ids[:, :kept], expected_ids)
    np.testing.assert_array_equal(scores[:, :kept], expected_scores)
    assert (ids[:, kept:] == -1).all() and (scores[:, kept:] == -np.inf).all()


# Few of each, as every new shape is a compilation: less than a block, blocks that are full and not,
# k above a block's rows, k with and without groups of scores left out.
@given(
    count=st.sampled_from([1, 128, 700]),
    block_scores=st.sampled_from([1, 4 * 256, 4 * 4096]),
    k=st.sampled_from([3, 140]),
    seed=st.integers(0, 10_000),
)
def test_equal_to_brute_force(count, block_scores, k, seed):
    check_whole_numbers(count, block_scores, 5, k, 4, "float32", seed)


def test_equal_to_brute_force_in_many_blocks_and_in_half_precision():
    check_whole_numbers(5000, 300, 1, 7, 4, "bfloat16", seed=0)


@pytest.mark.parametrize("block_scores", [64 * 300, 64 * 4096])
def test_equal_to_brute_force_on_the_sphere(block_scores):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(3000, 32)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    asked = embeddings[:70] + 0.1 * rng.normal(size=(70, 32)).astype(np.float32)
    ids, scores = exact_search.search(
        place(embeddings), asked, 20, batch=64, block_scores=block_scores
    )
    expected_ids, expected_scores = brute_force(embeddings, asked, 20)
    # No two of these are nearer to each other than rounding: the order has to be the same.
    assert np.diff(-expected_scores, axis=1).min() > 1e-7
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_groups_that_are_left_out_are_beaten():
    """The best of each group decides on ties across groups, the first group first."""
    rows = 5 * 128
    scores = np.zeros((1, rows), np.float32)
    scores[0, [130, 300, 301, 639]] = [1, 2, 2, 2]
    best, places = exact_search._top_k(jnp.asarray(scores), 4)
    np.testing.assert_array_equal(places, [[300, 301, 639, 130]])
    np.testing.assert_array_equal(best, [[2, 2, 2, 1]])
    _, places = exact_search._top_k(jnp.zeros((1, rows)), 3)
    np.testing.assert_array_equal(places, [[0, 1, 2]])


def test_half_precision_is_of_rounded_embeddings():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(200, 16)).astype(np.float32)
    placed = place(embeddings, "bfloat16")
    assert placed.shares.dtype == jnp.bfloat16
    asked = rng.normal(size=(3, 16)).astype(np.float32)
    ids, scores = exact_search.search(placed, asked, 5, batch=4, block_scores=2**20)
    asked, embeddings = (
        np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32)) for a in (asked, embeddings)
    )
    expected_ids, expected_scores = brute_force(embeddings, asked, 5)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_rows_are_read_in_parts(monkeypatch):
    """Every row is read once, in order, few at a time; what is left of a share is zero."""
    monkeypatch.setattr(exact_search, "_READ_ROWS", 100)
    embeddings = np.random.default_rng(2).normal(size=(250, 3)).astype(np.float32)
    seen = []

    def read(start, end):
        seen.append((start, end))
        return embeddings[start:end]

    placed = exact_search.place(read, 250, 3, mesh=exact_search.device_mesh(), precision="float32")
    assert max(end - start for start, end in seen) <= 100
    assert [row for start, end in seen for row in range(start, end)] == list(range(250))
    shares = np.asarray(placed.shares).reshape(-1, 3)
    np.testing.assert_array_equal(shares[:250], embeddings)
    assert (shares[250:] == 0).all()


def test_nothing_to_search():
    with pytest.raises(ValueError, match="there are no embeddings"):
        place(np.zeros((0, 4), np.float32))


SPREAD = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
import numpy as np
import test_exact_search as here
from icorag_jax.retrieval import exact_search

assert exact_search.device_mesh().size == 4
# The last devices may have nothing but padding, or one row.
for seed, (count, block_scores, k) in enumerate([(2, 8, 3), (1000, 256, 5), (385, 4096, 200)]):
    here.check_whole_numbers(count, block_scores, 3, k, 2, "float32", seed)
embeddings = np.ones((1000, 4), np.float32)
placed = here.place(embeddings)
shards = placed.shares.addressable_shards

events, put = [], jax.device_put
jax.device_put = lambda share, device: events.append("put") or put(share, device)
read = lambda start, end: events.append("read") or embeddings[start:end]
exact_search.place(read, 1000, 4, mesh=exact_search.device_mesh(), precision="float32")
assert events == ["read", "put"] * 4, events
print(len({shard.device for shard in shards}), {shard.data.shape for shard in shards})
"""


def test_spread_over_devices(tmp_path):
    """Four devices find what NumPy finds, and each holds a fourth of the rows."""
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), JAX_PLATFORMS="cpu")
    done = subprocess.run(
        [sys.executable, "-c", SPREAD],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4 {(1, 256, 4)}"
