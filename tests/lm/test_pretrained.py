"""Checkpoint folders that are whole, and all that may be wrong with others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import families
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

from icorag_jax.lm import decoder, pretrained
from icorag_jax.lm.config import (
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    YarnRotary,
)
from icorag_jax.lm.pretrained import LanguageModel
from icorag_jax.stored_tensors import CheckpointError

WEIGHTS = "model.safetensors"
ROTARIES = (
    LinearRotary(1e4, 2.0),
    DynamicRotary(1e4, 2.0),
    Llama3Rotary(5e5, 8.0, 1.0, 4.0, 16),
    YarnRotary(1e6, 4.0, 16, attention_factor=0.9, truncate=False),
)


def word_tokenizer(count=50):
    words = {f"w{i}": i for i in range(count)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def save(folder, config=models.SMALL, tokenizer=None, dtype=jnp.float32, **options):
    model = LanguageModel(config, models.parameters(config, dtype=dtype), tokenizer)
    pretrained.save_pretrained(folder, model, **options)
    return model


def load(folder):
    return pretrained.from_pretrained(folder, dtype=jnp.float32)


def edit_config(folder, **values):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "ABSENT"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("rotary", ROTARIES, ids=lambda rotary: type(rotary).__name__)
def test_there_and_back(tmp_path, rotary):
    config = models.small(rotary=rotary, eos_token_ids=(3, 7), bos_token_id=1)
    model = save(tmp_path / "m", config, word_tokenizer())
    found = load(tmp_path / "m")
    assert found.config == config
    assert_equal(found.parameters, model.parameters)
    assert found.tokenizer is not None and found.tokenizer.encode("w4 w9").ids == [4, 9]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert reference("w4 w9")["input_ids"] == [4, 9]


@pytest.mark.parametrize(
    ("rotary", "tokens"),
    [
        (ROTARIES[0], 128),
        (ROTARIES[1], 128),
        (ROTARIES[2], 64),
        (ROTARIES[3], 64),
        (YarnRotary(1e6, 4.0, 64), 256),
        (None, 64),
    ],
)
def test_the_context_of_stretched_positions(rotary, tokens):
    config = models.small(**({} if rotary is None else {"rotary": rotary}))
    assert (config.max_position_embeddings, config.context) == (64, tokens)


def test_shards_of_a_checkpoint(tmp_path):
    model = save(tmp_path / "m", shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert_equal(load(tmp_path / "m").parameters, model.parameters)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    embedding = reference.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(embedding, model.parameters["embedding"]["embedding"])


def test_dtype_is_kept_and_converted(tmp_path):
    model = save(tmp_path / "m", dtype=jnp.bfloat16)
    assert load_file(tmp_path / "m" / WEIGHTS)["model.norm.weight"].dtype == jnp.bfloat16
    wider = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.parameters)
    assert_equal(load(tmp_path / "m").parameters, wider)
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got float16"):
        pretrained.from_pretrained(tmp_path / "m", dtype=jnp.float16)


def test_tokens_that_end_a_text_are_those_of_generation(tmp_path):
    save(tmp_path / "m", models.small(eos_token_ids=(3,)))
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert load(tmp_path / "m").config.eos_token_ids == (3, 5)
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [3, null]}')
    with pytest.raises(CheckpointError, match="eos_token_id must be a token or a list"):
        load(tmp_path / "m")


def test_ends_that_are_not_named_are_those_of_the_family(tmp_path):
    save(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    edit_config(tmp_path / "m", eos_token_id="ABSENT", bos_token_id="ABSENT")
    config = load(tmp_path / "m").config
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_a_tied_checkpoint_may_hold_the_output_as_well(tmp_path):
    config = models.small(tie_word_embeddings=True)
    model = save(tmp_path / "m", config)
    table = np.asarray(model.parameters["embedding"]["embedding"])
    edit_tensors(tmp_path / "m", lambda tensors: tensors.update({"lm_head.weight": table}))
    assert_equal(load(tmp_path / "m").parameters, model.parameters)


def test_a_tied_checkpoint_with_another_output(tmp_path):
    """Which transformers would not tie."""
    save(tmp_path / "m", models.small(tie_word_embeddings=True))
    other = np.ones((50, 16), np.float32)
    edit_tensors(tmp_path / "m", lambda tensors: tensors.update({"lm_head.weight": other}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings is true, but lm_head"):
        load(tmp_path / "m")


def test_unstacked_layers_are_not_saved(tmp_path):
    parameters = decoder.unstack_layers(models.parameters())
    with pytest.raises(ValueError, match="layers stacked"):
        pretrained.save_pretrained(tmp_path / "m", LanguageModel(models.SMALL, parameters, None))


def test_all_wrong_tensors_at_once(tmp_path):
    save(tmp_path / "m")

    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((4, 16), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)

    edit_tensors(tmp_path / "m", spoil)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m")
    assert str(caught.value).splitlines()[1:] == [
        "  misshapen: model.layers.0.self_attn.q_proj.weight, expected (24, 16), found (4, 16)",
        "  missing: model.layers.1.mlp.up_proj.weight, expected (24, 16)",
        "  unexpected: model.layers.3.mlp.up_proj.weight, found (24, 16)",
    ]


def test_weights_that_are_not_finite(tmp_path):
    save(tmp_path / "m")

    def spoil(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = np.nan
        tensors["lm_head.weight"][0, 0] = np.inf

    edit_tensors(tmp_path / "m", spoil)
    with pytest.raises(CheckpointError, match=r"infinity: model\.layers\.2\.mlp\.up") as caught:
        load(tmp_path / "m")
    assert "infinity: lm_head.weight" in str(caught.value)


def test_a_truncated_file(tmp_path):
    save(tmp_path / "m")
    path = tmp_path / "m" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"cannot read .*{WEIGHTS}"):
        load(tmp_path / "m")


def test_pickles_alone(tmp_path):
    save(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights.*pytorch_model\.bin"):
        load(tmp_path / "m")


def test_no_folder():
    with pytest.raises(CheckpointError, match="is not a folder"):
        load(Path("no") / "such" / "folder")


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"model_type": "gpt2"}, ["model_type is 'gpt2', supported: llama, mistral, qwen2, qwen3"]),
        ({"hidden_size": "ABSENT"}, ["hidden_size is missing"]),
        ({"hidden_size": 16.5}, ["hidden_size must be a whole number from 1 on, found 16.5"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu', supported: 'silu'"]),
        (
            {"quantization_config": {"bits": 4}, "auto_map": {"AutoModel": "x.y"}},
            ["quantization_config is {'bits': 4}, which is not", "auto_map is"],
        ),
        ({"architectures": ["LlamaModel"]}, ["architectures is ['LlamaModel'], supported"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope type is 'longrope', supported"]),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "alpha": 1.0}},
            ["alpha is not understood", "low_freq_factor is missing", "high_freq_factor is mi"],
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor must be 1"]),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            ["and rope_scaling {'type': 'linear', 'factor': 2.0} differ"],
        ),
        ({"num_key_value_heads": 3}, ["num_key_value_heads (3) must divide"]),
        ({"head_dim": 5}, ["head_dim must be even, got 5"]),
        ({"eos_token_id": "no"}, ["eos_token_id must be a token"]),
        ({"bos_token_id": 99}, ["token 99 is not in a vocabulary of 50"]),
        ({"rope_parameters": {"rope_type": ["linear"]}}, ["rope type is ['linear'], supported"]),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": True}},
            ["factor must be a number, found True"],
        ),
        ({"use_mrope": 0}, ["use_mrope is 0, which is not understood"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings must be true or false, found 1"]),
    ],
)
def test_wrong_settings(tmp_path, values, problems):
    save(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    edit_config(tmp_path / "m", **values)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m")
    for problem in problems:
        assert problem in str(caught.value)


def test_what_is_switched_off_need_not_be_known(tmp_path):
    save(tmp_path / "m")
    edit_config(tmp_path / "m", use_mrope=False, quantization_config=None, attention_bias=None,
                pad_token_id=-1)  # fmt: skip
    assert load(tmp_path / "m").config == models.SMALL


def test_windows_of_qwen(tmp_path):
    """`max_window_layers` where there are no `layer_types`, as older checkpoints have it."""
    drawn = families.small_model("qwen2", use_sliding_window=True, sliding_window=8,
                                 max_window_layers=1)  # fmt: skip
    folder = families.save(families.torch_model(drawn), tmp_path / "m")
    assert load(folder).config.windows == (None, 8)
    edit_config(folder, layer_types="ABSENT")
    assert load(folder).config.windows == (None, 8)
    edit_config(folder, use_sliding_window=False)
    assert load(folder).config.windows == (None, None)
    edit_config(folder, layer_types=["full_attention"])
    with pytest.raises(CheckpointError, match="layer_types must be 2 of full_attention, sliding"):
        load(folder)


def test_a_tokenizer_of_a_larger_vocabulary(tmp_path):
    save(tmp_path / "m", tokenizer=word_tokenizer(51))
    with pytest.raises(CheckpointError, match="the tokenizer has token 50, the model 50"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    "settings",
    [
        {"windows": (None, 4, 4)},
        {"query_key_norm": True},
        {"family": "mistral", "mlp_bias": True},
        {"family": "qwen2"},
    ],
)
def test_settings_that_a_family_cannot_say(tmp_path, settings):
    with pytest.raises(ValueError, match="checkpoints cannot say"):
        save(tmp_path / "m", models.small(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save(tmp_path / "there")
    with pytest.raises(FileExistsError, match="exists already"):
        save(tmp_path / "there")

    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


MEASURE = """
import sys, jax, jax.numpy as jnp, threading, time
from icorag_jax import stored_tensors
from icorag_jax.lm import pretrained
stored_tensors._PIECE_BYTES = 2**20
def resident():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    return int(fields["RssAnon"].split()[0]) * 1024
# Compiles what is needed, and is gone.
pretrained.from_pretrained(sys.argv[1], dtype=jnp.dtype(sys.argv[2]))
before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)
thread = threading.Thread(target=watch); thread.start()
model = pretrained.from_pretrained(sys.argv[1], dtype=jnp.dtype(sys.argv[2]))
done = True; thread.join()
print(peak - before, sum(leaf.nbytes for leaf in jax.tree.leaves(model.parameters)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_model_and_one_tensor(tmp_path, dtype):
    """Memory of the process's own, in a process that has loaded the model before."""
    config = models.small(
        vocab_size=4000,
        hidden_size=768,
        intermediate_size=4096,
        num_hidden_layers=3,
    )
    save(tmp_path / "m", config)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "m")]
    # Memory that is freed goes back to the system at once.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(
        [*command, dtype], capture_output=True, text=True, check=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    peak, model = map(int, output.stdout.split())
    largest = 768 * 4096 * 4
    assert model > 9 * largest // (1 if dtype == "float32" else 2)
    assert peak < model + largest
