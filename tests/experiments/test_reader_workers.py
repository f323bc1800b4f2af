"""Batches that processes make ahead."""

import numpy as np
import pytest
import tokenizers

from experiments.support.reader_stages import Stage
from experiments.support.reader_texts import train_tokenizer
from experiments.support.reader_workers import batches
from icorag_jax.data.world.reading import ReadingConfig

EASY = Stage(
    ReadingConfig(passages=2, facts=1, fillers=0, related=0.5),
    family_share=0.0, mixed=0.0, ranked=False, tokens=256, batch=2,
)  # fmt: skip
RANKED = Stage(
    ReadingConfig(passages=4, facts=2, fillers=0, related=0.5),
    family_share=0.5, mixed=0.5, ranked=True, tokens=256, batch=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return train_tokenizer(["Who founded it? Somebody did, Answer: in a year."], 300)


def test_processes_make_the_batches_of_each_step_in_their_order(tokenizer):
    stages = [EASY] * 9 + [RANKED] * 12
    with batches(tokenizer, stages, 3, 0, 0) as made:
        expected = list(made)
    assert len(expected) == 21
    assert len({texts.tokens.tobytes() for texts in expected}) == 21
    for first, workers in ((0, 2), (5, 1)):
        with batches(tokenizer, stages, 3, first, workers) as made:
            found = list(made)
        assert len(found) == 21 - first
        for ours, theirs in zip(found, expected[first:], strict=True):
            for left, right in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(left, right)


def test_what_fails_in_a_process_fails_here(tokenizer):
    broken = Stage(EASY.reading, 0.0, 0.0, ranked=False, tokens=256, batch=-1)
    with pytest.raises(ValueError), batches(tokenizer, [broken], 3, 0, 1) as made:
        next(made)


def test_processes_end_where_not_all_batches_are_asked_for(tokenizer):
    import multiprocessing

    with batches(tokenizer, [EASY] * 500, 3, 0, 1) as made:
        next(made)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()
