"""Generated worlds: what is in them, that splits share nothing, and that they never change."""

import collections
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import pytest
from worlds import PER_FAMILY, default_world, of_family

from icorag_jax.data.answers import contains_answer
from icorag_jax.data.records import Question
from icorag_jax.data.world import (
    CONTROL,
    FAMILIES,
    SPLITS,
    Family,
    World,
    WorldConfig,
    corpus_of,
    generate_questions,
    generate_world,
)
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.names import TAILS, Kind, NameBook
from icorag_jax.data.world.solver import read_text

SMALL = WorldConfig(seed=0, size=6, held_out=3)


@pytest.fixture(scope="module")
def world() -> World:
    return default_world()


def all_questions(world: World) -> list[Question]:
    return [question for family in FAMILIES for question in of_family(world, family)]


def names_in(question: Question) -> set[str]:
    """Subjects and values of all that its passages say, but for years."""
    claims = [claim for passage in question.passages for claim in read_text(passage.text)]
    names = {name for claim in claims for name in (claim.subject, *claim.values)}
    return {name for name in names if name[0].isupper()}


class TestWorld:
    def test_sizes(self):
        world = generate_world(SMALL)
        assert list(world.questions) == ["train", "dev", "test"]
        for split, count in {"train": 6, "dev": 3, "test": 3}.items():
            assert list(world.questions[split]) == list(FAMILIES)
            assert all(len(world.questions[split][family]) == count for family in FAMILIES)
        assert len(world.corpus) == 7 * 12 * 10
        assert world.config == SMALL

    def test_same_on_every_machine(self):
        world = generate_world(SMALL)
        rows = [*map(dataclasses.asdict, all_questions(world))]
        rows += map(dataclasses.asdict, world.corpus)
        content = json.dumps(rows).encode()
        assert hashlib.sha256(content).hexdigest()[:16] == "6ae32dc5f2cd2d32"

    def test_seeds_differ(self):
        other = generate_world(dataclasses.replace(SMALL, seed=1))
        questions = {q.question for q in all_questions(generate_world(SMALL))}
        assert questions.isdisjoint(q.question for q in all_questions(other))

    def test_ids(self, world: World):
        assert world.questions["dev"]["bridge"][7].id == "world/bridge/dev/11/7"
        ids = [question.id for question in all_questions(world)]
        assert len(ids) == len(set(ids)) == 7 * PER_FAMILY

    def test_types_and_answers(self, world: World):
        for question in all_questions(world):
            assert question.type == question.id.split("/")[1]
            assert len(question.answers) == 1 and question.answers[0].strip()
            assert not contains_answer(question.question, question.answers)

    def test_questions_come_in_turn_and_smaller_worlds_first(self):
        short = list(generate_questions(SMALL, "train"))
        longer = dataclasses.replace(SMALL, size=9, held_out=1)
        assert short == list(itertools.islice(generate_questions(longer, "train"), len(short)))
        assert [question.type for question in short[:8]] == [*FAMILIES, FAMILIES[0]]

    def test_splits_do_not_depend_on_each_other(self):
        bigger = dataclasses.replace(SMALL, size=8)
        assert list(generate_questions(SMALL, "dev")) == list(generate_questions(bigger, "dev"))

    def test_some_families(self):
        families: tuple[Family, ...] = ("conflict", "single_fact")
        found = generate_world(dataclasses.replace(SMALL, families=families, facts=1))
        assert list(found.questions["train"]) == ["conflict", "single_fact"]

    def test_corpus_holds_every_passage_once(self, world: World):
        passages = [(p.title, p.text) for q in all_questions(world) for p in q.passages]
        assert len(world.corpus) == len(passages) == len(set(passages))
        assert {(p.title, p.text) for p in world.corpus} == set(passages)
        assert len({p.id for p in world.corpus}) == len(world.corpus)

    def test_repeated_facts_differ_in_words(self):
        config = WorldConfig(
            size=100,
            held_out=0,
            families=("conflict",),
            passages=5,
            contested=3,
            facts=1,
            fillers=0,
            archive_share=0.0,
        )
        texts = [p.text for q in generate_questions(config, "train") for p in q.passages]
        assert len(texts) == len(set(texts)) == 500

    def test_ids_of_the_corpus(self):
        question = next(generate_questions(SMALL, "test"))
        found = list(corpus_of([question]))
        assert [p.id for p in found] == [f"world/single_fact/test/0/0/{n}" for n in range(10)]
        assert [p.text for p in found] == [p.text for p in question.passages]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"seed": -1}, "seed must be at least 0, got -1"),
            ({"size": -1}, "size must be at least 0"),
            ({"size": 0, "held_out": 0}, "no question"),
            ({"families": ()}, "families must be one or more"),
            ({"families": ("bridge", "bridge")}, "none twice"),
            ({"passages": 3}, "passages must be at least 4 for clues, got 3"),
            ({"contested": 3, "passages": 4}, "passages must be at least 5 for conflict, got 4"),
            ({"contested": 4}, "contested must be at most 3, got 4"),
            ({"contested": 0}, "contested must be at least 1"),
            ({"facts": 0}, "facts must be at least 1"),
            ({"fillers": -1}, "fillers must be at least 0"),
            ({"fillers": 0}, "with fillers 0, set archive_share 0"),
            ({"fillers": 13}, "fillers must be at most"),
            ({"hard_share": 1.5}, r"hard_share must be in \[0, 1\], got 1.5"),
            ({"archive_share": float("nan")}, r"archive_share must be in \[0, 1\], got nan"),
        ],
    )
    def test_bad_settings(self, settings: dict, message: str):
        with pytest.raises(ValueError, match=message):
            WorldConfig(**settings)


def test_examples_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "world.md").read_text()
    questions = list(generate_questions(WorldConfig(seed=0, size=1), "train"))
    assert len(questions) == len(FAMILIES)
    for question in questions:
        assert f"### `{question.type}`" in text
        assert f"> *{question.question}* **{question.answers[0]}**" in text
        assert all(f"gold: {p.text}" in text for p in question.passages if p.is_gold)
        assert any(f"not gold: {p.text}" in text for p in question.passages if not p.is_gold)


class TestSplits:
    def test_no_name_is_in_two_questions(self, world: World):
        counts = collections.Counter(
            name for question in all_questions(world) for name in names_in(question)
        )
        assert len(counts) > 10_000
        assert set(counts.values()) == {1}

    def test_no_made_up_word_is_in_two_splits_whatever_the_seeds(self, world: World):
        other = generate_world(WorldConfig(seed=4, size=20, held_out=20))
        english = {
            "The",
            *(word for kind in ("work", "organisation", "source") for word in TAILS[kind]),
        }
        words = {
            split: {
                word
                for each in (world, other)
                for family in FAMILIES
                for question in each.questions[split][family]
                for name in names_in(question)
                for word in name.split()
            }
            - english
            for split in SPLITS
        }
        for first, second in itertools.combinations(SPLITS, 2):
            assert len(words[first]) > 5000
            assert not (words[first] & words[second])

    def test_no_question_is_in_two_splits(self, world: World):
        texts = [question.question for question in all_questions(world)]
        assert len(texts) == len(set(texts))


class TestPassages:
    def test_short(self, world: World):
        words = [len(passage.text.split()) for passage in world.corpus]
        assert min(words) >= 9 and max(words) <= 40
        assert 15 < sum(words) / len(words) < 22

    def test_gold_is_labelled_and_shuffled(self, world: World):
        places = collections.Counter()
        for question in all_questions(world):
            assert len(question.passages) == 10
            gold = [i for i, passage in enumerate(question.passages) if passage.is_gold]
            assert 1 <= len(gold) <= 3
            places.update(gold)
        assert max(places.values()) < 1.4 * min(places.values())

    def test_only_rivals_and_contested_facts_repeat_the_answer(self, world: World):
        for question in all_questions(world):
            told = [contains_answer(p.text, question.answers) for p in question.passages]
            gold = [bool(p.is_gold) for p in question.passages]
            assert any(t and g for t, g in zip(told, gold, strict=True))
            if question.type not in ("clues", "conflict"):
                assert sum(told) == 1

    def test_answers_cannot_be_guessed(self, world: World):
        for family in FAMILIES:
            answers = [question.answers[0] for question in of_family(world, family)]
            counts = collections.Counter(answers)
            assert max(counts.values()) <= 0.03 * len(answers)
            assert all(count == 1 for answer, count in counts.items() if not answer.isdigit())


class TestDistractors:
    @staticmethod
    def split_claims(question: Question) -> tuple[list, list]:
        gold = [c for p in question.passages if p.is_gold for c in read_text(p.text)]
        others = [read_text(p.text) for p in question.passages if not p.is_gold]
        return gold, others

    @pytest.mark.parametrize("family", ["single_fact", "aliases", "bridge", "comparison"])
    def test_easy(self, family: Family):
        config = WorldConfig(size=100, held_out=0, families=(family,), hard_share=0.0)
        for question in generate_questions(config, "train"):
            gold, others = self.split_claims(question)
            answering = {c.relation for c in gold if question.answers[0] in c.values}
            for claims in others:
                assert not {c.subject for c in claims} & {c.subject for c in gold}
                assert not {c.relation for c in claims} & answering

    @pytest.mark.parametrize("family", ["aliases", "bridge", "three_hops", "comparison"])
    def test_hard(self, family: Family):
        config = WorldConfig(size=100, held_out=0, families=(family,), hard_share=1.0)
        ways = collections.Counter()
        for question in generate_questions(config, "train"):
            gold, others = self.split_claims(question)
            heads = {c.subject.removeprefix("The ")[:4] for c in gold}
            for claims in others:
                same_subject = claims[0].subject in {c.subject for c in gold}
                same_relation = bool({c.relation for c in claims} & {c.relation for c in gold})
                similar = claims[0].subject.removeprefix("The ")[:4] in heads
                assert same_subject or same_relation
                ways[same_subject, similar and not same_subject] += 1
        total = sum(ways.values())
        for way in ((True, False), (False, True), (False, False)):
            assert ways[way] > 0.1 * total

    def test_control_is_always_easy(self):
        config = WorldConfig(size=50, held_out=0, families=(CONTROL,), hard_share=1.0)
        easy = dataclasses.replace(config, hard_share=0.0)
        assert list(generate_questions(config, "train")) == list(generate_questions(easy, "train"))

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_archives(self, share: float):
        config = WorldConfig(size=30, held_out=0, archive_share=share)
        questions = list(generate_questions(config, "train"))
        named = sum(" archive" in p.text for q in questions for p in q.passages)
        assert abs(named - share * 2100) <= 100
        assert all((" archive" in q.question) == (share > 0) for q in questions)

    def test_facts_and_fillers(self):
        config = WorldConfig(
            size=20, held_out=0, facts=1, fillers=0, archive_share=0.0, families=("bridge",)
        )
        for question in generate_questions(config, "train"):
            assert all(p.text.count(".") == 1 for p in question.passages)


class TestNames:
    def test_no_two_alike_and_similar_ones_on_demand(self):
        book, draws = NameBook("dev"), Draws("names")
        kinds: tuple[Kind, ...] = ("person", "place", "work", "organisation", "alias", "source")
        names = [book.draw(kind, draws) for kind in kinds for _ in range(500)]
        assert len({name.text for name in names}) == len(names)
        for kind in kinds:
            first = book.draw(kind, draws)
            second = book.draw(kind, draws, head=first.head)
            assert first.head == second.head and first.head in second.text
            assert first.text != second.text

    def test_used_up(self):
        book, draws = NameBook("dev"), Draws("names")
        with pytest.raises(ValueError, match="names for a source are used up"):
            for _ in range(20):
                book.draw("source", draws, head="Taba")


class TestDraws:
    def test_same_on_every_machine(self):
        draws = Draws("a name")
        assert [draws.below(1000) for _ in range(5)] == [28, 196, 708, 626, 38]

    def test_sample(self):
        draws = Draws("another")
        counts = collections.Counter(tuple(draws.sample("abc", 2)) for _ in range(6000))
        assert set(counts) == set(itertools.permutations("abc", 2))
        assert all(800 < count < 1200 for count in counts.values())
        assert sorted(draws.shuffled(range(9))) == list(range(9))

    def test_chance(self):
        draws = Draws("third")
        assert not any(draws.chance(0.0) for _ in range(100))
        assert all(draws.chance(1.0) for _ in range(100))
        assert 400 < sum(draws.chance(0.25) for _ in range(2000)) < 600
