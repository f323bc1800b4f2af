"""What a comparison looks like: a table for the terminal, and a figure."""

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from icorag_jax.answer.asking import Comparison, Reply

_BAR = 12  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_BEFORE, _AFTER = "#0072B2", "#D55E00"  # of Okabe and Ito
_TITLE = 36  # characters of a passage beside its bars in a figure


def replies(comparison: Comparison) -> list[tuple[str, Reply]]:
    """The replies there are, each under its name."""
    found = [("frozen", comparison.frozen)]
    if comparison.updated is not None:
        found.append(("updated", comparison.updated))
    return found


def answer_lines(comparison: Comparison) -> Text:
    """The question and its answers, a line each."""
    lines = Text()
    rows = [("question", printable(comparison.question))]
    rows += [(name, printable(reply.answer) or "(nothing)") for name, reply in replies(comparison)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        lines.append(f"{name:{width}}  ", style="bold")
        lines.append(f"{text}\n")
    return lines


def weight_table(comparison: Comparison, *, ascii_only: bool) -> Table:
    """A passage a line: rank, title if any has one, start of its text, and its weights as bars.

    Args:
        comparison: what is shown.
        ascii_only: draw bars of number signs.
    """
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    titled = any(passage.title for passage in comparison.passages)
    for name, ratio in [("title", 2), ("text", 3)] if titled else [("text", 3)]:
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=ratio)
    shown = replies(comparison)
    for name, _ in shown:
        table.add_column(f"weight, {name}", no_wrap=True, min_width=_BAR + 6)
    largest = max(float(reply.weights.max()) for _, reply in shown)
    for index, passage in enumerate(comparison.passages):
        texts = [passage.title, passage.text] if titled else [passage.text]
        cells = [Text(str(index + 1)), *(Text(printable(text)) for text in texts)]
        for (_, reply), colour in zip(shown, (_BEFORE, _AFTER), strict=False):
            weight = float(reply.weights[index])
            bar = draw_bar(weight / largest if largest else 0.0, _BAR, ascii_only=ascii_only)
            cells.append(Text(f"{weight:5.1%} ").append(bar, style=colour))
        table.add_row(*cells)
    return table


def printable(text: str) -> str:
    """A text on one line, with nothing that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def draw_bar(share: float, width: int, *, ascii_only: bool) -> str:
    """A bar of characters, as long as a share of the width.

    Args:
        share: in [0, 1].
        width: characters of a whole bar.
        ascii_only: number signs alone, for terminals without block characters.
    """
    if ascii_only:
        return "#" * round(share * width)
    whole, rest = divmod(round(share * width * 8), 8)
    return ("█" * whole + _EIGHTHS[rest]).rstrip(" ")


def weight_figure(comparison: Comparison) -> Figure:
    """Weights of the passages as horizontal bars, before and after the update."""
    shown = replies(comparison)
    count = len(comparison.passages)
    figure = Figure(figsize=(8, 1.6 + 0.42 * count), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(shown)
    for index, ((name, reply), colour) in enumerate(zip(shown, (_BEFORE, _AFTER), strict=False)):
        places = np.arange(count) + height * (index - (len(shown) - 1) / 2)
        label = f"{name}: {printable(reply.answer)}"
        axes.barh(places, reply.weights, height, color=colour, label=label)
    axes.set_yticks(range(count), _labels(comparison), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of the attention to evidence")
    axes.set_title(printable(comparison.question), fontsize="medium", wrap=True, parse_math=False)
    legend = figure.legend(frameon=False, loc="outside lower left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _labels(comparison: Comparison) -> list[str]:
    labels = []
    for number, passage in enumerate(comparison.passages, start=1):
        text = printable(passage.title or passage.text)
        short = text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"
        labels.append(f"{number}. {short}")
    return labels
