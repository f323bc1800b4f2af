"""Trained methods on disk: what is read is what was written, or an error says what is wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import DECODER

from icorag_jax.lm.pretrained import LanguageModel
from icorag_jax.rag.storage import StoredMethod, backbone_fingerprint, load_method, save_method
from icorag_jax.stored_tensors import CheckpointError

BACKBONE = "a1" * 32


def stored(kind="updater"):
    return StoredMethod(small.method(kind), small.BATCH, small.drawn(kind), BACKBONE)


@pytest.fixture
def folder(tmp_path):
    save_method(tmp_path / "method", stored())
    return tmp_path / "method"


def load(folder, backbone=BACKBONE):
    return load_method(folder, DECODER, backbone)


@pytest.mark.parametrize("kind", small.KINDS)
def test_what_is_read_is_what_was_written(tmp_path, kind):
    save_method(tmp_path / "method", stored(kind))
    found = load(tmp_path / "method")
    expected = stored(kind)
    small.assert_trees_equal(found.parameters, expected.parameters)
    assert (found.method, found.batch, found.backbone) == (
        expected.method, expected.batch, expected.backbone,
    )  # fmt: skip


def test_a_folder_that_is_there_already(folder):
    before = (folder / "method.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="method exists already"):
        save_method(folder, stored("shared"))
    assert (folder / "method.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["method.json", "method.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"method/{name}: .*|cannot read .*{name}"):
        load(folder)


@pytest.mark.parametrize("name", ["method.json", "method.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_any_flipped_byte(folder):
    """Bytes spread over both files, those of the settings all: whatever it does to them."""
    for name, step in (("method.json", 1), ("method.safetensors", 997)):
        data = (folder / name).read_bytes()
        for place in range(0, len(data), step):
            changed = bytearray(data)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            if name == "method.json" and _same(data, changed):
                continue  # a blank for another
            with pytest.raises(CheckpointError, match=name):
                load(folder)
        (folder / name).write_bytes(data)
    load(folder)


def _same(data, changed):
    try:
        return json.loads(data) == json.loads(bytes(changed))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot read .*method\.json"),
        ("[]", r"method\.json must hold a dict"),
        ("{}", r"method\.json is not of a method: 'method'"),
        ('{"method": 3}', r"method\.json is not of a method"),
    ],
)
def test_settings_that_are_not_of_a_method(folder, content, message):
    (folder / "method.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def edit_settings(folder, change):
    settings = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    change(settings)
    (folder / "method.json").write_text(json.dumps(settings), encoding="utf-8")


def test_settings_that_no_method_has(folder):
    edit_settings(folder, lambda settings: settings["method"]["interface"].update(rank=0))
    message = r"method\.json is not of a method: rank must be at least 1, got 0"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_settings_that_were_edited(folder):
    """Also where the parameters would fit them."""
    edit_settings(folder, lambda settings: settings["batch"].update(evidence_tokens=99))
    with pytest.raises(CheckpointError, match=r"method\.json beside it is not as it was written"):
        load(folder)


def test_another_backbone(folder):
    message = f"trained for another backbone .{BACKBONE[:12]}, this one is bbbbbbbbbbbb"
    with pytest.raises(CheckpointError, match=message):
        load(folder, "b" * 64)


def test_a_decoder_that_the_parameters_do_not_fit(folder):
    """Only by a caller who gives the fingerprint of one backbone and the sizes of another."""
    decoder = dataclasses.replace(DECODER, num_key_value_heads=1)
    with pytest.raises(CheckpointError, match=r"method\.safetensors does not fit its settings"):
        load_method(folder, decoder, BACKBONE)


def test_fingerprints():
    """Of settings and weights, and not of how they are kept."""
    model = LanguageModel(DECODER, small.parameters(), None)
    found = backbone_fingerprint(model)
    assert len(found) == 64 and found == backbone_fingerprint(model)
    half = small.parameters(jnp.bfloat16)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    assert backbone_fingerprint(dataclasses.replace(model, parameters=half)) == (
        backbone_fingerprint(dataclasses.replace(model, parameters=whole))
    )
    scale = np.array(small.parameters()["norm"]["scale"])
    scale[3] = np.nextafter(scale[3], 2)
    others = [
        dataclasses.replace(model, config=dataclasses.replace(DECODER, rms_norm_eps=1e-5)),
        dataclasses.replace(
            model, parameters={**model.parameters, "norm": {"scale": jnp.asarray(scale)}}
        ),
    ]
    assert len({found, *map(backbone_fingerprint, others)}) == 3
