"""Scores and paired comparisons of methods against NumPy."""

import numpy as np
import pandas as pd
import pytest

from experiments.support import qa_report
from experiments.support.qa_tables import ALL, PAIRS, comparison_table, score_table


@pytest.fixture(scope="module")
def answers():
    """The updater is right where the shared interface is, and in two of ten more on one family."""
    rng = np.random.default_rng(0)
    rows = []
    for benchmark, count, gain in (("bridge", 300, 0.2), ("single_fact", 100, 0.0)):
        shared = rng.random(count) < 0.5
        updater = shared | (rng.random(count) < gain)
        for index in range(count):
            for method, right in (("shared", shared), ("updater", updater), ("frozen", shared)):
                score = float(right[index])
                rows.append((benchmark, f"{benchmark}/{index}", method, score, score))
    return pd.DataFrame(rows, columns=["benchmark", "id", "method", "exact_match", "f1"])


def test_scores_are_means_with_intervals_around_them(answers):
    table = score_table(answers, 2000, 0)
    of = answers[answers["method"] == "updater"]
    means = of.groupby("benchmark")["exact_match"].mean()
    chosen = table[(table["method"] == "updater") & (table["measure"] == "exact_match")]
    by = chosen.set_index("benchmark")
    for name, mean in means.items():
        assert by.loc[name, "mean"] == pytest.approx(mean)
        deviation = np.sqrt(mean * (1 - mean) / by.loc[name, "questions"])
        assert by.loc[name, "high"] - by.loc[name, "low"] == pytest.approx(
            2 * 1.96 * deviation, rel=0.15
        )
    # Every benchmark counts alike, however many questions it has.
    assert by.loc[ALL, "mean"] == pytest.approx(means.mean())
    assert by.loc[ALL, "questions"] == 400


def test_differences_are_paired_by_question(answers):
    shuffled = answers.sample(frac=1, random_state=1)
    tables = [
        comparison_table(rows, [("updater", "shared"), ("updater", "absent")], 2000, 0)
        for rows in (answers, shuffled)
    ]
    by = [table.set_index(["benchmark", "measure"]).sort_index() for table in tables]
    columns = ["difference", "questions"]
    pd.testing.assert_frame_equal(by[0][columns], by[1][columns])
    row = by[0].loc[("bridge", "exact_match")]
    wide = answers[answers["benchmark"] == "bridge"].pivot(
        index="id", columns="method", values="exact_match"
    )
    difference = wide["updater"] - wide["shared"]
    assert row["difference"] == pytest.approx(difference.mean())
    deviation = difference.std(ddof=0) / np.sqrt(len(difference))
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert row["p"] < 0.01
    # Nothing differs on the other family, and no draw can say which way.
    same = by[0].loc[("single_fact", "exact_match")]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_only_questions_that_both_answered_are_compared(answers):
    fewer = answers[(answers["method"] != "updater") | answers["id"].str.endswith("0")]
    table = comparison_table(fewer, [("updater", "shared")], 200, 0)
    counts = table[table["measure"] == "f1"].set_index("benchmark")["questions"]
    assert (counts["bridge"], counts["single_fact"], counts[ALL]) == (30, 10, 40)


def test_claims_say_what_holds(answers):
    compared = comparison_table(answers, [("updater", "shared"), ("updater", "frozen")], 2000, 0)
    summary = {"comparisons": compared.to_dict("records"), "update_cosines": {"median": 0.97}}
    verdicts = {claim.claim[:30]: claim.holds for claim in qa_report.claims(summary)}
    assert verdicts == {
        "The updater beats the shared i": True,
        "On single facts it does not be": True,
        "Updates of different questions": False,
    }


def test_a_method_alone_is_reported_without_comparisons(answers):
    alone = answers[answers["method"] == "frozen"]
    scores, compared = score_table(alone, 200, 0), comparison_table(alone, PAIRS, 200, 0)
    none = pd.DataFrame()
    summary = qa_report.summarize(scores, compared, none, none)
    assert (summary["comparisons"], summary["claims"]) == ([], [])
    assert "| bridge | " in qa_report.account(summary, scores, compared, None)
    assert list(qa_report.draw(scores, compared, none)) == ["scores"]
