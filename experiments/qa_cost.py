"""What a query costs: frozen RAG, the shared interface, the updater, and test-time adaptation.

From evidence and question to an answer of a fixed number of tokens, one query at a time: operations
of the compiled program, wall time (methods in turn, so that they share conditions), memory, and the
time to compile apart. Values of parameters play no part, so nothing is trained.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

from experiments.support import qa_cost_report
from experiments.support.command import run_command
from experiments.support.qa_data import QaData, load_questions
from experiments.support.qa_settings import QaMethods
from experiments.support.qa_training import Subject
from experiments.support.run_folder import open_run
from icorag_jax.backbones.loading import load_backbone
from icorag_jax.lm.decoder import unstack_layers
from icorag_jax.rag.adaptation import AdaptationConfig
from icorag_jax.rag.answering import answer_adapted, answer_batch, prepare
from icorag_jax.rag.batches import Batch
from icorag_jax.rag.cost import ProgramCost, compile_program, wall_seconds
from icorag_jax.rag.method import init_method


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
        out: folder to write.
        resume: go on with the run that the folder holds.
        backbone: name of a shipped one, a folder, or a hub id.
        dtype: of parameters and compute.
        repeats: queries that are timed.
        timed_steps: numbers of steps of test-time adaptation that are timed.
        cache: folder of indexes and searches; by default one in the run's own.
        questions: which questions are asked.
        use: settings of the methods.
    """

    out: Path
    resume: bool = False
    backbone: str = "qwen3"
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 100
    timed_steps: tuple[int, ...] = (1, 3, 5, 10)
    cache: Path | None = None
    questions: Annotated[QaData, tyro.conf.arg(name="")] = QaData(  # noqa: RUF009
        train_questions=0, evaluation_questions=10
    )
    use: Annotated[QaMethods, tyro.conf.arg(name="")] = QaMethods()  # noqa: RUF009


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"repeats": 30},
    # Programs take longer to compile than to run.
    "glance": {"repeats": 150, "timed_steps": (1, 5)},
    "paper": {},
}


def main(config: Config) -> None:
    """Runs the measurement and writes its folder.

    Raises:
        ValueError: settings, data or a backbone that are not right.
        RunFolderError: as `open_run`.
    """
    backbone = load_backbone(config.backbone, jnp.dtype(config.dtype))
    subject = Subject(backbone, config.use, config.questions.passages)
    with open_run(config.out, "qa_cost", config, resume=config.resume) as run:
        sets = load_questions(config.questions, config.cache or run.path / "cache")
        asked = [question for part in sets.evaluation.values() for question in part]
        batches = [subject.batch([question], answers=False) for question in asked]
        table = run.cell("costs", lambda: measure(config, subject, batches))
        run.write_table("costs", table)
        for name, figure in qa_cost_report.draw(table).items():
            run.write_figure(name, figure)
        summary = qa_cost_report.summarize(table)
        run.write_account(qa_cost_report.account(summary))
        run.write_summary(summary)
        print(table.to_string(index=False))


def measure(config: Config, subject: Subject, batches: list[Batch]) -> pd.DataFrame:
    """Costs of each method.

    Returns:
        `method`, `flops`, `p50_ms`, `p95_ms`, `memory_mb`, `compile_s`; all but the last two are of
        a query.
    """
    # Answers end where there is no more room, so that all methods generate as many tokens.
    decoder = dataclasses.replace(subject.backbone.model.config, eos_token_ids=())
    # No loop over layers, whose body would be counted once.
    parameters = unstack_layers(subject.backbone.model.parameters)
    sizes = {"layer": subject.layer, "answer_tokens": config.use.answer_tokens}
    # One step among them, whose operations are counted whole.
    tried = tuple(dict.fromkeys((1, *config.timed_steps)))
    programs: dict[str, tuple[Callable[..., Any], Any]] = {}

    def answer(kind: Any, parameters: Any, method_parameters: Any, batch: Batch) -> Any:
        return answer_batch(decoder, parameters, batch, kind, method_parameters, **sizes)

    def adapted(
        adaptation: AdaptationConfig, method: Any, parameters: Any, method_parameters: Any,
        batch: Batch,
    ) -> Any:  # fmt: skip
        prepared = prepare(decoder, parameters, batch, **sizes)
        return answer_adapted(
            decoder, parameters, prepared, None, method, method_parameters, adaptation, **sizes
        )

    programs["frozen"] = functools.partial(answer, None), None
    for kind in ("shared", "updater"):
        method = subject.settings.method_config(kind, decoder, subject.passages)
        learned = init_method(method, decoder, jax.random.key(0))
        programs[kind] = functools.partial(answer, method), learned
        if kind == "shared":
            for steps in tried:
                adaptation = AdaptationConfig("question", "sgd", steps, 0.1)
                run = functools.partial(adapted, adaptation, method)
                programs[f"tta_{steps}"] = run, learned
    compiled: dict[str, Callable[[int], Any]] = {}
    costs: dict[str, ProgramCost] = {}
    for name, (function, learned) in tqdm(programs.items(), unit="program", desc="compile"):
        program, costs[name] = compile_program(function, parameters, learned, batches[0])

        def call(repeat: int, program=program, learned=learned) -> Any:
            return program(parameters, learned, batches[repeat % len(batches)])

        compiled[name] = call
    times = wall_seconds(compiled, config.repeats)
    rows = []
    for name in ("frozen", "shared", "updater", *(f"tta_{s}" for s in tried)):
        cost = costs[name]
        flops = cost.flops
        if name.startswith("tta_"):
            # Of a loop of several steps the compiler counts one, and what a loop adds to it.
            steps = int(name.removeprefix("tta_"))
            shared = costs["shared"].flops
            flops = shared + steps * (costs["tta_1"].flops - shared)
        rows.append(
            {
                "method": name,
                "flops": flops,
                "p50_ms": 1e3 * float(np.quantile(times[name], 0.5)),
                "p95_ms": 1e3 * float(np.quantile(times[name], 0.95)),
                "memory_mb": cost.memory_bytes / 1e6,
                "compile_s": cost.compile_seconds,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_command(main, Config, PRESETS)
