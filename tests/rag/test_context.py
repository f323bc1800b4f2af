"""What the interface and its updater see, and the controls that show them something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from icorag_jax.rag.context import control_context


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
        kept = kept._replace(traits=kept.traits + 1)  # and a number
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
        assert kept.traits[..., 2:].all() and not found.traits[..., 2:].any()
        np.testing.assert_array_equal(found.traits[..., :2], kept.traits[..., :2])
        changed = ("evidence_states", "evidence_tokens", "traits")
        rest = {name: getattr(kept, name) for name in changed}
        small.assert_trees_equal(found._replace(**rest), kept)

    def test_what_there_is_not(self):
        with pytest.raises(ValueError, match="the control random takes a key"):
            control_context(small.reading().context, "random", None)
