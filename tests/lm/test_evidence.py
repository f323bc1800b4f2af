import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.lm import attention, decoder, evidence, evidence_attention, generation
from icorag_jax.lm.batches import pad_batch
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit

CONFIG, PARAMETERS = models.SMALL, models.parameters()
LAYER = 1  # the first that is edited
EVIDENCE = models.rows([20, 14], seed=1)
SPANS = [[(4, 9), (9, 17)], [(3, 6), (6, 8)]]
QUESTIONS = models.rows([5, 7], seed=2)


def prefill(side="left", config=CONFIG, parameters=PARAMETERS, buckets=(24,)):
    return evidence.prefill_evidence(
        config, parameters, EVIDENCE, SPANS, buckets=buckets, side=side
    )


def question_pass(kept, edit=None, config=CONFIG, parameters=PARAMETERS, chunk=None):
    """Logits of the questions' real rows, and their features."""
    starts = [len(row) for row in EVIDENCE]
    batch = pad_batch(config, QUESTIONS, buckets=(8,), side="right", starts=starts)
    output = decoder.forward(
        config, parameters, jnp.asarray(batch.tokens), jnp.asarray(batch.positions),
        decoder.empty_cache(config, 2, 8, kept.keys.dtype), kept, edit,
        interface_layer=LAYER, chunk=chunk,
    )  # fmt: skip
    found = decoder.logits(config, parameters, output.states)
    return [row[: len(question)] for row, question in zip(found, QUESTIONS, strict=True)], output


def random_edit(seed=0, passages=2, rank=3, scale=1.0, batch=2, rows=24):
    rng = np.random.default_rng(seed)
    like = evidence.zero_edit(
        CONFIG, batch, passages, rank, rows=rows, interface_layer=LAYER, dtype=jnp.float32
    )
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), like
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("windows", [(None, None, None), (None, 6, 9)])
@pytest.mark.parametrize("chunk", [None, 4])
def test_evidence_and_question_apart_are_one_text(side, windows, chunk):
    """Logits and features are those of one pass over evidence and question."""
    config = models.small(windows=windows)
    kept = prefill(side, config)
    np.testing.assert_array_equal(evidence.evidence_lengths(kept), [20, 14])
    found, output = question_pass(kept, config=config, chunk=chunk)
    for row, (kept, question) in enumerate(zip(EVIDENCE, QUESTIONS, strict=True)):
        text = jnp.asarray([kept + question], jnp.int32)
        whole = decoder.forward(
            config, PARAMETERS, text, jnp.arange(text.shape[1], dtype=jnp.int32)[None],
            decoder.empty_cache(config, 1, text.shape[1], jnp.float32), interface_layer=LAYER,
        )  # fmt: skip
        expected = decoder.logits(config, PARAMETERS, whole.states)[0, len(kept) :]
        np.testing.assert_allclose(found[row], expected, atol=2e-5, rtol=1e-5)
        features = whole.features[0, len(kept) :]
        np.testing.assert_allclose(
            output.features[row, : len(question)], features, atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("chunk", [None, 8])
def test_no_edit_and_the_zero_edit_are_the_same_bits(dtype, chunk):
    parameters = models.parameters(dtype=dtype)
    kept = prefill(parameters=parameters)
    zero = evidence.zero_edit(CONFIG, 2, 2, 3, rows=24, interface_layer=LAYER, dtype=dtype)
    run = jax.jit(lambda edit: question_pass(kept, edit, parameters=parameters, chunk=chunk)[1])
    plain, edited = np.asarray(run(None).states), np.asarray(run(zero).states)
    assert np.isfinite(plain.astype(np.float32)).all()
    assert plain.tobytes() == edited.tobytes()


def test_an_edit_acts_on_its_layers_alone():
    edit = random_edit()
    plain, edited = question_pass(prefill())[1], question_pass(prefill(), edit)[1]
    np.testing.assert_array_equal(plain.features, edited.features)
    assert np.abs(np.asarray(plain.states - edited.states)).max() > 0.1


@given(
    seed=st.integers(0, 2**31), window=st.sampled_from((None, 5)), chunk=st.sampled_from((3, 12)),
    by_passage=st.booleans(), by_head=st.booleans(),
)  # fmt: skip
def test_attention_is_that_of_numpy(seed, window, chunk, by_passage, by_head):
    """Softmax over evidence and own rows, logits biased by passage, values `v + v A B`."""
    rng = np.random.default_rng(seed)
    batch, tokens, slots, rows, heads, kv_heads, d, passages, rank = 2, 3, 4, 12, 6, 2, 5, 3, 2
    query = rng.normal(size=(batch, tokens, heads, d))
    own = rng.normal(size=(2, batch, slots, kv_heads, d))
    kept = rng.normal(size=(2, 2, batch, rows, kv_heads, d))
    positions = np.stack([rng.permutation(rows) for _ in range(batch)])
    positions[0, positions[0] < 2] = -1
    belongs = rng.integers(-1, passages, (batch, rows))
    bias = rng.normal(size=(batch, heads, passages))
    token_bias = rng.normal(size=(batch, heads if by_head else 1, rows))
    down = rng.normal(size=(batch, kv_heads * d, rank))
    up = rng.normal(size=(batch, rank, kv_heads * d))
    own_positions = rows + np.arange(slots) - 1
    query_positions = rows + np.arange(tokens)
    reach = np.inf if window is None else window

    expected = np.zeros_like(query)
    for b in range(batch):
        values = kept[1, 1, b].reshape(rows, -1)
        edited = values + np.where(belongs[b][:, None] >= 0, values @ down[b] @ up[b], 0)
        edited = edited.reshape(rows, kv_heads, d)
        for t, at in enumerate(query_positions):
            for h in range(heads):
                k = h // (heads // kv_heads)
                logits = np.concatenate([kept[0, 1, b, :, k], own[0, b, :, k]]) @ query[b, t, h]
                logits /= np.sqrt(d)
                added = token_bias[b, h if by_head else 0]
                if by_passage:
                    added = added + bias[b, h][belongs[b]]
                logits[:rows] += np.where(belongs[b] >= 0, added, 0)
                where = np.concatenate([positions[b], own_positions])
                logits[(where < 0) | (where > at) | (where <= at - reach)] = -np.inf
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                expected[b, t, h] = weights @ np.concatenate([edited[:, k], own[1, b, :, k]])

    def single(array):
        return jnp.asarray(array, jnp.float32)

    def whole(array):
        return jnp.asarray(array, jnp.int32)

    bias = bias if by_passage else bias[..., :0]
    at = whole(np.broadcast_to(query_positions, (batch, tokens)))
    limit = None if window is None else jnp.int32(window)
    found = evidence_attention.attend_with_evidence(
        single(query), single(own[0]), single(own[1]),
        attention.sees(at, whole(np.broadcast_to(own_positions, (batch, slots))), limit),
        at, limit,
        Evidence(single(kept[0]), single(kept[1]), whole(positions), whole(belongs)),
        1, jax.tree.map(single, EvidenceEdit(bias, token_bias, down, up)), chunk,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def loss(edit, kept, parameters=PARAMETERS):
    starts = np.asarray([20, 14])
    batch = pad_batch(CONFIG, QUESTIONS, buckets=(8,), side="right", starts=starts.tolist())
    scores = generation.score_rows(
        CONFIG, parameters, jnp.asarray(batch.tokens), jnp.asarray(batch.positions),
        jnp.asarray([2, 2], jnp.int32), kept, edit, longest=3, interface_layer=LAYER, chunk=8,
    )  # fmt: skip
    return scores.sum()


def test_gradient_of_an_edit():
    """Against central differences, along random directions of each array, uphill."""
    kept, edit = prefill(), random_edit(scale=0.3)
    slope, value = jax.jit(jax.grad(loss))(edit, kept), jax.jit(loss)
    nowhere = jax.tree.map(jnp.zeros_like, edit)
    for seed, name in enumerate((*edit._fields, *edit._fields)):
        # Uphill in each number: what cancels leaves too little for differences in float32.
        way = jnp.abs(getattr(random_edit(seed + 10), name)) * jnp.sign(getattr(slope, name))
        way, step = nowhere._replace(**{name: way}), 4e-3
        ahead, behind = (
            value(jax.tree.map(lambda e, w, s=s: e + s * w, edit, way), kept) for s in (step, -step)
        )
        along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, way)))
        np.testing.assert_allclose((ahead - behind) / (2 * step), along, rtol=1e-2)


def test_no_gradient_flows_over_evidence():
    slope = jax.grad(loss, argnums=1, allow_int=True)(random_edit(), prefill())
    assert not np.any(slope.keys) and not np.any(slope.values)

    def through_evidence(parameters):
        return loss(random_edit(), prefill(parameters=parameters), PARAMETERS)

    slope = jax.grad(through_evidence)(PARAMETERS)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_memory_of_the_backward_pass_does_not_grow_with_the_evidence():
    """Compiled temporaries; the evidence itself is an argument.

    But for slopes of the biases of single rows: four numbers a row of either text.
    """

    def temporaries(rows):
        shape = jax.ShapeDtypeStruct
        layers, kv = CONFIG.num_hidden_layers, (CONFIG.num_key_value_heads, CONFIG.head_dim)
        kept = Evidence(
            shape((layers, 2, rows, *kv), jnp.float32), shape((layers, 2, rows, *kv), jnp.float32),
            shape((2, rows), jnp.int32), shape((2, rows), jnp.int32),
        )  # fmt: skip
        compiled = jax.jit(jax.grad(loss)).lower(random_edit(rows=rows), kept).compile()
        return compiled.memory_analysis()

    short, long = temporaries(64), temporaries(4096)
    grown = long.argument_size_in_bytes - short.argument_size_in_bytes
    assert grown >= 2 * 3 * 2 * (4096 - 64) * 2 * 6 * 4
    of_biases = 4 * 2 * (4096 - 64) * 4
    assert long.temp_size_in_bytes - short.temp_size_in_bytes < 0.02 * grown + of_biases


@pytest.mark.parametrize("rows", [[], [0, 2], [-1]])
def test_rows_that_are_not_there(rows):
    with pytest.raises(ValueError, match=r"rows must be some of 0 to 1, got \["):
        evidence.take_evidence(prefill(), rows)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match="interface_layer must be from 0 to 2, got"):
        generation.generate(
            CONFIG, PARAMETERS, QUESTIONS, max_new_tokens=1, buckets=(8,), interface_layer=layer
        )


def test_evidence_of_another_model():
    other = models.small(num_hidden_layers=2, windows=(None, None))
    kept = prefill(config=other, parameters=models.parameters(other))
    with pytest.raises(ValueError, match=r"keys of the evidence must be float32 .*another model"):
        generation.generate(
            CONFIG, PARAMETERS, QUESTIONS, max_new_tokens=1, buckets=(8,), evidence=kept
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [([[1, 2], []], "evidence 1 is empty"), ([[1, 50], [1]], "evidence 0 has token 50")],
)
def test_wrong_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        evidence.prefill_evidence(CONFIG, PARAMETERS, rows, [[], []], buckets=(24,))


def test_kept_evidence_is_taken_and_stacked():
    kept = prefill()
    both = evidence.stack_evidence([evidence.take_evidence(kept, [1]), kept])
    again = evidence.take_evidence(both, [1, 0])
    for question, other in zip(question_pass(kept)[0], question_pass(again)[0], strict=True):
        np.testing.assert_allclose(question, other, atol=1e-6)


def test_stacking_pads_to_the_longest():
    short = evidence.prefill_evidence(
        CONFIG, PARAMETERS, EVIDENCE[1:], SPANS[1:], buckets=(14,), side="right"
    )
    long = evidence.prefill_evidence(
        CONFIG, PARAMETERS, EVIDENCE[:1], SPANS[:1], buckets=(32,), side="left"
    )
    found = question_pass(evidence.stack_evidence([long, short]))[0]
    for one, other in zip(found, question_pass(prefill())[0], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_chunk_that_does_not_divide_the_evidence():
    with pytest.raises(ValueError, match="chunk must divide the 24 rows"):
        question_pass(prefill(), chunk=7)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[(4, 9), (9, 21)], SPANS[1]], "passage 1 of row 0 spans tokens 9 to 21.*20 tokens"),
        ([[(4, 4)], SPANS[1]], "passage 0 of row 0"),
        ([[(4, 9), (8, 12)], SPANS[1]], "passage 1 of row 0 starts at token 8"),
        ([SPANS[0]], "2 rows of evidence, but spans of 1"),
    ],
)
def test_wrong_spans(spans, message):
    with pytest.raises(ValueError, match=message):
        evidence.prefill_evidence(CONFIG, PARAMETERS, EVIDENCE, spans, buckets=(24,))


@pytest.mark.parametrize(
    ("changes", "layer", "message"),
    [
        ({"logit_bias": jnp.zeros((2, 2, 4, 1))}, LAYER, "logit_bias is of 1 passages.*has 2"),
        ({"logit_bias": jnp.zeros((2, 2, 3, 2))}, LAYER, "logit_bias must be"),
        ({"token_bias": jnp.zeros((2, 2, 1, 23))}, LAYER, "token_bias must be"),
        ({"value_up": jnp.zeros((2, 2, 3, 11))}, LAYER, "value_up must be"),
        ({}, 0, "value_down must be"),
        ({}, 2, "must be"),
    ],
)
def test_wrong_edits(changes, layer, message):
    edit = random_edit()._replace(**changes)
    with pytest.raises(ValueError, match=message):
        generation.generate(
            CONFIG, PARAMETERS, QUESTIONS, max_new_tokens=1, buckets=(8,), evidence=prefill(),
            edit=edit, interface_layer=layer,
        )  # fmt: skip
