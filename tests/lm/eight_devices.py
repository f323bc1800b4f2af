"""Tests that need 8 devices: `test_sharding.py` runs them in a process that has these."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from icorag_jax.lm import decoder, evidence, generation, memory, pretrained, sharding
from icorag_jax.lm.batches import Batch, pad_batch

LAYER, NEW = 1, 12
DIVISIBLE = models.small(
    family="qwen3", vocab_size=64, intermediate_size=32, num_attention_heads=8,
    num_key_value_heads=8, head_dim=4, query_key_norm=True, eos_token_ids=(5,),
)  # fmt: skip
# 4 heads, 2 of keys and values, and 50 tokens in the vocabulary: little of it divides.
BIASED = models.small(
    family="qwen2", hidden_size=24, query_key_value_bias=True, windows=(None, 6, 6)
)
TIED = models.small(tie_word_embeddings=True)
EVIDENCE = models.rows([20, 14, 17, 9, 20, 11, 16, 12], seed=1)
SPANS = [[(2, 5), (5, len(row))] for row in EVIDENCE]
QUESTIONS = models.rows([5, 7, 2, 8, 1, 3, 6, 4], seed=2)
MESHES = [(4, 2), *(pytest.param(m, marks=pytest.mark.slow) for m in ((8, 1), (1, 8), (2, 4)))]
# Each takes seconds to compile.
COMPARED = [
    ((4, 2), BIASED),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (((8, 1), TIED), ((1, 8), DIVISIBLE), ((2, 4), BIASED))
    ),
]


@pytest.fixture(params=MESHES, ids=str)
def mesh(request):
    return sharding.make_mesh(*request.param)


@functools.cache
def parameters_of(config):
    return models.parameters(config)


def spread(config, parameters, mesh):
    template = pretrained.parameter_template(config, jnp.float32)
    layout = sharding.shard_template(config, template, mesh)
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), parameters, layout)


def random_edit(config, batch):
    like = evidence.zero_edit(
        config, batch, 2, 3, rows=24, interface_layer=LAYER, dtype=jnp.float32
    )
    rng = np.random.default_rng(4)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, leaf.dtype), like
    )


def forward(config, parameters, kept, edit, batch, cache):
    """Logits and cache of a question after evidence."""

    @jax.jit
    def run(parameters, kept, edit, batch, cache):
        output = decoder.forward(
            config, parameters, *batch, cache, kept, edit, interface_layer=LAYER
        )
        return decoder.logits(config, parameters, output.states), output.cache

    return run(parameters, kept, edit, batch, cache)


@pytest.mark.parametrize(("sizes", "config"), COMPARED)
def test_numbers_are_those_of_one_device(sizes, config):
    """Logits and cache after evidence with an edit, generated tokens, the edit's gradient."""
    mesh = sharding.make_mesh(*sizes)
    one = parameters_of(config)
    many = spread(config, one, mesh)
    edit = random_edit(config, len(QUESTIONS))
    batch = Batch(*map(jnp.asarray, pad_batch(
        config, QUESTIONS, buckets=(8,), side="right", starts=[len(row) for row in EVIDENCE]
    )))  # fmt: skip
    cache = decoder.empty_cache(config, len(QUESTIONS), 8, jnp.float32)

    def all_numbers(parameters, place):
        kept = evidence.prefill_evidence(config, parameters, EVIDENCE, SPANS, buckets=(24,))
        placed = place(edit)
        found, filled = forward(config, parameters, kept, placed, place(batch), place(cache))
        real = np.asarray(batch.positions >= 0)

        def loss(edit):
            return generation.score_rows(
                config, parameters, *place(batch), jnp.ones(len(QUESTIONS), jnp.int32), kept, edit,
                longest=4, interface_layer=LAYER, chunk=8,
            ).sum()  # fmt: skip

        tokens = generation.generate(
            config, parameters, QUESTIONS, max_new_tokens=NEW, buckets=(8,), evidence=kept,
            edit=placed, interface_layer=LAYER,
        )  # fmt: skip
        numbers = {
            "evidence": kept, "logits": np.asarray(found)[real], "cache": filled,
            "gradient": jax.jit(jax.grad(loss))(placed),
        }  # fmt: skip
        return numbers, tokens

    expected, expected_tokens = all_numbers(one, lambda value: value)
    found, tokens = all_numbers(many, lambda value: sharding.shard_batch(value, mesh))
    assert tokens == expected_tokens and max(map(len, tokens)) == NEW

    def close(limit, found, expected):
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, atol=limit * scale, rtol=1e-5)

    # Sums in another order, as other chunks on one device, move gradients more than what they
    # are gradients of.
    limits = {"evidence": 1e-5, "logits": 1e-5, "cache": 1e-5, "gradient": 3e-5}
    for name, limit in limits.items():
        jax.tree.map(functools.partial(close, limit), found[name], expected[name])
    assert all(np.abs(leaf).max() > 0.1 for leaf in expected["gradient"])


def test_parameters_and_caches_lie_split(mesh):
    """Every device holds one part of 8 of each matrix, and of the cache and evidence."""
    config, count = DIVISIBLE, len(jax.devices())
    many = spread(config, parameters_of(config), mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(many):
        parts = [shard.data for shard in leaf.addressable_shards]
        assert len({shard.device for shard in leaf.addressable_shards}) == count
        if path[-1].key in ("kernel", "embedding"):
            assert {part.nbytes for part in parts} == {leaf.nbytes // count}, path
            stacked = path[0].key == "layers"
            assert not stacked or parts[0].shape[0] == config.num_hidden_layers
    query = many["layers"]["query"]["kernel"].addressable_shards[0].data
    data, tensor = mesh.shape["data"], mesh.shape["tensor"]
    assert query.shape == (3, 16 // data, 32 // tensor)

    kept = evidence.prefill_evidence(config, many, EVIDENCE, SPANS, buckets=(24,))
    batch = sharding.shard_batch(
        pad_batch(config, QUESTIONS, buckets=(8,), side="right", starts=[20] * 8), mesh
    )
    empty = decoder.empty_cache(config, len(QUESTIONS), 8, jnp.float32)
    edit = sharding.shard_batch(random_edit(config, 8), mesh)
    _, filled = forward(config, many, kept, edit, batch, sharding.shard_batch(empty, mesh))
    for array in (kept.keys, kept.values, filled.keys, filled.values):
        part = array.addressable_shards[0].data.shape
        assert part == (3, 8 // data, array.shape[2], 8 // tensor, 4)


def test_a_part_of_a_head_is_on_no_device(mesh):
    config = BIASED
    many = spread(config, parameters_of(config), mesh)["layers"]
    for name, heads in (("query", 4), ("key", 2), ("value", 2)):
        features = many[name]["kernel"].addressable_shards[0].data.shape[-1]
        tensor = mesh.shape["tensor"]
        assert features == heads * 6 // (1 if heads % tensor else tensor)


def test_a_checkpoint_is_read_onto_the_mesh(mesh, tmp_path):
    config = BIASED
    parameters = parameters_of(config)
    folder = tmp_path / "model"
    pretrained.save_pretrained(folder, pretrained.LanguageModel(config, parameters, None))
    many = pretrained.from_pretrained(folder, dtype=jnp.float32, mesh=mesh).parameters
    jax.tree.map(np.testing.assert_array_equal, many, parameters)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, spread(config, parameters, mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, many) == shardings
    again = tmp_path / "again"
    pretrained.save_pretrained(again, pretrained.LanguageModel(config, many, None))
    name = "model.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "dtype"), [(DIVISIBLE, jnp.float32), (BIASED, jnp.bfloat16), (TIED, jnp.float32)]
)
def test_planned_memory_is_that_of_arrays(config, mesh, dtype):
    """Weights and cache of the first device."""
    many = spread(
        config, jax.tree.map(lambda leaf: leaf.astype(dtype), parameters_of(config)), mesh
    )
    cache = sharding.shard_batch(decoder.empty_cache(config, 8, 10, dtype), mesh)
    plan = memory.plan_memory(
        config, dtype, data=mesh.shape["data"], tensor=mesh.shape["tensor"],
        batch=8, slots=10, tokens=4,
    )  # fmt: skip

    def held(arrays):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arrays))

    assert plan.weights == held(many)
    assert plan.cache == held((cache.keys, cache.values))


def test_compiled_memory_is_about_as_planned(mesh):
    """What the compiler takes for a prefill beside weights and cache, at a size where it counts."""
    config = models.small(
        vocab_size=512, hidden_size=256, intermediate_size=768, num_attention_heads=16,
        num_key_value_heads=8, head_dim=32, max_position_embeddings=1024,
    )  # fmt: skip
    template = sharding.shard_template(
        config, pretrained.parameter_template(config, jnp.float32), mesh
    )
    rows = jnp.zeros((8, 512), jnp.int32)
    batch = sharding.shard_batch(Batch(rows, rows), mesh)
    compiled = generation.generate_rows.lower(
        config, template, *batch, None, None, None, None, max_new_tokens=1
    ).compile()
    if mesh.shape["tensor"] == 1:
        # Weights are gathered; no activations are exchanged.
        assert not re.search(r"f32\S* all-reduce", compiled.as_text())
        assert re.search(r"f32\S* all-gather", compiled.as_text())
    plan = memory.plan_memory(
        config, jnp.float32, data=mesh.shape["data"], tensor=mesh.shape["tensor"],
        batch=8, slots=512, tokens=512,
    )  # fmt: skip
    taken = compiled.memory_analysis().temp_size_in_bytes - plan.cache
    assert 0.7 * plan.activations < taken < 1.5 * plan.activations


def test_a_mesh_of_other_sizes_or_axes():
    with pytest.raises(ValueError, match=r"number of devices, 8, got 3 \* 2"):
        sharding.make_mesh(3, 2)
    with pytest.raises(ValueError, match=r"got -2 \* -4"):
        sharding.make_mesh(-2, -4)
    other = jax.make_mesh((8,), ("model",))
    with pytest.raises(ValueError, match=r"axes data and tensor, got \('model',\): use make_mesh"):
        spread(DIVISIBLE, {}, other)
    with pytest.raises(ValueError, match="use make_mesh"):
        sharding.shard_batch(random_edit(DIVISIBLE, 8), other)


def test_a_batch_that_does_not_divide():
    config = DIVISIBLE
    mesh, one = sharding.make_mesh(4, 2), parameters_of(config)
    tokens = [
        generation.generate(config, parameters, QUESTIONS[:3], max_new_tokens=4, buckets=(8,))
        for parameters in (one, spread(config, one, mesh))
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
def test_the_documented_code_runs(tmp_path):
    """The first block of the section on scale, with a small model."""
    text = (Path(__file__).parents[2] / "docs" / "lm.md").read_text(encoding="utf-8")
    code = text.split("## Scale")[1].split("```python")[1].split("```")[0]
    folder = tmp_path / "model"
    pretrained.save_pretrained(
        folder, pretrained.LanguageModel(DIVISIBLE, parameters_of(DIVISIBLE), None)
    )
    known = {
        "folder": folder,
        "evidence_tokens": EVIDENCE,
        "passages": SPANS,
        "questions": QUESTIONS,
    }
    exec(code, known)
    assert len(known["answers"]) == len(QUESTIONS)
    assert known["kept"].keys.sharding.spec == PartitionSpec(None, "data", None, "tensor")
