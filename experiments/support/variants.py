"""The rows of the boundary: every linear extension and nonlinear architecture, by name."""

import dataclasses
from typing import Literal

from icorag_jax.theory.architectures import Architecture
from icorag_jax.theory.tasks import Task


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the boundary.

    Attributes:
        name: unique.
        architecture: of the model.
        task: how episodes are drawn for training.
        test_task: how they are drawn for evaluation, where that differs.
        construction: descent that the construction takes, plain or GD++.
        ridge: strength of prior tokens that pull to the zero interface; 0 for none.
    """

    name: str
    architecture: Architecture
    task: Task
    test_task: Task | None = None
    construction: Literal["gd", "gd_plus_plus"] = "gd"
    ridge: float = 0.0

    @property
    def evaluation(self) -> Task:
        """The task of evaluation."""
        return self.test_task or self.task

    @property
    def single_step(self) -> bool:
        """Whether the best step has a closed form: one layer, from zero."""
        return self.architecture.layers == 1

    @property
    def mixes(self) -> bool:
        """Whether trained weights and a construction's can be mixed: a linear layer of one head."""
        shape = (self.architecture.layers, self.architecture.heads)
        return self.architecture.kind == "linear" and shape == (1, 1)


def variants(
    examples: int, queries: int, temperatures: tuple[float, ...], depths: tuple[int, ...]
) -> dict[str, Variant]:
    """All variants by name, linear ones first.

    Args:
        examples: context examples of an episode, N.
        queries: queries of an episode.
        temperatures: of the tempered kernel, from linear (large) to hard (small).
        depths: numbers of layers, each above 1, recurrent and not.
    """
    task = Task(examples=examples, outputs=1, queries=queries)

    def vary(**changes) -> Task:
        return dataclasses.replace(task, **changes)

    one = Architecture()
    rows = [Variant("linear", one, task)]
    for depth in depths:
        rows.append(Variant(f"depth_{depth}", Architecture(layers=depth), task))
        looped = Architecture(layers=depth, recurrent=True)
        rows.append(Variant(f"recurrent_{depth}", looped, task))
    two_heads = Architecture(layers=2, heads=2)
    rows += [
        Variant("heads", Architecture(heads=4), task),
        Variant("gd_plus_plus", two_heads, task, construction="gd_plus_plus"),
        Variant("ridge", Architecture(layers=2), task, ridge=0.1),
        Variant("retriever_weights", one, vary(retriever_weights=True)),
        Variant("missing_passages", one, vary(missing_rate=0.3)),
        Variant("distractors", one, vary(distractor_share=0.3)),
        Variant("label_noise", one, vary(label_noise=0.5)),
        Variant("anisotropic", one, vary(anisotropy=8.0)),
        Variant("low_rank", one, vary(outputs=4, rank=1)),
        Variant("shorter_context", one, task, vary(examples=max(1, examples // 2))),
        Variant("longer_context", one, task, vary(examples=2 * examples)),
        Variant("half_scale", one, task, vary(scale=0.5)),
        Variant("double_scale", one, task, vary(scale=2.0)),
        Variant("softmax", Architecture(kernel="softmax"), task),
        *(
            Variant(f"tempered_{t:g}", Architecture(kernel="tempered", temperature=t), task)
            for t in temperatures
        ),
        Variant("relu", Architecture(kernel="relu"), task),
        Variant("elu", Architecture(kernel="elu"), task),
        Variant("cosine", Architecture(kernel="cosine"), task),
        Variant("layer_norm", Architecture(layer_norm=True), task),
        Variant("gelu_features", Architecture(feature_gelu=True), task),
        Variant("softmax_block", Architecture(kernel="softmax", layer_norm=True, mlp=True), task),
    ]
    return {row.name: row for row in rows}
