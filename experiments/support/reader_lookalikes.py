"""Texts whose passages are on subjects of much the same names: what small readers misread most.

Dense retrieval finds such passages, as it knows a name by its pieces; a search for whole words, as
the texts of pretraining are mixed by, does not.
"""

from collections.abc import Iterable

import tokenizers

from icorag_jax.data.records import CorpusPassage, Passage
from icorag_jax.data.world import FAMILIES, WorldConfig
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.reading import Reading, generate_family_reading
from icorag_jax.retrieval.bm25 import Bm25

# Worlds of these seeds are for these texts alone.
_SEARCHED_SEED = 2_000_000
_ASKED_SEED = 3_000_000
# Most passages that are found for a question.
_FOUND = 24
# How likely the passage that answers is not the last.
_SECOND = 0.04


def generate_lookalikes(
    tokenizer: tokenizers.Tokenizer, seed: int, count: int, searched: int
) -> list[Reading]:
    """Single facts, each among three to six passages; the same numbers give the same ones.

    Its own passage stands last for the most part. The others are found by BM25 over tokens instead
    of words, so that a subject is found by pieces of its name, too; at most one of them is from the
    question's own scene.

    Args:
        tokenizer: whose tokens are searched.
        seed: of all texts.
        count: of texts.
        searched: questions of all families, whose passages are searched.

    Raises:
        ValueError: there is nothing to search in.
    """
    config = WorldConfig(seed=_SEARCHED_SEED + seed, passages=5, facts=2)
    passages = [
        passage
        for number in range(searched)
        for passage in generate_family_reading(
            config, FAMILIES[number % len(FAMILIES)], number
        ).passages
    ]
    titles = _pieces(tokenizer, (passage.title for passage in passages))
    texts = _pieces(tokenizer, (passage.text for passage in passages))
    index = Bm25(stemming=None).index(
        [CorpusPassage(str(n), *pieces) for n, pieces in enumerate(zip(titles, texts, strict=True))]
    )
    config = WorldConfig(seed=_ASKED_SEED + seed, passages=5, facts=2)
    asked = [generate_family_reading(config, "single_fact", number) for number in range(count)]
    questions = _pieces(tokenizer, (reading.questions[0][0] for reading in asked))
    draws = Draws(f"hard/{seed}")
    found = index.search(questions, _FOUND).ids.tolist()
    return [
        _among(reading, [passages[place] for place in places if place >= 0], draws)
        for reading, places in zip(asked, found, strict=True)
    ]


def _among(reading: Reading, found: list[Passage], draws: Draws) -> Reading:
    """A question's passage, the best last, among those that were found for it."""
    size = 3 + draws.below(4)
    # Another text may say something else of a subject of the same name.
    titles = {passage.title for passage in reading.passages}
    own = [passage for passage in reading.passages if not passage.is_gold][: draws.below(2)]
    others = [passage for passage in found if passage.title not in titles]
    others = others[: max(size - 1 - len(own), 1)]
    place = draws.below(len(others) + 1) if own else 0
    answering = [passage for passage in reading.passages if passage.is_gold]
    best_first = [*answering, *others[:place], *own, *others[place:]][:size]
    if draws.chance(_SECOND):
        best_first[:2] = reversed(best_first[:2])
    return Reading(tuple(reversed(best_first)), reading.questions[:1])


def _pieces(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> list[str]:
    """Texts of made-up words, one for each token; a first word is as it is within a text."""
    found = tokenizer.encode_batch([f" {text}" for text in texts], add_special_tokens=False)
    return [" ".join(f"a{token}b" for token in encoded.ids) for encoded in found]
