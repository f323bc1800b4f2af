"""Backbones by name, folder and hub id, on folders of random weights."""

import shutil
import tomllib
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_backbones
import tokenizers

from experiments.support.reader_texts import TEMPLATE
from icorag_jax.backbones import loading
from icorag_jax.backbones.loading import backbone_names, find_method, load_backbone
from icorag_jax.backbones.templates import default_template, read_template, write_template
from icorag_jax.data.prompts import PromptTemplate
from icorag_jax.lm.pretrained import save_pretrained
from icorag_jax.rag.method import Kind
from icorag_jax.rag.storage import load_method
from icorag_jax.stored_tensors import CheckpointError

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
SHIPPED_BYTES = 12 * 10**6


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped backbones: `first` with an updater, `second` with a shared interface."""
    folder = tmp_path / "backbones"
    monkeypatch.setattr(loading, "FOLDER", folder)
    for seed, (name, kind) in enumerate({"first": "updater", "second": "shared"}.items()):
        model = small_backbones.write_backbone(folder / name, seed)
        small_backbones.write_method(folder / name / kind, model, kind=kind)
    return folder


def test_shipped_backbone(shipped):
    assert backbone_names() == ("first", "second")
    backbone = load_backbone("first", jnp.float32)
    model = small_backbones.make_model(0)
    assert (backbone.name, backbone.template) == ("first", TEMPLATE)
    assert backbone.model.config == model.config
    assert jax.tree.all(jax.tree.map(jnp.array_equal, backbone.model.parameters, model.parameters))
    assert set(backbone.tokenizer.control) == {"<|start|>", "<|end|>"}
    assert load_backbone("second", jnp.float32).fingerprint != backbone.fingerprint


def test_shipped_updater_is_found_wherever_the_backbone_is(shipped, tmp_path):
    backbone = load_backbone("first", jnp.float32)
    folder = find_method(backbone)
    assert folder == shipped / "first" / "updater"
    assert load_method(folder, backbone.model.config, backbone.fingerprint).method.kind == "updater"

    shutil.copytree(shipped / "first", tmp_path / "copy")
    copy = load_backbone(str(tmp_path / "copy"), jnp.float32)
    assert (copy.name, find_method(copy)) == ("copy", folder)
    assert find_method(load_backbone("second", jnp.float32)) is None


def test_a_name_wins_over_a_folder(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_backbones.write_backbone(tmp_path / "first", seed=7)
    by_name, by_path = load_backbone("first", jnp.float32), load_backbone("./first", jnp.float32)
    assert by_name.name == by_path.name
    assert by_name.fingerprint != by_path.fingerprint


def test_folder_without_a_wording(tmp_path):
    save_pretrained(tmp_path / "model", small_backbones.make_model())
    template = load_backbone(str(tmp_path / "model"), jnp.bfloat16).template
    # Its tokenizer puts nothing before a text, though the model's settings name a token for it.
    assert template.instruction == "Answer the question with a few words from the passages."
    assert template.passage == PromptTemplate("").passage


def test_default_wording_begins_as_the_tokenizer_does():
    tokenizer = small_backbones.make_model().tokenizer
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    assert default_template(tokenizer).instruction.startswith("<|start|>Answer the question")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    assert default_template(tokenizer).instruction.startswith("Answer the question")


def test_unknown_backbones(shipped, tmp_path):
    with pytest.raises(CheckpointError, match=r"'third': pass first, second, a folder or a hub"):
        load_backbone("third", jnp.float32)
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_backbone(f"{tmp_path}/nowhere", jnp.float32)
    (shipped / "second" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"second has no tokenizer\.json"):
        load_backbone("second", jnp.float32)
    with pytest.raises(ValueError, match="dtype must be"):
        load_backbone("first", jnp.float16)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot read"),
        ("[]", "must hold a dict"),
        ('{"instruction": "a"}', "must have the texts"),
        ('{"instruction": 1, "passage": "", "untitled": "", "question": ""}', "must have"),
        ('{"instruction": "a", "passage": "", "untitled": "", "question": ""}', "the fields"),
    ],
)
def test_malformed_wording(tmp_path, content, problem):
    path = tmp_path / "template.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=problem):
        read_template(path)


def test_wording_is_written_as_it_is_read(tmp_path):
    template = PromptTemplate("a\u00e9", "\n{title}|{text}", "{text}", "\u3053 {question}\n")
    write_template(tmp_path / "template.json", template)
    assert read_template(tmp_path / "template.json") == template


def test_installed_package_has_the_folders(shipped):
    """Every file of a backbone matches a pattern of the package's data."""
    settings = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["icorag_jax.backbones"]
    files = {path for path in shipped.rglob("*") if path.is_file()}
    assert len(files) == 2 * (6 + 2)
    assert {path for pattern in patterns for path in shipped.glob(pattern)} == files


@pytest.mark.parametrize("name", backbone_names())
def test_what_is_shipped_is_whole_and_small(name):
    folder = loading.FOLDER / name
    backbone = load_backbone(name, jnp.float32)
    assert (folder / "template.json").exists()
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= SHIPPED_BYTES
    leaves = jax.tree.leaves(backbone.model.parameters)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
    method = find_method(backbone)
    assert method == folder / "updater"
    for kind in get_args(Kind):
        if (found := find_method(backbone, kind)) is not None:
            load_method(found, backbone.model.config, backbone.fingerprint)
