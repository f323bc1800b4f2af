"""Answers of a frozen language model, and how likely it finds given ones.

Each function pads its texts to a bucket and runs one compiled program a bucket. Texts may follow
evidence, read as it is or with an edit; see `icorag_jax.lm.evidence`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from icorag_jax.checkpoint import Parameters
from icorag_jax.lm import sharding
from icorag_jax.lm.batches import Side, bucket_length, check_rows, pad_batch
from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.decoder import Cache, empty_cache, forward, logits
from icorag_jax.lm.evidence import check_edit, check_evidence, evidence_lengths
from icorag_jax.lm.evidence_attention import Evidence, EvidenceEdit


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits, above 0.
        top_p: only the most likely tokens that together have this probability are drawn, in (0, 1].
    """

    temperature: float
    top_p: float

    def __post_init__(self):
        """Checks the ranges."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


class Generated(NamedTuple):
    """New tokens of a batch.

    Attributes:
        tokens: what was generated, 0 after a text's end.
        lengths: of each text, the token that ends it included.
    """

    tokens: Int[Array, "batch new"]
    lengths: Int[Array, "batch"]


def generate(
    config: DecoderConfig,
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    buckets: Sequence[int],
    side: Side = "left",
    sampling: Sampling | None = None,
    key: PRNGKeyArray | None = None,
    evidence: Evidence | None = None,
    edit: EvidenceEdit | None = None,
    interface_layer: int = 0,
) -> list[list[int]]:
    """Continues prompts until a token that ends a text, or as long as there is room.

    Room is `max_new_tokens`, and no more than the model's context. The token that ends a text is
    its last. A text depends on its own prompt and key alone, whatever else is in the batch (with
    `DynamicRotary` also on the longest text).

    Args:
        config: the decoder.
        parameters: its parameters.
        prompts: token ids of each prompt.
        max_new_tokens: tokens to generate, at most.
        buckets: padded lengths of prompts to choose from.
        side: where padding goes.
        sampling: how tokens are drawn; the likeliest each time if None.
        key: of the draws; prompt i draws from `fold_in(key, i)`.
        evidence: what the prompts follow, a row each; they start a text if None.
        edit: how the layers from `interface_layer` on see the evidence.
        interface_layer: the first layer that is edited.

    Raises:
        ValueError: prompts that do not fit the model, see `icorag_jax.lm.batches`; an edit that
            does not fit the evidence; sampling without a key.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if (sampling is None) != (key is None):
        raise ValueError("sampling takes a key, and a key takes sampling")
    starts = _check_evidence(config, parameters, prompts, evidence, edit, interface_layer)
    batch = pad_batch(config, prompts, buckets=buckets, side=side, starts=starts)
    keys = (
        None
        if key is None
        else jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(prompts)))
    )
    batch = sharding.shard_like(parameters, batch)
    edit = edit and sharding.shard_like(parameters, edit)
    drawing = sampling and (jnp.float32(sampling.temperature), jnp.float32(sampling.top_p))
    found = generate_rows(
        config, parameters, batch.tokens, batch.positions, evidence, edit,
        drawing, keys, max_new_tokens=max_new_tokens, interface_layer=interface_layer,
    )  # fmt: skip
    tokens, lengths = sharding.to_host(found.tokens), sharding.to_host(found.lengths)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


@functools.partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "interface_layer", "chunk")
)
def generate_rows(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "batch tokens"],
    positions: Int[Array, "batch tokens"],
    evidence: Evidence | None,
    edit: EvidenceEdit | None,
    sampling: tuple[Float[Array, ""], Float[Array, ""]] | None,
    keys: Key[Array, "batch"] | None,
    *,
    max_new_tokens: int,
    interface_layer: int = 0,
    chunk: int | None = None,
) -> Generated:
    """`generate` on padded arrays.

    Args:
        config: the decoder.
        parameters: its parameters.
        tokens: of the prompts.
        positions: of their tokens, -1 at padding.
        evidence: what they follow.
        edit: how it is seen.
        sampling: temperature and `top_p`; the likeliest token each time if None.
        keys: of each row's draws, `[batch]`.
        max_new_tokens: tokens to generate, at most.
        interface_layer: the first layer that is edited.
        chunk: evidence rows at a time; all of them if None.
    """
    batch, width = tokens.shape
    start = empty_cache(
        config, batch, width + max_new_tokens - 1, parameters["norm"]["scale"].dtype
    )
    output = forward(
        config, parameters, tokens, positions, start, evidence, edit,
        interface_layer=interface_layer, chunk=chunk,
    )  # fmt: skip
    return continue_rows(
        config, parameters, output.states, positions, output.cache, evidence, edit, sampling, keys,
        max_new_tokens=max_new_tokens, interface_layer=interface_layer, chunk=chunk,
    )  # fmt: skip


def continue_rows(
    config: DecoderConfig,
    parameters: Parameters,
    states: Float[Array, "batch tokens width"],
    positions: Int[Array, "batch tokens"],
    cache: Cache,
    evidence: Evidence | None,
    edit: EvidenceEdit | None,
    sampling: tuple[Float[Array, ""], Float[Array, ""]] | None,
    keys: Key[Array, "batch"] | None,
    *,
    max_new_tokens: int,
    interface_layer: int = 0,
    chunk: int | None = None,
    delta: Float[Array, "batch width"] | None = None,
) -> Generated:
    """`generate_rows` from where the prompts were read.

    Args:
        config: the decoder.
        parameters: its parameters.
        states: of the prompts, after the last norm.
        positions: of their tokens, -1 at padding.
        cache: with the prompts' rows, and room for `max_new_tokens - 1` more.
        evidence: what they follow.
        edit: how it is seen.
        sampling: temperature and `top_p`; the likeliest token each time if None.
        keys: of each row's draws, `[batch]`.
        max_new_tokens: tokens to generate, at most.
        interface_layer: the first layer that is edited.
        chunk: evidence rows at a time; all of them if None.
        delta: added to the states that tokens are chosen from.
    """
    batch = positions.shape[0]
    ends = jnp.asarray(config.eos_token_ids, jnp.int32)
    run = functools.partial(
        forward, config, parameters, evidence=evidence, edit=edit,
        interface_layer=interface_layer, chunk=chunk,
    )  # fmt: skip

    def choose(states: Float[Array, "batch width"], step: Int[Array, ""]) -> Int[Array, "batch"]:
        found = logits(config, parameters, states if delta is None else states + delta)
        if sampling is None or keys is None:
            return jnp.argmax(found, axis=-1).astype(jnp.int32)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        return jax.vmap(_draw, in_axes=(0, 0, None, None))(step_keys, found, *sampling)

    def going_on(state: tuple) -> Bool[Array, ""]:
        step, *_, done, _ = state
        return (step < max_new_tokens) & ~done.all()

    def advance(state: tuple) -> tuple:
        step, cache, last, position, done, found = state
        # Texts that have ended run on, unseen by others, as they do in the reference
        # implementation: with `DynamicRotary` their length still counts.
        output = run(last[:, None], position[:, None], cache)
        new = jnp.where(done, 0, choose(output.states[:, 0], step))
        return record(step, output.cache, new, position + 1, done, found)

    def record(
        step: Int[Array, ""], cache: Cache, new: Int[Array, "batch"],
        position: Int[Array, "batch"], done: Bool[Array, "batch"],
        found: Int[Array, "batch new"],
    ) -> tuple:  # fmt: skip
        """The state with the token of this step, which stands at `position`."""
        found = jax.lax.dynamic_update_slice(found, new[:, None], (0, step))
        done |= (new[:, None] == ends[None]).any(axis=1)
        # The next token would stand outside of the context.
        done |= position + 1 >= config.context
        return step + 1, cache, new, position, done, found

    last_row = jnp.argmax(positions, axis=1)
    position = positions.max(axis=1) + 1
    # A prompt that fills the context has no room for a token.
    full = position >= config.context
    first = choose(_rows(states, last_row), jnp.int32(0))
    state = record(
        jnp.int32(0), cache, jnp.where(full, 0, first), position, full,
        jnp.zeros((batch, max_new_tokens), jnp.int32),
    )  # fmt: skip
    *_, found = jax.lax.while_loop(going_on, advance, state)
    is_end = (found[:, :, None] == ends[None, None]).any(axis=-1)
    room = jnp.minimum(max_new_tokens, config.context - position)
    first_end = jnp.where(is_end.any(axis=1), jnp.argmax(is_end, axis=1) + 1, max_new_tokens)
    return Generated(found, jnp.minimum(first_end, room).astype(jnp.int32))


def score(
    config: DecoderConfig,
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    buckets: Sequence[int],
    evidence: Evidence | None = None,
    edit: EvidenceEdit | None = None,
    interface_layer: int = 0,
) -> list[Float[np.ndarray, "_"]]:
    """Log-probabilities of the tokens of given continuations, float32.

    Args:
        config: the decoder.
        parameters: its parameters.
        prompts: token ids of each prompt.
        continuations: token ids of each continuation, at least one.
        buckets: padded lengths of prompt and continuation together to choose from.
        evidence: what the prompts follow, a row each; they start a text if None.
        edit: how the layers from `interface_layer` on see the evidence.
        interface_layer: the first layer that is edited.

    Raises:
        ValueError: texts that do not fit the model, see `icorag_jax.lm.batches`, or an edit that
            does not fit the evidence.
    """
    check_rows(config, continuations, name="continuation")
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts, but {len(continuations)} continuations")
    starts = _check_evidence(config, parameters, prompts, evidence, edit, interface_layer)
    check_rows(config, prompts, starts=starts)
    texts = [[*prompt, *more] for prompt, more in zip(prompts, continuations, strict=True)]
    batch = pad_batch(
        config, texts, buckets=buckets, side="right", starts=starts,
        name="prompt with its continuation",
    )  # fmt: skip
    batch = sharding.shard_like(parameters, batch)
    edit = edit and sharding.shard_like(parameters, edit)
    width = batch.tokens.shape[1]
    longest = bucket_length(max(map(len, continuations)), buckets)
    scored = score_rows(
        config, parameters, batch.tokens, batch.positions,
        np.asarray([len(prompt) for prompt in prompts], np.int32), evidence, edit,
        longest=min(longest, width - 1), interface_layer=interface_layer,
    )  # fmt: skip
    found = sharding.to_host(scored)
    return [row[: len(more)] for row, more in zip(found, continuations, strict=True)]


@functools.partial(jax.jit, static_argnames=("config", "longest", "interface_layer", "chunk"))
def score_rows(
    config: DecoderConfig,
    parameters: Parameters,
    tokens: Int[Array, "batch tokens"],
    positions: Int[Array, "batch tokens"],
    prompt_lengths: Int[Array, "batch"],
    evidence: Evidence | None,
    edit: EvidenceEdit | None,
    *,
    longest: int,
    interface_layer: int = 0,
    chunk: int | None = None,
) -> Float[Array, "batch longest"]:
    """`score` on padded arrays: log-probabilities of the tokens after each prompt.

    Those after the end of a continuation mean nothing.

    Args:
        config: the decoder.
        parameters: its parameters.
        tokens: of prompts and continuations, padded on the right.
        positions: of their tokens, -1 at padding.
        prompt_lengths: tokens of each prompt, at least one.
        evidence: what they follow.
        edit: how it is seen.
        longest: tokens to score, less than there are in a row.
        interface_layer: the first layer that is edited.
        chunk: evidence rows at a time; all of them if None.
    """
    dtype = parameters["norm"]["scale"].dtype
    batch, width = tokens.shape
    output = forward(
        config, parameters, tokens, positions, empty_cache(config, batch, width, dtype),
        evidence, edit, interface_layer=interface_layer, chunk=chunk,
    )  # fmt: skip
    at = prompt_lengths[:, None] + jnp.arange(longest)[None]
    at = jnp.minimum(at, width - 1)
    targets = jnp.take_along_axis(tokens, at, axis=1)
    states = jnp.take_along_axis(output.states, (at - 1)[:, :, None], axis=1)
    predicted = jax.nn.log_softmax(logits(config, parameters, states), axis=-1)
    return jnp.take_along_axis(predicted, targets[:, :, None], axis=2)[:, :, 0]


def _check_evidence(
    config: DecoderConfig,
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    evidence: Evidence | None,
    edit: EvidenceEdit | None,
    interface_layer: int,
) -> list[int] | None:
    """The position of each prompt's first token, after checking what it follows."""
    if evidence is None:
        if edit is not None:
            raise ValueError("an edit is of evidence, and there is none")
        return None
    if evidence.positions.shape[0] != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, but evidence of {evidence.positions.shape[0]}: "
            "take_evidence repeats rows"
        )
    check_evidence(config, parameters, evidence)
    if edit is not None:
        check_edit(config, evidence, edit, interface_layer)
    return sharding.to_host(evidence_lengths(evidence)).tolist()


def _draw(
    key: PRNGKeyArray,
    found: Float[Array, "vocabulary"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, ""]:
    """A token from the likeliest that together have probability `top_p`."""
    scaled = found / temperature
    order = jnp.argsort(-scaled)
    probabilities = jax.nn.softmax(scaled[order])
    before = jnp.cumsum(probabilities) - probabilities
    kept = jnp.where(before < top_p, scaled[order], -jnp.inf)
    return order[jax.random.categorical(key, kept)].astype(jnp.int32)


def _rows(
    states: Float[Array, "batch tokens width"], rows: Int[Array, "batch"]
) -> Float[Array, "batch width"]:
    """One row of each text."""
    return jnp.take_along_axis(states, rows[:, None, None], axis=1)[:, 0]
