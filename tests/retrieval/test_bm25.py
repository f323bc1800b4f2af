"""BM25 against its formula in NumPy, its words, and its cache."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import WORDS, make_corpus

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval import bm25 as bm25_module
from icorag_jax.retrieval.bm25 import Bm25


def formula(corpus, query: list[str], settings: Bm25) -> np.ndarray:
    """Scores of all passages; a word of the query counts as often as it is there."""
    words = [(f"{p.title} " * settings.title_weight + p.text).split() for p in corpus]
    mean = np.mean([len(part) for part in words])
    scores = np.zeros(len(corpus))
    for word in query:
        frequency = sum(word in part for part in words)
        idf = math.log(1 + (len(corpus) - frequency + 0.5) / (frequency + 0.5))
        for i, part in enumerate(words):
            count = part.count(word)
            length = 1 - settings.b + settings.b * len(part) / mean
            scores[i] += idf * count / (count + settings.k1 * length)
    return scores


@given(
    seed=st.integers(0, 5),
    count=st.integers(1, 12),
    query=st.lists(st.sampled_from(WORDS[:8]), min_size=1, max_size=5),
    k1=st.sampled_from([0.5, 1.2]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
    title_weight=st.integers(1, 3),
)
def test_scores_are_those_of_the_formula(seed, count, query, k1, b, title_weight):
    settings = Bm25(k1, b, title_weight, stop_words=None, stemming=None)
    corpus = make_corpus(count, seed)
    ids, scores = settings.index(corpus).search([" ".join(query)], count)
    expected = formula(corpus, query, settings)
    found = ids[0][ids[0] >= 0]
    assert sorted(found) == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(scores[0, : len(found)], expected[found], rtol=1e-4)
    assert (np.diff(scores[0, : len(found)]) <= 0).all()


def test_equal_passages_come_in_their_order():
    corpus = [
        CorpusPassage(str(i), "", text) for i, text in enumerate(["bb", "aa", "aa cc", "aa", "aa"])
    ]
    ids, scores = Bm25().index(corpus).search(["aa"], 3)
    np.testing.assert_array_equal(ids, [[1, 3, 4]])
    assert len(set(scores[0].tolist())) == 1


RIVERS = [
    CorpusPassage("0", "The Rivers", "They are running to the sea."),
    CorpusPassage("1", "Mountains", "A mountain is not a river; it was there."),
]


class TestWords:
    def test_stop_words_alone(self):
        left_out = Bm25(stop_words="english").index(RIVERS)
        np.testing.assert_array_equal(left_out.search(["to be or not to the"], 2).ids, [[-1, -1]])
        counted = Bm25(stop_words=None).index(RIVERS)
        np.testing.assert_array_equal(counted.search(["not"], 2).ids, [[1, -1]])

    def test_words_that_the_corpus_has_not(self):
        for settings in (Bm25(), Bm25(stop_words="english")):
            ids, scores = settings.index(RIVERS).search(["volcano", "volcano sea"], 1)
            np.testing.assert_array_equal(ids, [[-1], [0]])
            assert scores[0, 0] == -np.inf

    def test_stemming(self):
        stemmed, plain = (Bm25(stemming=s).index(RIVERS) for s in ("english", None))
        assert stemmed.search(["run"], 1).ids[0, 0] == 0
        assert plain.search(["run"], 1).ids[0, 0] == -1

    def test_titles_count_as_often_as_asked(self):
        once, thrice = (Bm25(title_weight=w).tokenize for w in (1, 3))
        assert once(["x"]) == thrice(["x"])  # a query is no title
        found = [Bm25(title_weight=w).index(RIVERS).search(["river"], 2) for w in (1, 3)]
        assert found[1].scores[0, 0] > found[0].scores[0, 0]

    def test_a_corpus_of_stop_words(self):
        corpus = [CorpusPassage("0", "", "It is the")]
        with pytest.raises(ValueError, match="no passage of the corpus has a word that counts"):
            Bm25(stop_words="english").index(corpus)


@pytest.mark.parametrize("change", [{"k1": 0.0}, {"b": -0.1}, {"b": 1.1}, {"title_weight": 0}])
def test_bad_settings(change):
    with pytest.raises(ValueError, match="k1 must be above 0"):
        Bm25(**change)


class TestCache:
    @pytest.fixture
    def counts(self, monkeypatch):
        """How often a corpus was counted."""
        calls = collections.Counter()
        original = Bm25._count

        def spy(self, corpus):
            calls["count"] += 1
            return original(self, corpus)

        monkeypatch.setattr(bm25_module.Bm25, "_count", spy)
        return calls

    def test_found_again(self, tmp_path, counts):
        corpus, settings = make_corpus(20), Bm25(cache=tmp_path)
        first, again = settings.index(corpus), settings.index(corpus)
        fresh = Bm25().index(corpus)
        assert counts["count"] == 2  # the first, and the one without a cache
        for index in (first, again):
            for found, expected in zip(
                index.search(["alpha beta"], 9), fresh.search(["alpha beta"], 9), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
        assert first.size_bytes == again.size_bytes == fresh.size_bytes

    def test_other_settings_corpus_or_format_have_a_place_of_their_own(
        self, tmp_path, counts, monkeypatch
    ):
        corpus = make_corpus(20)
        changes = [{}, {"k1": 2.0}, {"b": 0.1}, {"title_weight": 1}, {"stemming": None}]
        for change in changes:
            Bm25(cache=tmp_path, **change).index(corpus)
        Bm25(cache=tmp_path).index(corpus[::-1])
        monkeypatch.setattr(bm25_module, "_FORMAT", 0)
        Bm25(cache=tmp_path).index(corpus)
        assert counts["count"] == len(list(tmp_path.iterdir())) == len(changes) + 2

    @pytest.mark.parametrize(
        "name", ["data.npy", "indices.npy", "indptr.npy", "vocabulary.json", "data.npy.sha256"]
    )
    @pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
    def test_a_damaged_file_is_built_anew(self, tmp_path, counts, name, damage):
        corpus, settings = make_corpus(20), Bm25(cache=tmp_path)
        expected = settings.index(corpus).search(["alpha beta"], 9)
        (path,) = tmp_path.glob(f"*/{name}")
        data = bytearray(path.read_bytes())
        if damage == "delete":
            path.unlink()
        else:
            data[-2] ^= 1
            path.write_bytes(data if damage == "flip" else data[:-3])
        found = settings.index(corpus).search(["alpha beta"], 9)
        assert counts["count"] == 2
        np.testing.assert_array_equal(found.ids, expected.ids)
        settings.index(corpus)
        assert counts["count"] == 2
