"""Folders of small random backbones and methods, made without PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.reader_texts import TEMPLATE, train_tokenizer
from icorag_jax.backbones.templates import write_template
from icorag_jax.data.sentences import generate_sentences
from icorag_jax.lm import decoder
from icorag_jax.lm.config import DecoderConfig, DefaultRotary
from icorag_jax.lm.pretrained import LanguageModel, save_pretrained
from icorag_jax.rag.batches import BatchConfig
from icorag_jax.rag.interface import InterfaceConfig
from icorag_jax.rag.method import MethodConfig, init_method
from icorag_jax.rag.storage import StoredMethod, backbone_fingerprint, save_method
from icorag_jax.rag.updater import UpdaterConfig

LAYER = 1
SIZES = BatchConfig(passages=4, evidence_tokens=120, question_tokens=48, answer_tokens=6)
METHOD = MethodConfig(
    "updater",
    InterfaceConfig(LAYER, bound=1.5, pools=2, pool_features=3, rank=2),
    UpdaterConfig(steps=2),
    4,
)
VOCABULARY = 300


def decoder_config(**settings):
    base = {
        "family": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rotary": DefaultRotary(10_000.0), "query_key_value_bias": False,
        "attention_output_bias": False, "mlp_bias": False, "query_key_norm": False,
        "windows": (None,) * 3, "eos_token_ids": (1,), "bos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    return DecoderConfig(**base | settings)


def random_like(tree, seed, scale=1.0):
    """Normal numbers in the shapes of a tree of float32 arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), tree
    )


def make_model(seed=0, **settings):
    """A language model of random weights, with a tokenizer of bytes and a few more."""
    config = decoder_config(**settings)
    template = decoder.init_parameters(config, jax.random.key(0), jnp.float32)
    tokenizer = train_tokenizer(generate_sentences(40, 0), VOCABULARY)
    return LanguageModel(config, random_like(template, seed, 0.4), tokenizer)


def write_backbone(folder, seed=0, **settings):
    """A backbone as the package ships them, without methods; the model in it."""
    model = make_model(seed, **settings)
    save_pretrained(folder, model)
    write_template(folder / "template.json", TEMPLATE)
    return model


def write_method(folder, model, seed=0, sizes=SIZES, **changes):
    """A method of random weights for a model."""
    config = dataclasses.replace(METHOD, **changes)
    parameters = random_like(init_method(config, model.config, jax.random.key(0)), seed, 0.5)
    stored = StoredMethod(config, sizes, parameters, backbone_fingerprint(model))
    save_method(folder, stored)
    return stored
