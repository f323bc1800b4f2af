"""Commands that are stopped half-way."""

import contextlib
import itertools

import pytest


@contextlib.contextmanager
def interrupted(module, name, after):
    """What runs here is interrupted where it calls a function of a module once too often.

    Args:
        module: whose function it is.
        name: of the function.
        after: calls that are let through.
    """
    function, calls = getattr(module, name), itertools.count()

    def stopped(*args):
        if next(calls) == after:
            raise KeyboardInterrupt
        return function(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, stopped)
        yield
