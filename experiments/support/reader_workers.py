"""Batches of texts that processes of their own make ahead of the training steps."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Generator, Sequence

import tokenizers

from experiments.support.reader_stages import Stage
from experiments.support.reader_texts import Texts, make_texts
from icorag_jax.data.pieces import split_tokenizer

# Batches that a process makes in one go: neighbouring ones search the same passages.
_BATCHES = 8
# Goes of each process that are made ahead.
_AHEAD = 3


def batches(
    tokenizer: tokenizers.Tokenizer,
    wanted: Sequence[tuple[Stage, int]],
    seed: int,
    workers: int,
) -> contextlib.closing[Generator[Texts, None, None]]:
    """Batches in an order, the same ones whatever makes them.

    What comes again is made once, and kept until it came for the last time.

    Args:
        tokenizer: what texts are tokenized with.
        wanted: of each batch the stage and its number.
        seed: of all texts.
        workers: processes; with 0 each batch is made when it is asked for.

    Returns:
        A context that yields the batches, and ends the processes.
    """
    distinct = list(dict.fromkeys(wanted))
    made = (
        _made_ahead(tokenizer, distinct, seed, workers)
        if workers
        else _made(tokenizer, distinct, seed)
    )
    return contextlib.closing(_in_order(made, wanted))


def _in_order(
    made: Generator[Texts, None, None], wanted: Sequence[tuple[Stage, int]]
) -> Generator[Texts, None, None]:
    """The wanted batches, of which each one is made when it is first wanted."""
    left = collections.Counter(wanted)
    kept: dict[tuple[Stage, int], Texts] = {}
    with contextlib.closing(made):
        for batch in wanted:
            if batch not in kept:
                kept[batch] = next(made)
            left[batch] -= 1
            yield kept[batch] if left[batch] else kept.pop(batch)


def _made(
    tokenizer: tokenizers.Tokenizer, wanted: Sequence[tuple[Stage, int]], seed: int
) -> Generator[Texts, None, None]:
    split = split_tokenizer(tokenizer)
    for stage, number in wanted:
        yield make_texts(split, stage, seed, number)


def _made_list(
    tokenizer: tokenizers.Tokenizer, wanted: Sequence[tuple[Stage, int]], seed: int
) -> list[Texts]:
    return list(_made(tokenizer, wanted, seed))


def _made_ahead(
    tokenizer: tokenizers.Tokenizer,
    wanted: Sequence[tuple[Stage, int]],
    seed: int,
    workers: int,
) -> Generator[Texts, None, None]:
    parts = (wanted[start : start + _BATCHES] for start in range(0, len(wanted), _BATCHES))
    # A process that runs JAX must not be forked.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        waiting: collections.deque[concurrent.futures.Future[list[Texts]]] = collections.deque()
        try:
            while True:
                while len(waiting) < _AHEAD * workers and (part := next(parts, None)):
                    waiting.append(pool.submit(_made_list, tokenizer, part, seed))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
