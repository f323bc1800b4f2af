import dataclasses

import numpy as np
import pytest

from experiments.support.claims import Claim, claims_markdown, claims_table

SHORT = Claim("k layers are k steps", "error at most 1e-12", True)
LONG = Claim("A claim of many words " * 6, "something | measured\nat length " * 5, False)
UNBROKEN = Claim("x" * 130, "y" * 130, None)


@pytest.mark.parametrize(
    ("holds", "verdict"), [(True, "yes"), (False, "no"), (None, "-"), (np.bool_(True), "yes")]
)
def test_verdicts(holds, verdict):
    assert Claim("a", "b", holds).verdict == verdict


def test_a_claim_is_a_row_of_a_summary():
    assert dataclasses.asdict(SHORT) == {
        "claim": "k layers are k steps",
        "measured": "error at most 1e-12",
        "holds": True,
    }


def test_table_fits_and_loses_nothing():
    shown = claims_table([SHORT, LONG, UNBROKEN])
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert lines[0].split() == ["claim", "measured", "holds"]
    assert lines[2].split("  ")[0] == SHORT.claim and lines[2].endswith("yes")
    assert [line.split()[-1] for line in lines[2:] if line.split()[-1] in ("yes", "no", "-")] == [
        *("yes", "no", "-"),
    ]
    assert shown.count("words") == 6 and shown.count("measured") == 1 + 5
    assert shown.count("x") == 130 and shown.count("y" * 45) == 2


def test_empty_tables():
    assert len(claims_table([]).splitlines()) == 2
    assert claims_markdown([]) == "| claim | measured | holds |\n| --- | --- | --- |"


def test_markdown_keeps_its_columns():
    lines = claims_markdown([SHORT, LONG]).splitlines()
    assert lines[2] == "| k layers are k steps | error at most 1e-12 | yes |"
    assert len(lines) == 4
    assert lines[3].replace("\\|", "").count("|") == 4
