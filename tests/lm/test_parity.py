"""The decoder beside the PyTorch models of transformers, on random small configurations."""

import json
import tempfile
from pathlib import Path

import families
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from icorag_jax.lm import decoder, generation, pretrained
from icorag_jax.lm.batches import pad_batch

NEW = 64
NOT_OF_THE_MODEL = {"initializer_range"}


def jax_logits(model, rows, side, dtype=jnp.float32):
    width = max(map(len, rows))
    batch = pad_batch(model.config, rows, buckets=(width,), side=side)
    cache = decoder.empty_cache(model.config, len(rows), width, dtype)
    output = decoder.forward(
        model.config, model.parameters, jnp.asarray(batch.tokens), jnp.asarray(batch.positions),
        cache,
    )  # fmt: skip
    found = np.asarray(decoder.logits(model.config, model.parameters, output.states))
    return [row[at >= 0] for row, at in zip(found, batch.positions, strict=True)]


def torch_logits(model, rows, side):
    ids, mask = families.torch_padded(rows, side)
    positions = torch.clamp(mask.cumsum(dim=1) - 1, min=0)
    with torch.no_grad():
        found = model(ids, attention_mask=mask, position_ids=positions).logits.float().numpy()
    return [row[real == 1] for row, real in zip(found, mask.numpy(), strict=True)]


# An example takes a second or more, so a failing one is shown as it was drawn.
@pytest.mark.parametrize("rotary", families.ROTARIES)
@pytest.mark.parametrize("family", families.FAMILIES)
@settings(max_examples=2, phases=(Phase.generate,))
@given(data=st.data(), side=st.sampled_from(("left", "right")))
def test_logits_greedy_tokens_and_conversion(family, rotary, data, side):
    """Logits to 1e-4, 64 greedy tokens of a padded batch, and weights there and back, exactly."""
    drawn = data.draw(families.drawn_models(family, rotary))
    reference = families.torch_model(drawn)
    rng = np.random.default_rng(drawn.seed)
    rows = families.random_rows(rng, drawn.settings["vocab_size"], [17, 5, 11])
    with tempfile.TemporaryDirectory() as folder:
        model = pretrained.from_pretrained(
            families.save(reference, Path(folder) / "one"), dtype=jnp.float32
        )
        pretrained.save_pretrained(Path(folder) / "two", model)
        again = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "two")
    for found, expected in zip(
        jax_logits(model, rows, side), torch_logits(reference, rows, side), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)

    ids, mask = families.torch_padded(rows, "left")
    with torch.no_grad():
        greedy = reference.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    found = generation.generate(
        model.config, model.parameters, rows, max_new_tokens=NEW, buckets=(17,), side=side
    )
    for row, expected in zip(found, greedy[:, ids.shape[1] :].tolist(), strict=True):
        assert row == expected[: len(row)] and not any(expected[len(row) :])
        assert len(row) == NEW or row[-1] in model.config.eos_token_ids

    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    old, new = reference.config.to_dict(), again.config.to_dict()
    assert {name: new[name] for name in drawn.settings.keys() - NOT_OF_THE_MODEL} == {
        name: old[name] for name in drawn.settings.keys() - NOT_OF_THE_MODEL
    }


def bfloat16_divergence(drawn, folder, side):
    """Mean KL divergence of next tokens, both models in bfloat16."""
    reference = families.torch_model(drawn, torch.bfloat16)
    model = pretrained.from_pretrained(families.save(reference, folder), dtype=jnp.bfloat16)
    rng = np.random.default_rng(drawn.seed)
    rows = families.random_rows(rng, drawn.settings["vocab_size"], [40, 23, 31])
    found = np.concatenate(jax_logits(model, rows, side, jnp.bfloat16))
    expected = np.concatenate(torch_logits(reference, rows, side))
    log_p = torch.log_softmax(torch.from_numpy(expected), -1)
    log_q = torch.log_softmax(torch.from_numpy(found), -1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("rotary", families.ROTARIES)
@pytest.mark.parametrize("family", families.FAMILIES)
@settings(max_examples=2, phases=(Phase.generate,))
@given(data=st.data(), side=st.sampled_from(("left", "right")))
@pytest.mark.slow
def test_bfloat16_of_any_model(family, rotary, data, side):
    drawn = data.draw(families.drawn_models(family, rotary, initializer_range=0.1))
    with tempfile.TemporaryDirectory() as folder:
        assert bfloat16_divergence(drawn, Path(folder) / "m", side) <= 1e-3


@pytest.mark.parametrize(
    ("family", "rotary", "settings"),
    [
        ("llama", "llama3", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", "yarn", {"sliding_window": 9, "tie_word_embeddings": True}),
        ("qwen2", "dynamic", {"num_key_value_heads": 1}),
        ("qwen3", "linear", {"use_sliding_window": True, "sliding_window": 5,
                             "layer_types": ["full_attention", "sliding_attention"]}),
    ],
)  # fmt: skip
def test_bfloat16(family, rotary, settings, tmp_path):
    """In bfloat16 the two differ by 1e-3 in KL at most."""
    drawn = families.small_model(
        family, rotary, hidden_size=64, intermediate_size=96, initializer_range=0.1, **settings
    )
    assert bfloat16_divergence(drawn, tmp_path / "m", "left") <= 1e-3


def test_older_settings_mean_the_same(tmp_path):
    """`rope_theta` and `rope_scaling` beside each other, as transformers 4 writes them."""
    drawn = families.small_model("llama", "llama3")
    folder = families.save(families.torch_model(drawn), tmp_path / "m")
    newer = pretrained.from_pretrained(folder, dtype=jnp.float32).config
    values = json.loads((folder / "config.json").read_text())
    parameters = values.pop("rope_parameters")
    values |= {"rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}
    values["torch_dtype"] = values.pop("dtype")
    (folder / "config.json").write_text(json.dumps(values))
    assert pretrained.from_pretrained(folder, dtype=jnp.float32).config == newer
