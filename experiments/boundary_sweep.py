"""How close in-context predictions stay to gradient descent, across architectures and features.

Every linear extension and every nonlinear architecture is read twice on every feature
distribution, real text included: with a construction's weights and the nonlinearity put in, and
trained, against the best gradient step there. Alignment is the cosine between the two vectors of
predictions for an episode's queries; the spread of an architecture is its largest mean alignment
over distributions less the smallest.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.support import boundary, figures
from experiments.support.boundary import Trained, Training, Variant
from experiments.support.claims import Claim, claims_markdown
from experiments.support.command import run_command
from experiments.support.run_folder import Run, open_run
from experiments.support.variants import variants
from icorag_jax.data.texts import default_texts
from icorag_jax.retrieval.encoder import embed, find_default_encoder, load_encoder
from icorag_jax.theory.alignment import Measures
from icorag_jax.theory.features import (
    LAWS,
    SIGNED_PERMUTATION_INVARIANT,
    TEXT,
    Bank,
    draw_bank,
    stack_banks,
    text_bank,
)

# What counts as aligned.
ALIGNED = 0.99
# Readings of a cell: a construction's weights; trained against the best step of its family, and
# against the best plain step.
READINGS = ("construction", "trained", "plain")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the sweep.

    Attributes:
        out: folder to write.
        seed: seed of all that is drawn.
        resume: continue a run that was interrupted.
        architectures: names of the variants to run; all of them if empty.
        distributions: names of the feature distributions.
        features: size of the features, d.
        examples: context examples of an episode, N.
        queries: queries of an episode.
        temperatures: temperatures of the axis from linear to hard softmax.
        depths: numbers of layers.
        samples: vectors of each half of a distribution's bank.
        texts: real or generated texts to embed.
        seeds: trained runs of each variant on each distribution.
        starts: initializations that each run chooses from.
        start_steps: optimizer steps that a start is tried for.
        steps: optimizer steps from the start that was chosen.
        batch: episodes a step.
        learning_rate: Muon's, at the start.
        init_scale: variance scaling of the initial weights.
        fit_episodes: episodes that the best step is fitted to.
        test_episodes: episodes of each run's evaluation.
        bootstrap: draws of the bootstrap.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    architectures: tuple[str, ...] = ()
    distributions: tuple[str, ...] = (*LAWS, TEXT)
    features: int = 8
    examples: int = 16
    queries: int = 4
    temperatures: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1)
    depths: tuple[int, ...] = (2, 4)
    samples: int = 4096
    texts: int = 1200
    seeds: int = 2
    starts: int = 3
    start_steps: int = 40
    steps: int = 200
    batch: int = 32
    learning_rate: float = 0.05
    init_scale: float = 0.1
    fit_episodes: int = 16384
    test_episodes: int = 64
    bootstrap: int = 500


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "paper": {
        "queries": 8,
        "features": 10,
        "examples": 20,
        "temperatures": (1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.01),
        "depths": (2, 3, 4, 5, 6, 7, 8),
        "samples": 32768,
        "texts": 4000,
        "seeds": 5,
        "starts": 8,
        "start_steps": 200,
        "steps": 2000,
        "batch": 256,
        "fit_episodes": 131072,
        "test_episodes": 1024,
        "bootstrap": 2000,
    },
}


def main(config: Config) -> None:
    """Runs the sweep and writes its folder.

    Raises:
        ValueError: unknown names or sizes that make no sense; nothing is written.
    """
    rows = _selected(config)
    with open_run(config.out, "boundary_sweep", config, resume=config.resume) as run:
        banks, source = _banks(run, config)
        measured, memory = {}, {}
        progress = tqdm(rows.values(), desc="boundary sweep", unit="architecture")
        for variant in progress:
            progress.set_postfix_str(variant.name)
            measured[variant.name] = run.cell_arrays(
                variant.name, lambda variant=variant: run_variant(variant, banks, config, memory)
            )
        table = episode_table(measured, config)
        summary = summarize(rows, measured, config) | {"text_source": source}
        run.write_table("episodes", table)
        run.write_table("transfer", transfer_table(measured, config))
        for name, figure in _figures(rows, measured, summary, config).items():
            run.write_figure(name, figure)
        run.write_account(account(summary))
        run.write_summary(summary)


def run_variant(
    variant: Variant, banks: Bank, config: Config, memory: dict[Any, Trained]
) -> dict[str, np.ndarray]:
    """One cell: all readings `[runs, episodes]`, transfer `[laws, runs]`, losses of training.

    Variants that differ in evaluation alone train alike; `memory` keeps what was trained, and is
    added to.
    """
    training = Training(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(Training)}
    )
    key_of_run = jax.random.key(config.seed)
    key = jax.random.fold_in(key_of_run, zlib.crc32(variant.name.encode()))
    construction_key, trained_key, transfer_key = jax.random.split(key, 3)
    trains_like = (variant.architecture, variant.task, variant.ridge)
    if trains_like not in memory:
        train_key = jax.random.fold_in(key_of_run, zlib.crc32(repr(trains_like).encode()))
        memory[trains_like] = boundary.train_variant(
            variant, banks, training, train_key, variant.name
        )
    trained = memory[trains_like]
    found: dict[str, Measures] = {
        "construction": boundary.measure_construction(
            variant, trained.reference, banks, training, construction_key
        ),
        "trained": boundary.measure_trained(variant, trained, banks, training, trained_key, "best"),
        "plain": boundary.measure_trained(variant, trained, banks, training, trained_key, "plain"),
        "transfer": boundary.measure_transfer(variant, trained, banks, training, transfer_key),
    }
    arrays = {
        f"{reading}.{field}": np.asarray(values)
        for reading, measures in found.items()
        for field, values in measures._asdict().items()
    }
    return arrays | {"start_losses": trained.start_losses, "losses": trained.losses}


def episode_table(measured: Mapping[str, Mapping[str, np.ndarray]], config: Config) -> pd.DataFrame:
    """Every measure of every episode: a row a variant, reading, law, seed and episode."""
    laws, seeds, episodes = len(config.distributions), config.seeds, config.test_episodes
    index = pd.MultiIndex.from_product(
        [config.distributions, range(seeds), range(episodes)],
        names=["distribution", "seed", "episode"],
    )
    parts = []
    for name, arrays in measured.items():
        for reading in READINGS:
            columns = {
                field: arrays[f"{reading}.{field}"].reshape(laws * seeds * episodes)
                for field in Measures._fields
            }
            part = pd.DataFrame(columns, index=index).reset_index()
            parts.append(part.assign(architecture=name, reading=reading))
    table = pd.concat(parts, ignore_index=True)
    for column in ("distribution", "architecture", "reading"):
        table[column] = table[column].astype("category")
    return table


def transfer_table(
    measured: Mapping[str, Mapping[str, np.ndarray]], config: Config
) -> pd.DataFrame:
    """Trained on one distribution, tested on another: means over a run's episodes."""
    index = pd.MultiIndex.from_product(
        [config.distributions, config.distributions, range(config.seeds)],
        names=["tested_on", "trained_on", "seed"],
    )
    parts = []
    for name, arrays in measured.items():
        columns = {field: arrays[f"transfer.{field}"].reshape(-1) for field in Measures._fields}
        part = pd.DataFrame(columns, index=index).reset_index()
        parts.append(part.assign(architecture=name))
    return pd.concat(parts, ignore_index=True)


def summarize(
    rows: Mapping[str, Variant],
    measured: Mapping[str, Mapping[str, np.ndarray]],
    config: Config,
) -> dict:
    """What `summary.json` holds: per architecture its kind, alignments, spread, and readings."""
    architectures = {}
    for name, variant in rows.items():
        arrays = measured[name]
        readings = {
            reading: _alignment(arrays[f"{reading}.prediction_cosine"], name, reading, config)
            for reading in READINGS
        }
        losses = arrays["start_losses"]
        best = losses.min(axis=-1, keepdims=True)
        loss, reference = arrays["trained.loss"].mean(), arrays["trained.reference_loss"].mean()
        architectures[name] = {
            "kind": variant.architecture.kind,
            **readings["trained"],
            "construction": readings["construction"],
            "against_plain_step": readings["plain"],
            "sensitivity_by_distribution": _means(arrays["trained.sensitivity_cosine"], config),
            "relative_error_by_distribution": _means(arrays["trained.relative_error"], config),
            "loss": float(loss),
            "best_step_loss": float(reference),
            "poor_starts": float(np.mean(losses > 1.2 * best)),
        }
    summary = {"architectures": architectures, "settings": _settings(config)}
    return summary | {"claims": [dataclasses.asdict(row) for row in claims(summary)]}


def claims(summary: dict) -> list[Claim]:
    """The claims table's rows."""
    architectures = summary["architectures"]
    linear = {n: a for n, a in architectures.items() if a["kind"] == "linear"}
    nonlinear = {n: a for n, a in architectures.items() if a["kind"] == "nonlinear"}
    rows = []
    if linear:
        exact = min(
            entry["mean"]
            for a in linear.values()
            for entry in a["construction"]["alignment_by_distribution"].values()
        )
        rows.append(
            Claim(
                "Linear extensions: a construction's weights are its descent on every distribution",
                f"least mean alignment {exact:.6f} over {len(linear)} extensions",
                exact >= 1 - 1e-4,
            )
        )
        below = shortfalls(summary)
        cells = sum(len(a["alignment_by_distribution"]) for a in linear.values())
        listed = ", ".join(f"{n} on {law} {value:.3f}" for n, law, value in below)
        rows.append(
            Claim(
                f"Linear extensions: trained alignment at least {ALIGNED} on every distribution",
                f"{cells - len(below)} of {cells} cells" + (f"; below: {listed}" if below else ""),
                not below,
            )
        )
    if linear and nonlinear:
        one = architectures.get("linear", next(iter(linear.values())))["spread"]
        wider = [n for n, a in nonlinear.items() if (a["spread"]["low"] or 0) > (one["high"] or 1)]
        rows.append(
            Claim(
                "Nonlinear architectures: alignment depends on the feature distribution",
                f"spread {_median_spread(nonlinear):.3f} (median of {len(nonlinear)}) against "
                f"{_median_spread(linear):.3f} (median of {len(linear)} linear); interval above "
                f"that of one linear layer [{one['low']:.3f}, {one['high']:.3f}] in {len(wider)}",
                None,
            )
        )
    return rows


def shortfalls(summary: dict) -> list[tuple[str, str, float]]:
    """Linear cells whose trained alignment is below the mark: name, distribution, alignment."""
    return [
        (name, law, entry["mean"])
        for name, a in summary["architectures"].items()
        if a["kind"] == "linear"
        for law, entry in a["alignment_by_distribution"].items()
        if entry["mean"] < ALIGNED
    ]


def account(summary: dict) -> str:
    """The sweep in words."""
    lines = [
        "# Boundary sweep",
        "",
        "Alignment is the cosine between a model's and a gradient step's predictions for an",
        "episode's queries; the spread is the largest mean over distributions less the smallest,",
        "with a 95% bootstrap interval over runs and episodes.",
        "",
        f"Text features: {summary['text_source']}." if "text_source" in summary else "",
        "",
        "| architecture | kind | least alignment, trained | spread, trained "
        "| least alignment, construction | spread, construction | poor starts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in summary["architectures"].items():
        cells = [name, entry["kind"]]
        for reading in (entry, entry["construction"]):
            law, least = min(
                reading["alignment_by_distribution"].items(), key=lambda item: item[1]["mean"]
            )
            cells += [f"{least['mean']:.4f} ({law})", _interval(reading["spread"])]
        lines.append("| " + " | ".join([*cells, f"{entry['poor_starts']:.0%}"]) + " |")
    lines += ["", "## Where a linear extension falls short", ""]
    below = shortfalls(summary)
    if below:
        lines += [
            "Trained, against the best step of its family (least squares for one layer; for",
            "several layers, steps with matrix rates that are trained as the model is):",
            "",
        ]
    lines += [f"- {name} on {law}: {value:.4f}. {_reason(name, law)}" for name, law, value in below]
    if not below:
        lines.append(f"Nowhere: every linear cell is at {ALIGNED} or above.")
    lines += [
        "",
        "One layer of linear attention is the best *preconditioned* step on any distribution. It",
        "is also the best plain step where features are invariant under signed permutations of",
        f"their coordinates ({', '.join(sorted(SIGNED_PERMUTATION_INVARIANT))}), and only there:",
        "`against_plain_step` in `summary.json` has the alignment with the plain step everywhere.",
        "",
        "A poor start is an initialization whose loss after the first steps is more than a fifth",
        "above that of the run's best one; each run goes on from its best.",
        "",
        claims_markdown([Claim(**row) for row in summary["claims"]]),
    ]
    return "\n".join([*lines, ""])


def _reason(name: str, law: str) -> str:
    if name.startswith(("depth", "recurrent", "gd_plus_plus", "ridge")):
        return (
            "Several layers: theory gives weights that take the steps, not that training finds "
            "them or that they are the best ones; the loss may have several minima."
        )
    return "One layer: theory names this step the optimum, so this is what training left undone."


def _selected(config: Config) -> dict[str, Variant]:
    """The variants that the settings name."""
    unknown = [name for name in config.distributions if name not in (*LAWS, TEXT)]
    if unknown:
        raise ValueError(f"unknown distributions {unknown}; known: {', '.join((*LAWS, TEXT))}")
    if len(config.distributions) < 2 or len(set(config.distributions)) < len(config.distributions):
        raise ValueError("give at least two distributions, each once")
    sizes = ("features", "samples", "texts", "seeds", "starts", "start_steps", "steps", "batch")
    for name in (*sizes, "fit_episodes", "test_episodes", "bootstrap"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.seed < 0 or config.learning_rate <= 0 or config.init_scale <= 0:
        raise ValueError("seed must be at least 0, learning_rate and init_scale above 0")
    if config.test_episodes < 4:
        raise ValueError(f"test_episodes must be at least 4, got {config.test_episodes}")
    known = variants(config.examples, config.queries, config.temperatures, config.depths)
    unknown = [name for name in config.architectures if name not in known]
    if unknown:
        raise ValueError(f"unknown architectures {unknown}; known: {', '.join(known)}")
    chosen = config.architectures or tuple(known)
    return {name: variant for name, variant in known.items() if name in chosen}


def _banks(run: Run, config: Config) -> tuple[Bank, str]:
    """The banks of all distributions `[laws, samples, d]`, and where texts came from."""
    key = jax.random.key(config.seed)
    banks, source = [], "none"
    for name in config.distributions:
        bank_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        if name == TEXT:
            stored = run.cell_arrays("text_embeddings", lambda: _embed_texts(config))
            source = str(stored["source"])
            embeddings = stored["embeddings"]
            banks.append(text_bank(embeddings, bank_key, config.samples, config.features))
        else:
            banks.append(draw_bank(name, bank_key, config.samples, config.features))
    return stack_banks(banks), source


def _embed_texts(config: Config) -> dict[str, np.ndarray]:
    texts, source = default_texts(config.texts, config.seed)
    encoder = load_encoder(find_default_encoder())
    # A passage's first words say what it is about; all of it would take several times as long.
    found = embed(encoder, texts, batch_size=32, max_length=64, progress=True)
    return {"embeddings": found, "source": np.asarray(source)}


def _by_law(values: np.ndarray, config: Config) -> np.ndarray:
    """`[runs, episodes]` as `[laws, seeds, episodes]`."""
    return values.reshape(len(config.distributions), config.seeds, -1).astype(np.float64)


def _means(values: np.ndarray, config: Config) -> dict[str, float]:
    means = _by_law(values, config).mean(axis=(1, 2))
    return dict(zip(config.distributions, means.tolist(), strict=True))


def _alignment(values: np.ndarray, name: str, reading: str, config: Config) -> dict:
    """Mean alignment by distribution and its spread, with bootstrap intervals."""
    found = _by_law(values, config)
    laws, seeds, episodes = found.shape
    rng = np.random.default_rng([config.seed, zlib.crc32(f"{name} {reading}".encode())])
    draws = np.empty((config.bootstrap, laws))
    for index in range(config.bootstrap):
        # Runs with replacement, then episodes of each run with replacement.
        run = rng.integers(seeds, size=(laws, seeds, 1))
        episode = rng.integers(episodes, size=(laws, seeds, episodes))
        draws[index] = found[np.arange(laws)[:, None, None], run, episode].mean(axis=(1, 2))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    means = found.mean(axis=(1, 2))
    spreads = np.quantile(draws.max(axis=1) - draws.min(axis=1), [0.025, 0.975])
    return {
        "alignment_by_distribution": {
            law: {"mean": float(m), "low": float(lo), "high": float(hi)}
            for law, m, lo, hi in zip(config.distributions, means, low, high, strict=True)
        },
        "spread": {
            "mean": float(means.max() - means.min()),
            "low": float(spreads[0]),
            "high": float(spreads[1]),
        },
    }


def _median_spread(entries: Mapping[str, dict]) -> float:
    return float(np.median([entry["spread"]["mean"] for entry in entries.values()]))


def _interval(entry: dict) -> str:
    return f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"


def _settings(config: Config) -> dict:
    return {"features": config.features, "examples": config.examples, "seeds": config.seeds}


def _figures(rows, measured, summary, config: Config) -> dict:
    """All figures by name; those whose architectures were not run are left out."""
    entries, laws = summary["architectures"], list(config.distributions)

    def heat(title, pick):
        values = np.array(
            [
                [pick(entries[n])["alignment_by_distribution"][law]["mean"] for law in laws]
                for n in rows
            ]
        )
        return figures.heatmap(values, list(rows), laws, title, low=0.5, high=1.0)

    found = {
        "alignment_trained": heat("Alignment with the best step, trained", lambda e: e),
        "alignment_construction": heat(
            "Alignment with its descent, construction", lambda e: e["construction"]
        ),
    }
    spreads = pd.DataFrame([{"label": name, **entries[name]["spread"]} for name in rows])
    found["spread"] = figures.intervals(spreads, x_label="spread of alignment over distributions")

    def curve(names: Mapping[str, float], x_label: str, log_x: bool):
        table = pd.DataFrame(
            [
                {
                    "x": x,
                    "distribution": law,
                    **entries[name][reading]["alignment_by_distribution"][law],
                }
                for name, x in names.items()
                for law in laws
                for reading in ["construction"]
            ]
        )
        return figures.curves(
            table,
            "x",
            "mean",
            "distribution",
            "low",
            "high",
            x_label=x_label,
            y_label="alignment, construction",
            log_x=log_x,
        )

    def trained_curve(names: Mapping[str, float], x_label: str, log_x: bool):
        table = pd.DataFrame(
            [
                {"x": x, "distribution": law, **entries[name]["alignment_by_distribution"][law]}
                for name, x in names.items()
                for law in laws
            ]
        )
        return figures.curves(
            table,
            "x",
            "mean",
            "distribution",
            "low",
            "high",
            x_label=x_label,
            y_label="alignment, trained",
            log_x=log_x,
        )

    tempered = {
        name: variant.architecture.temperature
        for name, variant in rows.items()
        if variant.architecture.kernel == "tempered"
    }
    if tempered:
        label = "temperature (large: linear, small: hard)"
        found["temperature_construction"] = curve(tempered, label, True)
        found["temperature_trained"] = trained_curve(tempered, label, True)
    for kind in ("depth", "recurrent"):
        names = {
            name: variant.architecture.layers
            for name, variant in rows.items()
            if name == "linear" or name.startswith(f"{kind}_")
        }
        if len(names) > 1:
            found[f"{kind}_trained"] = trained_curve(names, "layers", False)
    chosen = [n for n in ("linear", "depth_2", "softmax", "softmax_block") if n in rows]
    if chosen:
        count = len(laws)

        def transfer(name, field):
            values = measured[name][f"transfer.{field}"]
            return values.reshape(count, count, config.seeds).mean(axis=-1).T

        found["transfer_alignment"] = figures.matrix_grid(
            {name: transfer(name, "prediction_cosine") for name in chosen}, laws, "alignment"
        )
        excess = {
            name: np.log10(transfer(name, "loss") / np.diag(transfer(name, "loss"))[None, :])
            for name in chosen
        }
        found["transfer_loss"] = figures.matrix_grid(
            excess, laws, "log10 loss over that of the model trained there"
        )
    return found


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
