"""One HTML page of many runs: what holds, and each run in words and figures.

The page stands alone: figures are within it, and it loads and runs nothing.
"""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import markdown_it

from experiments.support.claims import Claim
from icorag_jax.files import write_atomically

_STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --page: #fff; --line: #d5dbe1;
  --shade: #f3f5f7; --yes: #17703a; --no: #b3261e; --quiet: #66707a; }
@media (prefers-color-scheme: dark) { :root { --text: #dfe4e8; --page: #15191d; --line: #39424b;
  --shade: #1f252b; --yes: #6fd392; --no: #ff8a80; --quiet: #97a1ab; } }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
  background: var(--page); font: 1rem/1.55 system-ui, sans-serif; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2em 0 0.6em; }
h1 { margin-top: 0; }
a { color: inherit; }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.35em 0.8em; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { background: var(--shade); }
code { font: 0.9em ui-monospace, monospace; background: var(--shade); padding: 0.1em 0.3em;
  border-radius: 0.25em; }
pre { overflow-x: auto; background: var(--shade); padding: 0.8em; border-radius: 0.4em; }
figure { margin: 1.5em 0; }
img { max-width: 100%; background: #fff; border-radius: 0.4em; }
figcaption { color: var(--quiet); }
.yes { color: var(--yes); font-weight: 600; }
.no { color: var(--no); font-weight: 600; }
.open { color: var(--quiet); }
"""
_VERDICT_CLASSES = {True: "yes", False: "no", None: "open"}


@dataclasses.dataclass(frozen=True)
class Section:
    """What a report says about a run.

    Attributes:
        title: name of the experiment.
        account: the run in words, in Markdown; a title at its start gives way to `title`.
        figures: PNG files by caption.
        claims: the run's rows of the table on top.
    """

    title: str
    account: str
    figures: Mapping[str, Path]
    claims: Sequence[Claim] = ()


def write_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes a page with all claims on top, then each section.

    Raises:
        OSError: a figure cannot be read or the page not written; an old page stays as it was.
    """
    body = [f"<h1>{html.escape(title)}</h1>", _claims(sections)]
    body += [_section(index, section) for index, section in enumerate(sections)]
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )
    write_atomically(path, page.encode())


def _claims(sections: Sequence[Section]) -> str:
    rows = [
        f'<tr><td><a href="#section-{index}">{html.escape(section.title)}</a></td>'
        f"<td>{html.escape(claim.claim)}</td><td>{html.escape(claim.measured)}</td>"
        f'<td class="{_VERDICT_CLASSES[claim.holds]}">{claim.verdict}</td></tr>'
        for index, section in enumerate(sections)
        for claim in section.claims
    ]
    if not rows:
        return ""
    header = "<tr><th>experiment</th><th>claim</th><th>measured</th><th>holds</th></tr>"
    return "\n".join(
        ["<table>", f"<thead>{header}</thead>", "<tbody>", *rows, "</tbody>", "</table>"]
    )


def _section(index: int, section: Section) -> str:
    figures = [_figure(caption, path) for caption, path in section.figures.items()]
    heading = f'<h2 id="section-{index}">{html.escape(section.title)}</h2>'
    return "\n".join(["<section>", heading, _account(section.account), *figures, "</section>"])


def _account(markdown: str) -> str:
    """Markdown as HTML, one level of headings down; raw HTML, links and images stay text."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.disable(["link", "image", "autolink"]).parse(markdown)
    if tokens and tokens[0].tag == "h1":
        tokens = tokens[3:]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    return parser.renderer.render(tokens, parser.options, {})


def _figure(caption: str, path: Path) -> str:
    picture, caption = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
    source = f"data:image/png;base64,{picture}"
    return (
        f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
    )
