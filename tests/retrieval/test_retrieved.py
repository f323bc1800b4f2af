"""Questions with what was found for them: pairs, batches, empty places, gold and positive ones."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import WORDS, make_corpus, make_encoder

from icorag_jax.data.records import CorpusPassage, Passage, Question
from icorag_jax.data.world import WorldConfig, corpus_of, generate_questions
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.retrieved import RetrievedQuestion, pair, retrieve
from icorag_jax.retrieval.retriever import MISSING, SearchResults

CORPUS = make_corpus(9)


def make_questions(texts: list[str]) -> list[Question]:
    return [Question(f"q{i}", text, ("alpha",), ()) for i, text in enumerate(texts)]


@dataclasses.dataclass
class TableIndex:
    """Finds what a table has for a query, and notes how many queries came at once."""

    table: dict[str, list[int]]
    size_bytes: int = 0
    computed: int = 0
    asked: list[int] = dataclasses.field(default_factory=list)

    def search(self, queries, k) -> SearchResults:
        self.asked.append(len(queries))
        ids = np.full((len(queries), k), MISSING, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(queries):
            found = self.table[query][:k]
            ids[row, : len(found)] = found
            scores[row, : len(found)] = -np.arange(len(found)) / 2 - len(query)
        return SearchResults(ids, scores)


class TestRetrieve:
    @given(
        st.lists(st.lists(st.integers(0, 8), unique=True, max_size=6), max_size=9),
        st.integers(1, 7),
        st.integers(1, 5),
    )
    def test_what_the_index_finds(self, found, k, batch_size):
        questions = make_questions(["x" * i for i in range(len(found))])
        table = {question.question: ids for question, ids in zip(questions, found, strict=True)}
        index = TableIndex(table)
        retrieved = retrieve(index, CORPUS, questions, k, batch_size)
        assert [each.question for each in retrieved] == questions
        for place, (each, ids) in enumerate(zip(retrieved, found, strict=True)):
            assert each.passages == tuple(CORPUS[i] for i in ids[:k])
            assert each.scores == tuple(-i / 2 - place for i in range(len(ids[:k])))
        assert sum(index.asked) == len(found) and max(index.asked) <= batch_size

    @pytest.mark.parametrize("retriever", ["bm25", "dense"])
    @pytest.mark.parametrize("batch_size", [2, 10])
    def test_retrievers(self, retriever, batch_size):
        settings = Bm25() if retriever == "bm25" else Dense(Embedding(make_encoder()))
        index = settings.index(CORPUS)
        questions = make_questions([*WORDS[:4], " ", "alpha beta"])
        retrieved = retrieve(index, CORPUS, questions, 20, batch_size)
        for each in retrieved:
            assert list(each.scores) == sorted(each.scores, reverse=True)
            assert np.isfinite(each.scores).all()
            # BM25 finds what shares a word, dense retrieval the whole corpus; for nothing, nothing.
            words = set(each.question.question.split())
            expected = {
                p.id
                for p in CORPUS
                if words & set(f"{p.title} {p.text}".split()) or (words and retriever == "dense")
            }
            assert {p.id for p in each.passages} == expected and len(each.passages) == len(expected)
        assert retrieved[4].passages == ()
        assert retrieve(index, CORPUS, [], 20, batch_size) == []

    @pytest.mark.parametrize("questions", [0, 3])
    def test_bad_sizes(self, questions):
        index, asked = Bm25().index(CORPUS), make_questions(WORDS[:questions])
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            retrieve(index, CORPUS, asked, 0, 4)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            retrieve(index, CORPUS, asked, 3, 0)

    def test_what_does_not_belong_together(self):
        results = SearchResults(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
        with pytest.raises(ValueError, match="2 questions, but results of 1"):
            pair(make_questions(["a", "b"]), CORPUS, results)
        with pytest.raises(ValueError, match="as many, got 1 and 2 for question 'q0'"):
            RetrievedQuestion(make_questions(["a"])[0], (CORPUS[0],), (1.0, 0.5))


class TestGold:
    PASSAGES = (
        Passage("Rome", "A city.", True),
        Passage("Oslo", "A town.", False),
        Passage("Bergen", "A port."),
    )
    FOUND = (
        CorpusPassage("a", "Oslo", "A town."),
        CorpusPassage("b", "Rome", "A city."),
        CorpusPassage("c", "Rome", "Another city."),
        CorpusPassage("d", "", "A city."),
        CorpusPassage("e", "Rome", "A city."),
    )

    def test_by_hand(self):
        question = Question("q", "Where?", ("Rome",), self.PASSAGES)
        found = RetrievedQuestion(question, self.FOUND, (0.0,) * 5)
        # The title and the text, both; a passage that the corpus has twice is gold twice.
        assert found.gold == (False, True, False, False, True)

    def test_not_known(self):
        question = Question("q", "Where?", ("Rome",), self.PASSAGES[1:])
        assert RetrievedQuestion(question, self.FOUND, (0.0,) * 5).gold == (None,) * 5

    def test_positive_are_passages_with_an_answer_that_are_not_known_to_be_beside_the_point(self):
        question = Question("q", "Where?", ("rome", "city"), self.PASSAGES)
        known = RetrievedQuestion(question, self.FOUND, (0.0,) * 5)
        assert known.positive == (False, True, False, False, True)
        # Titles count, and so do all answers.
        question = dataclasses.replace(question, passages=())
        assert RetrievedQuestion(question, self.FOUND, (0.0,) * 5).positive == (
            False, True, True, True, True
        )  # fmt: skip
        # A gold passage without an answer is on the way to it, and no more.
        question = Question("q", "Where?", ("Oslo",), self.PASSAGES)
        assert RetrievedQuestion(question, self.FOUND, (0.0,) * 5).positive == (False,) * 5
        with pytest.raises(ValueError, match="no answers"):
            _ = RetrievedQuestion(
                Question("q", "Where?", (), self.PASSAGES), self.FOUND, (0.0,) * 5
            ).positive

    def test_of_the_world_by_ids(self):
        questions = list(generate_questions(WorldConfig(seed=5, size=2, held_out=0), "train"))
        corpus = list(corpus_of(questions))
        retrieved = retrieve(Bm25().index(corpus), corpus, questions, 20, 8)
        gold = {
            question.id: {
                f"{question.id}/{n}" for n, p in enumerate(question.passages) if p.is_gold
            }
            for question in questions
        }
        found = 0
        for each in retrieved:
            expected = tuple(p.id in gold[each.question.id] for p in each.passages)
            assert each.gold == expected
            found += sum(expected)
        assert found > len(questions)
