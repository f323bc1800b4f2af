"""What is said of passages without their states, and the order of their numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from icorag_jax.rag.traits import TRAITS, first_number, order, passage_traits, without_numbers

SCORES = npst.arrays(np.float64, (3, 4), elements=st.floats(-1e3, 1e3, width=32))
COUNTS = st.lists(st.integers(0, 4), min_size=3, max_size=3)
NONE = np.full((3, 4), np.nan)
RETRIEVER, NUMBERS = slice(0, 2), slice(2, 4)


def present_of(counts):
    return np.arange(4) < np.asarray(counts)[:, None]


def standard(values):
    """In deviations from their mean, 0 where they are all the same."""
    centred = values - values.mean()
    if not np.ptp(values):
        return 0 * centred
    return centred / centred.std()


class TestFirstNumber:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Founded in 1834, it had 12 members.", 1834),
            ("It rises 3,421 m above 2 valleys", 3421),
            ("1,234,567.5 in all", 1234567.5),
            ("0.25", 0.25),
            ("pages 12,34 and 5", 12),
            ("1834,567", 1834),
            ("see B12", 12),
        ],
    )
    def test_is_the_first_that_stands_in_digits(self, text, expected):
        assert first_number(text) == expected

    @given(st.integers(0, 10**9))
    def test_reads_thousands_with_and_without_commas(self, number):
        assert first_number(f"about {number}.") == first_number(f"{number:,}, about") == number

    @pytest.mark.parametrize("text", ["", "two of three", "9" * 101, "9" * 400, "\u00b2\u00bd"])
    def test_is_nan_where_there_is_none(self, text):
        assert math.isnan(first_number(text))


class TestPassageTraits:
    def test_of_the_largest_numbers_are_finite(self):
        values = np.asarray([[first_number("9" * 100), -1.0, first_number("1" + "0" * 100)]])
        traits = passage_traits(np.zeros((1, 3)), values, np.ones((1, 3), bool))
        assert np.isfinite(traits).all() and traits[..., 3].all() and traits[..., 2].any()

    @given(SCORES, COUNTS)
    def test_are_standard_scores_and_reciprocal_ranks(self, scores, counts):
        traits = passage_traits(scores, NONE, present_of(counts))
        assert traits.dtype == np.float32 and traits.shape == (3, 4, TRAITS)
        assert not traits[..., NUMBERS].any()
        for row, count in enumerate(counts):
            known = scores[row, :count]
            found = traits[row, :count, 0]
            np.testing.assert_allclose(traits[row, :count, 1], 1 / np.arange(1, count + 1))
            assert not traits[row, count:].any()
            if count and np.ptp(known) > 1e-3 * np.abs(known).max():
                np.testing.assert_allclose(found, standard(known), atol=1e-5)
            elif not count or np.ptp(known) == 0:
                assert not found.any()

    @given(st.lists(st.integers(0, 3000) | st.none(), min_size=4, max_size=4), st.integers(0, 4))
    def test_numbers_are_against_those_of_passages_that_state_one(self, numbers, count):
        values = np.asarray([[math.nan if each is None else each for each in numbers]], np.float64)
        traits = passage_traits(np.zeros((1, 4)), values, np.arange(4)[None] < count)[0]
        known = np.asarray([n < count and each is not None for n, each in enumerate(numbers)])
        np.testing.assert_array_equal(traits[:, 3], known)
        assert not traits[~known, 2].any()
        if known.any():
            np.testing.assert_allclose(traits[known, 2], standard(values[0, known]), atol=1e-4)

    @given(SCORES, COUNTS, st.sampled_from([1e-8, 0.5, 1e6]))
    def test_do_not_change_with_the_scale(self, scores, counts, scale):
        present = present_of(counts)
        found = passage_traits(scale * scores, scale * scores, present)
        np.testing.assert_allclose(found, passage_traits(scores, scores, present), atol=1e-4)

    @given(SCORES, COUNTS, st.sampled_from([np.nan, np.inf, -np.inf, 7.0]))
    def test_do_not_see_what_stands_where_there_is_no_passage(self, scores, counts, noise):
        present = present_of(counts)
        noisy = np.where(present, scores, noise)
        found = passage_traits(noisy, noisy, present)
        np.testing.assert_array_equal(found, passage_traits(scores, scores, present))

    def test_equal_scores_and_numbers_say_nothing(self):
        for value in (0.1, 12.7, 1e9 + 1 / 3):
            values = np.full((1, 3), value)
            traits = passage_traits(values, values, np.ones((1, 3), bool))
            assert not traits[..., [0, 2]].any()


class TestOrder:
    @given(st.lists(st.integers(1, 40) | st.none(), min_size=4, max_size=4))
    def test_is_the_sign_of_the_difference_of_two_numbers(self, numbers):
        values = np.asarray([[math.nan if each is None else each for each in numbers]], np.float64)
        traits = jnp.asarray(passage_traits(np.zeros((1, 4)), values, np.ones((1, 4), bool)))
        found = np.asarray(jax.jit(order)(traits, traits))[0]
        for i, one in enumerate(numbers):
            for j, other in enumerate(numbers):
                expected = 0 if one is None or other is None else np.sign(other - one)
                assert found[i, j] == expected

    def test_of_passages_of_two_questions(self):
        one, other = (
            jnp.asarray([[[0, 0, number, 1.0] for number in numbers]])
            for numbers in ((-1.0, 1.0), (0.0, 0.5, 2.0))
        )
        expected = [[1, 1, 1], [-1, -1, 1]]
        np.testing.assert_array_equal(order(one, other)[0], expected)

    def test_without_numbers_there_is_none(self):
        traits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, TRAITS)), jnp.float32)
        bare = without_numbers(traits)
        assert not order(bare, bare).any()
        np.testing.assert_array_equal(bare[..., RETRIEVER], traits[..., RETRIEVER])
