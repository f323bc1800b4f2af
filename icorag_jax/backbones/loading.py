"""Backbones by name, folder or hub id, with all that asking them takes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from icorag_jax import checkpoint
from icorag_jax.backbones.templates import TEMPLATE, default_template, read_template
from icorag_jax.data.pieces import PromptTokenizer, split_tokenizer
from icorag_jax.data.prompts import PromptTemplate
from icorag_jax.lm.pretrained import LanguageModel, from_pretrained
from icorag_jax.rag.method import Kind
from icorag_jax.rag.storage import backbone_fingerprint, trained_for
from icorag_jax.stored_tensors import CheckpointError

# Where the shipped backbones are, a folder each.
FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen model, and how it is asked.

    Attributes:
        name: of a shipped one, of its folder, or its hub id.
        model: the model.
        template: the wording of its prompts.
        tokenizer: of these prompts.
        fingerprint: of settings and weights; methods are trained for one backbone.
    """

    name: str
    model: LanguageModel
    template: PromptTemplate
    tokenizer: PromptTokenizer
    fingerprint: str

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without those that end it, on one line."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None  # load_backbone sees to it
        kept = [token for token in tokens if token not in self.model.config.eos_token_ids]
        return " ".join(tokenizer.decode(kept, skip_special_tokens=True).split())


def backbone_names() -> tuple[str, ...]:
    """The names of the shipped backbones, sorted."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("*/config.json")))


def load_backbone(source: str, dtype: Any, *, mesh: jax.sharding.Mesh | None = None) -> Backbone:
    """Loads a backbone; one without a `template.json` gets `default_template`.

    Args:
        source: name of a shipped backbone, which wins over a folder of that name (`./NAME` is the
            folder), or a folder in the Hugging Face form, or a hub id.
        dtype: of parameters and compute, float32 or bfloat16.
        mesh: devices to lay the parameters out on, see `icorag_jax.lm.sharding`; the default
            device if None.

    Raises:
        CheckpointError: there is no such backbone, it has no tokenizer, or it is not a whole one of
            a supported architecture.
        ValueError: another dtype.
    """
    name, folder = _find(source)
    model = from_pretrained(folder, dtype=dtype, mesh=mesh)
    if model.tokenizer is None:
        raise CheckpointError(
            f"{source} has no tokenizer.json, without which it cannot be asked: save it with a "
            "fast tokenizer of transformers"
        )
    path = folder / TEMPLATE
    return Backbone(
        name=name,
        model=model,
        template=read_template(path) if path.exists() else default_template(model.tokenizer),
        tokenizer=split_tokenizer(model.tokenizer),
        fingerprint=backbone_fingerprint(model),
    )


def find_method(backbone: Backbone, kind: Kind = "updater") -> Path | None:
    """The folder of a method that is shipped for a backbone, or None where there is none.

    It is told by the backbone's fingerprint, wherever that was loaded from.

    Args:
        backbone: the backbone.
        kind: of the method.

    Raises:
        CheckpointError: the settings of a shipped method cannot be read.
    """
    for folder in sorted(FOLDER.glob(f"*/{kind}")):
        if trained_for(folder) == backbone.fingerprint:
            return folder
    return None


def _find(source: str) -> tuple[str, Path]:
    """The name of a backbone, and its folder."""
    if source in (names := backbone_names()):
        return source, FOLDER / source
    if (folder := Path(source)).is_dir():
        return folder.resolve().name, folder
    if "/" not in source:
        known = ", ".join([*names, "a folder"])
        raise CheckpointError(
            f"there is no backbone {source!r}: pass {known} or a hub id such as Qwen/Qwen3-0.6B"
        )
    return source, checkpoint.resolve_folder(source)
