"""A small corpus with ties in it, and an encoder of a few random weights, quick to run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval.encoder import Bert, SentenceEncoder
from icorag_jax.retrieval.encoder_files import BertConfig, Prompts

WORDS = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta",
    "query", "passage", ":", ".",
]  # fmt: skip


def make_encoder(seed: int = 0, prompts: Prompts = Prompts()) -> SentenceEncoder:  # noqa: B008
    """A BERT of one layer with random weights, whose words are `WORDS`."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3],
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, type_vocab_size=1, layer_norm_eps=1e-6,
    )  # fmt: skip
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Bert(config).init, jax.random.key(0), tokens, tokens == 0)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    return SentenceEncoder(
        config, params, tokenizers.Tokenizer.from_str(json.dumps(tokenizer)), "mean", True, 32,
        prompts,
    )  # fmt: skip


def make_corpus(count: int, seed: int = 0) -> list[CorpusPassage]:
    """Passages of one to nine of the first eight `WORDS`; one in four has no title."""
    rng = np.random.default_rng(seed)
    draw = lambda most: " ".join(rng.choice(WORDS[:8], rng.integers(1, most + 1)))  # noqa: E731
    return [
        CorpusPassage(f"p{i}", "" if rng.integers(4) == 0 else draw(2), draw(9))
        for i in range(count)
    ]
