"""Hold every theorem of the exact regime against plain NumPy, over random episodes.

Each construction of `icorag_jax.theory.constructions` is run on at least 1,000 problems with
sizes, weights, masks, readouts, starts and rates drawn at random, in float64 and in float32, and
compared with gradient descent written out by definition in `experiments.support.reference`. Also
held: the written-out gradient against autodiff, and the bound on what two factored steps miss.

The relative error of an episode is the largest error over its queries' predictions, divided by
the largest of those predictions by magnitude.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.support import figures, reference, theorems
from experiments.support.claims import Claim, claims_markdown
from experiments.support.command import check_numbers, run_command
from experiments.support.run_folder import open_run

# What counts as equal, by precision.
LIMITS = {"float64": 1e-10, "float32": 1e-4}

# Columns that say how large a problem is.
_SIZES = ["n", "q", "m", "d_c", "d_z", "k", "steps"]

# A theorem of the claims table, and the constructions that stand for it.
GROUPS = {
    "One attention layer is a gradient step (projection)": (
        "projection_direct",
        "projection_factored",
    ),
    "One attention layer is a gradient step (dot-product, and both at once)": (
        "dot_product_factored",
        "dot_product_lifted",
        "both_block_heads",
    ),
    "It stays one with retriever weights and missing examples": ("weighted_masked",),
    "It stays one with ridge, as prior tokens": ("ridge_prior_tokens",),
    "k layers are k steps": ("multi_step_direct", "multi_step_lifted"),
    "k two-headed layers are k steps of GD++": ("gd_plus_plus",),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        seed: seed of all that is drawn.
        resume: continue a run that was interrupted.
        episodes: episodes a theorem is held on, at least; in each of both precisions.
        size_sets: sets of sizes (examples, passages, features, ...) that they are dealt out to;
            a theorem of more cases has one for each.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    episodes: int = 1000
    size_sets: int = 8


PRESETS: Mapping[str, Mapping[str, int]] = {
    "quick": {},
    "paper": {"episodes": 10_000, "size_sets": 40},
}


def main(config: Config) -> None:
    """Runs the experiment and writes its folder.

    Raises:
        ValueError: sizes that make no sense; nothing is written.
    """
    _check(config)
    cases = theorems.theorems()
    with (
        open_run(config.out, "exactness", config, resume=config.resume) as run,
        tqdm(total=len(cases) + 2, desc="exactness", unit="theorem") as progress,
    ):

        def cell(name, compute):
            table = run.cell(name, compute)
            progress.update()
            return table

        errors = pd.concat(
            [cell(name, lambda name=name: construction_errors(config, name)) for name in cases],
            ignore_index=True,
        )
        autodiff = cell("autodiff", lambda: autodiff_errors(config))
        gram = cell("gram_bound", lambda: gram_errors(config))
        summary = summarize(errors, autodiff, gram)
        run.write_table("constructions", errors)
        run.write_table("autodiff", autodiff)
        run.write_table("gram_bound", gram)
        run.write_figure("relative_errors", figures.error_strips(errors, LIMITS))
        run.write_figure("gram_bound", figures.bound_scatter(gram))
        run.write_account(account(summary))
        run.write_summary(summary)


def construction_errors(config: Config, name: str) -> pd.DataFrame:
    """Relative errors of one construction: a row for each episode and precision."""
    cases = theorems.theorems()[name]
    tables = []
    for index, sizes, rng, count in _size_sets(config, name, len(cases)):
        case = cases[index % len(cases)]
        problems = theorems.draw(rng, sizes, case, count)
        expected = theorems.expectations(case, problems)
        for dtype in LIMITS:
            found = theorems.measure(case, problems, expected, dtype)
            tables.append(_rows(name, sizes, case.interface, dtype, rel_err=found))
    return pd.concat(tables, ignore_index=True)


def autodiff_errors(config: Config) -> pd.DataFrame:
    """Relative difference of the written-out gradient and autodiff, each interface in turn."""
    interfaces: tuple[reference.Interface, ...] = ("projection", "dot_product", "both")
    tables = []
    for index, sizes, rng, count in _size_sets(config, "autodiff", len(interfaces)):
        interface = interfaces[index % len(interfaces)]
        problems = [
            reference.draw_problem(rng, sizes, interface, masked=0.2, ridge=True)
            for _ in range(count)
        ]
        for dtype in LIMITS:
            found = theorems.measure_gradient(interface, problems, dtype)
            tables.append(_rows("autodiff", sizes, interface, dtype, rel_err=found))
    return pd.concat(tables, ignore_index=True)


def gram_errors(config: Config) -> pd.DataFrame:
    """Errors of two factored steps on the dot-product interface, beside their bound."""
    tables = []
    for _, sizes, rng, count in _size_sets(config, "gram_bound"):
        problems = [
            reference.draw_problem(rng, sizes, "dot_product", masked=0.2, ridge=False)
            for _ in range(count)
        ]
        found = theorems.measure_gram_bound(problems)
        columns = {name: found[name].to_numpy() for name in found}
        tables.append(_rows("gram_bound", sizes, "dot_product", "float64", **columns))
    table = pd.concat(tables, ignore_index=True)
    # Both sides are rounded: where all readouts share a Gram matrix both are zero but for that.
    rounding = 1e-12 * table["size"] + 1e-9 * table["bound"]
    return table.assign(violated=table["error"] > table["bound"] + rounding)


def summarize(errors: pd.DataFrame, autodiff: pd.DataFrame, gram: pd.DataFrame) -> dict:
    """What `summary.json` holds."""
    constructions = {
        name: {
            "max_rel_err_f64": _worst(of_name, "float64"),
            "max_rel_err_f32": _worst(of_name, "float32"),
            "episodes": _count(of_name, "float64"),
        }
        for name in theorems.theorems()
        for of_name in [errors.loc[errors["construction"] == name]]
    }
    proper = gram["bound"].to_numpy() > 1e-9 * gram["size"].to_numpy()
    ratios = (gram["error"].to_numpy() / np.where(proper, gram["bound"].to_numpy(), 1))[proper]
    levels = (0.05, 0.5, 0.95, 1.0)
    summary = {
        "constructions": constructions,
        "size_sets": min(
            len(of_name[_SIZES].drop_duplicates()) for _, of_name in errors.groupby("construction")
        ),
        "gram_bound": {
            "violations": int(np.sum(gram["violated"].to_numpy())),
            "episodes": len(gram),
            "error_over_bound": {
                f"q{level:.2f}": float(np.quantile(ratios, level)) for level in levels
            },
        },
        "autodiff": {
            "max_rel_err": _worst(autodiff, "float64"),
            "max_rel_err_f32": _worst(autodiff, "float32"),
            "episodes": _count(autodiff, "float64"),
        },
    }
    return summary | {"claims": [dataclasses.asdict(claim) for claim in claims(summary)]}


def claims(summary: dict) -> list[Claim]:
    """The claims table's rows."""
    rows = []
    for claim, names in GROUPS.items():
        entries = [summary["constructions"][name] for name in names]
        double = max(entry["max_rel_err_f64"] for entry in entries)
        single = max(entry["max_rel_err_f32"] for entry in entries)
        rows.append(_equality(claim, double, single, sum(entry["episodes"] for entry in entries)))
    slope = summary["autodiff"]
    rows.append(
        _equality(
            "The written-out gradient equals autodiff",
            slope["max_rel_err"],
            slope["max_rel_err_f32"],
            slope["episodes"],
        )
    )
    gram = summary["gram_bound"]
    rows.append(
        Claim(
            claim="Two factored steps stay within the Gram bound",
            measured=f"{gram['violations']} violations in {gram['episodes']} episodes; "
            f"error at most {gram['error_over_bound']['q1.00']:.2f} of the bound",
            holds=gram["violations"] == 0,
        )
    )
    return rows


def account(summary: dict) -> str:
    """The run in words."""
    lines = [
        "# Exactness",
        "",
        "Linear self-attention against gradient descent by definition (NumPy, float64). An",
        "episode's relative error is the largest error over its queries' predictions, divided by",
        "the largest of those predictions. Each construction was held on "
        f"{summary['size_sets']} sets of sizes (numbers of examples, queries, passages and",
        "outputs, widths, and steps), all drawn at random; weights, masks, readouts, starts and",
        "rates differ from episode to episode. Compiled without XLA's optimizations, which is",
        "quicker for so many programs and touches rounding alone.",
        "",
        "| construction | episodes | worst, float64 | worst, float32 |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in summary["constructions"].items():
        double, single = entry["max_rel_err_f64"], entry["max_rel_err_f32"]
        lines.append(f"| {name} | {entry['episodes']} | {double:.1e} | {single:.1e} |")
    rows = claims_markdown([Claim(**row) for row in summary["claims"]])
    return "\n".join([*lines, "", rows, ""])


def _equality(claim: str, double: float, single: float, count: int) -> Claim:
    return Claim(
        claim=claim,
        measured=f"relative error at most {double:.1e} (float64), {single:.1e} (float32) "
        f"in {count} episodes",
        holds=double <= LIMITS["float64"] and single <= LIMITS["float32"],
    )


def _worst(table: pd.DataFrame, dtype: str) -> float:
    return float(table["rel_err"].to_numpy()[table["dtype"].to_numpy() == dtype].max())


def _count(table: pd.DataFrame, dtype: str) -> int:
    return int(np.sum(table["dtype"].to_numpy() == dtype))


def _check(config: Config) -> None:
    check_numbers(config)
    if config.size_sets > config.episodes:
        raise ValueError(
            f"size_sets ({config.size_sets}) must not exceed episodes ({config.episodes})"
        )


def _size_sets(config: Config, name: str, cases: int = 1):
    """Sets of sizes of one cell: number, sizes, source of randomness, and how many episodes.

    There are at least as many sets as cases, so that each case has its turn.
    """
    rng = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    count = max(config.size_sets, cases)
    for index in range(count):
        yield index, reference.draw_sizes(rng), rng, -(-config.episodes // count)


def _rows(
    name: str, sizes: reference.Sizes, interface: reference.Interface, dtype: str, **columns
) -> pd.DataFrame:
    """A tidy table, one row an episode."""
    d_c, d_z = sizes.interface_shape(interface)
    shape = {"n": sizes.n, "q": sizes.q, "m": sizes.m, "d_c": d_c, "d_z": d_z, "k": sizes.k}
    table = pd.DataFrame(columns)
    labels = {"construction": name, "interface": interface, "dtype": dtype, **shape}
    labels["steps"] = sizes.steps
    return pd.DataFrame(
        {
            **{key: [value] * len(table) for key, value in labels.items()},
            "episode": range(len(table)),
            **columns,
        }
    )


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
