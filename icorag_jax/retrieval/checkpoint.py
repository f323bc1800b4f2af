"""Checkpoint folders in the Hugging Face form, read into parameter trees.

Only safetensors are read, never pickles: one `model.safetensors`, or shards with an index.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from jaxtyping import Array, Float, PyTree

Pooling = Literal["mean", "cls"]
Parameters = PyTree[Float[Array, "..."]]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TENSOR_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


class CheckpointError(ValueError):
    """A checkpoint folder does not hold what the model needs."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, under the names that `config.json` has for them.

    Attributes:
        vocab_size: tokens in the vocabulary.
        hidden_size: `width`.
        num_hidden_layers: layers.
        num_attention_heads: heads, each of `hidden_size / num_attention_heads` features.
        intermediate_size: features inside an MLP.
        max_position_embeddings: tokens in the longest text.
        type_vocab_size: token types; texts are of type 0.
        layer_norm_eps: added to variances.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    def __post_init__(self):
        """Checks ranges."""
        if any(value <= 0 for value in dataclasses.astuple(self)):
            raise ValueError(f"every size must be above 0: {self}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads must divide hidden_size: {self}")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model's parameters are named in a checkpoint.

    Attributes:
        modules: pairs (regular expression of a module's path in the parameter tree, its name in
            the checkpoint). The name may refer to groups; one with `{layer}` stands for one module
            a layer, stacked on the parameters' leading axis.
        aliases: pairs (regular expression, replacement), first applied to the checkpoint's names.
        ignored: regular expression of names that the model has no use for.
    """

    modules: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    ignored: str


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """What the sentence-transformers files of a folder say beside the transformer itself.

    Attributes:
        folder: the transformer's own folder.
        pooling: how token states become one vector.
        normalize: scale embeddings to unit length.
        max_length: tokens a text is cut to, or None where no file says.
        lowercase: lower the case of texts before the tokenizer does its own normalization.
    """

    folder: Path
    pooling: Pooling
    normalize: bool
    max_length: int | None
    lowercase: bool


def resolve_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; one named by hub id is downloaded, without its pickles.

    Raises:
        CheckpointError: `source` is no folder, and no repository that can be had either.
    """
    if Path(source).is_dir():
        return Path(source)
    if not isinstance(source, str) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise CheckpointError(f"{source} is not a folder")
    try:
        patterns = ["*.safetensors", "*.json", "*.txt"]
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a folder nor a repository that can be downloaded: {error}"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_config(folder: Path) -> BertConfig:
    """The sizes in `config.json`.

    Raises:
        CheckpointError: sizes that are missing, and values that ask for another computation: all of
            them in one message.
    """
    values = {"hidden_act": "gelu", **read_json(folder / "config.json")}
    supported = {
        "model_type": ("bert",),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "quantization_config": (None,),
    }
    names = [field.name for field in dataclasses.fields(BertConfig)]
    problems = [f"{name} is missing" for name in names if name not in values]
    for name, allowed in supported.items():
        if values.get(name) not in allowed:
            problems.append(f"{name} is {values.get(name)!r}, supported: {allowed[0]!r}")
    if problems:
        raise CheckpointError(f"{folder / 'config.json'}: {'; '.join(problems)}")
    return BertConfig(**{name: values[name] for name in names})


def read_settings(folder: Path) -> SentenceSettings:
    """Pooling, normalization and length limit; mean pooling and unit length where no file says.

    Raises:
        CheckpointError: the files ask for a module or a pooling that is not supported.
    """
    transformer, pooling, normalize = folder, "mean", True
    if (folder / "modules.json").exists():
        modules = read_json(folder / "modules.json")
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        normalize = kinds[2:] == ["Normalize"]
        if kinds[:2] != ["Transformer", "Pooling"] or not (normalize or len(kinds) == 2):
            supported = "Transformer, Pooling[, Normalize]"
            raise CheckpointError(f"{folder}: modules.json has {kinds}; supported: {supported}")
        transformer = folder / modules[0]["path"]
        pooling = _read_pooling(folder / modules[1]["path"] / "config.json")
    path = transformer / "sentence_bert_config.json"
    limits = read_json(path) if path.exists() else {}
    cut, lowercase = limits.get("max_seq_length"), bool(limits.get("do_lower_case"))
    return SentenceSettings(transformer, pooling, normalize, cut, lowercase)


def _read_pooling(path: Path) -> Pooling:
    """The pooling of a sentence-transformers pooling module."""
    modes = [key for key, on in read_json(path).items() if key.startswith("pooling_mode") and on]
    match modes:
        case ["pooling_mode_mean_tokens"]:
            return "mean"
        case ["pooling_mode_cls_token"]:
            return "cls"
    raise CheckpointError(f"{path} asks for pooling {modes}; supported: mean_tokens, cls_token")


def read_tokenizer(folder: Path, lowercase: bool) -> tokenizers.Tokenizer:
    """The tokenizer of `tokenizer.json`, with its own truncation and padding switched off.

    Raises:
        CheckpointError: the file is missing or is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"cannot read {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if lowercase:
        steps = [tokenizers.normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = tokenizers.normalizers.Sequence([s for s in steps if s is not None])
    return tokenizer


def read_parameters(
    folder: Path, template: PyTree[jax.ShapeDtypeStruct], layout: Layout
) -> Parameters:
    """A checkpoint's tensors as a parameter tree, in float32.

    Args:
        folder: holds the safetensors.
        template: nested dictionaries of the shapes of the parameters.
        layout: how the parameters are named in the checkpoint.

    Raises:
        CheckpointError: no safetensors, or tensors that are missing, unexpected, misshapen, double
            or not floating point: all of them in one message.
    """
    tensors, problems = _read_tensors(folder, layout)

    def gather(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        *module, kind = (str(key.key) for key in path)
        name = f"{_module_name('/'.join(module), layout)}.{_TENSOR_NAMES[kind]}"
        stacked = "{layer}" in name
        names = [name.format(layer=i) for i in range(leaf.shape[0])] if stacked else [name]
        # A kernel multiplies from the right here, from the left in the checkpoint.
        shape = leaf.shape[int(stacked) :][:: -1 if kind == "kernel" else 1]
        parts = []
        for name in names:
            tensor = tensors.pop(name, None)
            if tensor is None:
                problems.append(f"missing: {name}, expected {shape}")
            elif tensor.shape != shape:
                problems.append(f"misshapen: {name}, expected {shape}, found {tensor.shape}")
            else:
                parts.append(tensor.T if kind == "kernel" else tensor)
        if problems:
            return leaf  # the error is raised below, with all the problems there are
        return np.stack(parts) if stacked else parts[0]

    parameters = jax.tree_util.tree_map_with_path(gather, template)
    for name in sorted(tensors):
        problems.append(f"unexpected: {name}, found {tensors[name].shape}")
    if problems:
        raise CheckpointError("\n  ".join([f"{folder}: {len(problems)} wrong tensors", *problems]))
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), parameters)


def _module_name(path: str, layout: Layout) -> str:
    """A module's name in the checkpoint."""
    for pattern, name in layout.modules:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    raise KeyError(f"the layout does not name module {path}")


def _read_tensors(folder: Path, layout: Layout) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors that are not ignored, by name without aliases, and what is wrong with them."""
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for path in _weight_files(folder):
        try:
            stored = safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        for key, tensor in stored.items():
            name = functools.reduce(lambda n, alias: re.sub(*alias, n), layout.aliases, key)
            if re.fullmatch(layout.ignored, name):
                continue
            if name in tensors:
                problems.append(f"double: {key}")
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                problems.append(f"not floating point: {key}, found {tensor.dtype}")
            tensors[name] = tensor
    return tensors, problems


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).exists():
        files = set(read_json(folder / _INDEX)["weight_map"].values())
        return [folder / name for name in sorted(files)]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which are not read, "
            f"since unpickling can run any code: convert them to {_WEIGHTS}"
        )
    raise CheckpointError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}")
