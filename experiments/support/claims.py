"""Claims of the paper beside what a run measured, as a table."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterable

_HEADER = ("claim", "measured", "holds")
# With two spaces between columns a line has 100 characters at most.
_WIDTHS = (44, 47, 5)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A row of the claims table.

    Attributes:
        claim: what should be.
        measured: what was found.
        holds: whether the one agrees with the other; None where nothing was to hold.
    """

    claim: str
    measured: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """`yes`, `no` or `-`."""
        return {True: "yes", False: "no", None: "-"}[self.holds]


def claims_table(claims: Iterable[Claim]) -> str:
    """A table in plain text, at most 100 columns wide, without a newline at its end."""
    rule = tuple("-" * width for width in _WIDTHS)
    rows = [_HEADER, rule, *((row.claim, row.measured, row.verdict) for row in claims)]
    return "\n".join(line for row in rows for line in _lines(row))


def claims_markdown(claims: Iterable[Claim]) -> str:
    """A table in Markdown, without a newline at its end."""
    rows = [_HEADER, ("---",) * 3, *((row.claim, row.measured, row.verdict) for row in claims)]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows)


def _lines(row: tuple[str, ...]) -> Iterable[str]:
    """A row's lines; those after a cell's first are indented, which tells rows apart."""
    cells = [
        textwrap.wrap(text, width, subsequent_indent="  ")
        for text, width in zip(row, _WIDTHS, strict=True)
    ]
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True))
        yield "  ".join(padded).rstrip()


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
