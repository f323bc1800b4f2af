"""Made-up names: pronounceable, no two alike, and none of their words in two splits.

A name has a head, a word of two syllables that only one split uses, and a tail: another such word
(people, archives), an ending (places, aliases) or an English noun (works, organisations, sources).
Names that share their head are similar.
"""

from typing import Literal, NamedTuple

from icorag_jax.data.world.draws import Draws

Kind = Literal["person", "place", "work", "organisation", "alias", "source", "archive"]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# A word splits into its two syllables in one way only, so that no two are alike.
_ONSETS = ["b", "d", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "th", "v", "w", "y"]
_CODAS = ["", "l", "n", "r", "s"]
_SYLLABLES = [onset + vowel + coda for onset in _ONSETS for vowel in "aeiou" for coda in _CODAS]
_WORDS = len(_SYLLABLES) ** 2
# Well-known names and rude words that two syllables happen to make.
_UNWANTED = {
    *("Japan", "Jesus", "Kenya", "Lenin", "Mali", "Milan", "Paris", "Peru", "Putin", "Satan"),
    *("Sudan", "Yemen", "Dildo", "Homo", "Kike", "Paki", "Puta"),
}

# The words of a split are those whose numbers leave one of these remainders: three quarters go to
# training. The rule is the same for every seed, so that worlds of different seeds may be mixed.
_REMAINDERS: dict[Split, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5),
    "dev": (6,),
    "test": (7,),
}
_DIVISOR = 8

_FORMS: dict[Kind, str] = {
    "person": "{head} {tail}",
    "place": "{head}{tail}",
    "work": "The {head} {tail}",
    "organisation": "{head} {tail}",
    "alias": "{head}{tail}",
    "source": "{head} {tail}",
    "archive": "{head} {tail}",
}
# People and archives have words of their split for tails.
TAILS = {
    kind: words.split()
    for kind, words in {
        "place": (
            "bay beck bourne bridge brook burgh bury by cliff combe cross dale dell den fell "
            "ferry field ford garth gate glade glen grove haven heath hill holm hurst ley marsh "
            "mead mere minster mora moss mouth ness port ridge shaw shore stead thorpe vale well "
            "wick wood worth"
        ),
        "work": (
            "Anchor Ballad Bell Bride Candle Castle Circle Compass Crown Dancer Daughter Door "
            "Dream Feather Fountain Garden Ghost Harbour Harvest Island Journey Key Lantern "
            "Letter Mask Mirror Moon Night Orchard Palace Path Pearl Promise Riddle Ring River "
            "Rose Secret Shadow Song Sparrow Storm Stranger Tower Voyage Wall Window Winter"
        ),
        "organisation": (
            "Academy Agency Alliance Association Bank Board Brewery Bureau Choir Circus Club "
            "College Company Council Factory Foundry Fund Gallery Group Guild Hospital Institute "
            "Laboratory League Library Line Mill Mission Museum Office Opera Orchestra Order "
            "Partners Press Railway School Service Shipyard Society Studio Syndicate Theatre "
            "Trust Union Works"
        ),
        "alias": "bash dak dax deck dosk kam kesh kob kud mik mok nisk rak tosh vok zar",
        "source": (
            "Almanac Chronicle Courier Dispatch Gazette Herald Journal Ledger Mercury Messenger "
            "Observer Post Record Sentinel Times Tribune"
        ),
    }.items()
}

_PATIENCE = 1000


class Name(NamedTuple):
    """A name.

    Attributes:
        head: the part of it that similar names share.
        text: the whole of it.
    """

    head: str
    text: str


class NameBook:
    """Gives out the names of one split, each once."""

    def __init__(self, split: Split):
        """A book in which no name is taken."""
        self._remainders = _REMAINDERS[split]
        self._taken: set[str] = set()

    def draw(self, kind: Kind, draws: Draws, head: str | None = None) -> Name:
        """A name that was not given out before.

        Args:
            kind: of what it names.
            draws: where it comes from.
            head: the head it is to have, a fresh one if None.

        Raises:
            ValueError: the names are used up.
        """
        for _ in range(_PATIENCE):
            tail = draws.choice(TAILS[kind]) if kind in TAILS else self._word(draws)
            stem = head or self._word(draws)
            text = _FORMS[kind].format(head=stem, tail=tail)
            if text not in self._taken and _UNWANTED.isdisjoint(text.split()):
                self._taken.add(text)
                return Name(stem, text)
        raise ValueError(
            f"the names for a {kind} are used up: take a smaller world, or several of other seeds"
        )

    def _word(self, draws: Draws) -> str:
        number = draws.below(_WORDS // _DIVISOR) * _DIVISOR + draws.choice(self._remainders)
        first, shift = divmod(number, len(_SYLLABLES))
        # Counted from the first, so that every syllable comes second in the words of every split:
        # a reader that never met one there could not copy it.
        second = (first + shift) % len(_SYLLABLES)
        return (_SYLLABLES[first] + _SYLLABLES[second]).capitalize()
