"""Questions laid out over a mesh of devices, for data parallel reading and learning."""

from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icorag_jax.lm import sharding
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.frozen import Reading

Questions = TypeVar("Questions", Batch, Reading)


def split_questions(questions: Questions, mesh: Mesh) -> Questions:
    """Questions split along the mesh's axis `data`; kept whole where that does not divide them.

    Args:
        questions: arrays of the host.
        mesh: from `icorag_jax.lm.sharding.make_mesh`.

    Raises:
        ValueError: the mesh has other axes.
    """

    def place(leaf: Any) -> jax.Array:
        even = leaf.shape[0] % mesh.shape[sharding.DATA] == 0
        spec = PartitionSpec(sharding.DATA) if even else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    if isinstance(questions, Batch):
        return jax.tree.map(place, questions)
    # In evidence, layers come before questions.
    evidence = sharding.shard_batch(questions.evidence, mesh)
    rest = jax.tree.map(place, questions._replace(evidence=None))  # pyright: ignore
    return rest._replace(evidence=evidence)
