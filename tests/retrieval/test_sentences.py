"""Retrieval by sentences against the definition: the best sentence of each passage."""

import numpy as np
import pytest
from tiny import WORDS, make_encoder

from icorag_jax.data.records import CorpusPassage
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.encoder import embed
from icorag_jax.retrieval.retriever import passage_text
from icorag_jax.retrieval.sentences import Sentences, split_passages

QUERIES = ["alpha beta", "gamma", "theta eta zeta", "delta delta", "beta"]


def make_corpus(counts: list[int], seed: int = 0) -> list[CorpusPassage]:
    """Passages of so many sentences of one to four words each."""
    rng = np.random.default_rng(seed)
    sentence = lambda: " ".join(rng.choice(WORDS[:8], rng.integers(1, 5))) + "."  # noqa: E731
    return [
        CorpusPassage(f"p{i}", WORDS[i % 8], " ".join(sentence() for _ in range(count)))
        for i, count in enumerate(counts)
    ]


def test_a_passage_is_split_where_sentences_end():
    corpus = [
        CorpusPassage("a", "Rome", "It lies on the Tiber. Is it old?  Yes!\nv1.2 came later."),
        CorpusPassage("a/0", "Paris", ""),
        CorpusPassage("b", "", " alone "),
    ]
    sentences, passage_of = split_passages(corpus)
    assert [passage.text for passage in sentences] == [
        "It lies on the Tiber.", "Is it old?", "Yes!", "v1.2 came later.", "", "alone",
    ]  # fmt: skip
    assert [passage.title for passage in sentences] == ["Rome"] * 4 + ["Paris", ""]
    assert passage_of.tolist() == [0, 0, 0, 0, 1, 2]
    assert len({passage.id for passage in sentences}) == len(sentences)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("counts", [[1, 2, 3, 4, 5, 6, 7, 8], [1, 40, 1, 1, 2, 1, 1, 3]])
def test_the_best_sentence_of_each_passage(counts, k):
    """A passage with most of the sentences does not keep the others out."""
    corpus = make_corpus(counts)
    sentences, passage_of = split_passages(corpus)
    encoder = make_encoder()
    vectors = embed(encoder, [passage_text(each) for each in sentences], batch_size=8)
    products = embed(encoder, QUERIES, batch_size=8) @ vectors.T
    expected = np.stack(
        [products[:, passage_of == place].max(axis=1) for place in range(len(corpus))], axis=1
    )
    index = Sentences(Dense(Embedding(encoder, batch_size=8))).index(corpus)
    ids, scores = index.search(QUERIES, k)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, axis=1), scores, atol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())
    assert index.computed == sum(counts)


def test_a_sentence_is_found_that_its_passage_hides():
    """A short passage has all words of the question, but says no one thing of them."""
    filler = " ".join(f"{word} {word} {word}." for word in WORDS[2:8] * 3)
    corpus = [
        CorpusPassage("long", "", f"alpha beta. {filler}"),
        CorpusPassage("short", "", "alpha gamma. beta delta."),
    ]
    whole, by_sentences = (each.index(corpus) for each in (Bm25(), Sentences(Bm25())))
    assert whole.search(["alpha beta"], 1).ids.tolist() == [[1]]
    assert by_sentences.search(["alpha beta"], 1).ids.tolist() == [[0]]


def test_equal_scores_come_in_the_order_of_the_corpus():
    corpus = [CorpusPassage(f"p{i}", "", f"{WORDS[i]}. alpha.") for i in range(1, 6)]
    ids, scores = Sentences(Bm25()).index(corpus).search(["alpha"], 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and len(set(scores[0].tolist())) == 1


def test_it_is_another_retriever_than_that_of_passages():
    corpus = make_corpus([1, 1, 1])
    assert Sentences(Bm25()).fingerprint(corpus) != Bm25().fingerprint(corpus)
    # Which sentences are of which passage is told apart, too.
    one, two = (
        [CorpusPassage(name, "", text) for name, text in texts]
        for texts in ([("a", "alpha. beta.")], [("a", "alpha."), ("b", "beta.")])
    )
    assert Sentences(Bm25()).fingerprint(one) != Sentences(Bm25()).fingerprint(two)
