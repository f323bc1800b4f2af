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

# Steps that a process makes in one go: neighbouring ones search the same passages.
_STEPS = 8
# Goes of each process that are made ahead.
_AHEAD = 3


def batches(
    tokenizer: tokenizers.Tokenizer, stages: Sequence[Stage], seed: int, first: int, workers: int
) -> contextlib.closing[Generator[Texts, None, None]]:
    """The batches of steps from `first` on, the same ones whatever makes them.

    Args:
        tokenizer: what texts are tokenized with.
        stages: the stage of each step, from step 0 on.
        seed: of all texts.
        first: the first step that a batch is wanted of.
        workers: processes; with 0 each batch is made when it is asked for.

    Returns:
        A context that yields the batches, and ends the processes.
    """
    steps = range(first, len(stages))
    made = (
        _made_ahead(tokenizer, stages, seed, steps, workers)
        if workers
        else _made(tokenizer, [(stages[step], step) for step in steps], seed)
    )
    return contextlib.closing(made)


def _made(
    tokenizer: tokenizers.Tokenizer, steps: Sequence[tuple[Stage, int]], seed: int
) -> Generator[Texts, None, None]:
    split = split_tokenizer(tokenizer)
    for stage, step in steps:
        yield make_texts(split, stage, seed, step)


def _made_list(
    tokenizer: tokenizers.Tokenizer, steps: Sequence[tuple[Stage, int]], seed: int
) -> list[Texts]:
    return list(_made(tokenizer, steps, seed))


def _made_ahead(
    tokenizer: tokenizers.Tokenizer, stages: Sequence[Stage], seed: int, steps: range, workers: int
) -> Generator[Texts, None, None]:
    parts = (steps[start : start + _STEPS] for start in range(0, len(steps), _STEPS))
    # A process that runs JAX must not be forked.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        waiting: collections.deque[concurrent.futures.Future[list[Texts]]] = collections.deque()
        try:
            while True:
                while len(waiting) < _AHEAD * workers and (part := next(parts, None)):
                    asked = [(stages[step], step) for step in part]
                    waiting.append(pool.submit(_made_list, tokenizer, asked, seed))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
