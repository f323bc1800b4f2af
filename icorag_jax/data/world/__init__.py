"""A generated world of people, places, works and organisations with questions and their evidence.

`generate_world(WorldConfig(...))` makes one, `write_world` writes it as a local folder, as
`python -m icorag_jax.data.world --out DIR --seed S --size N` does, and `solve` answers its
questions from the text of passages.
"""

from icorag_jax.data.world.config import CONTROL, FAMILIES, Family, WorldConfig
from icorag_jax.data.world.generation import World, corpus_of, generate_questions, generate_world
from icorag_jax.data.world.names import SPLITS, Split
from icorag_jax.data.world.solver import solve
from icorag_jax.data.world.writing import write_world

__all__ = [
    "CONTROL",
    "FAMILIES",
    "SPLITS",
    "Family",
    "Split",
    "World",
    "WorldConfig",
    "corpus_of",
    "generate_questions",
    "generate_world",
    "solve",
    "write_world",
]
