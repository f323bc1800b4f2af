"""Settings of a decoder in a checkpoint's `config.json`, as transformers 4 and 5 write it.

A key that is not understood is an error, unless it is null or false: what it would switch on is
then off.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from icorag_jax.lm.config import (
    DecoderConfig,
    DefaultRotary,
    DynamicRotary,
    Family,
    LinearRotary,
    Llama3Rotary,
    Rotary,
    YarnRotary,
)
from icorag_jax.stored_tensors import CheckpointError, read_json

_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ROTARIES: Mapping[str, type[DefaultRotary]] = {
    "default": DefaultRotary,
    "linear": LinearRotary,
    "dynamic": DynamicRotary,
    "llama3": Llama3Rotary,
    "yarn": YarnRotary,
}
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
# What each family takes beside the sizes, with the value of an absent key.
_COMMON = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_QWEN = {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, **_ENDS},
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8, **_ENDS},
    "qwen2": _QWEN,
    "qwen3": {"attention_bias": False, "head_dim": 128, **_QWEN},
}
# Keys of which only one value is supported.
_FIXED = {
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "rope_interleaved": False,
}
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
# Keys that do not change what is computed.
_IGNORED = frozenset(
    (
        "model_type", "architectures", "attention_dropout", "initializer_range", "pretraining_tp",
        "transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path",
        "chunk_size_feed_forward", "id2label", "label2id", "return_dict", "tokenizer_class",
        "_attn_implementation", "_attn_implementation_autoset", "unsloth_version",
        "unsloth_fixed", "max_length", "max_sequence_length", "task_specific_params",
        "is_llama_config", "transformers.js_config", "use_flash_attn",
    )
)  # fmt: skip


def read_config(folder: Path) -> DecoderConfig:
    """The settings of a checkpoint folder; tokens that end a text as `generation_config.json` says.

    Raises:
        CheckpointError: another architecture, settings that are missing, of the wrong kind, not
            supported or not understood: all of them in one message.
    """
    path = folder / _CONFIG
    values = read_json(path, dict)
    generation = read_json(folder / _GENERATION, dict) if (folder / _GENERATION).exists() else {}
    family: Any = values.get("model_type")
    if family not in get_args(Family):
        raise CheckpointError(
            f"{path}: model_type is {family!r}, supported: {', '.join(get_args(Family))}"
        )
    problems: list[str] = []
    # transformers generates by this file, which for chat models names more ends of a text.
    if generation.get("eos_token_id") is not None:
        values = {**values, "eos_token_id": generation["eos_token_id"]}
    known = _known_values(values, family, problems)
    rotary = _read_rotary(known, problems)
    windows = _read_windows(known, problems)
    if problems or rotary is None:
        raise CheckpointError("\n  ".join([f"{path}: {len(problems)} problems", *problems]))
    heads, ends = known["num_attention_heads"], known["eos_token_id"]
    bias = family == "qwen2" or known.get("attention_bias", False)
    try:
        return DecoderConfig(
            family=family,
            **{name: known[name] for name in _SIZES},
            num_key_value_heads=known["num_key_value_heads"] or heads,
            head_dim=known["head_dim"] or known["hidden_size"] // heads,
            rms_norm_eps=float(known["rms_norm_eps"]),
            tie_word_embeddings=known["tie_word_embeddings"],
            rotary=rotary,
            query_key_value_bias=bias,
            attention_output_bias=bias and family != "qwen2",
            mlp_bias=known.get("mlp_bias", False),
            query_key_norm=family == "qwen3",
            windows=windows,
            eos_token_ids=tuple(ends if isinstance(ends, list) else [] if ends is None else [ends]),
            bos_token_id=known["bos_token_id"],
            pad_token_id=known["pad_token_id"],
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_config(folder: Path, config: DecoderConfig, dtype: str) -> None:
    """Writes `config.json` and `generation_config.json`, which transformers 4 and 5 read.

    Args:
        folder: an existing folder.
        config: the decoder.
        dtype: name of the parameters' dtype.

    Raises:
        ValueError: the family has no words for some of the settings; the message has all of them.
    """
    family, windows = config.family, {window for window in config.windows if window}
    qwen = family in ("qwen2", "qwen3")
    problems = []
    if len(windows) > 1 or (family == "llama" and windows):
        problems.append(f"windows {config.windows}")
    if family == "mistral" and len(set(config.windows)) > 1:
        problems.append(f"windows {config.windows}, not the same in all layers")
    bias = config.query_key_value_bias
    if config.attention_output_bias != (bias and family != "qwen2"):
        problems.append("attention_output_bias")
    if bias != (family == "qwen2") and family in ("qwen2", "mistral"):
        problems.append("query_key_value_bias")
    if config.mlp_bias and family != "llama":
        problems.append("mlp_bias")
    if config.query_key_norm != (family == "qwen3"):
        problems.append("query_key_norm")
    if problems:
        raise ValueError(f"{family} checkpoints cannot say: {'; '.join(problems)}")
    kind = next(name for name, cls in _ROTARIES.items() if cls is type(config.rotary))
    rotary = {
        field.name: value
        for field in dataclasses.fields(config.rotary)
        if (value := getattr(config.rotary, field.name)) != field.default
    }
    ends = list(config.eos_token_ids)
    tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
    }
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "dtype": dtype,
        **{name: getattr(config, name) for name in _SIZES},
        **{
            name: getattr(config, name)
            for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")
        },
        **tokens,
        "rope_theta": config.rotary.rope_theta,
        "rope_parameters": {"rope_type": kind, **rotary},
    }
    if kind != "default":
        values["rope_scaling"] = {"rope_type": kind, **rotary}
    if family in ("llama", "qwen3"):
        values["attention_bias"] = bias
    if family == "llama":
        values["mlp_bias"] = config.mlp_bias
    if family == "mistral" or qwen:
        values["sliding_window"] = next(iter(windows), None)
    if qwen:
        values["use_sliding_window"] = bool(windows)
        values["layer_types"] = [
            "sliding_attention" if window else "full_attention" for window in config.windows
        ]
    for name, content in ((_CONFIG, values), (_GENERATION, tokens)):
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")


def _known_values(values: dict[str, Any], family: str, problems: list[str]) -> dict[str, Any]:
    """The settings of a family, those that are absent at their defaults; checks their kinds."""
    architectures = values.get("architectures") or [_ARCHITECTURES[family]]
    if architectures != [_ARCHITECTURES[family]]:
        problems.append(f"architectures is {architectures}, supported: {_ARCHITECTURES[family]}")
    known = {**_COMMON, **_DEFAULTS[family]}
    for name, supported in _FIXED.items():
        if values.get(name, supported) not in (supported, None):
            problems.append(f"{name} is {values[name]!r}, supported: {supported!r}")
    for name, value in values.items():
        if name in known or name in _SIZES:
            known[name] = known[name] if value is None and name in _SWITCHES else value
        elif not (name in _IGNORED or name in _FIXED or value is None or value is False):
            problems.append(f"{name} is {value!r:.60}, which is not understood")
    problems += [f"{name} is missing" for name in _SIZES if name not in known]
    if known["pad_token_id"] == -1:
        known["pad_token_id"] = None  # as older conversions say it
    whole = (*_SIZES, "num_key_value_heads", "head_dim", "sliding_window", "max_window_layers",
             "bos_token_id", "pad_token_id")  # fmt: skip
    for name in whole:
        value = known.get(name)
        least = 0 if name.endswith(("token_id", "window_layers")) else 1
        if value is None and name not in _SIZES:
            continue
        if name in known and not _is_whole(value, least):
            problems.append(f"{name} must be a whole number from {least} on, found {value!r}")
    for name in _SWITCHES:
        if not isinstance(known.get(name, False), bool):
            problems.append(f"{name} must be true or false, found {known[name]!r}")
    if not _is_number(known["rms_norm_eps"]):
        problems.append(f"rms_norm_eps must be a number, found {known['rms_norm_eps']!r}")
    ends = known["eos_token_id"]
    if not all(_is_whole(end) for end in (ends if isinstance(ends, list) else [ends or 0])):
        problems.append(f"eos_token_id must be a token or a list of them, found {ends!r}")
    return known


def _read_rotary(known: dict[str, Any], problems: list[str]) -> Rotary | None:
    """The rotary embeddings, or None where something is wrong with them."""
    newer, older = known["rope_parameters"], known["rope_scaling"]
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(known[name], dict | None):
            problems.append(f"{name} must be an object, found {known[name]!r:.60}")
            return None
    theta = 10_000.0 if known["rope_theta"] is None else known["rope_theta"]
    found = []
    for parameters in (newer, older):
        if not parameters:
            continue
        given = {name: value for name, value in parameters.items() if value is not None}
        kind = given.pop("rope_type", given.get("type", "default"))
        found.append({"rope_theta": theta, **given, "type": kind})
    if len(found) == 2 and found[0] != found[1]:
        problems.append(f"rope_parameters {newer} and rope_scaling {older} differ")
        return None
    given = found[0] if found else {"rope_theta": theta, "type": "default"}
    kind, context = given.pop("type"), known.get("max_position_embeddings")
    if not isinstance(kind, str) or kind not in _ROTARIES:
        problems.append(f"rope type is {kind!r}, supported: {', '.join(_ROTARIES)}")
        return None
    if given.pop("partial_rotary_factor", 1) != 1:
        problems.append("partial_rotary_factor must be 1")
    fields = {field.name: field for field in dataclasses.fields(_ROTARIES[kind])}
    if "original_max_position_embeddings" in fields:
        given.setdefault("original_max_position_embeddings", context)
    else:
        given.pop("original_max_position_embeddings", None)  # of no use to these types
    wrong = [f"{name} is not understood" for name in given if name not in fields]
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            wrong.append(f"{name} is missing")
        elif name in given and field.type is bool and not isinstance(given[name], bool):
            wrong.append(f"{name} must be true or false, found {given[name]!r}")
        elif name in given and field.type is not bool and not _is_number(given[name]):
            wrong.append(f"{name} must be a number, found {given[name]!r}")
    problems += [f"rope type {kind}: {problem}" for problem in wrong]
    return None if wrong else _ROTARIES[kind](**given)


def _read_windows(known: dict[str, Any], problems: list[str]) -> tuple[int | None, ...]:
    """For each layer, how far back a token sees."""
    layers: Any = known.get("num_hidden_layers")
    window: int | None = known.get("sliding_window")
    if not _is_whole(layers):
        return ()
    if "use_sliding_window" not in known:
        return (window,) * layers
    window = window if known["use_sliding_window"] else None
    kinds = known["layer_types"]
    if kinds is None:
        first = known["max_window_layers"] or 0
        return tuple(window if layer >= first else None for layer in range(layers))
    supported = {"full_attention": None, "sliding_attention": window}
    named = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)
    if not named or len(kinds) != layers or not set(kinds) <= set(supported):
        problems.append(f"layer_types must be {layers} of {', '.join(supported)}, found {kinds}")
        return ()
    if "sliding_attention" in kinds and window is None:
        problems.append("layer_types has sliding_attention, but sliding_window is not set")
    return tuple(supported[kind] for kind in kinds)


def _is_whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
