"""One process of two, run by `test_sharding.py`: four CPU devices each, a mesh of all eight.

Arguments: the coordinator's address, the number of this process, a checkpoint, where to write.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from icorag_jax.lm import decoder, evidence, generation, pretrained, sharding
from icorag_jax.lm.batches import pad_batch

ROWS = [[3, 1, 4, 1, 5, 9], [2, 6, 5], [3, 5, 8, 9], [7, 9]]
EVIDENCE = [[3, 2, 3, 8, 4], [6, 2, 6, 4, 3, 3, 8], [3, 2, 7, 9, 5, 0], [2, 8, 8]]
SPANS = [[(1, len(row))] for row in EVIDENCE]


def numbers(model, mesh):
    """Logits by way of `process_allgather`, and what the functions on lists give, tokens drawn."""
    config, parameters = model.config, model.parameters
    batch = pad_batch(config, ROWS, buckets=(8,), side="right")
    cache = decoder.empty_cache(config, len(ROWS), 8, jnp.float32)
    if mesh is not None:
        batch, cache = sharding.shard_batch(batch, mesh), sharding.shard_batch(cache, mesh)

    @jax.jit
    def run(parameters, batch, cache):
        output = decoder.forward(config, parameters, *batch, cache)
        return decoder.logits(config, parameters, output.states)

    logits = run(parameters, batch, cache)
    kept = evidence.prefill_evidence(config, parameters, EVIDENCE, SPANS, buckets=(8,))
    edit = evidence.zero_edit(config, len(ROWS), 1, 1, rows=8, interface_layer=1, dtype=jnp.float32)
    edit = edit._replace(logit_bias=edit.logit_bias + 2)
    if mesh is not None:
        edit = sharding.shard_batch(edit, mesh)
    reading = {"evidence": kept, "edit": edit, "interface_layer": 1}
    tokens = generation.generate(
        config, parameters, ROWS, max_new_tokens=6, buckets=(8,), **reading,
        sampling=generation.Sampling(temperature=1.0, top_p=0.9), key=jax.random.key(3),
    )  # fmt: skip
    scores = generation.score(config, parameters, ROWS, ROWS[::-1], buckets=(16,), **reading)
    return (
        np.asarray(multihost_utils.process_allgather(logits, tiled=True)),
        tokens,
        np.concatenate(scores),
    )


def main(coordinator: str, process: str, folder: str, out: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.distributed.initialize(
        coordinator, num_processes=2, process_id=int(process), initialization_timeout=30
    )
    assert (jax.local_device_count(), jax.device_count()) == (4, 8)
    mesh = sharding.make_mesh(data=2, tensor=4)
    model = pretrained.from_pretrained(folder, dtype=jnp.float32, mesh=mesh)
    here = [
        len(leaf.addressable_shards) / len(leaf.global_shards)
        for leaf in jax.tree.leaves(model.parameters)
    ]
    logits, tokens, scores = numbers(model, mesh)
    np.savez(
        out, logits=logits, tokens=json.dumps(tokens), scores=scores, here=here,
        processes=[device.process_index for device in mesh.devices.flat],
    )  # fmt: skip
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
