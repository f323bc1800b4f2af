"""Settings of question answering with updates, and what follows from them."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal, get_args

from icorag_jax.lm.config import DecoderConfig
from icorag_jax.rag.adaptation import AdaptationConfig, Objective
from icorag_jax.rag.batches import BatchConfig
from icorag_jax.rag.interface import InterfaceConfig
from icorag_jax.rag.learning import LearningConfig
from icorag_jax.rag.method import Kind, MethodConfig
from icorag_jax.rag.updater import UpdaterConfig
from icorag_jax.ranges import check_at_least

MethodName = Literal[
    "closed_book", "frozen", "shared", "blind", "feedback", "updater",
    "updater_shuffled", "updater_random", "updater_empty", "slot", "tta", "oracle",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class QaMethods:
    """Settings of the methods.

    Attributes:
        methods: which are evaluated; see `docs/method.md`.
        trained: folder of methods that were trained before, a folder each as in
            `OUT/methods/CELL`, or `shipped` for those that come with the backbone; by default all
            are trained.
        new_tasks: whether methods answer as on tasks that they were not trained on, which they
            always do on benchmarks left out: see `docs/method.md`, *On new tasks*.
        layer: the interface's first layer; by default a sixth of the way up, at least 1: what reads
            evidence into the question's rows has to be above it.
        bound: see `icorag_jax.rag.interface.InterfaceConfig`.
        pools: likewise.
        pool_features: likewise.
        rank: likewise.
        updater_steps: reads of the updater.
        evidence_tokens: of instruction and passages, at most.
        question_tokens: of a question, at most.
        answer_tokens: of an answer, at most.
        answered_questions: training questions of each benchmark that the loss of answers is on,
            the first ones that have a passage with an answer; that of selection is on all. Of these
            the whole frozen model's evidence is held in memory, 1.5 MB a question of the small
            backbones.
        selection_steps: see `icorag_jax.rag.learning.LearningConfig`; none where no passage found
            has an answer.
        selection_batch: likewise.
        selection_rate: likewise.
        steps: likewise.
        batch: likewise.
        learning_rate: likewise.
        weight_decay: of training.
        bias_penalty: see `icorag_jax.rag.learning.LearningConfig`.
        selection_weight: likewise.
        method_seed: of training.
        tuning_questions: training questions of each benchmark that test-time adaptation is tuned
            on.
        adaptation_steps: of test-time adaptation, at most.
        adapted_questions: questions of each benchmark that methods with gradient steps are
            evaluated on, the first ones.
        evaluation_batch: questions at once.
    """

    methods: tuple[MethodName, ...] = (
        "closed_book", "frozen", "shared", "blind", "feedback", "updater",
        "updater_shuffled", "updater_random", "updater_empty", "slot", "tta", "oracle",
    )  # fmt: skip
    trained: Literal["shipped"] | Path | None = None
    new_tasks: bool = False
    layer: int | None = None
    bound: float = 1.5
    pools: int = 4
    pool_features: int = 16
    rank: int = 8
    updater_steps: int = 3
    evidence_tokens: int = 480
    question_tokens: int = 64
    answer_tokens: int = 12
    answered_questions: int = 400
    selection_steps: int = 400
    selection_batch: int = 64
    selection_rate: float = 5e-3
    steps: int = 400
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    bias_penalty: float = 1e-4
    selection_weight: float = 1.0
    method_seed: int = 0
    tuning_questions: int = 10
    adaptation_steps: int = 5
    adapted_questions: int = 100
    evaluation_batch: int = 50

    def __post_init__(self):
        """Checks names and ranges, also those of what is made of these settings.

        Raises:
            ValueError: names the setting that is not right.
        """
        for method in self.methods:
            if method not in get_args(MethodName):
                raise ValueError(
                    f"methods must be among {', '.join(get_args(MethodName))}, got {method!r}"
                )
        check_at_least(
            self,
            updater_steps=1,
            answered_questions=0,
            tuning_questions=0,
            adaptation_steps=1,
            adapted_questions=0,
            evaluation_batch=1,
        )
        self.interface_config(1 if self.layer is None else self.layer)
        self.batch_config(passages=1)
        self.learning_config()

    def first_layer(self, decoder: DecoderConfig) -> int:
        """The interface's first layer."""
        return max(decoder.num_hidden_layers // 6, 1) if self.layer is None else self.layer

    def batch_config(self, passages: int) -> BatchConfig:
        """Sizes of prompts."""
        return BatchConfig(passages, self.evidence_tokens, self.question_tokens, self.answer_tokens)

    def interface_config(self, layer: int) -> InterfaceConfig:
        """The interface from a layer on."""
        return InterfaceConfig(layer, self.bound, self.pools, self.pool_features, self.rank)

    def method_config(self, kind: Kind, decoder: DecoderConfig, passages: int) -> MethodConfig:
        """A method."""
        interface = self.interface_config(self.first_layer(decoder))
        return MethodConfig(kind, interface, UpdaterConfig(self.updater_steps), passages)

    def learning_config(self) -> LearningConfig:
        """How methods are trained."""
        return LearningConfig(
            selection_steps=self.selection_steps,
            selection_batch=self.selection_batch,
            selection_rate=self.selection_rate,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            bias_penalty=self.bias_penalty,
            selection_weight=self.selection_weight,
            seed=self.method_seed,
            checkpoint_every=50,
        )

    def adaptation_grid(self, objectives: tuple[Objective, ...]) -> list[AdaptationConfig]:
        """What test-time adaptation is tuned over, but for the number of steps."""
        rates = {
            "sgd": (0.0001, 0.001, 0.01, 0.1, 1.0),
            "adam": (0.0001, 0.001, 0.003, 0.01, 0.03),
        }
        return [
            AdaptationConfig(objective, optimizer, self.adaptation_steps, rate)
            for objective, optimizer in itertools.product(objectives, ("sgd", "adam"))
            for rate in rates[optimizer]
        ]

    def kinds(self) -> tuple[Kind, ...]:
        """What has to be trained."""
        names = set(self.methods)
        used: dict[Kind, bool] = {
            "shared": bool(names & {"shared", "tta", "oracle"}),
            "blind": "blind" in names,
            "feedback": "feedback" in names,
            "updater": any(name.startswith("updater") for name in names),
        }
        return tuple(kind for kind, is_used in used.items() if is_used)
