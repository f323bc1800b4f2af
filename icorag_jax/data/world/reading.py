"""What a reader is pretrained on: passages, and many questions on them.

Plain reading has a question for each fact that a passage states, and nothing has to be combined.
Its passages share entities and relations, so that neither the subject alone nor the relation alone
tells the answer. The reading of a family is one of its questions with plain ones on the same
passages. The names are those of training.
"""

import dataclasses

from icorag_jax.data.records import Passage
from icorag_jax.data.world.config import Family, WorldConfig
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.generation import generate_scene
from icorag_jax.data.world.names import NameBook
from icorag_jax.data.world.relations import RELATIONS
from icorag_jax.data.world.scene import Entity, Scene, Statement
from icorag_jax.ranges import check_at_least


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
    """How hard the reading is.

    Attributes:
        passages: in a text.
        facts: most facts in a passage.
        fillers: sentences without a fact in a passage.
        related: how likely a passage is about an entity that another one mentions, or about one of
            a similar name, and how likely a fact has a relation that another one has.
    """

    passages: int
    facts: int
    fillers: int
    related: float

    def __post_init__(self):
        """Checks the ranges.

        Raises:
            ValueError: names the setting that is out of range.
        """
        check_at_least(self, passages=1, facts=1, fillers=0)
        if not 0 <= self.related <= 1:
            raise ValueError(f"related must be in [0, 1], got {self.related}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text and what it answers.

    Attributes:
        passages: the text.
        questions: pairs of a question and its answer.
    """

    passages: tuple[Passage, ...]
    questions: tuple[tuple[str, str], ...]


def generate_reading(config: ReadingConfig, seed: int, index: int) -> Reading:
    """A text with its questions; the same numbers give the same one on every machine.

    Args:
        config: how hard it is.
        seed: of a sequence of texts.
        index: which one of the sequence.
    """
    draws = Draws(f"reading/{seed}/{index}")
    archived = draws.chance(0.5) and config.fillers > 0
    # One fact a passage as far as the scene goes: all facts are drawn here, to be asked about.
    scene = Scene(
        WorldConfig(facts=1, fillers=config.fillers, archive_share=0.9 if archived else 0.0),
        NameBook("train"),
        draws,
    )
    passages, questions = [], []
    subjects: list[Entity] = []
    relations: list[str] = []
    for _ in range(config.passages):
        subject = _subject(scene, config, subjects)
        statements = []
        for _ in range(1 + draws.below(config.facts)):
            fitting = [
                relation
                for relation in scene.unstated(subject)
                if relation.name not in {statement.relation.name for statement in statements}
            ]
            if not fitting:
                break
            shared = [relation for relation in fitting if relation.name in relations]
            relation = draws.choice(shared if shared and draws.chance(config.related) else fitting)
            relations.append(relation.name)
            statements.append(Statement(subject, relation, (scene.value(relation).name,)))
        if not statements:
            subject = scene.entity("person")
            relation = draws.choice(scene.unstated(subject))
            statements.append(Statement(subject, relation, (scene.value(relation).name,)))
        subjects.append(subject)
        passages.append(scene.passage(*statements))
        for statement in statements:
            relation = RELATIONS[statement.relation.name]
            wording = draws.choice(relation.questions).format(x=subject.name)
            questions.append((scene.question(wording), statement.values[0]))
    return Reading(tuple(draws.shuffled(passages)), tuple(questions))


def generate_family_reading(config: WorldConfig, family: Family, index: int) -> Reading:
    """A question of a family, and after it one for each fact that its passages agree on.

    Args:
        config: settings of the world.
        family: of the first question.
        index: which one of the family's.
    """
    question, scene = generate_scene(config, NameBook("train"), "train", family, index)
    facts: dict[tuple[str, str], list[Statement]] = {}
    for statement in scene.statements():
        facts.setdefault((statement.subject.key, statement.relation.name), []).append(statement)
    asked = [(question.question, question.answers[0])]
    for (_, name), (statement, *others) in facts.items():
        if name not in RELATIONS or others:
            continue
        wording = scene.draws.choice(RELATIONS[name].questions).format(x=statement.subject.name)
        asked.append((scene.question(wording), statement.values[0]))
    return Reading(question.passages, tuple(asked))


def _subject(scene: Scene, config: ReadingConfig, subjects: list[Entity]) -> Entity:
    """An entity to write about: a new one, or a related one that has something left to say."""
    draws = scene.draws
    if subjects and draws.chance(config.related):
        mentioned = [
            entity
            for entity in (*subjects, *scene.values())
            if entity.kind != "year" and scene.unstated(entity)
        ]
        way = draws.choice(("mentioned", "mentioned", "similar name", "same kind"))
        if way == "mentioned" and mentioned:
            return draws.choice(mentioned)
        like = draws.choice(subjects)
        return scene.entity(like.kind, like if way == "similar name" else None)
    return scene.entity(draws.choice(("person", "place", "work", "organisation")))
