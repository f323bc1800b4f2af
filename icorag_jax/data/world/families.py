"""The seven families of questions: what answers a question, and what misleads.

Each function draws a question of its family in a scene. The passages that it calls gold answer the
question together, and none of them can be spared.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from icorag_jax.data.records import Passage
from icorag_jax.data.world import wording
from icorag_jax.data.world.config import Family
from icorag_jax.data.world.relations import ALIAS, GROUPS, RELATIONS, Relation
from icorag_jax.data.world.scene import Scene, Statement


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question with what answers it.

    Attributes:
        question: the question.
        answer: the right answer.
        gold: the passages that answer it.
        statements: what these and the misleading ones say to that end.
        misleading: passages without which the question would be easier.
    """

    question: str
    answer: str
    gold: tuple[Passage, ...]
    statements: tuple[Statement, ...]
    misleading: tuple[Passage, ...] = ()


def _hops(scene: Scene, count: int) -> Draft:
    """The last of several facts, each about the value of the one before."""
    path = _path(scene, count)
    scene.asked = frozenset(relation.name for relation in path)
    subject = scene.entity(path[0].subject)
    phrase, statements = subject.name, []
    for relation in path:
        value = scene.value(relation)
        statements.append(Statement(subject, relation, (value.name,)))
        if len(statements) < count:
            phrase = relation.phrase.format(x=phrase)
        subject = value
    question = scene.question(scene.draws.choice(path[-1].questions).format(x=phrase))
    gold = tuple(scene.passage(statement) for statement in statements)
    return Draft(question, subject.name, gold, tuple(statements))


def _clues(scene: Scene) -> Draft:
    """Three groups of three; one person is in all, and any two groups share another one.

    A fourth group that is not asked about makes all four people be mentioned equally often.
    """
    groups = scene.draws.shuffled(list(GROUPS.values()))
    scene.asked = frozenset(group.name for group in groups)
    answer, *rivals = (scene.entity("person").name for _ in range(4))
    statements = []
    for group, absent in zip(groups, rivals, strict=True):
        people = [answer, *(rival for rival in rivals if rival != absent)]
        subject = scene.entity(group.subject)
        statements.append(Statement(subject, group, tuple(scene.draws.shuffled(people))))
    predicates = [
        scene.draws.choice(group.predicates).format(x=statement.subject.name)
        for group, statement in zip(groups, statements, strict=True)
    ]
    who = scene.draws.choice(wording.WHO).format(**dict(zip("pqr", predicates, strict=True)))
    group = scene.draws.choice(groups)
    decoy = Statement(scene.entity(group.subject), group, tuple(scene.draws.shuffled(rivals)))
    *gold, misleading = (scene.passage(statement) for statement in (*statements, decoy))
    return Draft(scene.question(who), answer, tuple(gold), (*statements, decoy), (misleading,))


def _aliases(scene: Scene) -> Draft:
    """A fact under one name, a question under another, and a passage that has both names."""
    relation = scene.draws.choice(list(RELATIONS.values()))
    scene.asked = frozenset({relation.name})
    entity = scene.entity(relation.subject)
    alias = scene.alias(entity)
    value = scene.value(relation)
    known, told = scene.draws.shuffled([entity, alias])
    statements = (
        Statement(entity, ALIAS, (alias.name,)),
        Statement(told, relation, (value.name,)),
    )
    question = scene.question(scene.draws.choice(relation.questions).format(x=known.name))
    gold = tuple(scene.passage(statement) for statement in statements)
    return Draft(question, value.name, gold, statements)


def _comparison(scene: Scene) -> Draft:
    """A fact on one of two entities, namely the one whose year is the lower, or the higher."""
    year = RELATIONS[scene.draws.choice(list(wording.COMPARED))]
    asked = scene.draws.choice(
        [r for r in RELATIONS.values() if r.subject == year.subject and r.value != "year"]
    )
    scene.asked = frozenset({year.name, asked.name})
    rows = [
        (int(scene.entity("year").name), scene.entity(year.subject), scene.value(asked).name)
        for _ in range(2)
    ]
    position = scene.draws.below(2)
    answer = sorted(rows, key=lambda row: row[0])[position][2]
    first, second = (entity.name for _, entity, _ in rows)
    phrase = wording.COMPARED[year.name][position].format(a=first, b=second)
    question = scene.question(scene.draws.choice(asked.questions).format(x=phrase))
    pairs = [
        (Statement(entity, year, (str(when),)), Statement(entity, asked, (value,)))
        for when, entity, value in rows
    ]
    gold = tuple(scene.passage(*pair) for pair in pairs)
    return Draft(question, answer, gold, tuple(statement for pair in pairs for statement in pair))


def _conflict(scene: Scene) -> Draft:
    """A fact on which passages say different things, with a cue to which is right.

    The cue is the date, or that one passage corrects the others, or a further passage that says of
    which source to believe or not. The right value is said as often as a wrong one, more often or
    less often.
    """
    cue = scene.draws.choice((wording.DATED, wording.CORRECTED, wording.SOURCED))
    relation = scene.draws.choice(
        [r for r in RELATIONS.values() if r.changes or cue != wording.DATED]
    )
    scene.asked = frozenset({relation.name})
    subject = scene.entity(relation.subject)
    right, wrong = (scene.value(relation).name for _ in range(2))
    # The second value is wrong, and of the dated ones the latest but for the right one: without
    # the right passage, or without the cue, nothing points to the right value.
    values = [right, wrong]
    for _ in range(scene.draws.below(scene.config.contested)):
        another = scene.value(relation).name
        values.append(scene.draws.choice((right, wrong, another)))
    frames, marks, judged = [cue] * len(values), [""] * len(values), []
    if cue == wording.DATED:
        marks = sorted((scene.entity("year").name for _ in values), reverse=True)
    elif cue == wording.CORRECTED:
        frames[1:] = [wording.PLAIN] * (len(values) - 1)
    elif scene.draws.chance(0.5):
        marks = [scene.source() for _ in values]
        judged = [(marks[0], "good")]
    else:
        marks = [scene.source(), *[scene.source()] * (len(values) - 1)]
        judged = [(marks[1], "bad")]
    statements = [
        Statement(subject, relation, (value,), frame, mark)
        for value, frame, mark in zip(values, frames, marks, strict=True)
    ]
    first, *misleading = (scene.passage(statement) for statement in statements)
    gold = [first, *(scene.trust_passage(*each) for each in judged)]
    question = scene.question(
        scene.draws.choice(relation.questions).format(x=subject.name), latest=cue == wording.DATED
    )
    return Draft(question, right, tuple(gold), tuple(statements), tuple(misleading))


def _path(scene: Scene, count: int) -> list[Relation]:
    """Different relations, each of the kind of value that the one before has."""
    path: list[Relation] = []
    while len(path) < count:
        fitting = [
            relation
            for relation in RELATIONS.values()
            if relation not in path
            and (not path or relation.subject == path[-1].value)
            and (len(path) == count - 1 or relation.value != "year")
        ]
        path.append(scene.draws.choice(fitting))
    return path


DRAFTS: Mapping[Family, Callable[[Scene], Draft]] = {
    "single_fact": functools.partial(_hops, count=1),
    "clues": _clues,
    "aliases": _aliases,
    "bridge": functools.partial(_hops, count=2),
    "comparison": _comparison,
    "three_hops": functools.partial(_hops, count=3),
    "conflict": _conflict,
}
