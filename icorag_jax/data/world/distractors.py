"""Passages that do not answer a question, hard ones and easy ones."""

import dataclasses

from icorag_jax.data.records import Passage
from icorag_jax.data.world import wording
from icorag_jax.data.world.families import Draft
from icorag_jax.data.world.relations import RELATIONS, Group
from icorag_jax.data.world.scene import Entity, Scene, Statement


def make_distractor(scene: Scene, draft: Draft, hard_share: float) -> Passage:
    """A passage that has no part in the answer, and does not contradict what has.

    A hard one is for one of the draft's statements: another relation of its subject, or its
    relation of another subject: one of a similar name, one that is the value of another fact, or
    any. An easy one is about another entity, and no relation of the question.

    Args:
        scene: what it is to fit in.
        draft: the question, with what answers it and what misleads.
        hard_share: how likely it is a hard one.
    """
    if not scene.draws.chance(hard_share):
        return scene.passage(_easy_statement(scene))
    model = scene.draws.choice(draft.statements)
    way = scene.draws.choice(("same subject", "similar name", "value", "any"))
    if way == "same subject" and (relations := scene.unstated(model.subject)):
        relation = scene.draws.choice(relations)
        value = scene.value(relation).name
        return scene.passage(Statement(model.subject, relation, (value,)))
    values = [v for v in scene.values_without(model.relation) if v.name != draft.answer]
    if way == "value" and values:
        return scene.passage(_twin(scene, model, scene.draws.choice(values)))
    like = model.subject if way == "similar name" else None
    return scene.passage(_twin(scene, model, scene.entity(model.subject.kind, like)))


def _easy_statement(scene: Scene) -> Statement:
    relation = scene.draws.choice([r for r in RELATIONS.values() if r.name not in scene.asked])
    return Statement(scene.entity(relation.subject), relation, (scene.value(relation).name,))


def _twin(scene: Scene, model: Statement, subject: Entity) -> Statement:
    """The same of another subject, at another date; of a group, all people but one are the same."""
    if isinstance(model.relation, Group):
        kept = scene.draws.sample(model.values, len(model.values) - 1)
        values = tuple(scene.draws.shuffled([*kept, scene.entity("person").name]))
    else:
        values = (scene.value(model.relation).name,)
    mark = scene.entity("year").name if model.frame == wording.DATED else model.mark
    return dataclasses.replace(model, subject=subject, values=values, mark=mark)
