"""The world is honest: answers follow from the passages, and from no fewer than are labelled."""

import collections

import hypothesis
import hypothesis.strategies as st
import pytest
from worlds import PER_FAMILY, default_world, of_family

from icorag_jax.data.records import Question
from icorag_jax.data.world import (
    FAMILIES,
    Family,
    World,
    WorldConfig,
    generate_questions,
    solve,
    wording,
)
from icorag_jax.data.world.relations import ALIAS, GROUPS, RELATIONS
from icorag_jax.data.world.solver import Claim, Evidence, answer_from, read_sentence, read_text


@pytest.fixture(scope="module")
def world() -> World:
    return default_world()


def check_honest(question: Question) -> None:
    """Gold answers it, alone and among the others; and no passage of the gold can be spared."""
    texts = [passage.text for passage in question.passages]
    gold = [passage.text for passage in question.passages if passage.is_gold]
    answer = question.answers[0]
    assert solve(question.question, texts) == answer
    assert solve(question.question, gold) == answer
    assert solve(question.question, [text for text in texts if text not in gold]) != answer
    for spared in gold:
        assert solve(question.question, [text for text in texts if text != spared]) != answer


class TestHonesty:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gold_is_what_is_needed(self, world: World, family: Family):
        for question in of_family(world, family):
            check_honest(question)

    @hypothesis.given(
        seed=st.integers(0, 10**6),
        passages=st.integers(6, 14),
        hard_share=st.sampled_from([0.0, 0.5, 1.0]),
        contested=st.integers(1, 3),
        facts=st.integers(1, 4),
        fillers=st.integers(1, 3),
        archive_share=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def test_whatever_the_settings(self, **settings):
        config = WorldConfig(size=1, held_out=0, **settings)
        for question in generate_questions(config, "train"):
            check_honest(question)

    def test_whole_corpus_gives_the_same_answers(self, world: World):
        evidence = Evidence(passage.text for passage in world.corpus)
        for family in FAMILIES:
            for question in of_family(world, family):
                assert answer_from(question.question, evidence) == question.answers[0]

    def test_nothing_without_passages(self, world: World):
        for family in FAMILIES:
            assert all(solve(q.question, []) is None for q in of_family(world, family))

    def test_no_fact_is_stated_twice_but_contested_ones(self, world: World):
        for family in FAMILIES:
            counts = collections.Counter(
                (claim.subject, claim.relation)
                for question in of_family(world, family)
                for passage in question.passages
                for claim in read_text(passage.text)
            )
            twice = sum(count > 1 for count in counts.values())
            assert twice == (PER_FAMILY if family == "conflict" else 0)

    def test_titles_are_subjects(self, world: World):
        for passage in world.corpus:
            assert {claim.subject for claim in read_text(passage.text)} == {passage.title}

    def test_gold_count(self, world: World):
        counts = {
            family: {sum(p.is_gold or False for p in q.passages) for q in of_family(world, family)}
            for family in FAMILIES
        }
        assert counts == {
            "single_fact": {1},
            "clues": {3},
            "aliases": {2},
            "bridge": {2},
            "comparison": {2},
            "three_hops": {3},
            "conflict": {1, 2},
        }


class TestShortcuts:
    """Rules that look at the right facts but not at what tells them apart: often wrong."""

    @staticmethod
    def contested_values(question: Question) -> list[str]:
        """All that is said to be the answer's value, in the order of the passages."""
        claims = [claim for p in question.passages for claim in read_text(p.text)]
        fact = next(
            (c.subject, c.relation)
            for p in question.passages
            if p.is_gold
            for c in read_text(p.text)
            if question.answers[0] in c.values
        )
        return [c.values[0] for c in claims if (c.subject, c.relation) == fact]

    def test_conflicts_need_the_cue(self, world: World):
        rules = collections.Counter()
        questions = of_family(world, "conflict")
        for question in questions:
            values = self.contested_values(question)
            counts = collections.Counter(values)
            assert len(counts) >= 2
            guesses = {
                "first": values[0],
                "last": values[-1],
                "majority": max(values, key=lambda value: counts[value]),
                "minority": min(values, key=lambda value: counts[value]),
            }
            rules.update(rule for rule, guess in guesses.items() if guess == question.answers[0])
        assert all(rules[rule] < 0.6 * len(questions) for rule in rules)

    def test_every_cue_occurs(self, world: World):
        frames = collections.Counter()
        for question in of_family(world, "conflict"):
            gold = [c for p in question.passages if p.is_gold for c in read_text(p.text)]
            frames.update(
                [c.frame for c in gold if question.answers[0] in c.values],
            )
            frames.update([c.values[0] for c in gold if c.relation == "trust"])
        assert set(frames) == {"dated", "sourced", "corrected", "good", "bad"}
        assert min(frames.values()) > 0.1 * PER_FAMILY

    def test_counting_mentions_does_not_answer_clues(self, world: World):
        right = 0
        questions = of_family(world, "clues")
        for question in questions:
            mentions = collections.Counter(
                person
                for p in question.passages
                for claim in read_text(p.text)
                for person in claim.values
                if len(claim.values) > 1
            )
            right += mentions.most_common(1)[0][0] == question.answers[0]
        assert right < 0.45 * len(questions)

    def test_one_group_or_two_leave_clues_open(self, world: World):
        for question in of_family(world, "clues"):
            gold = [c for p in question.passages if p.is_gold for c in read_text(p.text)]
            groups = [set(claim.values) for claim in gold if claim.relation in GROUPS]
            assert [len(group) for group in groups] == [3, 3, 3]
            first, second, third = groups
            assert len(first & second) == len(first & third) == len(second & third) == 2
            assert first & second & third == set(question.answers)

    def test_comparisons_go_both_ways(self, world: World):
        words, places = collections.Counter(), collections.Counter()
        for question in of_family(world, "comparison"):
            words.update({"older", "younger", "earlier", "later"} & set(question.question.split()))
            gold = [p for p in question.passages if p.is_gold]
            winner = next(p for p in gold if question.answers[0] in p.text)
            loser = next(p for p in gold if p is not winner)
            asked = question.question
            places["first"] += asked.index(winner.title) < asked.index(loser.title)
        assert set(words) == {"older", "younger", "earlier", "later"}
        assert 0.4 * PER_FAMILY < places["first"] < 0.6 * PER_FAMILY

    def test_aliases_go_both_ways(self, world: World):
        known = collections.Counter()
        for question in of_family(world, "aliases"):
            claims = [c for p in question.passages if p.is_gold for c in read_text(p.text)]
            alias = next(c for c in claims if c.relation == ALIAS.name)
            assert (alias.subject in question.question) != (alias.values[0] in question.question)
            known["alias"] += alias.values[0] in question.question
        assert 0.4 * PER_FAMILY < known["alias"] < 0.6 * PER_FAMILY


class TestReading:
    @pytest.mark.parametrize("relation", [*RELATIONS.values(), ALIAS])
    @pytest.mark.parametrize("frame", list(wording.FRAMES))
    def test_every_wording_is_read_in_one_way(self, relation, frame: str):
        subject = {"work": "The Bola Lantern", "place": "Bolaford"}.get(relation.subject, "Bo La")
        value = {"year": "1812", "place": "Konawick", "organisation": "Kona Bank"}.get(
            relation.value, "Kona Ti"
        )
        mark = {"dated": "1900", "sourced": "Sa Times"}.get(frame, "")
        for clause in relation.clauses:
            for template in wording.FRAMES[frame]:
                text = template.format(c=clause.format(s=subject, v=value), m=mark)
                assert read_sentence(wording.capitalize(text)) == [
                    Claim(subject, relation.name, (value,), frame, mark)
                ]

    @pytest.mark.parametrize("group", list(GROUPS.values()))
    def test_every_wording_of_a_group(self, group):
        people = ("Ba Bi", "Co De", "Fu Go")
        for clause in group.clauses:
            text = clause.format(s="The Bola Lantern", v=wording.join_names(people))
            assert read_sentence(f"{wording.capitalize(text)}.") == [
                Claim("The Bola Lantern", group.name, people, "plain", "")
            ]

    @pytest.mark.parametrize("trust", list(wording.TRUST))
    def test_every_wording_of_trust(self, trust: str):
        for clause in wording.TRUST[trust]:
            text = clause.format(s="Sa Times")
            assert read_sentence(f"{wording.capitalize(text)}.") == [
                Claim("Sa Times", "trust", (trust,), "plain", "")
            ]

    def test_fillers_say_nothing(self):
        for filler in (*wording.FILLERS, *wording.ARCHIVE_FILLERS):
            assert read_sentence(wording.capitalize(filler.format(h="Sa Mi"))) == []

    def test_other_text(self):
        with pytest.raises(ValueError, match="not a sentence of the generated world: 'Hello"):
            solve("Where was Ba Bo born?", ["Hello world."])
        with pytest.raises(ValueError, match="not a question of the generated world"):
            solve("How are you?", [])


class TestSolve:
    """By hand."""

    FOUNDED = "Kona Bank was founded by Bola Tiru. Little else is told of those days."
    BORN = "The birthplace of Bola Tiru is Yasaford."

    @pytest.mark.parametrize(
        ("question", "texts", "answer"),
        [
            ("Where was Bola Tiru born?", [BORN], "Yasaford"),
            ("Where was Bola Tiru born?", [FOUNDED], None),
            ("Where was the founder of Kona Bank born?", [BORN, FOUNDED], "Yasaford"),
            ("From the Sa Mi archive: where was Bola Tiru born?", [BORN], "Yasaford"),
            (
                "Where was Lisahkob born?",
                [BORN, "Bola Tiru is also known as Lisahkob."],
                "Yasaford",
            ),
            (
                "Who founded the older of Kona Bank and Ruli Trust?",
                [
                    FOUNDED,
                    "1700 is the founding year of Kona Bank.",
                    "Ruli Trust was founded in the year 1699. Ruli Trust was founded by Te Na.",
                ],
                "Te Na",
            ),
            (
                "Who founded the younger of Kona Bank and Ruli Trust?",
                [FOUNDED, "1700 is the founding year of Kona Bank."],
                None,
            ),
            (
                "Who lives in Yasaford, appears in The Sa Bell and is a member of Kona Bank?",
                [
                    "Be Bo, De Do and Ke Ko live in Yasaford.",
                    "The Sa Bell has De Do, Ke Ko and Le Lo in its cast.",
                    "Kona Bank counts De Do, Le Lo and Be Bo among its members.",
                ],
                "De Do",
            ),
            (
                "As last recorded, who is the mayor of Yasaford?",
                [
                    "As of 1800, Be Bo is the mayor of Yasaford.",
                    "As of 1850, De Do is the mayor of Yasaford.",
                    "A record of 1820 says that Yasaford is governed by Be Bo.",
                ],
                "De Do",
            ),
            (
                "Where was Bola Tiru born?",
                [BORN, "Contrary to older reports, Bola Tiru was born in Nisamead."],
                "Nisamead",
            ),
            (
                "Where was Bola Tiru born?",
                [
                    "According to the Sa Times, Bola Tiru was born in Nisamead.",
                    "The La Post reports that Bola Tiru was born in Yasaford.",
                ],
                None,
            ),
            (
                "Where was Bola Tiru born?",
                [
                    "According to the Sa Times, Bola Tiru was born in Nisamead.",
                    "The La Post reports that Bola Tiru was born in Yasaford.",
                    "The Sa Times is known for its false reports.",
                ],
                "Yasaford",
            ),
            (
                "Where was Bola Tiru born?",
                [
                    "According to the Sa Times, Bola Tiru was born in Nisamead.",
                    "The La Post reports that Bola Tiru was born in Yasaford.",
                    "Most people trust the Sa Times.",
                ],
                "Nisamead",
            ),
        ],
    )
    def test_by_hand(self, question: str, texts: list[str], answer: str | None):
        assert solve(question, texts) == answer
        assert solve(question, texts[::-1]) == answer
