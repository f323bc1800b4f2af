"""How facts become sentences, and questions more than one fact deep: templates but for relations.

A *frame* makes a sentence of a clause: it may date it, name its source, or correct what was said
before. Templates start with a small letter or a name; `capitalize` makes sentences of them.
"""

from collections.abc import Sequence

# What is known of a source.
TRUST = {
    "good": (
        "the {s} checks everything that it prints",
        "the {s} is known for its careful reports",
        "most people trust the {s}",
    ),
    "bad": (
        "the {s} often prints things that are false",
        "the {s} is known for its false reports",
        "few people trust the {s}",
    ),
}

# Sentences of a clause `{c}`: as it is, with a date `{m}`, with a source `{m}`, as a correction.
PLAIN, DATED, SOURCED, CORRECTED = "plain", "dated", "sourced", "corrected"
FRAMES = {
    PLAIN: ("{c}.",),
    DATED: (
        "as of {m}, {c}.",
        "a record of {m} says that {c}.",
        "in a letter of {m} we read that {c}.",
    ),
    SOURCED: (
        "according to the {m}, {c}.",
        "the {m} reports that {c}.",
        "in the {m} we read that {c}.",
    ),
    CORRECTED: (
        "contrary to older reports, {c}.",
        "it was found later that {c}, and older reports are wrong.",
        "older reports are wrong, and in truth {c}.",
    ),
}

# Which of two entities `{a}` and `{b}`: by which year, then the words for the lower and the higher.
COMPARED = {
    "birth_year": ("the older of {a} and {b}", "the younger of {a} and {b}"),
    "founding_year": ("the older of {a} and {b}", "the younger of {a} and {b}"),
    "settling_year": ("the older of {a} and {b}", "the younger of {a} and {b}"),
    "printing_year": ("the earlier of {a} and {b}", "the later of {a} and {b}"),
}

# Three predicates that one person fits.
WHO = ("who {p}, {q} and {r}?", "which person {p}, {q} and {r}?")

# What goes before a question: where to look, and that the latest news count.
IN_ARCHIVE = ("in the {h} archive, ", "by the {h} archive, ", "from the {h} archive: ")
LATEST = ("as last recorded, ", "by the latest record, ")

# Sentences that say nothing, without and with the archive.
FILLERS = (
    "Little else is told of those days.",
    "The rest of the page is hard to read.",
    "Nobody has asked about it since then.",
    "A short note in the margin repeats this.",
    "The ink has faded in several places.",
    "Many visitors still ask to see this entry.",
    "The matter was settled long ago.",
    "Older readers will remember the story well.",
    "No picture of it has been kept.",
    "The next lines were lost in a fire.",
    "This was copied twice by the same hand.",
    "It is a short entry, but a clear one.",
)
ARCHIVE_FILLERS = (
    "the {h} archive keeps this page.",
    "this entry comes from the {h} archive.",
    "a copy lies in the {h} archive.",
    "it is filed in the {h} archive.",
    "the page is part of the {h} archive.",
)


def capitalize(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[0].upper() + sentence[1:]


def join_names(names: Sequence[str]) -> str:
    """Two names or more as English has them in a row."""
    return f"{', '.join(names[:-1])} and {names[-1]}"
