"""Memory on paper; `eight_devices.py` compares it with arrays and compiled programs."""

from pathlib import Path

import jax.numpy as jnp
import models
import pytest

from icorag_jax.lm.memory import plan_memory

DOCS = Path(__file__).parents[2] / "docs" / "lm.md"


def shape(layers, vocabulary, width, inner, heads, kv_heads):
    return models.small(
        num_hidden_layers=layers, windows=(None,) * layers, head_dim=128, vocab_size=vocabulary,
        hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )  # fmt: skip


# As in their config.json.
SHAPES = {
    "Llama-2-7B": shape(32, 32000, 4096, 11008, 32, 32),
    "Mistral-7B": shape(32, 32000, 4096, 14336, 32, 8),
    "Llama-3-70B": shape(80, 128256, 8192, 28672, 64, 8),
}


@pytest.mark.parametrize(
    ("name", "millions"), [("Llama-2-7B", 6738), ("Mistral-7B", 7242), ("Llama-3-70B", 70554)]
)
def test_weights_are_the_parameters_that_are_published(name, millions):
    plan = plan_memory(SHAPES[name], jnp.bfloat16, data=1, tensor=1, batch=1, slots=1, tokens=1)
    assert round(plan.weights / 2e6) == millions


def documented_rows():
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if cells[0] in SHAPES:
            yield cells


def test_the_table_in_the_documentation():
    rows = list(documented_rows())
    assert {row[0] for row in rows} == set(SHAPES)
    for name, mesh, batch, slots, tokens, *found in rows:
        data, tensor = map(int, mesh.split("x"))
        plan = plan_memory(
            SHAPES[name], jnp.bfloat16, data=data, tensor=tensor, batch=int(batch),
            slots=int(slots), tokens=int(tokens),
        )  # fmt: skip
        sizes = (plan.weights, plan.cache, plan.activations, plan.total)
        fits = ["yes" if plan.total <= 0.9 * memory else "no" for memory in (16e9, 80e9)]
        assert found == [*(f"{size / 1e9:.1f}" for size in sizes), *fits], (name, mesh)


def test_sizes_below_one():
    with pytest.raises(ValueError, match="data must be at least 1, got 0; slots must be"):
        plan_memory(models.SMALL, jnp.float32, data=0, tensor=1, batch=1, slots=-1, tokens=1)
