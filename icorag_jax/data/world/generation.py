"""A generated world: its questions by split and family, and the corpus of their passages."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.data.world.config import CONTROL, Family, WorldConfig
from icorag_jax.data.world.distractors import make_distractor
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.families import DRAFTS
from icorag_jax.data.world.names import SPLITS, NameBook, Split
from icorag_jax.data.world.scene import Scene


@dataclasses.dataclass(frozen=True)
class World:
    """All questions of a world, and all passages.

    Attributes:
        config: what it was generated from.
        questions: those of each family, by split and family.
        corpus: the passages of all questions, each once.
    """

    config: WorldConfig
    questions: Mapping[Split, Mapping[Family, tuple[Question, ...]]]
    corpus: tuple[CorpusPassage, ...]


def generate_world(config: WorldConfig) -> World:
    """Generates a world; the same settings give the same one on every machine.

    Raises:
        ValueError: there are not enough names for a world of that size.
    """
    questions: dict[Split, dict[Family, tuple[Question, ...]]] = {}
    corpus: list[CorpusPassage] = []
    for split in SPLITS:
        found = list(generate_questions(config, split))
        questions[split] = {
            family: tuple(question for question in found if question.type == family)
            for family in config.families
        }
        corpus.extend(corpus_of(found))
    return World(config, questions, tuple(corpus))


def count_of(config: WorldConfig, split: Split) -> int:
    """Questions of each family in a split."""
    return config.size if split == "train" else config.held_out


def generate_questions(config: WorldConfig, split: Split) -> Iterator[Question]:
    """The questions of a split one by one: a first one of each family, a second one, ...

    A split does not depend on the others, and the questions of a smaller one are its first.

    Raises:
        ValueError: there are not enough names for that many.
    """
    names = NameBook(split)
    for index in range(count_of(config, split)):
        for family in config.families:
            yield generate_question(config, names, split, family, index)


def corpus_of(questions: Iterable[Question]) -> Iterator[CorpusPassage]:
    """The passages of questions of a world, with the question's id and a number for an id.

    Every question has its own, so none comes twice.
    """
    for question in questions:
        for number, passage in enumerate(question.passages):
            yield CorpusPassage(f"{question.id}/{number}", passage.title, passage.text)


def generate_question(
    config: WorldConfig, names: NameBook, split: Split, family: Family, index: int
) -> Question:
    """One question of a split, with names that the book has not given out yet."""
    question, _ = generate_scene(config, names, split, family, index)
    return question


def generate_scene(
    config: WorldConfig, names: NameBook, split: Split, family: Family, index: int
) -> tuple[Question, Scene]:
    """As `generate_question`, with the scene whose passages the question has."""
    draws = Draws(f"world/{config.seed}/{split}/{family}/{index}")
    scene = Scene(config, names, draws)
    draft = DRAFTS[family](scene)
    hard_share = 0.0 if family == CONTROL else config.hard_share
    count = config.passages - len(draft.gold) - len(draft.misleading)
    others = [make_distractor(scene, draft, hard_share) for _ in range(count)]
    passages = [
        *(dataclasses.replace(passage, is_gold=True) for passage in draft.gold),
        *(dataclasses.replace(passage, is_gold=False) for passage in (*draft.misleading, *others)),
    ]
    question = Question(
        id=f"world/{family}/{split}/{config.seed}/{index}",
        question=draft.question,
        answers=(draft.answer,),
        passages=tuple(draws.shuffled(passages)),
        type=family,
    )
    return question, scene
