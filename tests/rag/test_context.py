"""What the interface and its updater see, and the controls that show them something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from icorag_jax.rag.context import control_context, retriever_traits

SCORES = npst.arrays(np.float64, (3, 4), elements=st.floats(-1e3, 1e3, width=32))
COUNTS = st.lists(st.integers(0, 4), min_size=3, max_size=3)


def present_of(counts):
    return np.arange(4) < np.asarray(counts)[:, None]


class TestRetrieverTraits:
    @given(SCORES, COUNTS)
    def test_are_standard_scores_and_reciprocal_ranks(self, scores, counts):
        traits = retriever_traits(scores, present_of(counts))
        assert traits.dtype == np.float32 and traits.shape == (3, 4, 2)
        for row, count in enumerate(counts):
            known = scores[row, :count]
            found = traits[row, :count, 0]
            np.testing.assert_allclose(traits[row, :count, 1], 1 / np.arange(1, count + 1))
            assert not traits[row, count:].any()
            if count and np.ptp(known) > 1e-3 * np.abs(known).max():
                expected = (known - known.mean()) / known.std()
                np.testing.assert_allclose(found, expected, atol=1e-5)
            elif not count or np.ptp(known) == 0:
                assert not found.any()

    @given(SCORES, COUNTS, st.sampled_from([1e-8, 0.5, 1e6]))
    def test_do_not_change_with_the_scale_of_scores(self, scores, counts, scale):
        present = present_of(counts)
        found = retriever_traits(scale * scores, present)
        np.testing.assert_allclose(found, retriever_traits(scores, present), atol=1e-4)

    @given(SCORES, COUNTS, st.sampled_from([np.nan, np.inf, -np.inf, 7.0]))
    def test_do_not_see_what_stands_where_there_is_no_passage(self, scores, counts, noise):
        present = present_of(counts)
        found = retriever_traits(np.where(present, scores, noise), present)
        np.testing.assert_array_equal(found, retriever_traits(scores, present))

    def test_equal_scores_say_nothing(self):
        for score in (0.1, 12.7, 1e9 + 1 / 3):
            traits = retriever_traits(np.full((1, 3), score), np.ones((1, 3), bool))
            assert not traits[..., 0].any()


class TestControls:
    def test_shuffled_passages_are_those_of_the_question_before(self):
        kept = small.reading().context
        found = control_context(kept, "shuffled", None)
        for name in ("evidence_states", "passage_of", "traits", "present"):
            expected = np.asarray(getattr(kept, name))[[3, 0, 1, 2]]
            np.testing.assert_array_equal(getattr(found, name), expected)
        assert found.question_states is kept.question_states
        assert found.is_question is kept.is_question

    def test_empty_has_no_passage(self):
        kept = small.reading().context
        found = control_context(kept, "empty", None)
        assert not found.present.any() and not found.traits.any() and (found.passage_of == -1).all()
        assert found.question_states is kept.question_states

    @pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
    def test_random_states_are_as_large_as_those_of_the_evidence(self, dtype, limit):
        kept = small.reading(dtype).context
        found = control_context(kept, "random", jax.random.key(3))
        assert found.evidence_states.dtype == dtype
        noise = jax.random.normal(jax.random.key(3), kept.evidence_states.shape, dtype)
        states = np.asarray(kept.evidence_states, np.float64)
        expected = np.asarray(noise, np.float64) * np.sqrt((states**2).mean(-1, keepdims=True))
        np.testing.assert_allclose(
            np.asarray(found.evidence_states, np.float64), expected, rtol=limit, atol=limit
        )
        # No token is any other, nor one of the vocabulary.
        tokens = np.asarray(found.evidence_tokens)
        assert (tokens < 0).all() and len(set(tokens[0])) == tokens.shape[1]
        rest = {name: getattr(kept, name) for name in ("evidence_states", "evidence_tokens")}
        small.assert_trees_equal(found._replace(**rest), kept)

    def test_what_there_is_not(self):
        with pytest.raises(ValueError, match="the control random takes a key"):
            control_context(small.reading().context, "random", None)
