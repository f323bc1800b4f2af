import jaxtyping
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.lm.batches import bucket_length, pad_batch, power_of_two_buckets

ROWS = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=20), min_size=1, max_size=5)


@given(rows=ROWS, side=st.sampled_from(("left", "right")), data=st.data())
def test_rows_come_back(rows, side, data):
    starts = data.draw(
        st.none() | st.lists(st.integers(0, 40), min_size=len(rows), max_size=len(rows))
    )
    batch = pad_batch(models.SMALL, rows, buckets=(4, 12, 20), side=side, starts=starts)
    width = batch.tokens.shape[1]
    assert width == min(b for b in (4, 12, 20) if b >= max(map(len, rows)))
    for number, row in enumerate(rows):
        start = 0 if starts is None else starts[number]
        real = batch.positions[number] >= 0
        assert batch.tokens[number, real].tolist() == row
        assert batch.positions[number, real].tolist() == list(range(start, start + len(row)))
        at = np.flatnonzero(real)
        assert at[0] == (width - len(row) if side == "left" else 0) and at[-1] - at[0] < len(row)


def test_buckets():
    assert power_of_two_buckets(100) == (16, 32, 64, 100)
    assert power_of_two_buckets(8) == (8,)
    assert [bucket_length(n, (32, 8)) for n in (1, 8, 9, 32)] == [8, 8, 32, 32]
    with pytest.raises(ValueError, match="33 tokens, but the largest bucket holds 32"):
        bucket_length(33, (32, 8))
    with pytest.raises(ValueError, match="there are no buckets"):
        bucket_length(1, ())


def test_tokens_that_are_no_whole_numbers():
    """A caller without type checks gets an error as well."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="row 0 must hold token ids, found float64"):
            pad_batch(models.SMALL, [[0.5]], buckets=(4,), side="left", name="row")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_starts_below_zero():
    with pytest.raises(ValueError, match="starts must be at least 0, got -2"):
        pad_batch(models.SMALL, [[1]], buckets=(4,), side="left", starts=[-2])


def test_starts_of_other_rows():
    with pytest.raises(ValueError, match="1 rows of prompt, but 2 starts"):
        pad_batch(models.SMALL, [[1]], buckets=(4,), side="left", starts=[0, 0])
