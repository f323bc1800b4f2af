"""What a text of a small reader's pretraining says: passages, and the questions on them."""

import dataclasses
import functools
from collections.abc import Sequence

from icorag_jax.data.records import CorpusPassage, Passage
from icorag_jax.data.world import FAMILIES, WorldConfig
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.reading import (
    Reading,
    ReadingConfig,
    generate_family_reading,
    generate_reading,
)
from icorag_jax.retrieval.bm25 import Bm25, Bm25Index

# Worlds of these seeds are for pretraining alone.
_PRETRAINING_SEED = 1_000_000
# A question on the n-th passage from the end is asked with probability n^-5: retrievers have the
# passage that answers a single question first in 96 to 99 cases of 100.
_RANK_POWER = 5
# Texts whose passages are searched together for a mixed text.
_NEIGHBOURS = 32
# Most passages of its own that a mixed text keeps.
_MOST_KEPT = 4


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum.

    Attributes:
        reading: the plain reading.
        family_share: share of texts that are a question of the world's families instead.
        mixed: share of texts most of whose passages are other texts', as a search in many finds;
            they have two passages to as many as others.
        ranked: whether passages stand as they do in prompts, the best last as BM25 ranks them for
            the first question; of the other questions, most are on what stands last.
        tokens: in a row of a batch; what does not fit is dropped.
        batch: rows a step.
    """

    reading: ReadingConfig
    family_share: float
    mixed: float
    ranked: bool
    tokens: int
    batch: int


# Stages of pretraining: from one passage of one fact to ten.
CURRICULUM = (
    Stage(
        ReadingConfig(passages=1, facts=2, fillers=0, related=0.5),
        family_share=0.0, mixed=0.0, ranked=False, tokens=192, batch=12,
    ),
    Stage(
        ReadingConfig(passages=3, facts=2, fillers=1, related=0.5),
        family_share=0.0, mixed=0.0, ranked=False, tokens=256, batch=10,
    ),
    Stage(
        ReadingConfig(passages=6, facts=2, fillers=1, related=0.5),
        family_share=0.5, mixed=0.0, ranked=False, tokens=448, batch=8,
    ),
    Stage(
        ReadingConfig(passages=10, facts=2, fillers=1, related=0.8),
        family_share=0.5, mixed=0.7, ranked=True, tokens=480, batch=8,
    ),
)  # fmt: skip


def stage_reading(stage: Stage, seed: int, index: int) -> Reading:
    """The passages of a text in their order, and what is asked; the same numbers give the same.

    Args:
        stage: what texts are like.
        seed: of all texts.
        index: number of the text.
    """
    draws = Draws(f"asked/{seed}/{index}")
    reading = _unmixed(stage, seed, index)
    if draws.chance(stage.mixed):
        size = 2 + draws.below(stage.reading.passages - 1)
        reading = _mix(stage, seed, index, size, kept=1 + draws.below(_MOST_KEPT))
    return _rank(reading, draws) if stage.ranked else reading


# A text is asked for again by each neighbour that is mixed.
@functools.lru_cache(maxsize=8 * _NEIGHBOURS)
def _unmixed(stage: Stage, seed: int, index: int) -> Reading:
    # Which kind a text is goes by its number alone, evenly spread.
    if int((index + 1) * stage.family_share) > int(index * stage.family_share):
        number = int(index * stage.family_share)
        config = WorldConfig(
            seed=_PRETRAINING_SEED + seed,
            passages=max(stage.reading.passages, 5),
            facts=stage.reading.facts,
        )
        family = FAMILIES[number % len(FAMILIES)]
        return generate_family_reading(config, family, number)
    return generate_reading(stage.reading, seed, index)


def _mix(stage: Stage, seed: int, index: int, size: int, kept: int) -> Reading:
    """A text of the `size` best passages for its first question, at most `kept` of them its own.

    The others are found by BM25 among those of its neighbours. As no name of the question is in
    these, they say the like of other subjects, which is what dense retrieval finds, too.
    """
    reading = _unmixed(stage, seed, index)
    passages, corpus = _neighbours(stage, seed, index - index % _NEIGHBOURS)
    (order,) = _orders(corpus, [reading.questions[0][0]], len(passages))
    best = [passages[place] for place in order]
    of_text = set(reading.passages)
    own = [passage for passage in best if passage in of_text][:kept]
    # Another text may say something else of a subject of the same name.
    titles = {passage.title for passage in reading.passages}
    others = [passage for passage in best if passage.title not in titles]
    return Reading((*own, *others)[:size], reading.questions)


@functools.lru_cache(maxsize=8)
def _neighbours(stage: Stage, seed: int, first: int) -> tuple[list[Passage], Bm25Index]:
    passages = [
        passage
        for index in range(first, first + _NEIGHBOURS)
        for passage in _unmixed(stage, seed, index).passages
    ]
    return passages, _index(passages)


def _rank(reading: Reading, draws: Draws) -> Reading:
    """Passages by BM25 for the first question, the best last.

    Words are as rare as in these passages, where a retriever would have a whole corpus. What is
    best for another question is not always last; the farther from there, the rarer it is asked, as
    a retriever would have put it elsewhere.
    """
    asked = [question for question, _ in reading.questions]
    orders = _orders(_index(reading.passages), asked, len(reading.passages))
    questions = tuple(
        pair
        for pair, (best, *_) in zip(reading.questions, orders, strict=True)
        if draws.chance((1 + orders[0].index(best)) ** -_RANK_POWER)
    )
    return Reading(tuple(reading.passages[place] for place in reversed(orders[0])), questions)


def _orders(index: Bm25Index, questions: Sequence[str], count: int) -> list[list[int]]:
    """The places of all `count` passages for each question: those that are found come first."""
    orders = []
    for found in index.search(questions, count).ids.tolist():
        order = [place for place in found if place >= 0]
        orders.append([*order, *(place for place in range(count) if place not in order)])
    return orders


def _index(passages: Sequence[Passage]) -> Bm25Index:
    return Bm25().index(
        [CorpusPassage(str(n), passage.title, passage.text) for n, passage in enumerate(passages)]
    )
