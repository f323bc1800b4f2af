"""Readings of many questions, kept on the host for learning to draw from.

Axes: as in `icorag_jax.rag.context`.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from icorag_jax.lm.evidence import take_evidence
from icorag_jax.lm.evidence_attention import Evidence
from icorag_jax.rag.frozen import Reading


class Pool(NamedTuple):
    """Questions to train on.

    Attributes:
        readings: of questions with answers, on the host.
        among: which of them are trained on; None for all.
    """

    readings: Reading
    among: Int[np.ndarray, " questions"] | None = None

    def pick(self, size: int, seed: Sequence[int]) -> Reading:
        """Some of the questions, each at most once: `size` of them, or all if there are fewer."""
        among = self.among
        if among is None:
            among = np.arange(self.readings.tokens.shape[0])
        picked = np.random.default_rng(seed).choice(among, min(size, len(among)), replace=False)
        return take_readings(self.readings, picked)


def take_readings(readings: Reading, rows: np.ndarray) -> Reading:
    """Some rows of readings kept on the host, all in the dtype of the questions' states."""
    # In evidence, layers come before questions.
    evidence = take_evidence(readings.evidence, rows)
    dtype = readings.context.question_states.dtype
    evidence = evidence._replace(
        keys=evidence.keys.astype(dtype, copy=False),
        values=evidence.values.astype(dtype, copy=False),
    )
    rest = jax.tree.map(lambda leaf: leaf[rows], readings._replace(evidence=None))
    states = rest.context.evidence_states.astype(dtype, copy=False)
    return rest._replace(evidence=evidence, context=rest.context._replace(evidence_states=states))


def cut_evidence(evidence: Evidence, rows: int) -> Evidence:
    """The first rows of evidence."""
    return Evidence(
        keys=evidence.keys[:, :, :rows],
        values=evidence.values[:, :, :rows],
        positions=evidence.positions[:, :rows],
        passages=evidence.passages[:, :rows],
    )


def join_readings(parts: Iterable[Reading], count: int) -> Reading:
    """Readings kept on the host as one batch; no part is held longer than it takes to copy it.

    What there is of each row of evidence, most of a reading, is kept in bfloat16: twice as many
    questions fit.

    Args:
        parts: of questions, one after the other.
        count: of all questions.

    Raises:
        ValueError: there are fewer or more of them.
    """
    whole: Reading | None = None
    done = 0
    for part in parts:
        size = part.tokens.shape[0]
        if done + size > count:
            raise ValueError(f"there are more than {count} questions")
        if whole is None:
            whole = jax.tree_util.tree_map_with_path(functools.partial(_room, count), part)
        jax.tree_util.tree_map_with_path(functools.partial(_put, done), whole, part)
        done += size
    if whole is None or done < count:
        raise ValueError(f"there are {done} questions, not {count}")
    return whole


def _is_one_of(path: Any, *names: str) -> bool:
    return any(getattr(key, "name", None) in names for key in path)


def _layers_first(path: Any) -> bool:
    return _is_one_of(path, "keys", "values")


def _room(count: int, path: Any, leaf: np.ndarray) -> np.ndarray:
    """An array for as many questions."""
    first = leaf.shape[:1] if _layers_first(path) else ()
    halved = _is_one_of(path, "keys", "values", "evidence_states")
    dtype = jnp.bfloat16 if halved else leaf.dtype
    return np.empty((*first, count, *leaf.shape[len(first) + 1 :]), dtype)


def _put(start: int, path: Any, whole: np.ndarray, part: np.ndarray) -> None:
    """Copies questions to their place."""
    axis = int(_layers_first(path))
    place = slice(start, start + part.shape[axis])
    whole[(slice(None),) * axis + (place,)] = part
