"""A trained method as a folder: its parameters, its settings, and the backbone that it is for."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from icorag_jax import files
from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.pretrained import LanguageModel
from icorag_jax.rag.batches import BatchConfig
from icorag_jax.rag.interface import InterfaceConfig
from icorag_jax.rag.method import MethodConfig, adjust_to_new_tasks, init_method
from icorag_jax.rag.updater import UpdaterConfig
from icorag_jax.stored_tensors import CheckpointError, read_json

_SETTINGS, _WEIGHTS = "method.json", "method.safetensors"


@dataclasses.dataclass(frozen=True)
class StoredMethod:
    """A trained method.

    Attributes:
        method: what it is.
        batch: sizes of prompts that it was trained on.
        parameters: float32.
        backbone: fingerprint of the backbone that it was trained for.
    """

    method: MethodConfig
    batch: BatchConfig
    parameters: Any
    backbone: str

    def for_new_tasks(self) -> "StoredMethod":
        """For tasks that it was not trained on, see `adjust_to_new_tasks`."""
        parameters = adjust_to_new_tasks(self.method, self.parameters)
        return dataclasses.replace(self, parameters=parameters)


def backbone_fingerprint(backbone: LanguageModel) -> str:
    """The SHA-256 of a backbone's settings and weights, in hexadecimal."""
    digest = hashlib.sha256(repr(backbone.config).encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path(backbone.parameters)
    for path, leaf in leaves:
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        # As float32, which holds bfloat16: the dtype of the compute is not what a backbone is.
        digest.update(np.asarray(leaf.astype(jnp.float32)).tobytes())
    return digest.hexdigest()


def save_method(folder: Path, stored: StoredMethod) -> None:
    """Writes a new folder, whole or not at all.

    Raises:
        FileExistsError: there is something at `folder` already.
        OSError: it cannot be written; nothing is left of it.
    """
    data = save(_flatten(stored.parameters))
    settings = {
        "method": dataclasses.asdict(stored.method),
        "batch": dataclasses.asdict(stored.batch),
        "backbone": stored.backbone,
    }
    settings["sha256"] = _checksum(settings, data)

    def write(temporary: Path) -> None:
        (temporary / _SETTINGS).write_text(f"{json.dumps(settings, indent=2)}\n", encoding="utf-8")
        (temporary / _WEIGHTS).write_bytes(data)

    files.write_folder(folder, write)


def load_method(folder: Path, decoder: DecoderConfig, backbone: str) -> StoredMethod:
    """Reads a folder of `save_method`.

    Args:
        folder: where it is.
        decoder: of the backbone that it is for.
        backbone: fingerprint of that backbone.

    Raises:
        CheckpointError: the folder is not a whole one, was altered, or is for another backbone.
    """
    settings = read_json(folder / _SETTINGS, dict)
    try:
        data = (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: {error.strerror}") from error
    try:
        method = MethodConfig(
            settings["method"]["kind"],
            InterfaceConfig(**settings["method"]["interface"]),
            UpdaterConfig(**settings["method"]["updater"]),
            settings["method"]["passages"],
        )
        batch = BatchConfig(**settings["batch"])
        for_backbone, checksum = settings["backbone"], settings["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _SETTINGS} is not of a method: {error}") from error
    if _checksum(settings, data) != checksum:
        raise CheckpointError(
            f"{folder / _WEIGHTS} or {_SETTINGS} beside it is not as it was written: truncated or "
            "altered"
        )
    if for_backbone != backbone:
        raise CheckpointError(
            f"{folder} was trained for another backbone ({for_backbone[:12]}, this one is "
            f"{backbone[:12]}): train one for this backbone, or pass --backbone"
        )
    try:
        template = jax.eval_shape(lambda key: init_method(method, decoder, key), jax.random.key(0))
        parameters = _unflatten(template, load(data))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS} does not fit its settings: {error}") from error
    return StoredMethod(method, batch, parameters, for_backbone)


def trained_for(folder: Path) -> str:
    """Fingerprint of the backbone that the method of a folder is for.

    Raises:
        CheckpointError: the folder has no settings of a method.
    """
    found = read_json(folder / _SETTINGS, dict).get("backbone")
    if not isinstance(found, str):
        raise CheckpointError(f"{folder / _SETTINGS} is not of a method: it names no backbone")
    return found


def _checksum(settings: dict[str, Any], data: bytes) -> str:
    """The SHA-256 of all that is stored but of itself, in hexadecimal."""
    rest = {name: value for name, value in settings.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _flatten(parameters: Parameters) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(parameters)
    return {
        "/".join(key.key for key in path): np.ascontiguousarray(np.asarray(leaf))
        for path, leaf in leaves
    }


def _unflatten(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    def take(path: Any, leaf: Any) -> Any:
        name = "/".join(key.key for key in path)
        if arrays[name].shape != leaf.shape or arrays[name].dtype != leaf.dtype:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
        return jnp.asarray(arrays[name])

    return jax.tree_util.tree_map_with_path(take, template)
