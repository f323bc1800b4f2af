"""Readings on the host: some of them, joined, and drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from icorag_jax.rag import readings
from icorag_jax.rag.readings import Pool


def test_some_readings_of_all():
    whole = jax.device_get(small.reading(jnp.bfloat16))
    found = readings.take_readings(whole, np.asarray([2, 0, 2]))
    small.assert_trees_equal(
        found.context, jax.tree.map(lambda leaf: leaf[[2, 0, 2]], whole.context)
    )
    for name in ("tokens", "positions", "is_answer"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[[2, 0, 2]])
    for name, axis in (("keys", 1), ("values", 1), ("positions", 0), ("passages", 0)):
        one, every = getattr(found.evidence, name), getattr(whole.evidence, name)
        for place, row in enumerate((2, 0, 2)):
            np.testing.assert_array_equal(
                one.take(place, axis=axis).astype(np.float32),
                every.take(row, axis=axis).astype(np.float32),
            )


def test_readings_are_joined_one_after_the_other():
    whole = jax.device_get(small.reading())
    parts = [readings.take_readings(whole, np.asarray(rows)) for rows in ([0], [1, 2], [3])]
    joined = readings.join_readings(iter(parts), 4)
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole.evidence[:2])
    small.assert_trees_equal(joined.evidence[:2], halved)
    states = whole.context.evidence_states.astype(jnp.bfloat16)
    context = whole.context._replace(evidence_states=states)
    rest = whole._replace(evidence=whole.evidence[2:], context=context)
    small.assert_trees_equal(joined._replace(evidence=joined.evidence[2:]), rest)
    taken = readings.take_readings(joined, np.arange(4))
    assert taken.evidence.values.dtype == whole.evidence.values.dtype
    assert taken.context.evidence_states.dtype == whole.context.evidence_states.dtype
    for count, message in ((3, "there are more than 3 questions"), (5, "are 4 questions, not 5")):
        with pytest.raises(ValueError, match=message):
            readings.join_readings(parts, count)


def test_a_pool_is_drawn_from_without_repeats():
    whole = jax.device_get(small.reading())
    # Questions by their tokens, all of which differ.
    number = {tuple(row): index for index, row in enumerate(whole.tokens.tolist())}
    assert len(number) == 4

    def drawn(pool, size, seed):
        return [number[tuple(row)] for row in pool.pick(size, (0, seed)).tokens.tolist()]

    every = [drawn(Pool(whole), 3, seed) for seed in range(20)]
    assert all(len(set(some)) == 3 for some in every) and len(set(map(tuple, every))) > 9
    assert drawn(Pool(whole), 3, 1) == every[1]
    some = Pool(whole, np.asarray([1, 3]))
    assert all(set(drawn(some, 1, seed)) <= {1, 3} for seed in range(20))
    assert sorted(drawn(some, 9, 0)) == [1, 3]
