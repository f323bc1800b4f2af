"""Answers of a frozen model, as it is or with evidence seen through an interface."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import normalize_states, run_layers
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit
from icorag_jax.lm.generation import continue_rows
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.frozen import read_lower
from icorag_jax.rag.method import MethodConfig, predict_edit


class Answers(NamedTuple):
    """Answers of a batch.

    Attributes:
        tokens: what was generated, 0 after an answer's end.
        lengths: of each answer, the token that ends it included.
        bias: added to the logits of each passage's rows, mean over the layers and heads that are
            edited.
    """

    tokens: Int[Array, "batch new"]
    lengths: Int[Array, "batch"]
    bias: Float[Array, "batch passages"]


@functools.partial(jax.jit, static_argnames=("decoder", "method", "layer", "answer_tokens"))
def answer_batch(
    decoder: DecoderConfig,
    parameters: Parameters,
    batch: Batch,
    method: MethodConfig | None,
    method_parameters: Any,
    *,
    layer: int,
    answer_tokens: int,
) -> Answers:
    """Reads evidence and question, updates how evidence is seen, and answers greedily.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        batch: questions, without answers.
        method: how evidence is seen; None is the frozen model.
        method_parameters: of the method.
        layer: the interface's first layer.
        answer_tokens: to generate, at most.
    """
    slots = batch.tokens.shape[1] + answer_tokens - 1
    evidence, context, cache = read_lower(decoder, parameters, batch, layer=layer, slots=slots)
    edit = None
    if method is not None:
        edit = predict_edit(method, decoder, method_parameters, context)
    return answer_edited(
        decoder, parameters, batch, evidence, context.question_states, cache, edit,
        layer=layer, answer_tokens=answer_tokens,
    )  # fmt: skip


def answer_edited(
    decoder: DecoderConfig,
    parameters: Parameters,
    batch: Batch,
    evidence: Evidence,
    states: Float[Array, "batch tokens width"],
    cache: Any,
    edit: EvidenceEdit | None,
    *,
    layer: int,
    answer_tokens: int,
    delta: Float[Array, "batch width"] | None = None,
) -> Answers:
    """Greedy answers from where the lower layers have read the question.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        batch: questions, without answers.
        evidence: of all layers.
        states: of the question's rows, before the interface's first layer.
        cache: with these rows' lower layers.
        edit: how evidence is seen; None is the frozen model.
        layer: the interface's first layer.
        answer_tokens: to generate, at most.
        delta: added to the final states that tokens are chosen from.
    """
    bias = jnp.zeros(batch.present.shape, jnp.float32)
    if edit is not None:
        bias = edit.logit_bias.mean(axis=(0, 2))
        edit = jax.tree.map(lambda leaf: leaf.astype(states.dtype), edit)
        evidence, edit = apply_value_edit(evidence, edit, layer)
    states, cache = run_layers(
        decoder, parameters, states, batch.positions, cache, evidence, edit,
        layers=range(layer, decoder.num_hidden_layers),
    )  # fmt: skip
    positions = jnp.asarray(batch.positions)
    cache = cache._replace(
        positions=jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.used)),
        used=cache.used + positions.shape[1],
    )
    found = continue_rows(
        decoder, parameters, normalize_states(decoder, parameters, states), positions, cache,
        evidence, edit, None, None,
        max_new_tokens=answer_tokens, interface_layer=layer, delta=delta,
    )  # fmt: skip
    return Answers(found.tokens, found.lengths, bias)


def apply_value_edit(
    evidence: Evidence, edit: EvidenceEdit, layer: int
) -> tuple[Evidence, EvidenceEdit]:
    """Evidence with its values edited, and what is left of the edit: decoding pays for the bias.

    Args:
        evidence: of all layers.
        edit: of the layers from `layer` on.
        layer: the interface's first layer.
    """
    values = evidence.values[layer:]
    rows = values.reshape(*values.shape[:3], -1)
    change = jnp.einsum("lbsw,lbwr,lbrv->lbsv", rows, edit.value_down, edit.value_up)
    change = jnp.where((evidence.passages >= 0)[None, :, :, None], change, 0)
    edited = values + change.reshape(values.shape)
    none = edit._replace(value_down=edit.value_down[..., :0], value_up=edit.value_up[:, :, :0])
    return evidence._replace(values=evidence.values.at[layer:].set(edited)), none
