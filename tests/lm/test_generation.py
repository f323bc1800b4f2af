import dataclasses

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from icorag_jax.lm import decoder, evidence, generation
from icorag_jax.lm.generation import Sampling

CONFIG, PARAMETERS = models.SMALL, models.parameters()
PROMPTS = models.rows([9, 4, 6], seed=3)


def generate(prompts=PROMPTS, config=CONFIG, **options):
    settings = {"max_new_tokens": 12, "buckets": (16,), **options}
    return generation.generate(config, PARAMETERS, prompts, **settings)


def all_logits(tokens, config=CONFIG):
    """Of the token after each token of a text, by one pass without padding."""
    text = jnp.asarray([tokens], jnp.int32)
    output = decoder.forward(
        config, PARAMETERS, text, jnp.arange(len(tokens), dtype=jnp.int32)[None],
        decoder.empty_cache(config, 1, len(tokens), jnp.float32),
    )  # fmt: skip
    return np.asarray(decoder.logits(config, PARAMETERS, output.states)[0], np.float64)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_token_is_the_likeliest_after_all_before(side):
    for prompt, new in zip(PROMPTS, generate(side=side), strict=True):
        assert len(new) == 12
        likeliest = all_logits([*prompt, *new]).argmax(axis=1)
        assert new == likeliest[len(prompt) - 1 : -1].tolist()


def test_layers_run_unrolled_as_well():
    """With an edit, whose layers are a part of all."""
    kept = evidence.prefill_evidence(
        CONFIG, PARAMETERS, models.rows([12, 7, 10], seed=4), [[(2, 5)], [(0, 7)], [(1, 4)]],
        buckets=(16,),
    )  # fmt: skip
    edit = evidence.zero_edit(CONFIG, 3, 1, 1, rows=16, interface_layer=1, dtype=jnp.float32)
    edit = edit._replace(logit_bias=edit.logit_bias.at[0].set(3.0))
    options = {"max_new_tokens": 6, "buckets": (16,), "evidence": kept, "edit": edit}
    stacked, unrolled = (
        generation.generate(CONFIG, parameters, PROMPTS, interface_layer=1, **options)
        for parameters in (PARAMETERS, decoder.unstack_layers(PARAMETERS))
    )
    assert stacked == unrolled


def test_a_text_ends_with_any_of_the_ending_tokens():
    free = generate()
    ends = (free[0][3], free[1][7])
    expected = [
        row[: min((row.index(end) + 1 for end in ends if end in row), default=12)] for row in free
    ]
    assert len(expected[0]) < 12 > len(expected[1])
    found = generate(config=models.small(eos_token_ids=ends))
    assert found == expected


def test_a_text_ends_with_the_context():
    config = models.small(max_position_embeddings=11)
    found = generate(config=config)
    assert [len(row) for row in found] == [2, 7, 5]
    assert found == [row[:n] for row, n in zip(generate(), (2, 7, 5), strict=True)]
    assert generate([PROMPTS[0] + [1, 2]], config=config) == [[]]


def test_a_text_does_not_depend_on_its_batch():
    options = {"sampling": Sampling(0.8, 0.9), "key": jax.random.key(5), "max_new_tokens": 8}
    together = generate(**options)
    assert generate(PROMPTS[:1], buckets=(9,), side="right", **options) == together[:1]
    other = generate(**{**options, "key": jax.random.key(6)})
    assert other != together and len({tuple(row) for row in together}) == 3


def test_draws_follow_temperature_and_top_p():
    """Frequencies of the first token, over many copies of a prompt."""
    prompt, count = PROMPTS[1], 4000
    logits = all_logits(prompt)[-1] / 0.7
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    order = np.argsort(-expected)
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= 0.8]] = 0.0
    expected /= expected.sum()
    assert 2 < np.sum(expected > 0) < 40
    found = generate(
        [prompt] * count, max_new_tokens=1, buckets=(4,), sampling=Sampling(0.7, 0.8),
        key=jax.random.key(0),
    )  # fmt: skip
    frequency = np.bincount([row[0] for row in found], minlength=50) / count
    assert not np.any(frequency[expected == 0])
    np.testing.assert_allclose(frequency, expected, atol=4 * np.sqrt(0.25 / count))


def test_a_bucket_compiles_once():
    """Lengths, ends, seeds and temperatures that differ share a program; buckets do not."""
    generation.generate_rows.clear_cache()
    for lengths in ([3, 9], [16, 1], [5, 5]):
        generate(models.rows(lengths), buckets=(16, 32))
    assert generation.generate_rows._cache_size() == 1
    generate(models.rows([3, 17]), buckets=(16, 32))
    assert generation.generate_rows._cache_size() == 2
    for seed, sampling in enumerate((Sampling(0.5, 1.0), Sampling(1.5, 0.3))):
        generate(models.rows([3, 9]), sampling=sampling, key=jax.random.key(seed))
    assert generation.generate_rows._cache_size() == 3


def test_scores_are_log_probabilities():
    continuations = models.rows([3, 5, 1], seed=9)
    found = generation.score(CONFIG, PARAMETERS, PROMPTS, continuations, buckets=(16,))
    for prompt, more, scores in zip(PROMPTS, continuations, found, strict=True):
        logits = all_logits([*prompt, *more])[len(prompt) - 1 : -1]
        total = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
        expected = logits[np.arange(len(more)), more] - logits.max(axis=1) - total
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_generation_and_scores_after_evidence():
    """As after one text that holds evidence and prompt."""
    kept_rows, spans = models.rows([12, 7, 10], seed=4), [[(2, 5)], [(0, 7)], [(1, 4), (5, 9)]]
    kept = evidence.prefill_evidence(CONFIG, PARAMETERS, kept_rows, spans, buckets=(16,))
    whole = [[*first, *prompt] for first, prompt in zip(kept_rows, PROMPTS, strict=True)]
    assert generate(evidence=kept) == generate(whole, buckets=(32,))
    continuations = models.rows([3, 5, 1], seed=9)
    options = {"buckets": (16, 32)}
    apart = generation.score(CONFIG, PARAMETERS, PROMPTS, continuations, evidence=kept, **options)
    together = generation.score(CONFIG, PARAMETERS, whole, continuations, **options)
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_edit_reaches_every_generated_token():
    """A bias that hides a passage gives what evidence without that passage gives."""
    row, spans = models.rows([14], seed=4), [[(3, 7), (7, 12)]]
    kept = evidence.prefill_evidence(CONFIG, PARAMETERS, row, spans, buckets=(14,))
    edit = evidence.zero_edit(CONFIG, 1, 2, 1, rows=14, interface_layer=0, dtype=jnp.float32)
    hidden = edit._replace(logit_bias=edit.logit_bias.at[..., 1].set(-1e9))
    without = kept._replace(positions=kept.positions.at[0, 7:12].set(-1))
    prompt = PROMPTS[:1]
    found = generate(prompt, evidence=kept, edit=hidden)
    assert found == generate(prompt, evidence=without) != generate(prompt, evidence=kept)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1, 2], []], {}, "prompt 1 is empty"),
        ([], {}, "there is no prompt"),
        ([[1] * 65], {"buckets": (128,)}, "prompt 0 has 65 tokens.*context ends at 64"),
        ([[1] * 17], {}, "17 tokens, but the largest bucket holds 16"),
        ([[1, 50]], {}, "prompt 0 has token 50, but the vocabulary ends at 49"),
        ([[-1]], {}, "prompt 0 has token -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([[1]], {"sampling": Sampling(1.0, 1.0)}, "sampling takes a key"),
    ],
)
def test_wrong_input_is_told_before_anything_compiles(prompts, options, message):
    before = generation.generate_rows._cache_size()
    with pytest.raises(ValueError, match=message):
        generate(prompts, **options)
    assert generation.generate_rows._cache_size() == before


@pytest.mark.parametrize(
    ("continuations", "message"),
    [
        ([[1], [2]], "3 prompts, but 2 continuations"),
        ([[1], [], [2]], "continuation 1 is empty"),
        ([[1], [50], [2]], "continuation 1 has token 50"),
        ([[1] * 60, [1], [1]], "prompt with its continuation 0 has 69 tokens"),
    ],
)
def test_wrong_continuations(continuations, message):
    before = generation.score_rows._cache_size()
    with pytest.raises(ValueError, match=message):
        generation.score(CONFIG, PARAMETERS, PROMPTS, continuations, buckets=(80,))
    assert generation.score_rows._cache_size() == before


def test_a_cache_without_room():
    with pytest.raises(ValueError, match="4 rows, but the cache has 3 slots"):
        decoder.forward(
            CONFIG, PARAMETERS, jnp.ones((1, 4), jnp.int32), jnp.arange(4, dtype=jnp.int32)[None],
            decoder.empty_cache(CONFIG, 1, 3, jnp.float32),
        )  # fmt: skip


def test_evidence_of_other_rows():
    kept = evidence.prefill_evidence(CONFIG, PARAMETERS, [[1, 2]], [[(0, 1)]], buckets=(2,))
    with pytest.raises(ValueError, match="3 prompts, but evidence of 1"):
        generate(evidence=kept)
    edit = evidence.zero_edit(CONFIG, 3, 2, 1, rows=2, interface_layer=0, dtype=jnp.float32)
    with pytest.raises(ValueError, match="there is none"):
        generate(edit=edit)


def test_a_prompt_with_its_evidence_beyond_the_context():
    kept = evidence.prefill_evidence(CONFIG, PARAMETERS, [[1] * 60], [[(0, 1)]], buckets=(60,))
    with pytest.raises(ValueError, match="prompt 0 has 6 tokens after 60 others"):
        generate([[1] * 6], evidence=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"temperature": 0.0}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_p": 0.0}, "top_p")],
)
def test_sampling_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Sampling(1.0, 1.0), **change)
