"""How much of its attention to evidence a frozen model gives to each passage."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm import rotary
from icorag_jax.lm.attention import sees
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import DecoderLayer, empty_cache, run_layers
from icorag_jax.lm.evidence_attention import EvidenceEdit, evidence_bias
from icorag_jax.rag.context import passage_rows
from icorag_jax.rag.frozen import Reading


def passage_weights(
    upper: DecoderConfig, parameters: Parameters, reading: Reading, edit: EvidenceEdit | None
) -> Float[Array, "batch passages"]:
    """What the row that predicts an answer's first token gives to the rows of each passage.

    Attention of that row, the last of the question, is averaged over heads and over the layers from
    the interface's first on; a weight is the part of it on a passage, divided by all of it that is
    on evidence. So the weights of a question add up to 1 less the share of the instruction.

    Args:
        upper: from `icorag_jax.rag.frozen.upper_decoder`.
        parameters: from `upper_decoder`.
        reading: of questions; rows of answers, if there are any, do not matter.
        edit: how evidence is seen; None is the frozen model.

    Returns:
        float32; 0 where there is no passage.
    """
    context, positions = reading.context, reading.positions
    states = context.question_states
    batch, rows, _ = states.shape
    if edit is not None:
        edit = jax.tree.map(lambda leaf: leaf.astype(states.dtype), edit)
    given = jnp.zeros(context.passage_of.shape, jnp.float32)
    for layer in range(upper.num_hidden_layers):
        of_layer = edit and jax.tree.map(lambda leaf, at=layer: leaf[at : at + 1], edit)
        given += _evidence_attention(upper, parameters, reading, states, layer, of_layer)
        cache = empty_cache(upper, batch, rows, states.dtype)
        states, _ = run_layers(
            upper, parameters, states, positions, cache, reading.evidence, of_layer,
            layers=range(layer, layer + 1),
        )  # fmt: skip
    of_passages = jnp.where(passage_rows(context), given[:, None], 0).sum(axis=-1)
    return of_passages / jnp.maximum(given.sum(axis=-1), jnp.finfo(jnp.float32).tiny)[:, None]


def _evidence_attention(
    upper: DecoderConfig,
    parameters: Parameters,
    reading: Reading,
    states: Float[Array, "batch tokens width"],
    layer: int,
    edit: EvidenceEdit | None,
) -> Float[Array, "batch evidence"]:
    """Attention of the question's last row to each row of evidence in a layer, mean over heads."""
    stacked = parameters["layers"]
    own_parameters = jax.tree.map(lambda leaf: leaf[layer], stacked)
    if isinstance(stacked, list):
        own_parameters = stacked[layer]
    positions, evidence = reading.positions, reading.evidence
    applied: Any = DecoderLayer(upper, states.dtype).apply(
        {"params": own_parameters}, states, rotary.rotations(upper, positions),
        method=DecoderLayer.before_attention,
    )  # fmt: skip
    queries, keys, _ = applied
    last = reading.context.is_question.sum(axis=1) - 1
    query = jnp.take_along_axis(queries, last[:, None, None, None], axis=1)[:, 0]
    asked_at = jnp.take_along_axis(positions, last[:, None], axis=1)
    size = upper.windows[layer]
    window = None if size is None else jnp.int32(size)

    def logits(
        keys: Float[Array, "batch slots kv_heads d"], seen: Array, bias: Array | None
    ) -> Float[Array, "batch heads slots"]:
        repeated = jnp.repeat(keys, upper.num_attention_heads // keys.shape[2], axis=2)
        found = jnp.einsum("bhd,bshd->bhs", query, repeated, preferred_element_type=jnp.float32)
        found /= jnp.sqrt(jnp.float32(keys.shape[-1]))
        return jnp.where(seen, found if bias is None else found + bias, -jnp.inf)

    bias = None
    if edit is not None:
        bias = evidence_bias(jax.tree.map(lambda leaf: leaf[0], edit), evidence.passages)
    every = jnp.concatenate(
        [
            logits(evidence.keys[layer], sees(asked_at, evidence.positions, window), bias),
            logits(keys, sees(asked_at, positions, window), None),
        ],
        axis=-1,
    )
    return jax.nn.softmax(every, axis=-1)[..., : evidence.positions.shape[1]].mean(axis=1)
