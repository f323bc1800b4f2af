"""What every retriever refuses, and what it does where there is little to find."""

import dataclasses
import inspect

import numpy as np
import pytest
from tiny import make_corpus, make_encoder

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.faiss_index import Faiss
from icorag_jax.retrieval.hybrid import Fusion, Hybrid
from icorag_jax.retrieval.retriever import (
    Index,
    Retriever,
    check_corpus,
    check_search,
    corpus_fingerprint,
    passage_text,
)
from icorag_jax.retrieval.sentences import Sentences


def make_retriever(name: str, folder) -> Retriever:
    bm25, embedding = Bm25(cache=folder), Embedding(make_encoder(), cache=folder)
    return {
        "bm25": bm25,
        "dense": Dense(embedding),
        "faiss": Faiss(embedding),
        "sentences": Sentences(Dense(embedding)),
        "hybrid": Hybrid((bm25, Dense(embedding))),
    }[name]


@pytest.fixture(params=["bm25", "dense", "faiss", "sentences", "hybrid"])
def retriever(request, tmp_path) -> Retriever:
    return make_retriever(request.param, tmp_path)


@pytest.fixture(scope="module", params=["bm25", "dense", "faiss", "sentences", "hybrid"])
def index(request, tmp_path_factory) -> Index:
    """Of a corpus of seven."""
    folder = tmp_path_factory.mktemp("index")
    return make_retriever(request.param, folder).index(make_corpus(7))


class TestCorpus:
    def test_empty(self, retriever):
        with pytest.raises(ValueError, match="the corpus has no passages"):
            retriever.index([])

    def test_double_ids(self, retriever):
        corpus = make_corpus(3)
        corpus.append(dataclasses.replace(corpus[1], text="other"))
        with pytest.raises(ValueError, match=r"share an id: 'p1'"):
            retriever.index(corpus)

    def test_neither_title_nor_text(self, retriever):
        corpus = [*make_corpus(2), CorpusPassage("blank", " ", "\n")]
        with pytest.raises(ValueError, match=r"neither title nor text: 'blank'; leave them out"):
            retriever.index(corpus)

    def test_a_title_alone_is_found(self, retriever):
        corpus = [CorpusPassage("a", "beta", ""), CorpusPassage("b", "", "beta gamma")]
        ids, _ = retriever.index(corpus).search(["beta"], 2)
        assert sorted(ids[0]) == [0, 1]

    def test_the_message_has_the_first_ids(self):
        corpus = [CorpusPassage(str(i), "", "") for i in range(5)]
        with pytest.raises(ValueError, match=r"'0', '1', '2' and 2 more"):
            check_corpus(corpus)


class TestFingerprint:
    def test_goes_by_the_corpus(self, retriever):
        found = {retriever.fingerprint(make_corpus(size)) for size in (2, 3)}
        assert len(found) == 2 and retriever.fingerprint(make_corpus(3)) in found

    def test_goes_by_all_that_the_hybrid_is(self, tmp_path):
        bm25, dense = (make_retriever(name, tmp_path) for name in ("bm25", "dense"))
        hybrids = [
            Hybrid((bm25, dense)),
            Hybrid((bm25,)),
            Hybrid((Bm25(k1=2.0), dense)),
            Hybrid((bm25, dense), Fusion(depth=7)),
        ]
        corpus = make_corpus(3)
        assert len({each.fingerprint(corpus) for each in hybrids}) == len(hybrids)
        # Rankings are fused alike in whichever order.
        assert Hybrid((dense, bm25)).fingerprint(corpus) == hybrids[0].fingerprint(corpus)

    def test_goes_by_how_faiss_searches(self, tmp_path):
        faiss = make_retriever("faiss", tmp_path)
        other = dataclasses.replace(faiss, search_parameters="nprobe=2")
        assert faiss.fingerprint(make_corpus(3)) != other.fingerprint(make_corpus(3))


class TestSearch:
    def test_more_than_the_corpus_has(self, index):
        ids, scores = index.search(["alpha beta gamma delta epsilon zeta eta theta"], 10)
        assert ids.dtype == np.int32 and scores.dtype == np.float32
        assert sorted(ids[0, :7]) == list(range(7))
        np.testing.assert_array_equal(ids[0, 7:], [-1] * 3)
        np.testing.assert_array_equal(scores[0, 7:], [-np.inf] * 3)
        assert (np.diff(scores[0, :7]) <= 0).all() and np.isfinite(scores[0, :7]).all()

    @pytest.mark.parametrize("query", ["", "  \n"])
    def test_an_empty_query_finds_nothing(self, index, query):
        both, alone = index.search([query, "alpha"], 3), index.search(["alpha"], 3)
        np.testing.assert_array_equal(both.ids[0], [-1] * 3)
        np.testing.assert_array_equal(both.scores[0], [-np.inf] * 3)
        np.testing.assert_array_equal(both.ids[1], alone.ids[0])

    def test_no_queries(self, index):
        ids, scores = index.search([], 4)
        assert ids.shape == scores.shape == (0, 4)

    def test_a_batch_is_each_query_alone(self, index):
        queries = ["alpha", "beta gamma", "theta alpha alpha", "eta"]
        together = index.search(queries, 5)
        for row, query in enumerate(queries):
            alone = index.search([query], 5)
            np.testing.assert_array_equal(alone.ids[0], together.ids[row])
            np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)

    def test_the_same_again(self, index):
        first, again = (index.search(["alpha beta", "eta"], 7) for _ in range(2))
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_bad_k(self, index):
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            index.search(["alpha"], 0)

    def test_size_is_known(self, index):
        assert index.size_bytes > 0


def test_one_string_is_not_queries():
    with pytest.raises(TypeError, match=r"one string.*pass \['what is it'\]"):
        inspect.unwrap(check_search)("what is it", 3)


def test_text_of_a_passage():
    assert passage_text(CorpusPassage("0", " Rome ", "A city.\n")) == "Rome. A city."
    assert passage_text(CorpusPassage("0", "", "A city.")) == "A city."
    assert passage_text(CorpusPassage("0", "Rome", " ")) == "Rome"


def test_fingerprint_tells_fields_apart():
    variants = [
        [CorpusPassage("1", "a", "bc")],
        [CorpusPassage("1", "ab", "c")],
        [CorpusPassage("1a", "b", "c")],
        [CorpusPassage("1", "a", "bc"), CorpusPassage("2", "", "")],
        [CorpusPassage("2", "", ""), CorpusPassage("1", "a", "bc")],
    ]
    assert len({corpus_fingerprint(corpus) for corpus in variants}) == len(variants)
    assert corpus_fingerprint(variants[0]) == corpus_fingerprint(list(variants[0]))
