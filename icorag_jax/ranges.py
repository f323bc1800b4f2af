"""Checks of settings that many kinds of settings share."""

import math


def check_at_least(settings: object, **least: int) -> None:
    """Checks that numbers among settings are finite and not too small.

    Args:
        settings: has the numbers as attributes.
        least: the smallest right value of each, by name.

    Raises:
        ValueError: names the first that is not right.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if not bound <= value < math.inf:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
