"""How fast a language model reads and writes, beside `transformers` in PyTorch.

A checkpoint of the given sizes is made, with random weights. Each contender loads it in a process
of its own, and all take turns: one generation each, and again, so that a ratio is of one machine
in one state. All use the cores that this process may use, or the accelerator. Numbers are medians
over the repeats.

Contenders: `unrolled` and `scanned` are ours, with the weights of each layer as arrays of their own
and with those of all layers stacked; `torch_dynamic_cache` and `torch_static_cache` are
transformers' two caches. Prefill ends with the first new token, so its time is the time to first
token.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from tqdm import tqdm

from experiments.support import lm_contenders, lm_speed
from experiments.support.command import check_numbers, run_command
from experiments.support.lm_contenders import CONTENDERS, OURS, TORCH, Dtype, Size
from experiments.support.run_folder import open_run
from icorag_jax.lm import decoder, pretrained
from icorag_jax.lm.config import DecoderConfig, DefaultRotary, Family


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement.

    Attributes:
        out: folder to write.
        seed: seed of the weights.
        resume: continue a run that was interrupted.
        contenders: who is compared; those in PyTorch want torch and transformers installed.
        batches: numbers of texts to generate at once.
        prompt: tokens of each prompt.
        new: tokens to generate, the first of which ends the prefill.
        repeats: turns of each contender.
        dtype: of weights and compute.
        family: whose architecture.
        vocabulary: tokens in the vocabulary.
        hidden: features of a token.
        intermediate: features inside an MLP.
        layers: number of layers.
        heads: query heads; `hidden / heads` features each.
        kv_heads: key and value heads.
        tied: the output projection is the transposed embedding.
        ceiling_rows: rows of the square matrices whose product is the ceiling of arithmetic.
        ceiling_mebibytes: size of the array whose reading is the ceiling of bandwidth.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    contenders: tuple[str, ...] = CONTENDERS
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 256
    new: int = 64
    repeats: int = 5
    dtype: Dtype = "float32"
    family: Family = "llama"
    vocabulary: int = 32_000
    hidden: int = 768
    intermediate: int = 2560
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    tied: bool = True
    ceiling_rows: int = 2048
    ceiling_mebibytes: int = 512


PRESETS: Mapping[str, Mapping[str, Any]] = {"quick": {"repeats": 3}, "paper": {}}


def main(config: Config) -> None:
    """Measures, and writes the folder.

    Raises:
        ValueError: unknown contenders, ones that are not installed, or sizes that make no sense;
            nothing is written.
    """
    model = _check(config)
    lm_contenders.share_accelerator()
    libraries = [
        library
        for library, names in (("jax", OURS), ("torch", TORCH))
        if set(names) & set(config.contenders)
    ]
    turns = [
        (f"batch_{batch}_repeat_{repeat}", Size(batch, config.prompt, config.new), repeat)
        for batch in config.batches
        for repeat in range(config.repeats)
    ]
    with (
        open_run(config.out, "lm_benchmark", config, resume=config.resume) as run,
        tempfile.TemporaryDirectory() as temporary,
        _processes(["writer", *config.contenders, *libraries]) as call,
        tqdm(total=len(turns), desc="lm_benchmark", unit="repeat") as progress,
    ):
        # In another process: those that follow count this one's peak of memory as theirs.
        checkpoint = functools.cache(
            lambda: call("writer", _write_checkpoint, config, model, Path(temporary))
        )

        def generations(size: Size, repeat: int) -> pd.DataFrame:
            """A row a contender, one after another."""
            label = {**size._asdict(), "repeat": repeat}
            return pd.DataFrame(
                label | {"contender": name}
                | call(name, lm_contenders.measure, name, checkpoint(), config.dtype, size)
                for name in config.contenders
            )  # fmt: skip

        def ceilings() -> pd.DataFrame:
            settings = config.ceiling_rows, config.ceiling_mebibytes, config.dtype
            return pd.DataFrame(
                {"library": name} | call(name, lm_contenders.measure_ceilings, name, *settings)
                for name in libraries
            )

        tables, limits = [], []
        for name, size, repeat in turns:
            limits.append(run.cell(f"{name}_ceilings", ceilings))
            tables.append(run.cell(name, functools.partial(generations, size, repeat)))
            progress.update()
        speed = pd.concat(tables, ignore_index=True)
        limit = pd.concat(limits, ignore_index=True)
        summary = lm_speed.summarize(model, config.dtype, speed, limit)
        run.write_table("speed", speed.drop(columns="tokens"))
        run.write_table("ceilings", limit)
        run.write_figure("speed", lm_speed.draw(summary))
        run.write_account(lm_speed.account(summary))
        run.write_summary(summary)


def _check(config: Config) -> DecoderConfig:
    """The model, once all settings make sense."""
    check_numbers(config)
    for name, known in (("contenders", CONTENDERS), ("batches", None)):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, got {list(values)}")
        if known and (unknown := [value for value in values if value not in known]):
            raise ValueError(f"unknown {name} {unknown}; known: {', '.join(known)}")
    if config.new < 2:
        raise ValueError(f"new must be at least 2, got {config.new}: the first is of the prefill")
    missing = [
        package
        for package in ("torch", "transformers")
        if set(TORCH) & set(config.contenders) and importlib.util.find_spec(package) is None
    ]
    if missing:
        raise ValueError(
            f"not installed: {', '.join(missing)}; install them, or pass "
            f"--contenders {' '.join(OURS)}"
        )
    if config.hidden % config.heads:
        raise ValueError(f"heads ({config.heads}) must divide hidden ({config.hidden})")
    return DecoderConfig(
        family=config.family,
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=config.prompt + config.new,
        rms_norm_eps=1e-6,
        tie_word_embeddings=config.tied,
        rotary=DefaultRotary(rope_theta=10_000.0),
        query_key_value_bias=config.family == "qwen2",
        attention_output_bias=False,
        mlp_bias=False,
        query_key_norm=config.family == "qwen3",
        windows=(None,) * config.layers,
        eos_token_ids=(),
        bos_token_id=None,
        pad_token_id=None,
    )


def _write_checkpoint(config: Config, model: DecoderConfig, folder: Path) -> Path:
    """A checkpoint folder with random weights."""
    key = jax.random.key(config.seed)
    parameters = decoder.init_parameters(model, key, jnp.dtype(config.dtype))
    at = folder / "checkpoint"
    pretrained.save_pretrained(at, pretrained.LanguageModel(model, parameters, None))
    return at


@contextlib.contextmanager
def _processes(names: list[str]) -> Iterator[Callable[..., Any]]:
    """A function that calls others in the process of a name; none starts before it is called."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in names
        }
        yield lambda name, function, *arguments: pools[name].submit(function, *arguments).result()


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
