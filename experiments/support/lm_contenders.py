"""Who generates text in the measurement of speed, and the machine's own ceilings.

Each contender lives in a process of its own, in which `measure` is called again and again. It
loads the checkpoint and compiles on its first call, neither of which is timed.
"""

import functools
import importlib.metadata
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.process_memory import peak_mebibytes
from icorag_jax.lm import decoder, generation, pretrained

Dtype = Literal["float32", "bfloat16"]
OURS = ("unrolled", "scanned")
TORCH = ("torch_dynamic_cache", "torch_static_cache")
CONTENDERS = (*OURS, *TORCH)


class Size(NamedTuple):
    """What is generated.

    Attributes:
        batch: texts.
        prompt: tokens of each prompt.
        new: tokens that each text gains, the first of which ends the prefill.
    """

    batch: int
    prompt: int
    new: int


class Timing(NamedTuple):
    """One generation.

    Attributes:
        prefill_seconds: until the first new token of each text is known.
        decode_seconds: from then to the last one; NaN where too short to tell.
        tokens: the new tokens, `[batch, new]`.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens: np.ndarray


def cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def share_accelerator() -> None:
    """Keeps JAX from taking an accelerator's memory whole, as the contenders share it."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def measure(name: str, folder: Path, dtype: Dtype, size: Size) -> dict[str, Any]:
    """One generation by one contender, greedy and without an end, on prompts drawn at random.

    Args:
        name: one of `CONTENDERS`.
        folder: the checkpoint.
        dtype: of weights and compute.
        size: what is generated.

    Returns:
        `prefill_seconds`, `decode_seconds`, `tokens` (nested lists), `peak_mebibytes` of this
        process so far (of the accelerator where there is one) and `software`.
    """
    timing = _ready(name, folder, dtype, size)()
    return {
        "prefill_seconds": timing.prefill_seconds,
        "decode_seconds": timing.decode_seconds,
        "tokens": timing.tokens.tolist(),
        "peak_mebibytes": _contender_peak_mebibytes(name),
        "software": _software(name),
    }


def measure_ceilings(library: Literal["jax", "torch"], rows: int, mebibytes: int, dtype: Dtype):
    """The fastest this machine multiplies matrices and reads memory, by one library.

    Args:
        library: which.
        rows: of the square matrices that are multiplied.
        mebibytes: size of the array that is read.
        dtype: of both.

    Returns:
        `gigaflops_per_second`, and `gigabytes_per_second` of the fastest of a sum and a product
        with a vector.
    """
    product, readings = _ceilings(library, rows, mebibytes, dtype)
    return {
        "gigaflops_per_second": 2e-9 * rows**3 / _seconds(product),
        "gigabytes_per_second": 1e-9 * mebibytes * 2**20 / min(map(_seconds, readings)),
    }


@functools.cache
def _ready(name: str, folder: Path, dtype: Dtype, size: Size) -> Callable[[], Timing]:
    """A contender that has run once."""
    load = _load_torch if name in TORCH else _load_ours
    run = functools.partial(load(name, folder, dtype), size, _prompts(folder, size))
    run()
    return run


def _prompts(folder: Path, size: Size) -> np.ndarray:
    vocabulary = pretrained.config_files.read_config(folder).vocab_size
    rng = np.random.default_rng(size)
    return rng.integers(0, vocabulary, (size.batch, size.prompt))


@functools.cache
def _load_ours(name: str, folder: Path, dtype: Dtype) -> Callable[[Size, np.ndarray], Timing]:
    model = pretrained.from_pretrained(folder, dtype=jnp.dtype(dtype))
    config, parameters = model.config, model.parameters
    if name == "unrolled":
        parameters = decoder.unstack_layers(parameters)
    # The stacked copy goes.
    del model

    def generate(tokens: np.ndarray, new: int) -> tuple[float, np.ndarray]:
        batch, prompt = tokens.shape
        positions = np.broadcast_to(np.arange(prompt, dtype=np.int32), (batch, prompt))
        start = time.perf_counter()
        with jax.default_matmul_precision("float32"):
            found = generation.generate_rows(
                config, parameters, jnp.asarray(tokens, jnp.int32), jnp.asarray(positions),
                None, None, None, None, max_new_tokens=new,
            )  # fmt: skip
        found = np.asarray(found.tokens)
        return time.perf_counter() - start, found

    def run(size: Size, prompts: np.ndarray) -> Timing:
        # All of it is one program, so the time of its decoding is a difference.
        prefill, _ = generate(prompts, 1)
        whole, tokens = generate(prompts, size.new)
        return Timing(prefill, whole - prefill if whole > prefill else math.nan, tokens)

    return run


@functools.cache
def _load_torch(name: str, folder: Path, dtype: Dtype) -> Callable[[Size, np.ndarray], Timing]:
    import torch
    import transformers

    torch.set_num_threads(cores())
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.to(device).eval()  # pyright: ignore[reportArgumentType]

    @torch.inference_mode()
    def run(size: Size, prompts: np.ndarray) -> Timing:
        start = time.perf_counter()
        if name == "torch_static_cache":
            length = size.prompt + size.new - 1
            cache: Any = transformers.StaticCache(config=model.config, max_cache_len=length)
        else:
            cache = transformers.DynamicCache(config=model.config)
        tokens = torch.from_numpy(prompts).to(device)
        found, prefill = [], 0.0
        for _ in range(size.new):
            output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1:].argmax(dim=-1)
            found.append(tokens)
            if len(found) == 1:
                tokens.cpu()
                prefill = time.perf_counter() - start
        new = torch.cat(found, dim=1).cpu().numpy()
        return Timing(prefill, time.perf_counter() - start - prefill, new)

    return run


@functools.cache
def _ceilings(
    library: str, rows: int, mebibytes: int, dtype: Dtype
) -> tuple[Callable[[], Any], list[Callable[[], Any]]]:
    """A product of matrices, and ways to read an array, each waiting for its result."""
    width = 1024
    length = mebibytes * 2**20 // (width * (4 if dtype == "float32" else 2))
    if library == "torch":
        import torch

        torch.set_num_threads(cores())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
        square = torch.ones(rows, rows, **settings)
        tall, vector = torch.ones(length, width, **settings), torch.ones(width, **settings)
        linear = torch.nn.functional.linear
        return lambda: linear(square, square).sum().item(), [
            lambda: tall.sum().item(),
            lambda: (tall @ vector)[0].item(),
        ]
    square = jnp.ones((rows, rows), dtype)
    tall, vector = jnp.ones((length, width), dtype), jnp.ones(width, dtype)
    multiply = jax.jit(functools.partial(jnp.matmul, precision="float32"))
    total = jax.jit(jnp.sum)
    return lambda: multiply(square, square).block_until_ready(), [
        lambda: total(tall).block_until_ready(),
        lambda: multiply(tall, vector).block_until_ready(),
    ]


def _seconds(run: Callable[[], Any]) -> float:
    """The shortest of a few runs, after one that is not timed."""
    run()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _contender_peak_mebibytes(name: str) -> float:
    if name in TORCH:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
    elif statistics := jax.devices()[0].memory_stats():
        return statistics["peak_bytes_in_use"] / 2**20
    return peak_mebibytes()


def _software(name: str) -> str:
    packages = ("torch", "transformers") if name in TORCH else ("jax",)
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
