"""A generated world that several test modules read: it takes seconds to make."""

import functools

from icorag_jax.data.records import Question
from icorag_jax.data.world import SPLITS, Family, World, WorldConfig, generate_world

# Questions of each family, over all splits.
PER_FAMILY = 200


@functools.cache
def default_world() -> World:
    """A world on default settings but for the sizes."""
    return generate_world(WorldConfig(seed=11, size=PER_FAMILY // 2, held_out=PER_FAMILY // 4))


def of_family(world: World, family: Family) -> list[Question]:
    """The questions of a family, those of all splits."""
    return [question for split in SPLITS for question in world.questions[split][family]]
