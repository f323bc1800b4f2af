"""What is said of entities: relations of one value, and groups of people, each in several wordings.

A *clause* states a fact of a subject `{s}` with a value `{v}`. A *phrase* stands for the value, and
takes the place of a name `{x}` in a question, as deep as wanted. Templates start with a small
letter or a name.
"""

import dataclasses
from typing import Literal

from icorag_jax.data.world.names import Kind

ValueKind = Kind | Literal["year"]


@dataclasses.dataclass(frozen=True)
class Relation:
    """Something that an entity has one of.

    Attributes:
        name: of the relation.
        subject: kind of the entities that have it.
        value: kind of what they have.
        clauses: wordings of a fact.
        questions: wordings of a question for the value.
        phrase: stands for the value, empty where nothing more can be asked of it.
        changes: whether the value may be another one later.
    """

    name: str
    subject: Kind
    value: ValueKind
    clauses: tuple[str, ...]
    questions: tuple[str, ...]
    phrase: str
    changes: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """People whom an entity has several of.

    Attributes:
        name: of the relation.
        subject: kind of the entities that have it.
        clauses: wordings of a fact; `{v}` stands for all people.
        predicates: wordings of being one of them.
    """

    name: str
    subject: Kind
    clauses: tuple[str, ...]
    predicates: tuple[str, ...]


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation(
            "birth_place",
            "person",
            "place",
            (
                "{s} was born in {v}",
                "{s} came into the world in {v}",
                "the birthplace of {s} is {v}",
                "{v} is where {s} was born",
            ),
            (
                "where was {x} born?",
                "in which place was {x} born?",
                "what is the birthplace of {x}?",
            ),
            "the birthplace of {x}",
        ),
        Relation(
            "birth_year",
            "person",
            "year",
            (
                "{s} was born in the year {v}",
                "{v} is the birth year of {s}",
                "the birth of {s} fell in {v}",
            ),
            (
                "when was {x} born?",
                "in which year was {x} born?",
                "what is the birth year of {x}?",
            ),
            "",
        ),
        Relation(
            "teacher",
            "person",
            "person",
            (
                "{s} was taught by {v}",
                "{v} was the teacher of {s}",
                "{s} learned everything from {v}",
                "the teacher of {s} was {v}",
            ),
            ("who taught {x}?", "who was the teacher of {x}?", "by whom was {x} taught?"),
            "the teacher of {x}",
        ),
        Relation(
            "employer",
            "person",
            "organisation",
            (
                "{s} worked for {v}",
                "{v} employed {s}",
                "{s} was employed by {v}",
                "the employer of {s} was {v}",
            ),
            ("who employed {x}?", "who was the employer of {x}?", "for whom did {x} work?"),
            "the employer of {x}",
            changes=True,
        ),
        Relation(
            "founder",
            "organisation",
            "person",
            (
                "{s} was founded by {v}",
                "{v} founded {s}",
                "{v} was the founder of {s}",
                "the founder of {s} was {v}",
            ),
            ("who founded {x}?", "who was the founder of {x}?", "by whom was {x} founded?"),
            "the founder of {x}",
        ),
        Relation(
            "seat",
            "organisation",
            "place",
            (
                "{s} is based in {v}",
                "{s} has its seat in {v}",
                "the seat of {s} is {v}",
                "{v} is the seat of {s}",
            ),
            ("where is {x} based?", "what is the seat of {x}?", "where does {x} have its seat?"),
            "the seat of {x}",
            changes=True,
        ),
        Relation(
            "founding_year",
            "organisation",
            "year",
            (
                "{s} was founded in the year {v}",
                "{v} is the founding year of {s}",
                "the founding of {s} fell in {v}",
            ),
            (
                "when was {x} founded?",
                "in which year was {x} founded?",
                "what is the founding year of {x}?",
            ),
            "",
        ),
        Relation(
            "author",
            "work",
            "person",
            (
                "{s} was written by {v}",
                "{v} wrote {s}",
                "{v} is the author of {s}",
                "the author of {s} is {v}",
            ),
            ("who wrote {x}?", "who is the author of {x}?", "by whom was {x} written?"),
            "the author of {x}",
        ),
        Relation(
            "publisher",
            "work",
            "organisation",
            (
                "{s} was published by {v}",
                "{v} published {s}",
                "{v} was the publisher of {s}",
                "the publisher of {s} was {v}",
            ),
            ("who published {x}?", "who was the publisher of {x}?", "by whom was {x} published?"),
            "the publisher of {x}",
        ),
        Relation(
            "setting",
            "work",
            "place",
            (
                "{s} is set in {v}",
                "{v} is the setting of {s}",
                "the story of {s} takes place in {v}",
                "the setting of {s} is {v}",
            ),
            ("where is {x} set?", "in which place is {x} set?", "what is the setting of {x}?"),
            "the setting of {x}",
        ),
        Relation(
            "printing_year",
            "work",
            "year",
            (
                "{s} was printed in the year {v}",
                "{v} is the printing year of {s}",
                "the printing of {s} fell in {v}",
            ),
            (
                "when was {x} printed?",
                "in which year was {x} printed?",
                "what is the printing year of {x}?",
            ),
            "",
        ),
        Relation(
            "mayor",
            "place",
            "person",
            (
                "{v} is the mayor of {s}",
                "{s} is governed by {v}",
                "{s} has {v} as its mayor",
                "the mayor of {s} is {v}",
            ),
            ("who is the mayor of {x}?", "who governs {x}?", "by whom is {x} governed?"),
            "the mayor of {x}",
            changes=True,
        ),
        Relation(
            "district",
            "place",
            "place",
            (
                "{s} lies in the district of {v}",
                "{s} belongs to the district of {v}",
                "{v} is the district around {s}",
                "the district around {s} is {v}",
            ),
            (
                "in which district is {x}?",
                "what is the district around {x}?",
                "to which district does {x} belong?",
            ),
            "the district around {x}",
            changes=True,
        ),
        Relation(
            "settling_year",
            "place",
            "year",
            (
                "{s} was settled in the year {v}",
                "{v} is the settling year of {s}",
                "the settling of {s} fell in {v}",
            ),
            (
                "when was {x} settled?",
                "in which year was {x} settled?",
                "what is the settling year of {x}?",
            ),
            "",
        ),
    )
}

GROUPS = {
    group.name: group
    for group in (
        Group(
            "members",
            "organisation",
            (
                "{v} are members of {s}",
                "{s} counts {v} among its members",
                "the members of {s} include {v}",
            ),
            ("is a member of {x}", "is among the members of {x}"),
        ),
        Group(
            "players",
            "work",
            (
                "{v} appear in {s}",
                "{s} has {v} in its cast",
                "the cast of {s} includes {v}",
            ),
            ("appears in {x}", "is in the cast of {x}"),
        ),
        Group(
            "residents",
            "place",
            (
                "{v} live in {s}",
                "{s} is home to {v}",
                "the people of {s} include {v}",
            ),
            ("lives in {x}", "is at home in {x}"),
        ),
    )
}

# Another name of an entity of any kind; nothing else says that two names are of one.
ALIAS = Relation(
    "alias",
    "person",
    "alias",
    (
        "{s} is also known as {v}",
        "{v} is another name of {s}",
        "many people know {s} as {v}",
        "{s} is often called {v}",
    ),
    (),
    "",
)
