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


def test_processes_make_the_same_batches_in_the_same_order(tokenizer):
    wanted = [(EASY, number) for number in range(9)] + [(RANKED, number) for number in range(9, 21)]
    with batches(tokenizer, wanted, 3, 0) as made:
        expected = list(made)
    assert len({texts.tokens.tobytes() for texts in expected}) == 21
    for first, workers in ((0, 2), (5, 1)):
        with batches(tokenizer, wanted[first:], 3, workers) as made:
            found = list(made)
        assert len(found) == 21 - first
        for ours, theirs in zip(found, expected[first:], strict=True):
            for left, right in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_again_and_are_made_once(tokenizer, workers):
    numbers = (4, 2, 4, 7, 2, 4)
    with batches(tokenizer, [(EASY, number) for number in numbers], 3, workers) as made:
        found = list(made)
    assert found[0] is found[2] is found[5]
    assert found[1] is found[4]
    assert len({texts.tokens.tobytes() for texts in found}) == 3
    with batches(tokenizer, [(EASY, 7)], 3, 0) as made:
        np.testing.assert_array_equal(next(made).tokens, found[3].tokens)


def test_what_fails_in_a_process_fails_here(tokenizer):
    broken = Stage(EASY.reading, 0.0, 0.0, ranked=False, tokens=256, batch=-1)
    with pytest.raises(ValueError), batches(tokenizer, [(broken, 0)], 3, 1) as made:
        next(made)


def test_processes_end_where_not_all_batches_are_asked_for(tokenizer):
    import multiprocessing

    with batches(tokenizer, [(EASY, number) for number in range(500)], 3, 1) as made:
        next(made)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()
