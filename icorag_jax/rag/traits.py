"""What can be said of passages without a look at states: the retriever's word, and their numbers.

Which of two numbers is larger, pooled states do not tell; the text of a passage does.

Axes: `passages` and `others` of a question, `traits` all that is said of a passage.
"""

import math
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# The retriever's score, from its mean and in its deviations over a question's passages; 1 / rank;
# a passage's number likewise, over those that state one; whether it does.
TRAITS = 4
_NUMBER, _HAS_NUMBER = 2, 3
# Squares of larger ones, and sums of these, may be too large for a float.
_LARGEST = 1e100
_DIGITS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?")


def first_number(text: str) -> float:
    """The first number that stands in a text in digits, NaN without one up to 1e100."""
    found = _DIGITS.search(text)
    if found is None:
        return math.nan
    number = float(found.group().replace(",", ""))
    return number if number <= _LARGEST else math.nan


def passage_traits(
    scores: Float[np.ndarray, "batch passages"],
    numbers: Float[np.ndarray, "batch passages"],
    present: Bool[np.ndarray, "batch passages"],
) -> Float[np.ndarray, "batch passages traits"]:
    """What is said of passages, the best first, float32.

    Args:
        scores: the retriever's own; whatever stands where there is no passage is passed over.
        numbers: from `first_number`, NaN where a passage has none; likewise.
        present: where there is a passage.
    """
    has_number = present & ~np.isnan(numbers)
    rank = np.where(present, 1.0 / np.arange(1, scores.shape[1] + 1), 0.0)
    parts = [
        _standard_scores(scores, present), rank, _standard_scores(numbers, has_number), has_number
    ]  # fmt: skip
    return np.stack(parts, axis=-1).astype(np.float32)


def order(
    others: Float[Array, "batch others traits"], passages: Float[Array, "batch passages traits"]
) -> Float[Array, "batch others passages"]:
    """Whether a passage's number is larger (1) or smaller (-1) than another's; 0 without both."""
    larger = jnp.sign(passages[:, None, :, _NUMBER] - others[:, :, None, _NUMBER])
    return larger * passages[:, None, :, _HAS_NUMBER] * others[:, :, None, _HAS_NUMBER]


def without_numbers(
    traits: Float[Array, "batch passages traits"],
) -> Float[Array, "batch passages traits"]:
    """Traits of passages that state no number."""
    return traits.at[..., _NUMBER:].set(0)


def _standard_scores(
    values: Float[np.ndarray, "batch passages"], known: Bool[np.ndarray, "batch passages"]
) -> Float[np.ndarray, "batch passages"]:
    """Values from their mean and in their deviations over those that are known, 0 elsewhere."""
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    values = np.where(known, values, 0.0)
    centred = np.where(known, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # Smaller differences are rounding errors.
    least = 1e-6 * np.abs(values).max(axis=1, keepdims=True, initial=0)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > least)
