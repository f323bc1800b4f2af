"""The comparison with transformers end to end, on tiny checkpoints written by transformers."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

from experiments import lm_parity
from experiments.lm_parity import Config
from experiments.support import lm_reference
from experiments.support.command import run_command
from icorag_jax.data.sentences import generate_sentences

SETTINGS = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "eos_token_id": 3, "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def write_checkpoint(folder, **settings):
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SETTINGS | {"head_dim": 8} | settings)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two layers, with a tokenizer of the words of a few sentences."""
    folder = tmp_path_factory.mktemp("lm") / "qwen3"
    words = sorted({word for text in generate_sentences(20, 0) for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["?", *words[:60]])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    write_checkpoint(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Settings of generation that come with a checkpoint are not to be followed.
    transformers.GenerationConfig(do_sample=True, repetition_penalty=9.0).save_pretrained(folder)
    return folder


def tiny(checkpoint, out, **changes):
    sizes = {"texts": 3, "tokens": 12, "new_tokens": 16, "top_k": 3}
    return Config(checkpoint, out, **sizes | changes)


@pytest.fixture(scope="module")
def compared(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("parity") / "run"
    lm_parity.main(tiny(checkpoint, out))
    return out


def read_summary(out):
    return json.loads((out / "summary.json").read_text())


def test_a_sound_checkpoint_agrees(compared):
    summary = read_summary(compared)
    assert 0 < summary["max_logit_difference"] <= 1e-4
    assert 0 <= summary["kl"]["mean"] <= summary["kl"]["max"] <= 1e-6
    assert summary["top_k_agreement"] == 1
    assert summary["greedy_agreement"] == 1
    assert summary["greedy_tokens"] > 3
    assert summary["texts_from"] == "generated sentences"
    assert [row["layer"] for row in summary["layers"]] == ["embedding", "0", "1", "norm"]
    embedding, *layers = summary["layers"]
    assert embedding["max_absolute"] == embedding["alone_relative"] == 0
    for row in layers:
        assert 0 < row["max_relative"] <= 1e-5
        assert row["alone_relative"] <= 1e-5
    assert [row["holds"] for row in summary["claims"]] == [True, True, True]
    assert len(pd.read_parquet(compared / "logits.parquet")) == summary["tokens"]
    assert (compared / "figures" / "layers.png").stat().st_size > 1000
    assert "| norm |" in (compared / "account.md").read_text()


def test_no_file_has_the_path_of_the_checkpoint(compared, checkpoint):
    for path in compared.rglob("*"):
        if path.is_file():
            assert str(checkpoint.parent).encode() not in path.read_bytes()


def test_a_run_goes_on_with_what_it_has(compared, checkpoint, monkeypatch):
    before = (compared / "summary.json").read_bytes()
    monkeypatch.setattr(lm_parity, "compare_forward", None)
    lm_parity.main(tiny(checkpoint, compared, resume=True))
    assert (compared / "summary.json").read_bytes() == before


def test_where_two_part_is_seen(checkpoint, tmp_path, monkeypatch):
    """With another weight in its second layer, all after it differs, but that alone by itself."""
    load = lm_reference.load

    def load_another(*arguments):
        model = load(*arguments)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        return model

    monkeypatch.setattr(lm_reference, "load", load_another)
    lm_parity.main(tiny(checkpoint, tmp_path / "run"))
    summary = read_summary(tmp_path / "run")
    layers = {row["layer"]: row for row in summary["layers"]}
    assert layers["0"]["max_relative"] < 1e-5
    assert layers["1"]["alone_relative"] > 1e-2
    assert layers["norm"]["max_relative"] > 1e-2
    assert layers["norm"]["alone_relative"] < 1e-5
    assert summary["claims"][0]["holds"] is False


def test_bfloat16_and_random_tokens(tmp_path):
    """What bfloat16 costs is small, and is not held against exact limits."""
    folder = write_checkpoint(tmp_path / "m", eos_token_id=None, initializer_range=0.1)
    lm_parity.main(tiny(folder, tmp_path / "run", dtype="bfloat16"))
    summary = read_summary(tmp_path / "run")
    assert summary["texts_from"] == "random token ids"
    assert 0 < summary["kl"]["mean"] <= 1e-3
    assert summary["greedy_tokens"] == 3 * 16
    assert [row["holds"] for row in summary["claims"]] == [None, True, None]


def test_shares_of_likeliest_tokens():
    ours = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    theirs = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(lm_parity._shared(ours, theirs, 2), [1.0, 0.5])


def no_folder(folder):
    return folder / "none"


def no_weights(folder):
    (folder / "model.safetensors").unlink()
    return folder


def a_tensor_missing(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "none is not a folder"),
        (no_weights, "safetensors"),
        (a_tensor_missing, "missing: model.norm.weight"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_writes_nothing(tmp_path, damage, message):
    folder = damage(write_checkpoint(tmp_path / "m"))
    with pytest.raises(ValueError, match=message):
        lm_parity.main(tiny(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": 0}, "texts must be at least 1"),
        ({"top_k": 62}, r"top_k \(62\) must not exceed the vocabulary \(61\)"),
        ({"new_tokens": 60}, r"new_tokens \(60\) together must not exceed .*\(64\)"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(checkpoint, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        lm_parity.main(dataclasses.replace(tiny(checkpoint, tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    options = ["--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as exit_info:
        run_command(lm_parity.main, Config, lm_parity.PRESETS, options)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} is not a folder\n"
    assert not (tmp_path / "run").exists()


def test_without_pytorch_there_is_nothing_to_compare_with(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_reference, "missing_packages", lambda: ["torch"])
    with pytest.raises(ValueError, match="not installed: torch"):
        lm_parity.main(tiny(checkpoint, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
