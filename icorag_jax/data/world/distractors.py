"""Passages that do not answer a question, hard ones and easy ones."""

import dataclasses
from collections.abc import Sequence

from icorag_jax.data.records import Passage
from icorag_jax.data.world import wording
from icorag_jax.data.world.relations import RELATIONS, Group
from icorag_jax.data.world.scene import Entity, Scene, Statement


def make_distractor(scene: Scene, statements: Sequence[Statement], hard_share: float) -> Passage:
    """A passage that has no part in the answer, and does not contradict what has.

    Args:
        scene: what it is to fit in.
        statements: what hard ones are like: what answers the question, and what contradicts it.
        hard_share: how likely it is a hard one, for one of the statements: same subject and another
            relation, or the same relation of a subject with a similar name or with another one.
            An easy one is about another entity, and no relation of the question.
    """
    if not scene.draws.chance(hard_share):
        return scene.passage(_easy_statement(scene))
    model = scene.draws.choice(statements)
    way = scene.draws.below(3)
    if way == 0 and (relations := scene.unstated(model.subject)):
        relation = scene.draws.choice(relations)
        value = scene.value(relation).name
        return scene.passage(Statement(model.subject, relation, (value,)))
    return scene.passage(_twin(scene, model, like=model.subject if way == 1 else None))


def _easy_statement(scene: Scene) -> Statement:
    relation = scene.draws.choice([r for r in RELATIONS.values() if r.name not in scene.asked])
    return Statement(scene.entity(relation.subject), relation, (scene.value(relation).name,))


def _twin(scene: Scene, model: Statement, like: Entity | None) -> Statement:
    """The same of another subject, at another date; of a group, all people but one are the same."""
    if isinstance(model.relation, Group):
        kept = scene.draws.sample(model.values, len(model.values) - 1)
        values = tuple(scene.draws.shuffled([*kept, scene.entity("person").name]))
    else:
        values = (scene.value(model.relation).name,)
    subject = scene.entity(model.subject.kind, like)
    mark = scene.entity("year").name if model.frame == wording.DATED else model.mark
    return dataclasses.replace(model, subject=subject, values=values, mark=mark)
