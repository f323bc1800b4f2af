"""Answers a question from passages: by a frozen model as it is, and by the model with its update.

Passages come from a file, or are searched for in a corpus. Each is shown with its weight: the share
of the model's attention to evidence that goes to it where the answer begins.
"""

import dataclasses
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from icorag_jax.answer.asking import Comparison, ask, in_order, search
from icorag_jax.answer.views import answer_lines, weight_figure, weight_table
from icorag_jax.backbones.loading import Backbone, find_method, load_backbone
from icorag_jax.data.passages import read_passages
from icorag_jax.files import write_atomically
from icorag_jax.rag.storage import StoredMethod, load_method
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.encoder import find_default_encoder, load_encoder
from icorag_jax.retrieval.retrieved import RetrievedQuestion
from icorag_jax.retrieval.retriever import Retriever
from icorag_jax.retrieval.sentences import Sentences

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_HOW_TO_TRAIN = (
    "no updater is known for this backbone, so the frozen model answers alone; "
    "colabs/train_an_updater.ipynb trains one, to be passed with --method"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the command.

    Attributes:
        question: the question.
        passages: file of the passages to answer from, the best first: .jsonl or .jsonl.gz, a line
            with "text" and, if it has one, "title"; or .txt, a paragraph or else a line a passage.
            Either this or a corpus.
        corpus: file of passages to search, of the same kinds.
        backbone: name of a shipped backbone, or a folder in the Hugging Face form, or a hub id.
        method: folder of a method that was trained for the backbone; the updater that is shipped
            for it if not given.
        new_tasks: whether the question is unlike those that the updater was trained on; it then
            keeps to what it knows of any (`docs/method.md`, *On new tasks*).
        retriever: how a corpus is searched: by words (bm25), or by meaning, that of passages as a
            whole (dense) or of their best sentences.
        top: passages to search for.
        plot: file for a figure of the weights, as .png, .svg or .pdf.
        dtype: of the backbone's parameters and compute.
    """

    question: tyro.conf.Positional[str]
    passages: Path | None = None
    corpus: Path | None = None
    backbone: str = "qwen3"
    method: Path | None = None
    new_tasks: bool = False
    retriever: Literal["bm25", "dense", "sentences"] = "bm25"
    top: int = 10
    plot: Path | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


def answer(config: Config) -> tuple[Comparison, bool]:
    """The answers, and whether a method was there.

    Raises:
        ValueError: settings, files or a method that will not do; the message says what to do.
        OSError: a file cannot be read.
    """
    _check(config)
    with _status("reading the passages"):
        asked = _passages(config)
    with _status(f"reading {config.backbone}"):
        backbone = load_backbone(config.backbone, _DTYPES[config.dtype])
        method = _method(config, backbone)
    with _status("answering"), jax.default_matmul_precision("float32"):
        return ask(backbone, method, asked), method is not None


def show(comparison: Comparison) -> None:
    """Prints question, answers, passages and notes."""
    console = Console(highlight=False)
    console.print(answer_lines(comparison), soft_wrap=True)
    console.print(weight_table(comparison, ascii_only=console.options.ascii_only))
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: the command line's words, those of this process if None.

    Raises:
        SystemExit: with 2 and a line on standard error for what will not do, with 130 when
            interrupted, with 0 after `--help`.
    """
    # What a terminal cannot show is shown as a question mark.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        config = tyro.cli(
            Config, prog="python -m icorag_jax.answer", description=__doc__, args=args
        )
        comparison, has_method = answer(config)
        show(comparison)
        if not has_method:
            print(f"note: {_HOW_TO_TRAIN}")
        if config.plot is not None:
            write_figure(config.plot, weight_figure(comparison))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure whole or not at all, in the form that the path's ending names.

    Raises:
        OSError: the file cannot be written.
    """
    data = io.BytesIO()
    with warnings.catch_warnings():
        # What the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(data, format=path.suffix[1:], dpi=150)
    write_atomically(path, data.getvalue())


def _check(config: Config) -> None:
    """Checks what can be checked before anything is read."""
    if not config.question.strip():
        raise ValueError("the question is empty")
    if (config.passages is None) == (config.corpus is None):
        raise ValueError("pass --passages FILE or --corpus FILE, one of them")
    if config.top < 1:
        raise ValueError(f"--top must be at least 1, got {config.top}")
    if config.plot is not None and config.plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot must end in .png, .svg or .pdf, got {config.plot}")


def _passages(config: Config) -> RetrievedQuestion:
    if config.passages is not None:
        return in_order(read_passages(config.passages), config.question)
    assert config.corpus is not None  # _check
    corpus = read_passages(config.corpus)
    return search(_retriever(config), corpus, config.question, config.top)


def _retriever(config: Config) -> Retriever:
    if config.retriever == "bm25":
        return Bm25()
    dense = Dense(Embedding(load_encoder(find_default_encoder())))
    return Sentences(dense) if config.retriever == "sentences" else dense


def _method(config: Config, backbone: Backbone) -> StoredMethod | None:
    folder = config.method or find_method(backbone)
    if folder is None:
        return None
    stored = load_method(folder, backbone.model.config, backbone.fingerprint)
    return stored.for_new_tasks() if config.new_tasks else stored


@contextmanager
def _status(text: str) -> Iterator[None]:
    """Says on a terminal's standard error what takes time, for as long as it does."""
    with Console(stderr=True).status(f"{text} ..."):
        yield


if __name__ == "__main__":
    main()
