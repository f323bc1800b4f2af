"""Pretrains a small language model that reads: made-up passages, questions, answers.

The model is written as a Hugging Face folder, `OUT/model`. Training goes through stages from one
passage of one fact to many passages; texts depend on the seed and the step alone. It can be
stopped at any time, and goes on with --resume from the last checkpoint to the same result.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import tokenizers
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.support.command import run_command
from experiments.support.reader_folder import write_reader
from experiments.support.reader_log import LossLog
from experiments.support.reader_stages import CURRICULUM, Stage
from experiments.support.reader_start import init_reader
from experiments.support.reader_texts import END, START, plain_texts
from experiments.support.reader_texts import train_tokenizer as train_on_texts
from experiments.support.reader_training import Losses, ReaderState, make_optimizer, train_step
from experiments.support.reader_workers import batches
from experiments.support.run_folder import Run, open_run
from icorag_jax.files import write_atomically
from icorag_jax.lm.config import DecoderConfig, DefaultRotary
from icorag_jax.lm.pretrained import LanguageModel, from_pretrained
from icorag_jax.training_checkpoints import open_checkpoints


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the pretraining.

    Attributes:
        out: folder of the run.
        resume: go on with the run that the folder holds.
        start: folder of a model to go on from, with its tokenizer, instead of random weights; of
            the same sizes.
        family: whose architecture the model has.
        seed: of parameters and texts.
        vocabulary: tokens of the byte-level BPE, which is trained on texts of the last stage.
        width: features of a token.
        layers: of the decoder.
        mlp: features inside an MLP.
        stage_steps: steps of each stage; the last stages are left out where there are fewer.
        learning_rate: the highest, reached after a warm-up; it falls with the inverse square root
            of the step.
        warmup_steps: of it.
        decay_share: share of all steps, at the end, in which the learning rate falls to 0.
        checkpoint_every: steps from one checkpoint to the next.
        batch_factor: how many times as many rows a step has as the stages say, for accelerators.
        family_share: share of the last stage's texts that are a question of the families.
        distinct_steps: steps after which the same texts come again, in another order; by default
            all are new.
        text_workers: processes that make texts ahead; 0 makes them between steps. The texts are
            the same.
    """

    out: Path
    resume: bool = False
    start: Path | None = None
    family: Literal["llama", "qwen3"] = "llama"
    seed: int = 0
    vocabulary: int = 2048
    width: int = 256
    layers: int = 6
    mlp: int = 640
    stage_steps: tuple[int, ...] = (150, 250, 350, 300)
    learning_rate: float = 1e-2
    warmup_steps: int = 50
    decay_share: float = 0.25
    checkpoint_every: int = 25
    batch_factor: int = 1
    family_share: float = 0.5
    distinct_steps: int | None = None
    text_workers: int = 0

    def __post_init__(self):
        """Checks the stages and the ranges."""
        if not 1 <= len(self.stage_steps) <= len(CURRICULUM):
            raise ValueError(f"stage_steps must be 1 to {len(CURRICULUM)}, got {self.stage_steps}")
        if not 0 <= self.family_share <= 1:
            raise ValueError(f"family_share must be in [0, 1], got {self.family_share}")
        if self.distinct_steps is not None and self.distinct_steps < 1:
            raise ValueError(f"distinct_steps must be at least 1, got {self.distinct_steps}")


PRESETS = {
    "llama": {"family": "llama", "layers": 6, "mlp": 640, "learning_rate": 6e-3},
    "qwen3": {"family": "qwen3", "layers": 7, "mlp": 512},
}


def main(config: Config) -> None:
    """Runs the pretraining."""
    with open_run(config.out, "pretrain_reader", config, resume=config.resume) as run:
        tokenizer = _tokenizer(run, config)
        decoder = decoder_config(config)
        parameters, rows = _train(run, config, decoder, tokenizer)
        run.write_table("losses", pd.DataFrame(rows))
        folder = config.out / "model"
        write_reader(folder, LanguageModel(decoder, parameters, tokenizer))
        last = rows[-1]
        run.write_summary({"steps": sum(config.stage_steps), "last": last})
        print(f"exact match of the last batches {last['exact']:.3f}; model in {folder}")


def decoder_config(config: Config) -> DecoderConfig:
    """The decoder: four query heads of 64 features or what the width has room for, two of keys."""
    return DecoderConfig(
        family=config.family,
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=config.width // 4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rotary=DefaultRotary(10_000.0),
        query_key_value_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        query_key_norm=config.family == "qwen3",
        windows=(None,) * config.layers,
        eos_token_ids=(1,),
        bos_token_id=0,
        pad_token_id=None,
    )


def learning_rate(config: Config) -> optax.Schedule:
    """Warm-up, a fall with the inverse square root of the step, and at last one to 0."""
    steps = sum(config.stage_steps)
    decay = max(int(steps * config.decay_share), 1)

    def rate(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        done = (step + 1) / config.warmup_steps
        rising = jnp.minimum(done, jax.lax.rsqrt(jnp.maximum(done, 1.0)))
        return config.learning_rate * rising * jnp.clip((steps - step) / decay, 0.0, 1.0)

    return rate


def _tokenizer(run: Run, config: Config) -> tokenizers.Tokenizer:
    path = run.path / "tokenizer.json"
    if config.start is not None and not path.exists():
        write_atomically(path, (config.start / "tokenizer.json").read_bytes())
    if not path.exists():
        texts = plain_texts(CURRICULUM[-1], config.seed, 2000)
        tokenizer = train_on_texts(texts, config.vocabulary)
        write_atomically(path, tokenizer.to_str(pretty=True).encode())
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    assert (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) == (0, 1)
    return tokenizer


def _train(
    run: Run, config: Config, decoder: DecoderConfig, tokenizer: tokenizers.Tokenizer
) -> tuple[dict, list[dict]]:
    """The parameters after all steps, and the mean losses from checkpoint to checkpoint."""
    optimizer = make_optimizer(learning_rate(config))
    if config.start is None:
        parameters = init_reader(decoder, jax.random.key(config.seed))
    else:
        model = from_pretrained(config.start, dtype=jnp.float32)
        if model.config != decoder:
            raise ValueError(f"{config.start} is not a model of these settings")
        parameters = model.parameters
    state = ReaderState(jnp.int32(0), parameters, optimizer.init(parameters))
    ends = np.cumsum(config.stage_steps)
    with open_checkpoints(run.path / "checkpoints") as checkpoints:
        state = checkpoints.restore(state)
        done = int(state.step)
        log = LossLog(run.path / "losses.jsonl", done)
        recent: list[Losses] = []
        wanted = _batches_of_steps(config)
        made = batches(tokenizer, wanted[done:], config.seed, config.text_workers)
        with made as texts_of_steps, tqdm(initial=done, total=len(wanted), unit="step") as progress:
            for step, texts in enumerate(texts_of_steps, done):
                stage = int(np.searchsorted(ends, step, side="right"))
                state, losses = train_step(decoder, optimizer, state, texts)
                recent.append(losses)
                progress.update()
                if (step + 1) % config.checkpoint_every and step + 1 < ends[-1]:
                    continue
                means = log.add(step + 1, recent, stage=stage)
                shown = {name: f"{value:.3f}" for name, value in means.items()}
                progress.set_postfix({"stage": stage, **shown})
                checkpoints.save(step + 1, state)
                log.write()
                recent = []
    return state.parameters, log.rows


def _batches_of_steps(config: Config) -> list[tuple[Stage, int]]:
    """Stage and number of the batch of each step."""
    *stages, last = CURRICULUM
    stages = [
        dataclasses.replace(stage, batch=stage.batch * config.batch_factor)
        for stage in (*stages, dataclasses.replace(last, family_share=config.family_share))
    ]
    steps = sum(config.stage_steps)
    distinct = config.distinct_steps or steps
    again = (
        np.random.default_rng((config.seed, start)).permutation(distinct)
        for start in range(distinct, steps, distinct)
    )
    numbers = np.concatenate([np.arange(distinct), *again])[:steps]
    of_steps = np.repeat(np.arange(len(config.stage_steps)), config.stage_steps)
    return [(stages[stage], int(number)) for stage, number in zip(of_steps, numbers, strict=True)]


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
