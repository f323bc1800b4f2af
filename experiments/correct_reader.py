"""Goes on with a small reader on what it misreads.

In each round the reader answers single facts among passages on subjects of much the same names.
Those that it has wrong, or nearly, are what it is trained on next, beside texts of pretraining.
The model is written as a Hugging Face folder, `OUT/model`. The run can be stopped at any time, and
goes on with --resume from the last checkpoint to the same result.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from tqdm import tqdm

from experiments.support.command import check_numbers, run_command
from experiments.support.reader_correction import correction_step, score_answers
from experiments.support.reader_folder import write_reader
from experiments.support.reader_log import LossLog
from experiments.support.reader_lookalikes import generate_lookalikes
from experiments.support.reader_stages import CURRICULUM
from experiments.support.reader_texts import Texts, make_rows, make_texts
from experiments.support.reader_training import Losses, ReaderState
from experiments.support.run_folder import Run, open_run
from icorag_jax.backbones.loading import Backbone, load_backbone
from icorag_jax.data.pieces import PromptTokenizer
from icorag_jax.lm.pretrained import LanguageModel
from icorag_jax.training_checkpoints import open_checkpoints

# In a row of one text: six passages fit.
_TOKENS = 384
# Texts of these numbers are for the counts before and after alone.
_UNSEEN = 99


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the correction.

    Attributes:
        start: folder of the reader with its tokenizer, or the name of a shipped one.
        out: folder of the run.
        resume: go on with the run that the folder holds.
        seed: of the texts.
        rounds: of answering and training, at most 99.
        steps: of training in a round.
        texts: answered in a round; and others, before the first and after the last.
        searched: questions whose passages are searched for those of these texts.
        least_loss: of an answer that is trained on, in nats.
        batch: misread texts a step; half as many rows of pretraining's last stage are beside them.
        family_share: share of these rows' texts that are a question of the families.
        learning_rate: of AdamW, the highest, reached after a warm-up; it falls to 0 as a cosine.
        warmup_steps: of it.
        checkpoint_every: steps from one checkpoint to the next.
    """

    start: Path
    out: Path
    resume: bool = False
    seed: int = 0
    rounds: int = 3
    steps: int = 120
    texts: int = 6000
    searched: int = 24_000
    least_loss: float = 0.1
    batch: int = 8
    family_share: float = 0.3
    learning_rate: float = 2e-4
    warmup_steps: int = 20
    checkpoint_every: int = 20

    def __post_init__(self):
        """Checks the ranges."""
        check_numbers(self)
        if self.rounds > _UNSEEN:
            raise ValueError(f"rounds must be at most {_UNSEEN}, got {self.rounds}")
        if self.family_share > 1:
            raise ValueError(f"family_share must be at most 1, got {self.family_share}")


# The last leg of the shipped readers: docs/backbones.md.
PRESETS = {"shipped": {}}


def main(config: Config) -> None:
    """Runs the correction."""
    with open_run(config.out, "correct_reader", config, resume=config.resume) as run:
        backbone = load_backbone(str(config.start), jnp.float32)
        reader, rows = _correct(run, config, backbone)
        write_reader(run.path / "model", reader)
        run.write_table("losses", pd.DataFrame(rows))
        wrong = _shares_wrong(run, config, backbone.tokenizer, reader)
        run.write_summary({"wrong": wrong, "last": rows[-2:]})
        print(
            f"wrong of {config.texts} texts that it was not trained on: {wrong['after']:.2%}, "
            f"before {wrong['before']:.2%}; model in {run.path / 'model'}"
        )


def _correct(run: Run, config: Config, backbone: Backbone) -> tuple[LanguageModel, list[dict]]:
    """The reader after all rounds, and the mean losses from checkpoint to checkpoint."""
    reader, tokenizer = backbone.model, backbone.tokenizer
    total = config.rounds * config.steps
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, config.warmup_steps, total)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.0)
    )
    state = ReaderState(jnp.int32(0), reader.parameters, optimizer.init(reader.parameters))
    stage = dataclasses.replace(
        CURRICULUM[-1], family_share=config.family_share, batch=-(-config.batch // 2)
    )
    with open_checkpoints(run.path / "checkpoints") as checkpoints:
        state = checkpoints.restore(state)
        done = int(state.step)
        log = LossLog(run.path / "losses.jsonl", done)
        misread: list[Texts] = []
        recent: list[tuple[Losses, Losses]] = []
        with tqdm(initial=done, total=total, unit="step") as progress:
            for number in range(config.rounds):
                current = dataclasses.replace(reader, parameters=state.parameters)
                misread.append(_misread(run, config, tokenizer, current, number))
                for step, texts in _batches_of_round(config, misread):
                    if step < done:
                        continue
                    plain = make_texts(tokenizer, stage, config.seed, step)
                    state, losses = correction_step(reader.config, optimizer, state, texts, plain)
                    recent.append(losses)
                    progress.update()
                    if (step + 1) % config.checkpoint_every and (step + 1) % config.steps:
                        continue
                    for name, of_texts in zip(
                        ("misread", "plain"), zip(*recent, strict=True), strict=True
                    ):
                        log.add(step + 1, of_texts, kind=name)
                    progress.set_postfix(round=number, misread=len(misread[-1].tokens))
                    checkpoints.save(step + 1, state)
                    log.write()
                    recent = []
    return dataclasses.replace(reader, parameters=state.parameters), log.rows


def _misread(
    run: Run, config: Config, tokenizer: PromptTokenizer, reader: LanguageModel, number: int
) -> Texts:
    """The texts of a round that the reader has wrong, or nearly."""

    def found() -> dict[str, np.ndarray]:
        texts = _texts(config, tokenizer, number)
        scores = score_answers(reader.config, reader.parameters, texts)
        kept = scores.loss >= config.least_loss
        return {name: array[kept] for name, array in texts._asdict().items()}

    return Texts(**run.cell_arrays(f"round_{number}", found))


def _batches_of_round(config: Config, misread: Sequence[Texts]) -> Iterator[tuple[int, Texts]]:
    """The steps of the last round and their batches: of all that was misread, the newest twice.

    Raises:
        ValueError: nothing was misread.
    """
    rows = Texts(*(np.concatenate(arrays) for arrays in zip(*misread, strict=True)))
    places = np.arange(len(rows.tokens))
    if not len(places):
        raise ValueError("the reader misreads none of these texts: pass more --texts")
    number = len(misread) - 1
    again = np.concatenate([places, places[len(places) - len(misread[-1].tokens) :]])
    order = np.random.default_rng((config.seed, number))
    wanted = config.steps * config.batch
    turns = [order.permutation(again) for _ in range(-(-wanted // len(again)))]
    chosen = np.concatenate(turns)[:wanted].reshape(config.steps, config.batch)
    for step, batch in enumerate(chosen, number * config.steps):
        yield step, Texts(*(array[batch] for array in rows))


def _shares_wrong(
    run: Run, config: Config, tokenizer: PromptTokenizer, corrected: LanguageModel
) -> dict[str, float]:
    """Of texts that no round has, those that the reader had wrong before, and has after."""

    def wrong() -> dict[str, np.ndarray]:
        texts = _texts(config, tokenizer, _UNSEEN)
        # Read once more: training gives the memory of the parameters that it starts from away.
        start = load_backbone(str(config.start), jnp.float32).model
        return {
            when: score_answers(reader.config, reader.parameters, texts).wrong
            for when, reader in (("before", start), ("after", corrected))
        }

    return {when: float(each.mean()) for when, each in run.cell_arrays("unseen", wrong).items()}


def _texts(config: Config, tokenizer: PromptTokenizer, number: int) -> Texts:
    """A row for each text of these numbers."""
    seed = config.seed * (_UNSEEN + 1) + number
    readings = generate_lookalikes(tokenizer.plain, seed, config.texts, config.searched)
    return make_rows(tokenizer, readings, _TOKENS)


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
