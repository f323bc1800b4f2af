"""How close in-context predictions stay to gradient descent, across architectures and features.

Every linear extension and every nonlinear architecture is read twice on every feature
distribution, real text included: with a construction's weights and the nonlinearity put in, and
trained, against the best gradient step there. Alignment is the cosine between the two vectors of
predictions for an episode's queries; the spread of an architecture is its largest mean alignment
over distributions less the smallest.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from experiments.support import (
    boundary_account,
    boundary_figures,
    boundary_measures,
    boundary_summary,
    boundary_training,
)
from experiments.support.boundary_training import Training
from experiments.support.command import check_numbers, run_command
from experiments.support.run_folder import Run, open_run
from experiments.support.text_source import TextSource, embed_source, find_text_source
from experiments.support.variants import Variant, variants
from icorag_jax.theory.features import LAWS, TEXT, Bank, draw_bank, stack_banks, text_bank


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
        depths: numbers of layers, each at least 2.
        samples: vectors of each half of a distribution's bank.
        texts: real or generated texts to embed.
        seeds: trained runs of each variant on each distribution.
        starts: initializations that each run chooses from.
        start_steps: the first optimizer steps, which every start takes.
        steps: optimizer steps.
        batch: episodes a step of up to two layers; gradients of deeper models are noisier, and
            their batches larger in proportion.
        learning_rate: Muon's, at the start.
        init_scale: variance scaling of the initial weights.
        fit_episodes: episodes that the best step is fitted to.
        test_episodes: episodes of each run's evaluation on the distribution of its training.
        transfer_episodes: episodes of its evaluation on every distribution.
        bootstrap: draws of the bootstrap.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    architectures: tuple[str, ...] = ()
    distributions: tuple[str, ...] = (*LAWS, TEXT)
    features: int = 5
    examples: int = 10
    queries: int = 32
    temperatures: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1)
    depths: tuple[int, ...] = (2, 3)
    samples: int = 4096
    texts: int = 800
    seeds: int = 2
    starts: int = 6
    start_steps: int = 50
    steps: int = 600
    batch: int = 128
    learning_rate: float = 0.1
    init_scale: float = 0.01
    fit_episodes: int = 16384
    test_episodes: int = 256
    transfer_episodes: int = 32
    bootstrap: int = 500


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    # What one looks at first: of each kind of architecture a few.
    "glance": {
        "architectures": ("linear", "longer_context", "depth_2", "softmax", "tempered_0.1"),
        "steps": 450,
        "temperatures": (0.1,),
        "test_episodes": 128,
    },
    "paper": {
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
        "batch": 512,
        "fit_episodes": 524288,
        "test_episodes": 1024,
        "transfer_episodes": 256,
        "bootstrap": 2000,
    },
}  # fmt: skip


def main(config: Config) -> None:
    """Runs the sweep and writes its folder.

    Raises:
        ValueError, OSError: unknown names, numbers that make no sense, or no texts or encoder
            where they are asked for; nothing is written.
    """
    rows, laws = _selected(config), config.distributions
    texts = None
    if TEXT in laws:
        texts = find_text_source(config.texts, config.seed, config.features)
    with open_run(config.out, "boundary_sweep", config, resume=config.resume) as run:
        banks, provenance = _banks(run, config, texts)
        measured, memory = {}, {}
        progress = tqdm(rows.values(), desc="boundary sweep", unit="architecture")
        for variant in progress:
            progress.set_postfix_str(variant.name)
            measured[variant.name] = run.cell_arrays(
                variant.name, lambda variant=variant: run_variant(variant, banks, config, memory)
            )
        summary = boundary_summary.summarize(
            rows, measured, laws, provenance, config.bootstrap, config.seed
        )
        summary["claims"] = [*map(dataclasses.asdict, boundary_account.claims(summary))]
        run.write_table("episodes", boundary_summary.episode_table(measured, laws))
        run.write_table("transfer", boundary_summary.transfer_table(measured, laws))
        for name, figure in boundary_figures.draw_all(rows, measured, summary, laws).items():
            run.write_figure(name, figure)
        run.write_account(boundary_account.account(summary))
        run.write_summary(summary)


def run_variant(
    variant: Variant, banks: Bank, config: Config, memory: dict[Any, Any]
) -> dict[str, np.ndarray]:
    """One cell: readings `[laws, seeds, episodes]`, transfer `[laws, laws, seeds]`, and losses.

    `memory` keeps what was trained and fitted, for variants that share it; it is added to.
    """
    training = Training(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(Training)}
    )
    arch, task = variant.architecture, variant.task
    construction_key, trained_key = jax.random.split(_key(config, variant.name))

    def remember(kind, compute):
        # The key comes from what is computed, not from who asks first: cells do not depend on
        # which others ran.
        if kind not in memory:
            memory[kind] = compute(_key(config, repr(kind)))
        return memory[kind]

    trained = remember(
        ("model", arch, task, variant.ridge),
        lambda key: boundary_training.train_variant(variant, banks, training, key, variant.name),
    )
    single = remember(
        ("step", task),
        lambda key: boundary_training.fit_single_step(task, banks.train, training, key),
    )
    reference = single
    if not variant.single_step:
        reference = remember(
            ("steps", arch.layers, arch.recurrent, task, variant.ridge),
            lambda key: boundary_training.train_steps(
                variant, single, banks.train, training, key, variant.name
            ),
        )
    found = boundary_measures.measure_trained(
        variant, trained.parameters, reference, banks, training, trained_key
    )
    found["construction"] = boundary_measures.measure_construction(
        variant, reference, banks, training, construction_key
    )
    arrays = {
        f"{reading}.{field}": np.asarray(values)
        for reading, measures in found.items()
        for field, values in measures._asdict().items()
    }
    arrays |= {"start_losses": trained.start_losses, "losses": trained.losses}
    laws = len(config.distributions)
    lead = {name: (laws,) if name.startswith("transfer.") else () for name in arrays}
    return {
        name: values.reshape(*lead[name], laws, config.seeds, *values.shape[len(lead[name]) + 1 :])
        for name, values in arrays.items()
    }


def _key(config: Config, name: str) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))


def _selected(config: Config) -> dict[str, Variant]:
    """The variants that the settings name, once these make sense."""
    check_numbers(config)
    unknown = [name for name in config.distributions if name not in (*LAWS, TEXT)]
    if unknown:
        raise ValueError(f"unknown distributions {unknown}; known: {', '.join((*LAWS, TEXT))}")
    if len(config.distributions) < 2 or len(set(config.distributions)) < len(config.distributions):
        raise ValueError("give at least two distributions, each once")
    if config.start_steps > config.steps:
        raise ValueError(f"start_steps {config.start_steps} exceed the steps, {config.steps}")
    if any(depth < 2 for depth in config.depths):
        raise ValueError(f"depths must be at least 2, got {config.depths}")
    known = variants(config.examples, config.queries, config.temperatures, config.depths)
    unknown = [name for name in config.architectures if name not in known]
    if unknown:
        raise ValueError(f"unknown architectures {unknown}; known: {', '.join(known)}")
    chosen = config.architectures or tuple(known)
    for name in chosen:
        if (heads := known[name].architecture.heads) > config.features:
            raise ValueError(
                f"{name} deals the features out to {heads} heads: features must be at least "
                f"{heads}, got {config.features}"
            )
    return {name: variant for name, variant in known.items() if name in chosen}


def _banks(run: Run, config: Config, texts: TextSource | None) -> tuple[Bank, dict | None]:
    """The banks of all distributions `[laws, samples, d]`, and where texts came from."""
    banks, provenance = [], None
    for name in config.distributions:
        bank_key = _key(config, name)
        if name == TEXT:
            assert texts is not None, "distributions with text come with texts"
            stored = run.cell_arrays("text_embeddings", lambda: embed_source(texts))
            provenance = json.loads(str(stored["provenance"]))
            embeddings = stored["embeddings"]
            banks.append(text_bank(embeddings, bank_key, config.samples, config.features))
        else:
            banks.append(draw_bank(name, bank_key, config.samples, config.features))
    return stack_banks(banks), provenance


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
