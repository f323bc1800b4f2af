"""Small random checkpoints of every family, with the PyTorch models of transformers beside them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import strategies as st

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)

# Tokens of the longest text; linear and dynamic scaling count those before they double them.
CONTEXT = 96
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARIES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A configuration of transformers, as keyword arguments, and a seed of its weights."""

    family: str
    settings: dict[str, Any]
    seed: int


def config_class(family: str) -> Any:
    return type(transformers.AutoConfig.for_model(family))


def trained_context(kind: str) -> int:
    return CONTEXT // 2 if kind in ("linear", "dynamic") else CONTEXT


YARNS = (
    {},
    {"attention_factor": 0.8},
    {"mscale": 0.9, "mscale_all_dim": 0.7},
    {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
)


def rotary_settings(kind: str, context: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"rope_type": kind, "rope_theta": 10_000.0}
    match kind:
        case "linear":
            settings |= {"factor": 2.0}
        case "dynamic":
            settings |= {"factor": 2.0}
        case "llama3":
            settings |= {
                "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": context // 4,
            }  # fmt: skip
        case "yarn":
            settings |= {"factor": 4.0, "original_max_position_embeddings": context // 4}
    return settings


@st.composite
def drawn_models(draw: Any, family: str, kind: str, initializer_range: float = 0.3) -> Drawn:
    """Of a family, with a type of rotary embeddings.

    Weights are large by default, for logits that differ, so that the likeliest token is clear.
    """
    kv_heads, group = draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2, 3)))
    head_dim = draw(st.sampled_from((8, 12)))
    layers = draw(st.sampled_from((2, 3)))
    # Qwen2 has heads of the hidden size divided by their number.
    hidden = kv_heads * group * (head_dim if family == "qwen2" else draw(st.sampled_from((6, 10))))
    settings = {
        "vocab_size": draw(st.sampled_from((61, 80))),
        "hidden_size": hidden,
        "intermediate_size": draw(st.sampled_from((20, 36))),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": trained_context(kind),
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5))),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": rotary_settings(kind, CONTEXT)
        | (draw(st.sampled_from(YARNS)) if kind == "yarn" else {}),
        "initializer_range": initializer_range,
        "eos_token_id": draw(st.sampled_from((None, 3, [7, 11]))),
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if family != "qwen2":
        settings["head_dim"] = head_dim
    if family in ("llama", "qwen3"):
        settings["attention_bias"] = draw(st.booleans())
    if family == "llama":
        settings["mlp_bias"] = draw(st.booleans())
    if family == "mistral":
        settings["sliding_window"] = draw(st.sampled_from((None, 5, 40)))
    if family in ("qwen2", "qwen3") and draw(st.booleans()):
        kinds = ("full_attention", "sliding_attention")
        settings |= {
            "use_sliding_window": True,
            "sliding_window": draw(st.sampled_from((4, 33))),
            "layer_types": [kinds[(layer + 1) % 2] for layer in range(layers)],
        }
    return Drawn(family, settings, draw(st.integers(0, 2**31)))


def torch_model(drawn: Drawn, dtype: Any = None) -> Any:
    """The model in PyTorch, its biases and norms random as well."""
    config = config_class(drawn.family)(**drawn.settings)
    torch.manual_seed(drawn.seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.to(dtype or torch.float32).eval()


def small_model(family: str = "llama", rotary: str = "default", **settings: Any) -> Drawn:
    """A fixed small configuration."""
    base = {
        "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": trained_context(rotary), "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "rope_parameters": rotary_settings(rotary, CONTEXT), "eos_token_id": None,
        "bos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if family != "qwen2":
        base["head_dim"] = 8
    return Drawn(family, base | settings, 7)


def random_rows(rng: np.random.Generator, vocabulary: int, lengths: list[int]) -> list[list[int]]:
    return [rng.integers(0, vocabulary, length).tolist() for length in lengths]


def torch_padded(rows: list[list[int]], side: str) -> tuple[Any, Any]:
    """Token ids and attention mask of a padded batch."""
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        at = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, at], mask[row, at] = tokens, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
