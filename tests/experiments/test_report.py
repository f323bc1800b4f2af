import base64
import errno
import html.parser
import os

import pytest

from experiments.support.claims import Claim
from experiments.support.report import Section, write_report

PICTURE = b"\x89PNG stands in"
ACCOUNT = """# Title of its own

A paragraph with `code`, **weight** and <script>alert(1)</script> & more.
See [a link](http://example.org) and ![a picture](https://example.org/a.png).

## Part

- one
- two

| claim | holds |
| --- | --- |
| 1 < 2 | yes |
"""


class Reader(html.parser.HTMLParser):
    """Tags, their attributes and texts of a page; checks that each tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


@pytest.fixture
def section(tmp_path):
    figure = tmp_path / "curve.png"
    figure.write_bytes(PICTURE)
    claims = (Claim("a < b", "1 < 2", True), Claim("c", "d", False), Claim("e", "f", None))
    return Section("One & only", ACCOUNT, {'Error, "relative"': figure}, claims)


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_shows_claims_accounts_and_figures(tmp_path, section):
    page = tmp_path / "new" / "report.html"
    write_report(page, "Results <1>", [section, Section("Two", "Nothing.", {})])
    reader = read(page)
    assert reader.texts["h1"] == ["Results <1>"]
    assert reader.texts["h2"] == ["One & only", "Two"]
    assert reader.texts["h3"] == ["Part"]
    assert reader.texts["li"] == ["one", "two"]
    assert reader.texts["strong"] == ["weight"]
    assert reader.texts["code"] == ["code"]
    assert reader.texts["th"] == ["experiment", "claim", "measured", "holds", "claim", "holds"]
    assert {"a < b", "1 < 2", "yes", "no", "-"} <= set(reader.texts["td"])
    verdicts = [attrs["class"] for tag, attrs in reader.tags if tag == "td" and "class" in attrs]
    assert verdicts == ["yes", "no", "open"]
    assert reader.texts["figcaption"] == ['Error, "relative"']
    (image,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert image["src"] == "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    assert page.read_text().index("<table>") < page.read_text().index("<section>")


def test_the_page_stands_alone(tmp_path, section):
    page = tmp_path / "report.html"
    write_report(page, "Results", [section])
    reader = read(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "link", "iframe", "object"}
    targets = [
        value
        for _, attrs in reader.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "style")
    ]
    assert all(target.startswith(("data:image/png;base64,", "#section-")) for target in targets)
    text = page.read_text()
    assert 'href="http' not in text and 'src="http' not in text and "url(" not in text
    assert str(tmp_path) not in text
    assert "prefers-color-scheme: dark" in text


def test_no_address_where_the_accounts_have_none(tmp_path, section):
    page = tmp_path / "report.html"
    write_report(page, "Results", [Section("One", "Words.", section.figures, section.claims)])
    assert "http://" not in page.read_text() and "https://" not in page.read_text()


def test_same_report_same_bytes(tmp_path, section):
    for name in ("one", "two"):
        write_report(tmp_path / name, "Results", [section])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_without_claims_there_is_no_table(tmp_path):
    write_report(tmp_path / "report.html", "Results", [Section("One", "Words.", {})])
    assert "<table>" not in (tmp_path / "report.html").read_text()


def test_a_missing_figure_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        write_report(tmp_path / "page", "Results", [Section("One", "", {"a": tmp_path / "gone"})])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_page(tmp_path, section, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "page").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path / "page", "Results", [section])
    assert (tmp_path / "page").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"page", "curve.png"}
