"""The surroundings of a question: its entities, what is said of them, and who says it."""

import dataclasses

from icorag_jax.data.records import Passage
from icorag_jax.data.world import wording
from icorag_jax.data.world.config import WorldConfig
from icorag_jax.data.world.draws import Draws
from icorag_jax.data.world.names import NameBook
from icorag_jax.data.world.relations import RELATIONS, Group, Relation, ValueKind

_FIRST_YEAR, _LAST_YEAR = 1500, 1999


@dataclasses.dataclass(frozen=True)
class Entity:
    """Something with a name, or a year.

    Attributes:
        kind: what it is.
        name: what passages call it.
        head: the part of the name that entities of similar names share.
        key: the same for all names of one entity.
    """

    kind: ValueKind
    name: str
    head: str
    key: str


@dataclasses.dataclass(frozen=True)
class Statement:
    """A fact and how it is put.

    Attributes:
        subject: whom it is about.
        relation: what it says of the subject.
        values: the name or the year that it says, several names for a group.
        frame: kind of its sentence, a key of `wording.FRAMES`.
        mark: date or source of the frame, if it has one.
    """

    subject: Entity
    relation: Relation | Group
    values: tuple[str, ...]
    frame: str = wording.PLAIN
    mark: str = ""


class Scene:
    """Makes entities that are new to the world, and passages that agree with each other.

    Of an entity it states a relation once, so what passages say is never contradicted by chance.
    """

    def __init__(self, config: WorldConfig, names: NameBook, draws: Draws):
        """An empty scene.

        Args:
            config: settings of the world.
            names: gives the names.
            draws: gives all else.
        """
        self.draws = draws
        # Names of relations that the question is about: nobody's are mentioned by the way.
        self.asked: frozenset[str] = frozenset()
        self.config = config
        self._names = names
        self._stated: dict[str, set[str]] = {}
        self._values: list[Entity] = []
        self._statements: list[Statement] = []
        self._texts: set[str] = set()
        self._years: set[str] = set()
        self.archive = names.draw("archive", draws).text if config.archive_share else None

    def entity(self, kind: ValueKind, like: Entity | None = None) -> Entity:
        """A new entity or a year, with a name similar to another one's if there is one."""
        if kind == "year":
            return self._year()
        head, name = self._names.draw(kind, self.draws, like.head if like else None)
        return Entity(kind, name, head, key=name)

    def alias(self, entity: Entity) -> Entity:
        """The same entity under a new name that has nothing in common with the one it has."""
        head, name = self._names.draw("alias", self.draws)
        return dataclasses.replace(entity, name=name, head=head)

    def source(self) -> str:
        """The name of a new source."""
        return self._names.draw("source", self.draws).text

    def value(self, relation: Relation) -> Entity:
        """A new value of a relation."""
        value = self.entity(relation.value)
        self._values.append(value)
        return value

    def values(self) -> tuple[Entity, ...]:
        """All values of facts so far."""
        return tuple(self._values)

    def statements(self) -> tuple[Statement, ...]:
        """All that passages state so far."""
        return tuple(self._statements)

    def values_without(self, relation: Relation | Group) -> list[Entity]:
        """Values of other facts which could have the relation, but of which it is not stated."""
        return [
            value
            for value in self._values
            if value.kind == relation.subject
            and relation.name not in self._stated.get(value.key, ())
        ]

    def unstated(self, entity: Entity) -> list[Relation]:
        """The relations that nothing was said of yet."""
        stated = self._stated.get(entity.key, set())
        return [r for r in RELATIONS.values() if r.subject == entity.kind and r.name not in stated]

    def passage(self, *statements: Statement) -> Passage:
        """A passage of some statements on one subject, with others by the way and fillers."""
        subject = statements[0].subject
        stated = self._stated.setdefault(subject.key, set())
        stated.update(statement.relation.name for statement in statements)
        spare = self.config.facts - len(statements)
        extras = [
            Statement(subject, relation, (self.value(relation).name,))
            for relation in self._extra_relations(subject, self.draws.below(max(spare, 0) + 1))
        ]
        stated.update(statement.relation.name for statement in extras)
        self._statements += [*statements, *extras]
        # The same may be said several times, but never in the very same words.
        while True:
            sentences = [self._sentence(statement) for statement in (*statements, *extras)]
            passage = self._compose(subject.name, sentences)
            if passage.text not in self._texts:
                self._texts.add(passage.text)
                return passage

    def trust_passage(self, source: str, trust: str) -> Passage:
        """A passage that says whether a source is to be believed, `trust` a key of `TRUST`."""
        sentence = self.draws.choice(wording.TRUST[trust]).format(s=source)
        return self._compose(source, [wording.capitalize(f"{sentence}.")])

    def question(self, question: str, latest: bool = False) -> str:
        """The question as it is put: in which archive, and whether the latest record counts."""
        starts = []
        if self.archive is not None:
            starts.append(self.draws.choice(wording.IN_ARCHIVE).format(h=self.archive))
        if latest:
            starts.append(self.draws.choice(wording.LATEST))
        return wording.capitalize("".join([*starts, question]))

    def _year(self) -> Entity:
        """A year that the scene did not have before."""
        while True:
            year = str(_FIRST_YEAR + self.draws.below(_LAST_YEAR + 1 - _FIRST_YEAR))
            if year not in self._years:
                self._years.add(year)
                return Entity("year", year, year, year)

    def _extra_relations(self, subject: Entity, count: int) -> list[Relation]:
        fitting = [r for r in self.unstated(subject) if r.name not in self.asked]
        return self.draws.sample(fitting, min(count, len(fitting)))

    def _sentence(self, statement: Statement) -> str:
        names = statement.values
        clause = self.draws.choice(statement.relation.clauses).format(
            s=statement.subject.name, v=names[0] if len(names) == 1 else wording.join_names(names)
        )
        frame = self.draws.choice(wording.FRAMES[statement.frame])
        return wording.capitalize(frame.format(c=clause, m=statement.mark))

    def _compose(self, title: str, sentences: list[str]) -> Passage:
        count = self.config.fillers
        fillers = []
        if count and self.draws.chance(self.config.archive_share):
            fillers.append(self.draws.choice(wording.ARCHIVE_FILLERS).format(h=self.archive))
        fillers += self.draws.sample(wording.FILLERS, count - len(fillers))
        fillers = [wording.capitalize(filler) for filler in fillers]
        return Passage(title, " ".join(self.draws.shuffled([*sentences, *fillers])))
