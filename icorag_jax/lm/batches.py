"""Token sequences of any lengths as arrays of few shapes, checked before anything compiles.

Lengths are rounded up to buckets, so that there is one compilation a bucket. Padding is at position
-1, on either side; see `icorag_jax.lm.attention`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int

from icorag_jax.lm.config import DecoderConfig

Side = Literal["left", "right"]
Span = tuple[int, int]


class Batch(NamedTuple):
    """Rows of tokens, padded to one length.

    Attributes:
        tokens: token ids, 0 at padding.
        positions: from a row's first position on, -1 at padding.
    """

    tokens: Int[np.ndarray, "batch tokens"]
    positions: Int[np.ndarray, "batch tokens"]


def bucket_length(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length` tokens.

    Raises:
        ValueError: none does, or there are none.
    """
    if not buckets:
        raise ValueError("there are no buckets: name the padded lengths to choose from")
    for bucket in sorted(buckets):
        if length <= bucket:
            return bucket
    raise ValueError(f"{length} tokens, but the largest bucket holds {max(buckets)}: add a larger")


def power_of_two_buckets(longest: int, shortest: int = 16) -> tuple[int, ...]:
    """Buckets `shortest`, twice that, ..., up to `longest`, which is the last."""
    buckets = []
    while shortest < longest:
        buckets.append(shortest)
        shortest *= 2
    return (*buckets, longest)


def pad_batch(
    config: DecoderConfig,
    rows: Sequence[Sequence[int]],
    *,
    buckets: Sequence[int],
    side: Side,
    starts: Sequence[int] | None = None,
    name: str = "prompt",
) -> Batch:
    """Pads rows to the bucket that holds the longest.

    Args:
        config: the decoder that the tokens are for.
        rows: token ids of each row.
        buckets: lengths to choose from.
        side: where padding goes.
        starts: position of each row's first token; 0 where None.
        name: what a row is called in errors.

    Raises:
        ValueError: no rows, an empty one, one that does not fit the model's context or any bucket,
            or token ids out of range; the message has the row's number.
    """
    check_rows(config, rows, starts=starts, name=name)
    if side not in get_args(Side):
        raise ValueError(f"side must be one of {', '.join(get_args(Side))}, got {side}")
    width = bucket_length(max(map(len, rows)), buckets)
    tokens = np.zeros((len(rows), width), np.int32)
    positions = np.full((len(rows), width), -1, np.int32)
    for row, ids in enumerate(rows):
        start = 0 if starts is None else starts[row]
        at = slice(width - len(ids), None) if side == "left" else slice(len(ids))
        tokens[row, at] = ids
        positions[row, at] = np.arange(start, start + len(ids))
    return Batch(tokens, positions)


def check_rows(
    config: DecoderConfig,
    rows: Sequence[Sequence[int]],
    *,
    starts: Sequence[int] | None = None,
    name: str = "prompt",
) -> None:
    """Checks token sequences; see `pad_batch` for the errors."""
    if not len(rows):
        raise ValueError(f"there is no {name}: at least one is wanted")
    if starts is not None and len(starts) != len(rows):
        raise ValueError(f"{len(rows)} rows of {name}, but {len(starts)} starts")
    if starts is not None and min(starts) < 0:
        raise ValueError(f"starts must be at least 0, got {min(starts)}")
    context = config.context
    for row, ids in enumerate(rows):
        start = 0 if starts is None else starts[row]
        if not len(ids):
            raise ValueError(f"{name} {row} is empty: it must have at least one token")
        if start + len(ids) > context:
            after = f" after {start} others" if start else ""
            raise ValueError(
                f"{name} {row} has {len(ids)} tokens{after}, but the model's context ends at "
                f"{context}: shorten it"
            )
        found = np.asarray(ids)
        if not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"{name} {row} must hold token ids, found {found.dtype}")
        wrong = found[(found < 0) | (found >= config.vocab_size)]
        if len(wrong):
            raise ValueError(
                f"{name} {row} has token {wrong[0]}, but the vocabulary ends at "
                f"{config.vocab_size - 1}: is the tokenizer another model's?"
            )


def check_spans(rows: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> None:
    """Checks that the passages of each row lie in it, one after another.

    Args:
        rows: token ids of each row.
        spans: for each row, pairs (first token, one after the last) of its passages.

    Raises:
        ValueError: a span that is empty, outside its row, or overlaps the one before it.
    """
    if len(rows) != len(spans):
        raise ValueError(f"{len(rows)} rows of evidence, but spans of {len(spans)}")
    for row, (ids, passages) in enumerate(zip(rows, spans, strict=True)):
        end = 0
        for number, (start, stop) in enumerate(passages):
            if not 0 <= start < stop <= len(ids):
                raise ValueError(
                    f"passage {number} of row {row} spans tokens {start} to {stop}, but the row "
                    f"has {len(ids)} tokens"
                )
            if start < end:
                raise ValueError(
                    f"passage {number} of row {row} starts at token {start}, before the passage "
                    f"before it ends, at {end}"
                )
            end = stop
