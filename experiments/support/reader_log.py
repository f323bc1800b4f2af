"""The losses of a small reader's training, from checkpoint to checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.support.reader_training import Losses
from icorag_jax.files import write_atomically


class LossLog:
    """Mean losses, a line of JSON for each checkpoint."""

    def __init__(self, path: Path, done: int):
        """What `path` says of the first `done` steps; it need not be there."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict] = [row for row in map(json.loads, lines) if row["step"] <= done]

    def add(self, step: int, recent: Sequence[Losses], **labels: int | str) -> dict:
        """A row of the means of `recent`, the losses up to `step`; `write` writes it.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        found = np.mean(jax.device_get(recent), axis=0)
        if not np.isfinite(found).all():
            raise FloatingPointError(
                f"the loss is not finite before step {step}: pass a smaller --learning-rate"
            )
        means = dict(zip(Losses._fields, found.tolist(), strict=True))
        self.rows.append({"step": step, **labels, **means})
        return means

    def write(self) -> None:
        """Writes all rows."""
        lines = (json.dumps(row) + "\n" for row in self.rows)
        write_atomically(self._path, "".join(lines).encode())
