"""Questions and passages as the features of a `tensorflow-datasets` builder, and back."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from icorag_jax.data.records import CorpusPassage, Passage, Question

Example = dict[str, Any]

_NO_LABEL = -1  # the integer of a gold label that is None

_TEXT = tfds.features.Text()
QUESTION_FEATURES = tfds.features.FeaturesDict(
    {
        "id": _TEXT,
        "question": _TEXT,
        "answers": tfds.features.Sequence(_TEXT),
        "passages": tfds.features.Sequence({"title": _TEXT, "text": _TEXT, "is_gold": np.int64}),
        "type": _TEXT,
    }
)
CORPUS_FEATURES = tfds.features.FeaturesDict({"id": _TEXT, "title": _TEXT, "text": _TEXT})


def question_to_example(question: Question) -> Example:
    """A question as the features of a builder have it."""
    return {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "passages": [
            {
                "title": passage.title,
                "text": passage.text,
                "is_gold": _NO_LABEL if passage.is_gold is None else int(passage.is_gold),
            }
            for passage in question.passages
        ],
        "type": question.type or "",
    }


def question_from_example(example: Example) -> Question:
    """The question of an example as `tfds.data_source` gives it, with texts as bytes."""
    passages = example["passages"]
    fields = zip(passages["title"], passages["text"], passages["is_gold"], strict=True)
    return Question(
        example["id"].decode(),
        example["question"].decode(),
        tuple(answer.decode() for answer in example["answers"]),
        tuple(
            Passage(title.decode(), text.decode(), None if label == _NO_LABEL else bool(label))
            for title, text, label in fields
        ),
        example["type"].decode() or None,
    )


def passage_to_example(passage: CorpusPassage) -> Example:
    """A passage of a corpus as the features of a builder have it."""
    return {"id": passage.id, "title": passage.title, "text": passage.text}


def passage_from_example(example: Example) -> CorpusPassage:
    """The passage of an example as `tfds.data_source` gives it, with texts as bytes."""
    return CorpusPassage(*(example[key].decode() for key in ("id", "title", "text")))
