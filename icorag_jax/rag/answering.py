"""Answers of a frozen model, as it is or with evidence seen through an interface."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import Cache, normalize_states, run_layers, use_slots
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit, evidence_bias
from icorag_jax.lm.generation import continue_rows
from icorag_jax.rag.adaptation import AdaptationConfig, adapt, slot
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.context import Control, control_context
from icorag_jax.rag.frozen import Reading, read_evidence, read_rows
from icorag_jax.rag.method import MethodConfig, predict_edit, state_edit


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


class Prepared(NamedTuple):
    """Questions that the frozen model has read up to the interface, for any method to go on from.

    Attributes:
        evidence: of all layers.
        evidence_states: residual stream of the evidence before the interface's first layer.
        reading: of the questions.
        cache: with the questions' rows in the lower layers.
    """

    evidence: Evidence
    evidence_states: Float[Array, "batch evidence width"]
    reading: Reading
    cache: Cache


@functools.partial(jax.jit, static_argnames=("decoder", "layer", "answer_tokens"))
def prepare(
    decoder: DecoderConfig, parameters: Parameters, batch: Batch, *, layer: int, answer_tokens: int
) -> Prepared:
    """Reads evidence and questions.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        batch: questions, without answers.
        layer: the interface's first layer.
        answer_tokens: to generate, at most.
    """
    evidence, states = read_evidence(decoder, parameters, batch, layer=layer)
    slots = batch.tokens.shape[1] + answer_tokens - 1
    reading, cache = read_rows(
        decoder, parameters, batch, evidence, states, layer=layer, slots=slots
    )
    return Prepared(evidence, states, reading, cache)


@functools.partial(
    jax.jit, static_argnames=("decoder", "method", "layer", "answer_tokens", "control")
)
def answer_prepared(
    decoder: DecoderConfig,
    parameters: Parameters,
    prepared: Prepared,
    method: MethodConfig | None,
    method_parameters: Any,
    *,
    layer: int,
    answer_tokens: int,
    control: Control | None = None,
    key: PRNGKeyArray | None = None,
) -> Answers:
    """Updates how evidence is seen, and answers greedily.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        prepared: the questions.
        method: how evidence is seen; None is the frozen model.
        method_parameters: of the method.
        layer: the interface's first layer.
        answer_tokens: to generate, at most; as in `prepare`.
        control: what the updater is fed instead of the passages.
        key: of the control's noise.
    """
    edit = None
    if method is not None:
        context = prepared.reading.context
        fed = None if control is None else control_context(context, control, key)
        edit = predict_edit(method, decoder, method_parameters, context, fed)
    return answer_edited(
        decoder, parameters, prepared, edit, layer=layer, answer_tokens=answer_tokens
    )


@functools.partial(
    jax.jit, static_argnames=("decoder", "method", "adaptation", "layer", "answer_tokens")
)
def answer_adapted(
    decoder: DecoderConfig,
    parameters: Parameters,
    prepared: Prepared,
    rows: Batch | None,
    method: MethodConfig | None,
    method_parameters: Any,
    adaptation: AdaptationConfig,
    *,
    layer: int,
    answer_tokens: int,
) -> Answers:
    """Adapts to each question by gradient steps, and answers greedily.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        prepared: the questions.
        rows: of the objective where they are not the questions': `cloze_rows(batch)` for `cloze`,
            questions with their answers for `oracle`.
        method: of kind `shared`, whose state is adapted; None adapts final states (SLOT).
        method_parameters: of the method.
        adaptation: how.
        layer: the interface's first layer.
        answer_tokens: to generate, at most; as in `prepare`.
    """
    edit = delta = None
    if method is None:
        trajectory, _ = slot(adaptation, decoder, parameters, prepared.reading, layer=layer)
        delta = trajectory[-1]
    else:
        objective = objective_reading(decoder, parameters, prepared, rows, layer=layer)
        features, trajectory, _ = adapt(
            adaptation, method, decoder, parameters, method_parameters, prepared.reading, objective
        )
        state = jax.tree.map(lambda leaf: leaf[-1], trajectory)
        edit = state_edit(method, decoder, method_parameters, features, state)
    return answer_edited(
        decoder, parameters, prepared, edit, layer=layer, answer_tokens=answer_tokens, delta=delta
    )


@functools.partial(jax.jit, static_argnames=("decoder", "layer"))
def objective_reading(
    decoder: DecoderConfig,
    parameters: Parameters,
    prepared: Prepared,
    rows: Batch | None,
    *,
    layer: int,
) -> Reading:
    """What an objective of adaptation is on: other rows after the same evidence, or the questions.

    Args:
        decoder: of the frozen model.
        parameters: its parameters.
        prepared: the questions.
        rows: see `answer_adapted`.
        layer: the interface's first layer.
    """
    if rows is None:
        return prepared.reading
    reading, _ = read_rows(
        decoder, parameters, rows, prepared.evidence, prepared.evidence_states,
        layer=layer, slots=rows.tokens.shape[1],
    )  # fmt: skip
    return reading


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
    """`prepare` and `answer_prepared`."""
    prepared = prepare(decoder, parameters, batch, layer=layer, answer_tokens=answer_tokens)
    return answer_prepared(
        decoder, parameters, prepared, method, method_parameters,
        layer=layer, answer_tokens=answer_tokens,
    )  # fmt: skip


def answer_edited(
    decoder: DecoderConfig,
    parameters: Parameters,
    prepared: Prepared,
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
        prepared: the questions.
        edit: how evidence is seen; None is the frozen model.
        layer: the interface's first layer.
        answer_tokens: to generate, at most.
        delta: added to the final states that tokens are chosen from.
    """
    evidence, reading, cache = prepared.evidence, prepared.reading, prepared.cache
    states, positions = reading.context.question_states, reading.positions
    if delta is not None:
        delta = delta.astype(states.dtype)
    bias = jnp.zeros(reading.context.present.shape, jnp.float32)
    if edit is not None:
        bias = edit.logit_bias.mean(axis=(0, 2))
        rounded: Any = jax.tree.map(lambda leaf: leaf.astype(states.dtype), edit)
        evidence, edit = fold_edit(evidence, rounded, layer)
    states, cache = run_layers(
        decoder, parameters, states, positions, cache, evidence, edit,
        layers=range(layer, decoder.num_hidden_layers),
    )  # fmt: skip
    found = continue_rows(
        decoder, parameters, normalize_states(decoder, parameters, states), positions,
        use_slots(cache, positions), evidence, edit, None, None,
        max_new_tokens=answer_tokens, interface_layer=layer, delta=delta,
    )  # fmt: skip
    return Answers(found.tokens, found.lengths, bias)


def fold_edit(evidence: Evidence, edit: EvidenceEdit, layer: int) -> tuple[Evidence, EvidenceEdit]:
    """Evidence with its values edited, and what is left: one addition a logit of each new token.

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
    left = EvidenceEdit(
        logit_bias=edit.logit_bias[..., :0],
        # In a loop, whose results are kept: else the compiler does it again for each query row.
        token_bias=jax.lax.map(lambda of_layer: evidence_bias(of_layer, evidence.passages), edit),
        value_down=edit.value_down[..., :0],
        value_up=edit.value_up[:, :, :0],
    )
    return evidence._replace(values=evidence.values.at[layer:].set(edited)), left
