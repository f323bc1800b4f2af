"""A checkpoint run by `transformers` in PyTorch, which is what ours is held against."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Dtype = Literal["float32", "bfloat16"]


class Trace(NamedTuple):
    """What comes out of a model on a batch, float32.

    Attributes:
        states: the residual stream before the first layer and after each, `[layers + 1, batch,
            tokens, width]`.
        normal: states after the last norm, `[batch, tokens, width]`.
        logits: `[batch, tokens, vocabulary]`.
    """

    states: np.ndarray
    normal: np.ndarray
    logits: np.ndarray


def missing_packages() -> list[str]:
    """Those among torch and transformers that are not installed."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def load(folder: Path, dtype: Dtype) -> Any:
    """The model in PyTorch, on CPU.

    Raises:
        ValueError: transformers cannot read the checkpoint.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
        )
    except Exception as error:  # the library raises all kinds
        raise ValueError(f"transformers cannot read {folder}: {error}") from error
    return model.eval()


def trace(model: Any, tokens: np.ndarray, positions: np.ndarray) -> Trace:
    """Runs a padded batch.

    Args:
        model: as `load` gives it.
        tokens: `[batch, tokens]`.
        positions: of the tokens, -1 at padding.
    """
    import torch

    layers = model.model.layers
    states: list[np.ndarray] = []

    def keep(_: Any, inputs: tuple, output: Any) -> None:
        if not states:
            states.append(_numpy(inputs[0]))
        states.append(_numpy(output[0] if isinstance(output, tuple) else output))

    normal: list[np.ndarray] = []
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    hooks.append(
        model.model.norm.register_forward_hook(lambda *found: normal.append(_numpy(found[2])))
    )
    try:
        with torch.inference_mode():
            output = model(
                torch.from_numpy(tokens.astype(np.int64)),
                attention_mask=torch.from_numpy((positions >= 0).astype(np.int64)),
                position_ids=torch.from_numpy(np.maximum(positions, 0).astype(np.int64)),
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(np.stack(states), normal[0], _numpy(output.logits))


def generate(
    model: Any,
    tokens: np.ndarray,
    positions: np.ndarray,
    *,
    new: int,
    eos_token_ids: Sequence[int],
) -> list[list[int]]:
    """The likeliest tokens after prompts padded on the left, one after another.

    A text ends with the first of `eos_token_ids`, which is its last token. Settings of generation
    that the checkpoint comes with are not followed.
    """
    import torch
    import transformers

    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=new,
        pad_token_id=0,
        eos_token_id=list(eos_token_ids) or None,
    )
    with torch.inference_mode():
        found = model.generate(
            torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy((positions >= 0).astype(np.int64)),
        )
    rows = found[:, tokens.shape[1] :].tolist()
    ends = [
        next((at + 1 for at, token in enumerate(row) if token in eos_token_ids), len(row))
        for row in rows
    ]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()
