"""Settings of a generated world."""

import dataclasses
import math
from typing import Literal, get_args

from icorag_jax.data.world.wording import FILLERS
from icorag_jax.ranges import check_at_least

Family = Literal[
    "single_fact", "clues", "aliases", "bridge", "comparison", "three_hops", "conflict"
]
FAMILIES: tuple[Family, ...] = get_args(Family)

# The family on which evidence need not be weighed: its distractors are easy whatever is set.
CONTROL: Family = "single_fact"

# A fact has three wordings at least, so as many passages may state it and yet differ.
_MOST_CONTESTED = 3

# Passages that a question needs at most, without those of the setting `contested`.
_NEEDED: dict[Family, int] = {
    "single_fact": 1,
    "clues": 4,
    "aliases": 2,
    "bridge": 2,
    "comparison": 2,
    "three_hops": 3,
    "conflict": 2,
}


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Settings of a world; the same settings give the same world.

    Attributes:
        seed: of all that is drawn.
        size: training questions of each family.
        held_out: questions of each family in dev, and as many in test.
        families: what kinds of questions there are.
        passages: passages of a question, those that answer it among them.
        hard_share: share of hard ones among the distractors, in [0, 1]: on an entity of the
            question, but another relation; or on its relation, but another entity, which may have
            a similar name, or be the value of another fact. The others are of other entities and
            relations. The control family has none but these.
        contested: most passages on the fact of a conflict, beside the right one; 1 to 3. The first
            is wrong; each further one repeats it, is wrong in another way, or happens to be right.
        facts: most facts in a passage; a comparison's passages have two at least.
        fillers: sentences without a fact in a passage.
        archive_share: share of passages that name the archive which their question names too:
            what lets a retriever find passages that share no entity with the question. With 0, no
            question names one. Names stand in fillers.
    """

    seed: int = 0
    size: int = 1000
    held_out: int = 300
    families: tuple[Family, ...] = FAMILIES
    passages: int = 10
    hard_share: float = 0.5
    contested: int = 2
    facts: int = 2
    fillers: int = 1
    archive_share: float = 0.9

    def __post_init__(self):
        """Checks the ranges.

        Raises:
            ValueError: names the setting that is out of range.
        """
        check_at_least(self, seed=0, size=0, held_out=0, contested=1, facts=1, fillers=0)
        if self.size + self.held_out == 0:
            raise ValueError("size and held_out are both 0: there would be no question")
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"families must be one or more, none twice, got {self.families}")
        if unknown := [family for family in self.families if family not in FAMILIES]:
            raise ValueError(f"families must be among {', '.join(FAMILIES)}, got {unknown[0]}")
        for name in ("hard_share", "archive_share"):
            if not 0 <= getattr(self, name) <= 1 or math.isnan(getattr(self, name)):
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.contested > _MOST_CONTESTED:
            raise ValueError(f"contested must be at most {_MOST_CONTESTED}, got {self.contested}")
        if self.fillers > len(FILLERS):
            raise ValueError(f"fillers must be at most {len(FILLERS)}, got {self.fillers}")
        if self.archive_share and not self.fillers:
            raise ValueError("archives are named in fillers: with fillers 0, set archive_share 0")
        for family in self.families:
            needed = _NEEDED[family] + (self.contested if family == "conflict" else 0)
            if self.passages < needed:
                raise ValueError(
                    f"passages must be at least {needed} for {family}, got {self.passages}"
                )
