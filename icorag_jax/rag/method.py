"""The methods that change how a frozen model sees evidence, by one module.

| kind       | state of the interface                                                    |
| ---------- | ------------------------------------------------------------------------- |
| `shared`   | one for all questions                                                     |
| `updater`  | the shared one, changed by a read of the question's passages              |
| `blind`    | the shared one, changed by a read of learned vectors: as many parameters  |
|            | as `updater`, and an update that is the same for all questions            |
| `feedback` | as `blind`, but each vector stands for the passage of a rank: passages    |
|            | count for more because they share words with those that stand first, by   |
|            | weights that are the same for all questions                               |
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icorag_jax.lm.config import DecoderConfig
from icorag_jax.lm.evidence_attention import EvidenceEdit
from icorag_jax.rag.context import Context
from icorag_jax.rag.interface import Features, Interface, InterfaceConfig, InterfaceState
from icorag_jax.rag.traits import TRAITS
from icorag_jax.rag.updater import Reads, Updater, UpdaterConfig, for_new_tasks, without_states
from icorag_jax.ranges import check_at_least

Kind = Literal["shared", "updater", "blind", "feedback"]
_READS: dict[Kind, Reads] = {"updater": "passages", "blind": "vectors", "feedback": "ranks"}


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """A method.

    Attributes:
        kind: which.
        interface: sizes of the interface.
        updater: how the updater reads.
        passages: of a question, at most.
    """

    kind: Kind
    interface: InterfaceConfig
    updater: UpdaterConfig
    passages: int

    def __post_init__(self):
        """Checks the ranges."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")
        check_at_least(self, passages=1)


class Method(nn.Module):
    """How a frozen model is made to see evidence.

    Attributes:
        config: the method.
        decoder: of the frozen model.
    """

    config: MethodConfig
    decoder: DecoderConfig

    def setup(self):
        """Names the parts."""
        config = self.config
        self.interface = Interface(config.interface, self.decoder)
        if config.kind != "shared":
            self.updater = Updater(config.updater, config.interface, _READS[config.kind])

    def __call__(self, context: Context, fed: Context | None = None) -> EvidenceEdit:
        """How rows of questions and answers see evidence, float32; `fed` as in `state`."""
        features, state = self.state(context, fed)
        return self.edit(features, state)

    def state(
        self, context: Context, fed: Context | None = None
    ) -> tuple[Features, InterfaceState]:
        """The interface's features, and its state for each question.

        Args:
            context: of the questions.
            fed: what the updater is given instead, in controls.
        """
        fed = fed if self.config.kind == "updater" else None
        features = self.interface.features(context, context, axes=fed)
        state = self.interface.shared_state(features)
        if self.config.kind != "shared":
            read = features if fed is None else self.interface.features(context, fed)
            state = self.updater(read, state)
        return features, state

    def edit(self, features: Features, state: InterfaceState) -> EvidenceEdit:
        """The edit that a state comes to."""
        return self.interface.edit(features, state)


def init_method(config: MethodConfig, decoder: DecoderConfig, key: Any) -> Any:
    """Parameters with which the model is the frozen model, bit for bit, float32."""
    width, passages = decoder.hidden_size, config.passages
    context = Context(
        evidence_tokens=jnp.zeros((1, 1), jnp.int32),
        evidence_states=jnp.zeros((1, 1, width)),
        passage_of=jnp.zeros((1, 1), jnp.int32),
        question_tokens=jnp.zeros((1, 1), jnp.int32),
        question_states=jnp.zeros((1, 1, width)),
        is_question=jnp.ones((1, 1), bool),
        traits=jnp.zeros((1, passages, TRAITS)),
        present=jnp.ones((1, passages), bool),
    )
    return Method(config, decoder).init(key, context)["params"]


def hide_states(config: MethodConfig, parameters: Any) -> Any:
    """A method's parameters without what its updater has learned of hidden states.

    See `icorag_jax.rag.updater.without_states`; one that has no updater stays as it is.
    """
    return _change_updater(config, parameters, without_states)


def adjust_to_new_tasks(config: MethodConfig, parameters: Any) -> Any:
    """A method's parameters for tasks that it was not trained on.

    See `icorag_jax.rag.updater.for_new_tasks`; one that has no updater stays as it is.
    """
    return _change_updater(config, parameters, for_new_tasks)


def _change_updater(
    config: MethodConfig, parameters: Any, change: Callable[[InterfaceConfig, Any], Any]
) -> Any:
    if config.kind == "shared":
        return parameters
    return {**parameters, "updater": change(config.interface, parameters["updater"])}


def predict_edit(
    config: MethodConfig,
    decoder: DecoderConfig,
    parameters: Any,
    context: Context,
    fed: Context | None = None,
) -> EvidenceEdit:
    """How rows of questions and answers see evidence: one forward pass, no gradient."""
    edit: Any = Method(config, decoder).apply({"params": parameters}, context, fed)
    return edit


def predict_state(
    config: MethodConfig, decoder: DecoderConfig, parameters: Any, context: Context
) -> tuple[Features, InterfaceState]:
    """The interface's features, and its state for each question."""
    module = Method(config, decoder)
    found: Any = module.apply({"params": parameters}, context, method=Method.state)
    return found


def state_edit(
    config: MethodConfig,
    decoder: DecoderConfig,
    parameters: Any,
    features: Features,
    state: InterfaceState,
) -> EvidenceEdit:
    """The edit that given states of the interface come to."""
    module = Method(config, decoder)
    edit: Any = module.apply({"params": parameters}, features, state, method=Method.edit)
    return edit


def predict_change(
    config: MethodConfig, decoder: DecoderConfig, parameters: Any, context: Context
) -> Float[Array, "batch numbers"]:
    """What the updater adds to the shared state of each question, as one vector."""
    _, state = predict_state(config, decoder, parameters, context)
    shared = parameters["interface"]
    change = [
        state.bias - shared["bias"][None],
        state.words,
        state.tokens,
        state.value - shared["value"][None],
    ]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in change], axis=1)


def count_parameters(parameters: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
