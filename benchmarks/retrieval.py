"""Exact dense search against FAISS flat, NumPy, and what memory and arithmetic allow at most.

All search the same random unit vectors, in one process on all cores, and must find the same scores.
A batch of queries has to read every vector once at least, and to multiply it with every query. The
ceilings are what that takes at the speed of reading that very array (its sum, or its product with
one vector by NumPy, whichever is faster), and at the speed of a large square matrix product: the
best times of the same run, where contenders are known by their medians.

NumPy and FAISS bring their own OpenBLAS: the variable OPENBLAS_CORETYPE, where it is set, may slow
both down.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.support.command import check_numbers, run_command
from experiments.support.run_folder import open_run
from icorag_jax.retrieval import exact_search
from icorag_jax.retrieval.exact_search import PlacedEmbeddings

CEILINGS = ("read", "product")
_COLOURS = {"exact_search": "#0072B2", "faiss_flat": "#D55E00", "numpy": "#888888"}
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement.

    Attributes:
        out: folder to write.
        seed: of the vectors.
        resume: continue a run that was interrupted.
        passages: vectors searched.
        widths: of a vector; each is measured.
        batches: queries searched at once; each is measured.
        k: how many are looked for.
        block_scores: scores that exact search holds at once.
        ceiling: rows of the square matrices whose product is a ceiling.
        seconds: how long each is repeated, at least.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    passages: int = 200_000
    widths: tuple[int, ...] = (384,)
    batches: tuple[int, ...] = (1, 8, 64, 256)
    k: int = 20
    block_scores: int = 2**22
    ceiling: int = 2048
    seconds: float = 2.0


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "paper": {"passages": 1_000_000, "widths": (384, 768), "seconds": 5.0},
}


def main(config: Config) -> None:
    """Measures, and writes the folder.

    Raises:
        ValueError: sizes that make no sense, or FAISS is not installed; nothing is written.
        FloatingPointError: contenders do not find the same scores.
    """
    check_numbers(config)
    for name in ("widths", "batches"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once, got {list(values)}")
    if config.k > config.passages:
        raise ValueError(f"k ({config.k}) must not exceed passages ({config.passages})")
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ValueError("FAISS is not installed: pip install 'icorag_jax[faiss]'") from error
    with open_run(config.out, "benchmark_retrieval", config, resume=config.resume) as run:
        tables = [
            run.cell(f"width_{width}", lambda width=width: measure(config, width))
            for width in tqdm(config.widths, desc="retrieval", unit="width")
        ]
        times = pd.concat(tables, ignore_index=True)
        run.write_table("times", times)
        summary = summarize(times)
        run.write_figure("queries_per_second", draw(summary))
        run.write_account(account(summary))
        run.write_summary(summary)


def measure(config: Config, width: int) -> pd.DataFrame:
    """Seconds of each contender and ceiling, by batch: a row each.

    Raises:
        FloatingPointError: contenders do not find the same scores.
    """
    rng = np.random.default_rng(config.seed)
    vectors, queries = (
        _unit(rng.standard_normal((count, width), dtype=np.float32))
        for count in (config.passages, max(config.batches))
    )
    placed = exact_search.place(
        lambda start, end: vectors[start:end], len(vectors), width,
        mesh=exact_search.device_mesh(), precision="float32",
    )  # fmt: skip
    contenders = {
        "exact_search": _by_exact_search(placed, config.k, config.block_scores),
        "faiss_flat": _by_faiss(vectors, config.k),
        "numpy": _by_numpy(vectors, config.k),
    }
    reading = min(
        repeated_seconds(call, config.seconds).min()
        for call in (
            lambda: jax.block_until_ready(_read(placed.shares)),
            lambda: vectors @ queries[0],
        )
    )
    product_rate = _measure_product(config.ceiling, config.seconds)
    rows = []
    for batch in config.batches:
        asked = queries[:batch]
        found = {name: search(asked)[1] for name, search in contenders.items()}
        for name, scores in found.items():
            if not np.allclose(scores, found["exact_search"], atol=1e-5):
                raise FloatingPointError(f"{name} does not find the scores of exact_search")
        for name, search in contenders.items():
            call = functools.partial(search, asked)
            rows.append([name, batch, np.median(repeated_seconds(call, config.seconds))])
        operations = 2 * batch * vectors.size
        rows += [["read", batch, reading], ["product", batch, operations / product_rate]]
    table = pd.DataFrame(rows, columns=pd.Index(["what", "batch", "seconds"]))
    return table.assign(passages=config.passages, width=width, k=config.k)


def repeated_seconds(call: Callable[[], Any], seconds: float) -> Float[np.ndarray, " calls"]:
    """Of repeated calls, at least three, after one that is not counted."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return np.array(times)


def summarize(times: pd.DataFrame) -> dict[str, Any]:
    """Rates by width and batch.

    Args:
        times: as `measure`, of all widths.

    Returns:
        By width and batch, for each of the contenders and ceilings: `queries_per_second`,
        `gigabytes_per_second` (every embedding once), `gigaflops_per_second`, and `of_ceiling`: the
        longer of the two ceilings' times as a share of its own.
    """
    summary: dict[str, Any] = {}
    for width, batch in dict.fromkeys(zip(times["width"], times["batch"], strict=True)):
        part = times.loc[(times["width"] == width) & (times["batch"] == batch)]
        seconds = dict(zip(part["what"], part["seconds"], strict=True))
        passages = int(part["passages"].iloc[0])
        least = max(seconds[name] for name in CEILINGS)
        summary.setdefault(str(width), {})[str(batch)] = {
            name: {
                "milliseconds": 1e3 * value,
                "queries_per_second": batch / value,
                "gigabytes_per_second": 4e-9 * passages * width / value,
                "gigaflops_per_second": 2e-9 * passages * width * batch / value,
                "of_ceiling": least / value,
            }
            for name, value in seconds.items()
        }
    first = times.iloc[0]
    return {"passages": int(first["passages"]), "k": int(first["k"]), "widths": summary}


def account(summary: Mapping[str, Any]) -> str:
    """The measurement in words; the argument is what `summarize` returns."""
    lines = [
        "# Dense search",
        "",
        f"The {summary['k']} best of {summary['passages']:,} vectors, float32, on all cores. GB/s",
        "count every vector once a batch. The ceilings: to read all vectors once, and to multiply",
        "them with the queries as fast as large square matrices; a share is that of the ceiling",
        "that takes longer.",
        "",
        "| width | batch | | ms | queries/s | GB/s | GFLOP/s | of ceiling |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for width, batches in summary["widths"].items():
        for batch, of in batches.items():
            for name, entry in of.items():
                share = "" if name in CEILINGS else f"{entry['of_ceiling']:.0%}"
                lines.append(
                    f"| {width} | {batch} | {name} | {entry['milliseconds']:.1f} "
                    f"| {entry['queries_per_second']:,.0f} | {entry['gigabytes_per_second']:.1f} "
                    f"| {entry['gigaflops_per_second']:.1f} | {share} |"
                )
    return "\n".join([*lines, ""])


def draw(summary: Mapping[str, Any]) -> Figure:
    """Queries a second against the batch, a panel a width, ceilings as lines."""
    widths = summary["widths"]
    figure = Figure(figsize=(1.5 + 3.6 * len(widths), 3.8), layout="constrained")
    grid = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    for axes, (width, batches) in zip(grid, widths.items(), strict=True):
        sizes = [int(batch) for batch in batches]
        for name, style in (*((n, "-") for n in _COLOURS), *((n, "--") for n in CEILINGS)):
            rates = [of[name]["queries_per_second"] for of in batches.values()]
            label = f"ceiling: {name}" if name in CEILINGS else name
            colour = _COLOURS.get(name, "#333333" if name == "read" else "#CC79A7")
            marker = "" if name in CEILINGS else "o"
            axes.plot(sizes, rates, style, color=colour, marker=marker, markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_title(f"{summary['passages']:,} vectors of {width}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("queries a second")
    grid[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel("queries in a batch", fontsize=10)
    return figure


def _unit(vectors: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _by_exact_search(placed: PlacedEmbeddings, k: int, block_scores: int) -> Search:
    def search(queries):
        ids, scores = exact_search.search(
            placed, queries, k, batch=len(queries), block_scores=block_scores
        )
        return ids, scores

    return search


def _by_faiss(vectors: np.ndarray, k: int) -> Search:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]

    def search(queries):
        scores, ids = index.search(queries, k)  # pyright: ignore[reportCallIssue]
        return ids, scores

    return search


def _by_numpy(vectors: np.ndarray, k: int) -> Search:
    def search(queries):
        scores = queries @ vectors.T
        ids = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, ids, axis=1)
        order = np.argsort(-best, axis=1)
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)

    return search


@jax.jit
def _read(shares):
    # By device, so that nothing is exchanged.
    return shares.sum(axis=(1, 2))


def _measure_product(size: int, seconds: float) -> float:
    """Operations a second of square matrix products, one on each device."""
    mesh = exact_search.device_mesh()
    own = jax.sharding.PartitionSpec(mesh.axis_names[0])
    multiply = jax.jit(
        jax.shard_map(
            lambda one, other: jnp.dot(one, other, precision=jax.lax.Precision.HIGHEST),
            mesh=mesh, in_specs=(own, jax.sharding.PartitionSpec()), out_specs=own,
        )
    )  # fmt: skip
    one = jnp.ones((mesh.size * size, size), jnp.float32)
    one = jax.device_put(one, jax.sharding.NamedSharding(mesh, own))
    other = jnp.ones((size, size), jnp.float32)
    taken = repeated_seconds(lambda: jax.block_until_ready(multiply(one, other)), seconds)
    return 2 * mesh.size * size**3 / taken.min()


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
