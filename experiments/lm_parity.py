"""Hold a language model against `transformers` in PyTorch, with the same weights.

Both read the checkpoint folder, and run the same padded texts: sentences through the checkpoint's
tokenizer if it has one, token ids drawn at random if not. Compared are the logits, the tokens that
each generates, and the residual stream after each layer, twice: as it comes, and with each layer of
ours starting from what PyTorch gave the layer before it, which tells a layer that computes
something else from one that inherits a difference.

Differences are over all tokens that are not padding; the relative ones are divided by the largest
magnitude in PyTorch.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int
from scipy.special import log_softmax
from tqdm import tqdm

from experiments.support import figures, lm_reference
from experiments.support.claims import Claim, claims_markdown
from experiments.support.command import check_numbers, run_command
from experiments.support.files import plain
from experiments.support.lm_reference import Dtype
from experiments.support.run_folder import open_run
from icorag_jax.checkpoint import CheckpointError, Parameters
from icorag_jax.data.sentences import generate_sentences
from icorag_jax.lm import decoder, generation, pretrained
from icorag_jax.lm.batches import Batch, pad_batch
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.pretrained import LanguageModel

# What counts as equal: logits in float32, and the mean divergence in bfloat16.
LOGIT_LIMIT, KL_LIMIT = 1e-4, 1e-3


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
        checkpoint: folder with the checkpoint.
        out: folder to write.
        seed: seed of the texts.
        resume: continue a run that was interrupted.
        dtype: of weights and compute.
        texts: texts in the batch, of different lengths.
        tokens: tokens of a text, at most.
        new_tokens: tokens to generate after each text.
        top_k: how many of the likeliest tokens are compared.
    """

    checkpoint: Path
    out: Path
    seed: int = 0
    resume: bool = False
    dtype: Dtype = "float32"
    texts: int = 8
    tokens: int = 64
    new_tokens: int = 64
    top_k: int = 5


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "paper": {"texts": 32, "tokens": 256},
}


def main(config: Config) -> None:
    """Compares, and writes the folder.

    Raises:
        ValueError: sizes that make no sense or do not fit the model, a checkpoint that cannot be
            read, or no PyTorch to compare with; nothing is written.
    """
    check_numbers(config)
    if missing := lm_reference.missing_packages():
        raise ValueError(f"this compares with PyTorch, but not installed: {', '.join(missing)}")
    if not config.checkpoint.is_dir():
        raise CheckpointError(f"{config.checkpoint} is not a folder")
    model = pretrained.from_pretrained(config.checkpoint, dtype=jnp.dtype(config.dtype))
    batch, source = _texts(config, model)
    reference = lm_reference.load(config.checkpoint, config.dtype)
    with (
        open_run(config.out, "lm_parity", config, resume=config.resume) as run,
        tqdm(total=2, desc="lm_parity", unit="part") as progress,
    ):
        found = run.cell_arrays("forward", lambda: compare_forward(model, reference, batch, config))
        progress.update()
        greedy = run.cell("greedy", lambda: compare_greedy(model, reference, batch, config))
        progress.update()
        logits = pd.DataFrame({name: found[name] for name in ("difference", "kl", "top_k")})
        layers = pd.DataFrame({name: found[name] for name in _LAYER_COLUMNS})
        summary = summarize(config, model, source, logits, layers, greedy)
        run.write_table("logits", logits)
        run.write_table("layers", layers)
        run.write_table("greedy", greedy)
        run.write_figure("layers", _draw(layers))
        run.write_account(account(summary))
        run.write_summary(summary)


_LAYER_COLUMNS = ("layer", "max_absolute", "max_relative", "alone_absolute", "alone_relative")


def compare_forward(
    model: LanguageModel, reference: Any, batch: Batch, config: Config
) -> dict[str, np.ndarray]:
    """Logits and states of both.

    Returns:
        For each token that is not padding: `difference`, the largest of a logit; `kl`, the
        divergence of ours from PyTorch's, in nats; `top_k`, the share of the likeliest tokens
        that both have. For the embedding, each layer and the last norm: `layer`, its name, and
        the largest differences, absolute and relative, as they come and alone.
    """
    theirs = lm_reference.trace(reference, batch.tokens, batch.positions)
    tokens, positions = jnp.asarray(batch.tokens), jnp.asarray(batch.positions)
    inputs = jnp.asarray(theirs.states, model.parameters["norm"]["scale"].dtype)
    states, normal, logits = _trace(model.config, model.parameters, tokens, positions, None)
    alone, alone_normal, _ = _trace(model.config, model.parameters, tokens, positions, inputs)
    real = batch.positions >= 0
    ours_logits, their_logits = np.asarray(logits)[real], theirs.logits[real]
    log_p, log_q = (
        log_softmax(found.astype(np.float64), axis=-1) for found in (their_logits, ours_logits)
    )
    rows = [
        [*_differences(mine, other, real), *_differences(lone, other, real)]
        for mine, lone, other in zip(
            [*states, normal], [*alone, alone_normal], [*theirs.states, theirs.normal], strict=True
        )
    ]
    names = ["embedding", *(str(layer) for layer in range(len(states) - 1)), "norm"]
    return {
        "difference": np.abs(ours_logits - their_logits).max(axis=-1),
        # Rounding may take it below zero.
        "kl": np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0.0),
        "top_k": _shared(ours_logits, their_logits, config.top_k),
        "layer": np.asarray(names),
        **dict(zip(_LAYER_COLUMNS[1:], np.asarray(rows).T, strict=True)),
    }


def compare_greedy(
    model: LanguageModel, reference: Any, batch: Batch, config: Config
) -> pd.DataFrame:
    """What both generate: for each text how many tokens PyTorch wrote, and how many are the same.

    A token counts as the same if it stands at the same place; `same_until` counts those before
    the first that is not.
    """
    prompts = [row[at >= 0].tolist() for row, at in zip(batch.tokens, batch.positions, strict=True)]
    ours = generation.generate(
        model.config, model.parameters, prompts,
        max_new_tokens=config.new_tokens, buckets=(batch.tokens.shape[1],),
    )  # fmt: skip
    theirs = lm_reference.generate(
        reference, batch.tokens, batch.positions,
        new=config.new_tokens, eos_token_ids=model.config.eos_token_ids,
    )  # fmt: skip
    rows = []
    for text, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        length = max(len(mine), len(other))
        same = [a == b for a, b in zip(mine, other, strict=False)]
        same += [False] * (length - len(same))
        until = same.index(False) if False in same else length
        rows.append({"text": text, "tokens": length, "same": sum(same), "same_until": until})
    return pd.DataFrame(rows)


def summarize(
    config: Config,
    model: LanguageModel,
    source: str,
    logits: pd.DataFrame,
    layers: pd.DataFrame,
    greedy: pd.DataFrame,
) -> dict[str, Any]:
    """What `summary.json` holds."""
    kl, total = logits["kl"].to_numpy(), greedy["tokens"].to_numpy()
    summary = {
        "model": plain(model.config),
        "dtype": config.dtype,
        "texts": len(greedy),
        "texts_from": source,
        "tokens": len(logits),
        "max_logit_difference": float(logits["difference"].to_numpy().max()),
        "kl": {"mean": float(kl.mean()), "max": float(kl.max())},
        "top_k": config.top_k,
        "top_k_agreement": float(logits["top_k"].to_numpy().mean()),
        "greedy_agreement": float(greedy["same"].to_numpy().sum() / total.sum()),
        "greedy_tokens": int(total.sum()),
        "greedy_texts_identical": int(np.sum(greedy["same"].to_numpy() == total)),
        "layers": layers.to_dict("records"),
    }
    return summary | {"claims": [plain(claim) for claim in claims(summary)]}


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """The rows of the claims table. Greedy tokens are held to be the same in float32 alone."""
    single = summary["dtype"] == "float32"
    difference, kl = summary["max_logit_difference"], summary["kl"]
    identical, texts = summary["greedy_texts_identical"], summary["texts"]
    return [
        Claim(
            claim=f"Logits are those of transformers to {LOGIT_LIMIT:g} (float32)",
            measured=f"largest difference {difference:.1e} over {summary['tokens']} tokens",
            holds=difference <= LOGIT_LIMIT if single else None,
        ),
        Claim(
            claim=f"The mean divergence from transformers is at most {KL_LIMIT:g}",
            measured=f"KL {kl['mean']:.1e} on average, {kl['max']:.1e} at most",
            holds=kl["mean"] <= KL_LIMIT,
        ),
        Claim(
            claim="Greedy decoding writes the same tokens (float32)",
            measured=f"{summary['greedy_agreement']:.1%} of {summary['greedy_tokens']} tokens, "
            f"{identical} of {texts} texts to the end",
            holds=identical == texts if single else None,
        ),
    ]


def account(summary: Mapping[str, Any]) -> str:
    """The run in words."""
    model = summary["model"]
    lines = [
        "# Parity with transformers",
        "",
        f"A {model['family']} of {model['num_hidden_layers']} layers and width "
        f"{model['hidden_size']}, in {summary['dtype']}: {summary['texts']} texts "
        f"({summary['texts_from']}), {summary['tokens']} tokens, padded on the left.",
        "",
        f"* largest difference of a logit: {summary['max_logit_difference']:.1e}",
        f"* KL: {summary['kl']['mean']:.1e} on average, {summary['kl']['max']:.1e} at most",
        f"* of the {summary['top_k']} likeliest tokens, both have {summary['top_k_agreement']:.2%}",
        f"* of {summary['greedy_tokens']} tokens generated, {summary['greedy_agreement']:.2%} are "
        "the same",
        "",
        "Largest differences of the residual stream, as it comes, and of a layer alone, which",
        "starts from what PyTorch gave the one before it:",
        "",
        "| after | absolute | relative | alone, absolute | alone, relative |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in summary["layers"]:
        numbers = " | ".join(f"{row[name]:.1e}" for name in _LAYER_COLUMNS[1:])
        lines.append(f"| {row['layer']} | {numbers} |")
    rows = claims_markdown([Claim(**row) for row in summary["claims"]])
    return "\n".join([*lines, "", rows, ""])


def _texts(config: Config, model: LanguageModel) -> tuple[Batch, str]:
    """The texts, and where they come from."""
    settings = model.config
    if config.top_k > settings.vocab_size:
        raise ValueError(
            f"top_k ({config.top_k}) must not exceed the vocabulary ({settings.vocab_size})"
        )
    if config.tokens + config.new_tokens > settings.max_position_embeddings:
        raise ValueError(
            f"tokens ({config.tokens}) and new_tokens ({config.new_tokens}) together must not "
            f"exceed the model's context ({settings.max_position_embeddings})"
        )
    if model.tokenizer is not None:
        sentences = generate_sentences(config.texts, config.seed)
        rows = [model.tokenizer.encode(text).ids[: config.tokens] for text in sentences]
        if not all(rows):
            raise ValueError(f"the tokenizer of {config.checkpoint} makes no tokens of a sentence")
        source = "generated sentences"
    else:
        rng = np.random.default_rng(config.seed)
        lengths = rng.integers(1, config.tokens, config.texts, endpoint=True)
        rows = [rng.integers(0, settings.vocab_size, length).tolist() for length in lengths]
        source = "random token ids"
    width = max(map(len, rows))
    return pad_batch(settings, rows, buckets=(width,), side="left"), source


@functools.partial(jax.jit, static_argnames="config")
def _trace(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "batch tokens"],
    positions: Int[Array, "batch tokens"],
    inputs: Float[Array, "states batch tokens width"] | None,
) -> tuple[list[Array], Array, Array]:
    """States before the first layer and after each, after the last norm, and logits, float32.

    Layers and the norm start from `inputs` where given, each from what came before it there.
    """
    states = decoder.embed(parameters, tokens)
    batch, width = tokens.shape
    cache = decoder.empty_cache(config, batch, width, states.dtype)
    found = [states]
    for layer in range(config.num_hidden_layers):
        start = found[-1] if inputs is None else inputs[layer]
        states, cache = decoder.run_layers(
            config, parameters, start, positions, cache, layers=range(layer, layer + 1)
        )
        found.append(states)
    last = found[-1] if inputs is None else inputs[-1]
    norm = decoder.RmsNorm(config.rms_norm_eps)
    normal: Any = norm.apply({"params": parameters["norm"]}, last)
    exact = [states.astype(jnp.float32) for states in found]
    return exact, normal.astype(jnp.float32), decoder.logits(config, parameters, normal)


def _differences(ours: Any, theirs: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """The largest difference, absolute and relative to the largest magnitude."""
    absolute = float(np.abs(np.asarray(ours) - theirs)[real].max())
    return absolute, absolute / max(float(np.abs(theirs[real]).max()), 1e-30)


def _shared(ours: np.ndarray, theirs: np.ndarray, k: int) -> np.ndarray:
    """For each row, the share of its `k` largest entries that both have."""
    mine, other = (np.argsort(-found, axis=-1, kind="stable")[:, :k] for found in (ours, theirs))
    return (mine[:, :, None] == other[:, None, :]).any(axis=2).mean(axis=1)


def _draw(layers: pd.DataFrame) -> Any:
    """Relative differences by layer."""
    kinds = {"max_relative": "as it comes", "alone_relative": "alone"}
    table = pd.concat(
        [
            pd.DataFrame(
                {"after": range(len(layers)), "difference": layers[column], "start": label}
            )
            for column, label in kinds.items()
        ]
    )
    return figures.curves(
        table, "after", "difference", "start",
        x_label="embedding (0), layers, last norm", y_label="largest relative difference",
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
