"""Answers questions of the generated world from the text of passages alone.

A symbolic reader that shares the wording with the generator, and nothing else: templates become
regular expressions, sentences become claims, and a question is looked up in them. It answers only
what follows from the passages it is given; with conflicting claims, no cue, no answer.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from icorag_jax.data.world import wording
from icorag_jax.data.world.relations import ALIAS, GROUPS, RELATIONS

_NAME = r"[A-Z][a-z]+(?: [A-Z][a-z]+)*"
_YEAR = r"[0-9]{4}"
_NAMES = rf"{_NAME}(?:, {_NAME})* and {_NAME}"
_TRUST = "trust"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a sentence says.

    Attributes:
        subject: name of whom it is about.
        relation: name of the relation.
        values: a name or a year, or the names of a group.
        frame: key of `wording.FRAMES`.
        mark: its date or its source, or empty.
    """

    subject: str
    relation: str
    values: tuple[str, ...]
    frame: str
    mark: str


def read_sentence(sentence: str) -> list[Claim]:
    """Every reading of a sentence; fillers have none.

    Raises:
        ValueError: the sentence is not one of this world's.
    """
    claims = [
        Claim(
            found["s"], relation, _split_names(found["v"]), frame, framed.groupdict().get("m", "")
        )
        for frame, frame_pattern in _frame_patterns()
        if (framed := frame_pattern.fullmatch(sentence))
        for relation, pattern in _clause_patterns()
        if (found := pattern.fullmatch(framed["c"]))
    ]
    claims += [
        Claim(found["s"], _TRUST, (trust,), wording.PLAIN, "")
        for trust, pattern in _trust_patterns()
        if (found := pattern.fullmatch(sentence))
    ]
    if not claims and not _filler_pattern().fullmatch(sentence):
        raise ValueError(f"not a sentence of the generated world: {sentence!r}")
    return claims


@functools.lru_cache(maxsize=100_000)
def read_text(text: str) -> tuple[Claim, ...]:
    """The claims of a passage, in order.

    Raises:
        ValueError: a sentence is not one of this world's.
    """
    sentences = re.findall(r"[^.]+\.", text)
    return tuple(claim for sentence in sentences for claim in read_sentence(sentence.strip()))


class Evidence:
    """What passages say, by subject and relation."""

    def __init__(self, texts: Iterable[str]):
        """Reads the passages.

        Raises:
            ValueError: a sentence is not one of this world's.
        """
        self._claims: dict[tuple[str, str], list[Claim]] = {}
        self._aliases: dict[str, set[str]] = {}
        self._trust: dict[str, str] = {}
        for claim in (claim for text in texts for claim in read_text(text)):
            if claim.relation == _TRUST:
                self._trust[claim.subject] = claim.values[0]
            elif claim.relation == ALIAS.name:
                self._aliases.setdefault(claim.subject, set()).add(claim.values[0])
                self._aliases.setdefault(claim.values[0], set()).add(claim.subject)
            else:
                self._claims.setdefault((claim.subject, claim.relation), []).append(claim)

    def claims(self, name: str, relation: str) -> list[Claim]:
        """What is said of an entity under any of its names."""
        names = [name, *self._aliases.get(name, ())]
        return [claim for each in names for claim in self._claims.get((each, relation), ())]

    def value(self, name: str, relation: str) -> str | None:
        """The value that is to be believed, or None where nothing is said or it stays open."""
        claims = self.claims(name, relation)
        if corrections := [claim for claim in claims if claim.frame == wording.CORRECTED]:
            claims = corrections
        claims = [claim for claim in claims if self._trust.get(claim.mark) != "bad"]
        if trusted := [claim for claim in claims if self._trust.get(claim.mark) == "good"]:
            claims = trusted
        if dated := [claim for claim in claims if claim.frame == wording.DATED]:
            latest = max(int(claim.mark) for claim in dated)
            claims = [claim for claim in dated if int(claim.mark) == latest]
        values = {claim.values for claim in claims}
        return values.pop()[0] if len(values) == 1 else None

    def people(self, name: str, group: str) -> set[str]:
        """All who are said to be of an entity's group."""
        return {person for claim in self.claims(name, group) for person in claim.values}


def solve(question: str, texts: Sequence[str]) -> str | None:
    """The answer that follows from passages, or None.

    Args:
        question: as the world puts it.
        texts: the passages' texts; titles are not needed.

    Raises:
        ValueError: the question or a sentence is not one of this world's.
    """
    return answer_from(question, Evidence(texts))


def answer_from(question: str, evidence: Evidence) -> str | None:
    """As `solve`, from passages that were read before."""
    asked = _start_pattern().sub("", question)
    asked = asked[0].lower() + asked[1:]
    for pattern in _who_patterns():
        if (found := pattern.fullmatch(asked)) and (clues := _read_clues(found.groups())):
            fitting = set.intersection(*(evidence.people(name, group) for group, name in clues))
            return fitting.pop() if len(fitting) == 1 else None
    for relation, pattern in _question_patterns():
        if found := pattern.fullmatch(asked):
            subject = _resolve(found["x"], evidence)
            return None if subject is None else evidence.value(subject, relation)
    raise ValueError(f"not a question of the generated world: {question!r}")


def _resolve(phrase: str, evidence: Evidence) -> str | None:
    """The name of what a name, a phrase of a relation, or one of a comparison stands for."""
    if re.fullmatch(_NAME, phrase):
        return phrase
    for years, position, pattern in _compared_patterns():
        if found := pattern.fullmatch(phrase):
            pair = (found["a"], found["b"])
            known = [(evidence.value(name, year), name) for year in years for name in pair]
            dated = sorted((int(year), name) for year, name in known if year is not None)
            return dated[position][1] if len(dated) == 2 else None
    for relation, pattern in _phrase_patterns():
        if found := pattern.fullmatch(phrase):
            inner = _resolve(found["x"], evidence)
            return None if inner is None else evidence.value(inner, relation)
    return None


def _read_clues(predicates: Sequence[str]) -> list[tuple[str, str]]:
    """Group and name of each predicate; empty if one of them is none."""
    clues = [
        (group, found["x"])
        for predicate in predicates
        for group, pattern in _predicate_patterns()
        if (found := pattern.fullmatch(predicate))
    ]
    return clues if len(clues) == len(predicates) else []


def _split_names(names: str) -> tuple[str, ...]:
    return tuple(re.split(", | and ", names))


def _pattern(template: str, **slots: str) -> re.Pattern:
    """The regular expression of a template; its first letter may be a capital."""
    parts = re.split(r"\{(\w)\}", template)
    expression = "".join(
        f"(?P<{part}>{slots[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    if expression[0].islower():
        expression = f"[{expression[0]}{expression[0].upper()}]{expression[1:]}"
    return re.compile(expression)


def _any_of(templates: Sequence[str]) -> str:
    """Matches what any template does, whatever the archive."""
    return "|".join(
        _pattern(template, h=_NAME).pattern.replace("?P<h>", "") for template in templates
    )


@functools.cache
def _frame_patterns() -> list[tuple[str, re.Pattern]]:
    marks = {wording.DATED: _YEAR, wording.SOURCED: _NAME}
    return [
        (frame, _pattern(template, c=".+", m=marks.get(frame, "")))
        for frame, templates in wording.FRAMES.items()
        for template in templates
    ]


@functools.cache
def _clause_patterns() -> list[tuple[str, re.Pattern]]:
    singles = [
        (relation.name, _pattern(clause, s=_NAME, v=_YEAR if relation.value == "year" else _NAME))
        for relation in (*RELATIONS.values(), ALIAS)
        for clause in relation.clauses
    ]
    groups = [
        (group.name, _pattern(clause, s=_NAME, v=_NAMES))
        for group in GROUPS.values()
        for clause in group.clauses
    ]
    return singles + groups


@functools.cache
def _trust_patterns() -> list[tuple[str, re.Pattern]]:
    return [
        (trust, _pattern(f"{clause}.", s=_NAME))
        for trust, clauses in wording.TRUST.items()
        for clause in clauses
    ]


@functools.cache
def _filler_pattern() -> re.Pattern:
    return re.compile(_any_of((*wording.FILLERS, *wording.ARCHIVE_FILLERS)))


@functools.cache
def _start_pattern() -> re.Pattern:
    return re.compile(f"^(?:{_any_of(wording.IN_ARCHIVE)})?(?:{_any_of(wording.LATEST)})?")


@functools.cache
def _who_patterns() -> list[re.Pattern]:
    return [_pattern(template, p=".+", q=".+", r=".+") for template in wording.WHO]


@functools.cache
def _predicate_patterns() -> list[tuple[str, re.Pattern]]:
    return [
        (group.name, _pattern(predicate, x=_NAME))
        for group in GROUPS.values()
        for predicate in group.predicates
    ]


@functools.cache
def _question_patterns() -> list[tuple[str, re.Pattern]]:
    return [
        (relation.name, _pattern(question, x=".+"))
        for relation in RELATIONS.values()
        for question in relation.questions
    ]


@functools.cache
def _phrase_patterns() -> list[tuple[str, re.Pattern]]:
    return [
        (relation.name, _pattern(relation.phrase, x=".+"))
        for relation in RELATIONS.values()
        if relation.phrase
    ]


@functools.cache
def _compared_patterns() -> list[tuple[list[str], int, re.Pattern]]:
    """For each wording: the years that it may compare, and which of the two it means."""
    years: dict[tuple[int, str], list[str]] = {}
    for year, phrases in wording.COMPARED.items():
        for position, phrase in enumerate(phrases):
            years.setdefault((position, phrase), []).append(year)
    return [
        (names, position, _pattern(phrase, a=_NAME, b=_NAME))
        for (position, phrase), names in years.items()
    ]
