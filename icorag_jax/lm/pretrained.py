"""Language models from and to checkpoint folders in the Hugging Face form."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers

from icorag_jax import checkpoint, files, stored_tensors
from icorag_jax.checkpoint import Layout, Parameters, Template
from icorag_jax.lm import config_files, sharding
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import init_parameters
from icorag_jax.stored_tensors import CheckpointError

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
LAYOUT = Layout(
    modules=(
        (r"embedding", r"model.embed_tokens"),
        (r"norm", r"model.norm"),
        (r"output", r"lm_head"),
        (r"layers/input_norm", r"model.layers.{layer}.input_layernorm"),
        (r"layers/mlp_norm", r"model.layers.{layer}.post_attention_layernorm"),
        (r"layers/query", r"model.layers.{layer}.self_attn.q_proj"),
        (r"layers/key", r"model.layers.{layer}.self_attn.k_proj"),
        (r"layers/value", r"model.layers.{layer}.self_attn.v_proj"),
        (r"layers/attention_output", r"model.layers.{layer}.self_attn.o_proj"),
        (r"layers/query_norm", r"model.layers.{layer}.self_attn.q_norm"),
        (r"layers/key_norm", r"model.layers.{layer}.self_attn.k_norm"),
        (r"layers/(gate|up|down)", r"model.layers.{layer}.mlp.\1_proj"),
    ),
    aliases=(),
    # Frequencies of rotary embeddings, which follow from the settings.
    ignored=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)
# A tied output projection is the embedding; some checkpoints hold it twice.
_TIED_LAYOUT = dataclasses.replace(LAYOUT, ignored=rf"{LAYOUT.ignored}|lm_head\.weight")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A frozen decoder.

    Attributes:
        config: what makes it up.
        parameters: see `icorag_jax.lm.decoder`.
        tokenizer: neither truncates nor pads; None where the checkpoint has no `tokenizer.json`.
    """

    config: DecoderConfig
    parameters: Parameters
    tokenizer: tokenizers.Tokenizer | None


def from_pretrained(
    source: str | Path, *, dtype: Any, mesh: jax.sharding.Mesh | None = None
) -> LanguageModel:
    """Loads a checkpoint folder or, by its id, one from the Hugging Face hub.

    Tensors go one by one to their dtype and devices. No code of the checkpoint is run.

    Args:
        source: the folder or id.
        dtype: of parameters and compute, float32 or bfloat16.
        mesh: devices to lay the parameters out on, see `icorag_jax.lm.sharding`; the default
            device if None.

    Raises:
        CheckpointError: the checkpoint is not a whole one of a supported architecture; says all
            that is wrong with its settings or with its tensors.
        ValueError: another dtype.
    """
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype must be float32 or bfloat16, got {jnp.dtype(dtype)}")
    folder = checkpoint.resolve_folder(source)
    config = config_files.read_config(folder)
    template = parameter_template(config, dtype)
    if mesh is not None:
        template = sharding.shard_template(config, template, mesh)
    tokenizer = None
    if (folder / _TOKENIZER).exists():
        tokenizer = checkpoint.read_tokenizer(folder)
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= config.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has token {largest}, the model {config.vocab_size}"
            )
    layout = LAYOUT
    if config.tie_word_embeddings:
        layout = _TIED_LAYOUT
        if not stored_tensors.same_tensors(folder, "model.embed_tokens.weight", "lm_head.weight"):
            raise CheckpointError(
                f"{folder}: tie_word_embeddings is true, but lm_head.weight is another tensor than "
                "model.embed_tokens.weight: set it to false"
            )
    return LanguageModel(config, checkpoint.read_parameters(folder, template, layout), tokenizer)


def save_pretrained(folder: Path, model: LanguageModel, shard_bytes: int = 5 * 2**30) -> None:
    """Writes a new folder that `from_pretrained` and transformers load, whole or not at all.

    Args:
        folder: where it comes to lie; absent or empty.
        model: what is written, in the dtype of its parameters.
        shard_bytes: size of a file of weights, at most, but for one tensor that is larger.

    Raises:
        FileExistsError: there is something at `folder` already.
        OSError: it cannot be written; nothing is left of it.
        ValueError: the family has no words for some of the settings, or layers are not stacked.
    """
    if isinstance(model.parameters["layers"], list):
        raise ValueError("parameters are saved with their layers stacked, not from unstack_layers")

    def write(temporary: Path) -> None:
        dtype = model.parameters["norm"]["scale"].dtype.name
        config_files.write_config(temporary, model.config, dtype)
        if model.tokenizer is not None:
            model.tokenizer.save(str(temporary / _TOKENIZER))
            text = json.dumps(_tokenizer_config(model), indent=2, ensure_ascii=False)
            (temporary / _TOKENIZER_CONFIG).write_text(f"{text}\n", encoding="utf-8")
        checkpoint.write_parameters(temporary, model.parameters, LAYOUT, shard_bytes)

    files.write_folder(folder, write)


def parameter_template(config: DecoderConfig, dtype: Any) -> Template:
    """The shapes and dtypes of a decoder's parameters, without their values."""
    return jax.eval_shape(lambda key: init_parameters(config, key, dtype), jax.random.key(0))


def _tokenizer_config(model: LanguageModel) -> dict[str, Any]:
    """What transformers wants to know of a tokenizer beside `tokenizer.json`."""
    config, tokenizer = model.config, model.tokenizer
    ends = config.eos_token_ids
    special = {
        "bos_token": config.bos_token_id,
        "eos_token": ends[0] if ends else None,
        "pad_token": config.pad_token_id,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": False,
        **{
            name: tokenizer.id_to_token(token)
            for name, token in special.items()
            if token is not None and tokenizer is not None
        },
    }
