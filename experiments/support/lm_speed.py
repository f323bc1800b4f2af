"""Rates, ratios and shares of the ceilings from timed generations, as values."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support.claims import Claim, claims_markdown
from experiments.support.files import plain
from experiments.support.lm_contenders import OURS, TORCH, Dtype, cores
from icorag_jax.lm.config import DecoderConfig

_PARTS = ("prefill", "decode")


def prefill_flops(model: DecoderConfig, batch: int, prompt: int) -> int:
    """Operations that the prefill of `batch` prompts cannot do without.

    Two for each weight that a token is multiplied with; for each pair of a token and one that it
    sees, two for each feature of each head's query and two of its value; logits of last tokens.
    """
    pairs = prompt * (prompt + 1) // 2
    attention = 4 * model.num_attention_heads * model.head_dim * pairs * model.num_hidden_layers
    products = 2 * model.num_hidden_layers * _layer_weights(model) * prompt
    return batch * (products + attention + 2 * model.vocab_size * model.hidden_size)


def decode_bytes(
    model: DecoderConfig, batch: int, prompt: int, new: int, *, itemsize: int
) -> float:
    """Bytes that a step of decoding cannot do without reading, on average over the steps.

    The weights of all products once, that of the logits among them, and the keys and values of
    each text so far.
    """
    weights = model.num_hidden_layers * _layer_weights(model)
    weights += model.vocab_size * model.hidden_size
    # Step i of new - 1 reads the prompt and the i tokens before its own.
    rows = prompt + (new - 2) / 2
    cache = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * rows
    return itemsize * (weights + batch * cache)


def summarize(
    model: DecoderConfig, dtype: Dtype, speed: pd.DataFrame, ceilings: pd.DataFrame
) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        model: what was run.
        dtype: of its weights.
        speed: `batch`, `prompt`, `new`, `repeat`, `contender` and what `measure` gives.
        ceilings: `library` and what `measure_ceilings` gives.
    """
    best = {
        name: float(ceilings[name].to_numpy().max())
        for name in ("gigaflops_per_second", "gigabytes_per_second")
    }
    batches = {
        str(batch): _batch(model, dtype, part, best)
        for batch, part in speed.groupby("batch", sort=False)
    }
    software = speed.drop_duplicates("contender").set_index("contender")["software"]
    summary = {
        "model": plain(model),
        "parameters": parameter_count(model),
        "dtype": dtype,
        "cores": cores(),
        "prompt": int(speed["prompt"].iloc[0]),
        "new": int(speed["new"].iloc[0]),
        "repeats": len(np.unique(speed["repeat"].to_numpy())),
        "software": software.to_dict(),
        "ceilings": best,
        "batches": batches,
    }
    return summary | {"claims": [plain(claim) for claim in claims(summary)]}


def _batch(
    model: DecoderConfig, dtype: Dtype, part: pd.DataFrame, best: Mapping[str, float]
) -> dict[str, Any]:
    """Contenders and ratios at one batch size."""
    batch, prompt, new = part[["batch", "prompt", "new"]].to_numpy()[0].tolist()
    itemsize = 4 if dtype == "float32" else 2
    gigaflops = 1e-9 * prefill_flops(model, batch, prompt)
    gigabytes = 1e-9 * decode_bytes(model, batch, prompt, new, itemsize=itemsize)
    entries, tokens = {}, {}
    for name, rows in part.groupby("contender", sort=False):
        prefill = _median(rows["prefill_seconds"].to_numpy())
        step = _median(rows["decode_seconds"].to_numpy()) / (new - 1)
        tokens[name] = np.array([np.stack(list(row)) for row in rows["tokens"]])
        entries[name] = {
            "prefill_tokens_per_second": batch * prompt / prefill,
            "decode_tokens_per_second": batch / step,
            "seconds_to_first_token": prefill,
            "milliseconds_per_step": 1e3 * step,
            "share_of_matmul_ceiling": gigaflops / prefill / best["gigaflops_per_second"],
            "share_of_bandwidth_ceiling": gigabytes / step / best["gigabytes_per_second"],
            "peak_mebibytes": float(rows["peak_mebibytes"].to_numpy().max()),
        }
    first = next(iter(tokens.values()))
    for name, entry in entries.items():
        entry["tokens_as_the_first_contender"] = float(np.mean(tokens[name] == first))
    return {"contenders": entries, "ratios": {name: _ratio(part, entries, name) for name in _PARTS}}


def _ratio(part: pd.DataFrame, entries: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """How many times as fast the fastest of ours is as the fastest in PyTorch; None without one."""
    column = f"{name}_tokens_per_second"
    groups = [[contender for contender in entries if contender in of] for of in (OURS, TORCH)]
    if not all(groups):
        return None
    ours, theirs = (max(group, key=lambda one: entries[one][column]) for group in groups)
    seconds = part.pivot(index="repeat", columns="contender", values=f"{name}_seconds")
    turns = seconds[theirs].to_numpy() / seconds[ours].to_numpy()
    return {
        "ours": ours,
        "torch": theirs,
        "times_as_fast": entries[ours][column] / entries[theirs][column],
        "least_of_the_repeats": float(np.min(turns)),
        "most_of_the_repeats": float(np.max(turns)),
    }


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """The rows of the claims table: at least as fast as PyTorch."""
    rows = []
    for batch, entry in summary["batches"].items():
        for name, ratio in entry["ratios"].items():
            if ratio:
                texts = "1 text" if batch == "1" else f"{batch} texts"
                rows.append(
                    Claim(
                        claim=f"{name} of {texts} is at least as fast as transformers in PyTorch",
                        measured=f"{ratio['times_as_fast']:.2f} times as fast "
                        f"({ratio['ours']} against {ratio['torch']}; "
                        f"{ratio['least_of_the_repeats']:.2f} to "
                        f"{ratio['most_of_the_repeats']:.2f} over the repeats)",
                        holds=None
                        if math.isnan(ratio["times_as_fast"])
                        else ratio["times_as_fast"] >= 1,
                    )
                )
    return rows


def account(summary: Mapping[str, Any]) -> str:
    """The measurements in words."""
    model, best = summary["model"], summary["ceilings"]
    setting = (
        f"A {model['family']} of {summary['parameters'] / 1e6:.0f} million parameters in "
        f"{summary['dtype']}: prompts of {summary['prompt']} tokens, {summary['new']} new ones, "
        f"{summary['cores']} cores. Medians of {summary['repeats']} repeats, in which the "
        "contenders took turns, each in a process of its own. Prefill ends with the first new "
        "token. Percentages are of the fastest product of large matrices "
        f"({best['gigaflops_per_second']:.1f} GFLOP/s) and the fastest reading of a large array "
        f"({best['gigabytes_per_second']:.1f} GB/s) that this machine showed between the repeats."
    )
    lines = [
        "# Speed of a language model",
        "",
        textwrap.fill(setting, 100),
        "",
        "| batch | contender | prefill, tokens/s | first token, s | decode, tokens/s | "
        "a step, ms | peak MiB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch, entry in summary["batches"].items():
        for name, row in entry["contenders"].items():
            lines.append(
                f"| {batch} | {name} | {row['prefill_tokens_per_second']:,.0f} "
                f"({row['share_of_matmul_ceiling']:.0%}) | {row['seconds_to_first_token']:.3g} | "
                f"{row['decode_tokens_per_second']:,.1f} "
                f"({row['share_of_bandwidth_ceiling']:.0%}) | {row['milliseconds_per_step']:.3g} | "
                f"{row['peak_mebibytes']:,.0f} |"
            )
    software = [f"`{name}`: {text}" for name, text in summary["software"].items()]
    lines += ["", f"Software: {'; '.join(software)}.", ""]
    same = [
        row["tokens_as_the_first_contender"]
        for entry in summary["batches"].values()
        for row in entry["contenders"].values()
    ]
    lines.append(f"Of the tokens that the contenders generated, {min(same):.1%} or more agree.")
    if summary["claims"]:
        lines += ["", claims_markdown([Claim(**row) for row in summary["claims"]])]
    return "\n".join([*lines, ""])


def draw(summary: Mapping[str, Any]) -> Figure:
    """Rates of prefill and decode, a bar a contender, by batch size."""
    batches = summary["batches"]
    figure = Figure(figsize=(9, 1.2 + 1.5 * len(batches)), layout="constrained")
    grid = figure.subplots(len(batches), 2, squeeze=False)
    for row, (batch, entry) in zip(grid, batches.items(), strict=True):
        names = list(entry["contenders"])
        colours = ["#0072B2" if name in OURS else "#B8B8B8" for name in names]
        for axes, part in zip(row, _PARTS, strict=True):
            rates = [entry["contenders"][name][f"{part}_tokens_per_second"] for name in names]
            bars = axes.barh(names, rates, color=colours)
            axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
            axes.margins(x=0.15)
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{part}, batch {batch}", fontsize=9)
            axes.set_xlabel("tokens/s", fontsize=8)
            axes.tick_params(labelsize=8)
    return figure


def parameter_count(model: DecoderConfig) -> int:
    """Weights of all products and of the embedding; biases and norms are beside the point."""
    tables = 1 if model.tie_word_embeddings else 2
    tables *= model.vocab_size * model.hidden_size
    return tables + model.num_hidden_layers * _layer_weights(model)


def _median(values: np.ndarray) -> float:
    """Of what could be told; NaN if nothing."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _layer_weights(model: DecoderConfig) -> int:
    attention = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim
    return model.hidden_size * (attention + 3 * model.intermediate_size)
