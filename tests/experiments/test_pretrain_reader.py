"""The pretraining command: a folder that transformers loads too, and a resumed run alike."""

import json

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from experiments import pretrain_reader
from experiments.pretrain_reader import Config
from experiments.support import reader_workers
from icorag_jax.backbones.loading import load_backbone
from tests.interruption import interrupted

TINY = {
    "family": "qwen3", "vocabulary": 300, "width": 32, "layers": 2, "mlp": 32,
    "stage_steps": (2, 2), "warmup_steps": 1, "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("reader") / "run"
    pretrain_reader.main(Config(out, **TINY))
    return out


def test_the_model_loads_here_and_in_transformers(finished):
    import jax.numpy as jnp

    backbone = load_backbone(str(finished / "model"), jnp.float32)
    assert backbone.model.config.family == "qwen3"
    assert backbone.template.question.endswith("Answer:")
    other = transformers.AutoModelForCausalLM.from_pretrained(finished / "model")
    assert other.config.num_hidden_layers == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.decode(tokenizer("Who founded it?")["input_ids"]).endswith("founded it?")


def test_losses_are_logged_by_stage(finished):
    rows = [json.loads(line) for line in (finished / "losses.jsonl").read_text().splitlines()]
    assert [(row["step"], row["stage"]) for row in rows] == [(2, 0), (4, 1)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_a_run_that_was_stopped_ends_with_the_same_weights(finished, tmp_path):
    with interrupted(pretrain_reader, "train_step", after=3):
        pretrain_reader.main(Config(tmp_path / "run", **TINY))
    pretrain_reader.main(Config(tmp_path / "run", resume=True, **TINY))
    ours, theirs = (
        (folder / "model" / "model.safetensors").read_bytes()
        for folder in (tmp_path / "run", finished)
    )
    assert ours == theirs
    assert load_file(finished / "model" / "model.safetensors")


def test_texts_come_again_in_another_order(tmp_path, monkeypatch):
    asked = []

    def seen(tokenizer, wanted, seed, workers):
        asked.extend(wanted)
        return batches(tokenizer, wanted, seed, workers)

    batches = reader_workers.batches
    monkeypatch.setattr(pretrain_reader, "batches", seen)
    settings = TINY | {"stage_steps": (0, 0, 0, 11), "checkpoint_every": 11}
    config = Config(
        tmp_path / "run", distinct_steps=4, family_share=0.25, batch_factor=2, text_workers=1,
        **settings,
    )  # fmt: skip
    pretrain_reader.main(config)
    numbers = [number for _, number in asked]
    assert numbers[:4] == [0, 1, 2, 3]
    assert sorted(numbers[4:8]) == [0, 1, 2, 3]
    assert len(set(numbers[8:])) == 3
    assert numbers[4:8] != numbers[:4] or numbers[8:] != numbers[:3]
    assert {(stage.family_share, stage.batch) for stage, _ in asked} == {(0.25, 16)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stage_steps": (1,) * 5}, "stage_steps must be 1 to 4"),
        ({"family_share": 1.5}, r"family_share must be in \[0, 1\], got 1.5"),
        ({"distinct_steps": 0}, "distinct_steps must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        Config(tmp_path, **wrong)
