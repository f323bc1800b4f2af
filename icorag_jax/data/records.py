"""What a benchmark is made of: questions with their passages, and corpora to retrieve from."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage that comes with a question.

    Attributes:
        title: of the page that it is from; may be empty.
        text: its content.
        is_gold: whether it is one that answers the question, None where the source has no label.
    """

    title: str
    text: str
    is_gold: bool | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its right answers, and passages that may help.

    Attributes:
        id: unique within its benchmark.
        question: the question.
        answers: strings any one of which is right; at least one.
        passages: in the order of the source.
        type: what kind of question the source says it is, or None.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    type: str | None = None


@dataclasses.dataclass(frozen=True)
class CorpusPassage:
    """A passage of a corpus.

    Attributes:
        id: unique within its corpus.
        title: of the page that it is from; may be empty.
        text: its content.
    """

    id: str
    title: str
    text: str
