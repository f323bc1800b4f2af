"""Random draws that are the same on every machine and in every version of Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of draws, which a string names.

    All draws come from `random.Random.random`, the one method whose sequence Python promises to
    keep for a seed.
    """

    def __init__(self, seed: str):
        """Starts the stream of that name."""
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with the probability."""
        return self._random() < probability

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit - 1`; `limit` is at least 1."""
        return int(self._random() * limit)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[int(self._random() * len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` of the items, none twice, in random order; there are at least as many."""
        pool = list(items)
        return [pool.pop(int(self._random() * len(pool))) for _ in range(count)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order."""
        return self.sample(items, len(items))
