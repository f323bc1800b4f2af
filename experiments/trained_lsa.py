"""Train linear self-attention from small random weights and see it land on gradient descent.

Three settings: the reference setting of von Oswald et al. (2023), an episode of the projection
interface (questions, retrieved passages pooled by rank) and one of the dot-product interface
(readouts from the keys and values of passages). All seeds of a setting train in one program.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm import tqdm

from experiments.support import figures, lsa_summary
from experiments.support.command import check_numbers, run_command
from experiments.support.lsa_settings import Setting, lsa_settings
from experiments.support.run_folder import open_run
from icorag_jax.theory import alignment, architectures, constructions, training
from icorag_jax.theory.architectures import Model
from icorag_jax.theory.episodes import Episode, identity_readouts
from icorag_jax.theory.objective import gradient_descent, payloads, predict_queries
from icorag_jax.theory.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        seed: seed of all that is drawn.
        resume: continue a run that was interrupted.
        seeds: runs of each setting.
        reference_steps: optimizer steps of the reference setting.
        reference_batch: episodes a step of the reference setting.
        reference_learning_rate: of the reference setting.
        reference_cosine: let that learning rate fall to zero along a cosine; it is constant in the
            published setting.
        steps: optimizer steps of the two retrieval settings.
        batch: episodes a step of the two retrieval settings.
        test_queries: queries of the evaluation; an episode has one or more.
    """

    out: Path
    seed: int = 0
    resume: bool = False
    seeds: int = 5
    reference_steps: int = 5000
    reference_batch: int = 2048
    reference_learning_rate: float = 1e-3
    reference_cosine: bool = False
    steps: int = 1000
    batch: int = 256
    test_queries: int = 160_000


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "reference_steps": 1000,
        "reference_batch": 256,
        "reference_learning_rate": 5e-3,
        "reference_cosine": True,
        "steps": 800,
    },
    "paper": {"seeds": 16, "steps": 5000, "batch": 2048, "test_queries": 1_600_000},
}


def main(config: Config) -> None:
    """Runs the experiment and writes its folder.

    Raises:
        ValueError: numbers that make no sense; nothing is written.
        DivergedError: training diverged.
    """
    check_numbers(config)
    settings = lsa_settings(*training_configs(config))
    with open_run(config.out, "trained_lsa", config, resume=config.resume) as run:
        found, progress = {}, tqdm(settings.items(), desc="trained_lsa", unit="setting")
        for name, setting in progress:
            progress.set_postfix_str(name)
            found[name] = run.cell_arrays(
                name, lambda name=name, setting=setting: run_setting(name, setting, config)
            )
        summary = lsa_summary.summarize(found)
        run.write_table("seeds", lsa_summary.seed_table(found))
        losses = lsa_summary.loss_table(found)
        run.write_table("losses", losses)
        figure = figures.curves(
            losses, "step", "relative_loss", "setting", "low", "high",
            x_label="optimizer step", y_label="training loss over that of the best step",
        )  # fmt: skip
        run.write_figure("training_loss", figure)
        excess = figures.intervals(
            lsa_summary.excess_table(summary), "loss above that of the best step, in percent"
        )
        run.write_figure("excess_loss", excess)
        run.write_account(lsa_summary.account(summary))
        run.write_summary(summary)


def training_configs(config: Config) -> tuple[TrainingConfig, TrainingConfig]:
    """How to train on the reference setting, and on the two retrieval settings."""
    reference = TrainingConfig(
        optimizer="adamw",
        steps=config.reference_steps,
        batch=config.reference_batch,
        learning_rate=config.reference_learning_rate,
        b1=0.9,
        b2=0.98,
        weight_decay=0.0,
        clip=0.001,
        cosine=config.reference_cosine,
        chunk=_chunk(config.reference_steps),
    )
    retrieval = dataclasses.replace(
        reference,
        steps=config.steps,
        batch=config.batch,
        learning_rate=5e-3,
        clip=1.0,
        cosine=True,
        chunk=_chunk(config.steps),
    )
    return reference, retrieval


def predict(model: Model, parameters: Any, episode: Episode) -> Float[Array, "q m"]:
    """What the model says for the queries: its output in evidence space, read out.

    Tokens are `[z; C^T y]`, the factored construction's at the zero interface.
    """
    d_c, d_z = episode.interface_shape
    pulls = payloads(jnp.zeros((d_c, d_z)), episode)
    n, q = pulls.shape[0], episode.query_features.shape[0]
    tokens = episode._replace(
        targets=pulls,
        readouts=identity_readouts(n, d_c, pulls.dtype),
        query_readouts=identity_readouts(q, d_c, pulls.dtype),
        query_targets=jnp.zeros((q, d_c)),
    )
    gathered = architectures.predict(model, parameters, tokens)
    return jnp.einsum("qmc,qc->qm", episode.query_readouts, gathered)


def run_setting(name: str, setting: Setting, config: Config) -> dict[str, np.ndarray]:
    """Trains all seeds of a setting and measures them: `[seeds]` each, losses `[seeds, steps]`."""
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    init_key, train_key, test_key = jax.random.split(key, 3)
    model, keys = setting.model, jax.random.split(train_key, config.seeds)
    initial = jax.vmap(
        jax.vmap(lambda key: architectures.init_parameters(model, key, setting.d_c))
    )(jax.random.split(init_key, (config.seeds, setting.starts)))

    def loss(parameters, key, data):
        episodes = jax.vmap(setting.draw)(jax.random.split(key, setting.training.batch))

        def one(episode):
            predictions = predict(model, parameters, episode)
            return alignment.query_loss(predictions, episode.query_targets)

        return jnp.mean(jax.vmap(one)(episodes))

    trained, losses, start_losses = training.train_best_start(
        loss, initial, keys, jnp.zeros(config.seeds), setting.training, setting.start_steps, name
    )
    measured = measure(setting, trained, test_key, max(1, config.test_queries // setting.queries))
    leaves = {
        "/".join(str(part.key) for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trained)
    }
    closed_form = np.full(config.seeds, setting.closed_form_loss)
    return (
        measured
        | leaves
        | {
            "closed_form_loss": closed_form,
            "training_loss": losses,
            "start_losses": start_losses,
        }
    )


def measure(setting: Setting, trained: Any, key: PRNGKeyArray, count: int) -> dict[str, np.ndarray]:
    """Measures of all seeds on the same fresh episodes, `[seeds]` each."""
    model, zero = setting.model, jnp.zeros((setting.d_c, setting.d_z))
    step_size = jnp.asarray([setting.step_size])
    construction = architectures.attention_weights(
        architectures.fill_parameters(
            model,
            jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), trained),
            constructions.direct_layers(zero, step_size),
        ),
        0,
    )

    def step(episode):
        return predict_queries(gradient_descent(zero, episode, step_size), episode)

    def one(parameters, episodes):
        weights = architectures.attention_weights(parameters, 0)
        mixed = architectures.interpolate(weights, construction, 0.5)
        between = {"layer_0": {"attention": mixed._asdict()}}

        def interpolated_loss(episode):
            return alignment.query_loss(predict(model, between, episode), episode.query_targets)

        found = alignment.measure(
            lambda episode: predict(model, parameters, episode), step, episodes
        )
        between_losses = jax.vmap(interpolated_loss)(episodes)
        expected = setting.closed_form_loss
        return {
            "loss": jnp.mean(found.loss),
            "gd_loss": jnp.mean(found.reference_loss),
            "prediction_cosine": jnp.mean(found.prediction_cosine),
            "sensitivity_cosine": jnp.mean(found.sensitivity_cosine),
            "interpolated_loss": jnp.mean(between_losses),
            # The step's expected loss is known, so its sample mean is a control variate: a paired
            # difference is far less noisy than either mean where losses have heavy tails.
            "excess_loss": jnp.mean(found.loss - found.reference_loss) / expected,
            "interpolated_excess_loss": jnp.mean(between_losses - found.reference_loss) / expected,
        }

    @jax.jit
    def chunk(trained, keys):
        episodes = jax.vmap(setting.draw)(keys)
        return jax.vmap(one, in_axes=(0, None))(trained, episodes)

    chunks = max(1, count // 2000)
    parts = [
        chunk(trained, jax.random.split(part, count // chunks))
        for part in jax.random.split(key, chunks)
    ]
    return {name: np.mean([np.asarray(part[name]) for part in parts], axis=0) for name in parts[0]}


def _chunk(steps: int) -> int:
    """Steps between two moves of the progress bar, about a hundredth of all."""
    return next(size for size in range(max(1, steps // 100), steps + 1) if steps % size == 0)


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
