"""What the files of a sentence encoder's folder say beside its tensors.

`config.json` has the sizes, `tokenizer.json` the tokenizer; the files of sentence-transformers, if
there are any, how token states become an embedding.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import tokenizers

from icorag_jax import checkpoint
from icorag_jax.stored_tensors import CheckpointError, read_json

Pooling = Literal["mean", "cls"]


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
        """Checks that heads share the features evenly."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads must divide hidden_size: {self}")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What an encoder wants before a text.

    Attributes:
        query: before a query.
        passage: before a passage.
    """

    query: str = ""
    passage: str = ""


# Of checkpoints whose own files do not have them: Wang et al. 2022, and Xiao et al. 2023 (English).
E5_PROMPTS = Prompts("query: ", "passage: ")
BGE_PROMPTS = Prompts("Represent this sentence for searching relevant passages: ", "")


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """What the sentence-transformers files of a folder say beside the transformer itself.

    Attributes:
        folder: the transformer's own folder.
        pooling: how token states become one vector.
        normalize: scale embeddings to unit length.
        max_length: tokens a text is cut to, or None where no file says.
        lowercase: lower the case of texts before the tokenizer does its own normalization.
        prompts: what comes before a query and a passage, or None where no file says.
    """

    folder: Path
    pooling: Pooling
    normalize: bool
    max_length: int | None
    lowercase: bool
    prompts: Prompts | None


def read_config(folder: Path) -> BertConfig:
    """The sizes in `config.json`.

    Raises:
        CheckpointError: sizes that are missing, and values that ask for another computation: all of
            them in one message.
    """
    values = {"hidden_act": "gelu", **read_json(folder / "config.json", dict)}
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
    for name in names:
        value, whole = values.get(name, 1), name != "layer_norm_eps"
        number = isinstance(value, int if whole else int | float) and value is not True
        if not number or not 0 < value < math.inf:
            kind = "a whole number" if whole else "a number"
            problems.append(f"{name} must be {kind} above 0, found {value!r}")
    for name, allowed in supported.items():
        if values.get(name) not in allowed:
            problems.append(f"{name} is {values.get(name)!r}, supported: {allowed[0]!r}")
    if problems:
        raise CheckpointError(f"{folder / 'config.json'}: {'; '.join(problems)}")
    try:
        return BertConfig(**{name: values[name] for name in names})
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def read_settings(folder: Path) -> SentenceSettings:
    """All that the files say; mean pooling and unit length where there are none.

    Raises:
        CheckpointError: the files ask for a module or a pooling that is not supported.
    """
    transformer, pooling, normalize = folder, "mean", True
    if (folder / "modules.json").exists():
        modules = read_json(folder / "modules.json", list)
        try:
            kinds = [module["type"].rpartition(".")[2] for module in modules]
            paths = [folder / module["path"] for module in modules]
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / 'modules.json'}: every module must have a type and a path"
            ) from error
        normalize = kinds[2:] == ["Normalize"]
        if kinds[:2] != ["Transformer", "Pooling"] or not (normalize or len(kinds) == 2):
            supported = "Transformer, Pooling[, Normalize]"
            raise CheckpointError(f"{folder}: modules.json has {kinds}; supported: {supported}")
        transformer, pooling = paths[0], _read_pooling(paths[1] / "config.json")
    path = transformer / "sentence_bert_config.json"
    limits = read_json(path, dict) if path.exists() else {}
    cut, lowercase = limits.get("max_seq_length"), bool(limits.get("do_lower_case"))
    if cut is not None and (not isinstance(cut, int) or cut is True or cut < 1):
        raise CheckpointError(f"{path}: max_seq_length must be a whole number, found {cut!r}")
    prompts = _read_prompts(folder / "config_sentence_transformers.json")
    return SentenceSettings(transformer, pooling, normalize, cut, lowercase, prompts)


def _read_prompts(path: Path) -> Prompts | None:
    """The prompts of queries and of passages, whose names differ; None where there is neither."""
    named = read_json(path, dict).get("prompts") if path.exists() else None
    if named is None:
        return None
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise CheckpointError(f"{path}: prompts must be texts by name, found {named!r:.60}")
    passage = [named[name] for name in ("document", "passage", "corpus") if name in named]
    prompts = Prompts(named.get("query", ""), passage[0] if passage else "")
    # Empty ones are written for want of others.
    return None if prompts == Prompts() else prompts


def _read_pooling(path: Path) -> Pooling:
    """The pooling of a sentence-transformers pooling module."""
    content = read_json(path, dict)
    if not content.get("include_prompt", True):
        raise CheckpointError(f"{path}: pooling that leaves prompts out is not supported")
    modes = [key for key, on in content.items() if key.startswith("pooling_mode") and on]
    match modes:
        case ["pooling_mode_mean_tokens"]:
            return "mean"
        case ["pooling_mode_cls_token"]:
            return "cls"
    raise CheckpointError(f"{path} asks for pooling {modes}; supported: mean_tokens, cls_token")


def read_tokenizer(folder: Path, lowercase: bool) -> tokenizers.Tokenizer:
    """The tokenizer of a folder, perhaps lowering the case of texts first.

    Raises:
        CheckpointError: its file is missing or is not a tokenizer.
    """
    tokenizer = checkpoint.read_tokenizer(folder)
    if lowercase:
        steps = [tokenizers.normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = tokenizers.normalizers.Sequence([s for s in steps if s is not None])
    return tokenizer
