"""States of training on disk: the last one that is whole is there after a kill at any time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

State = TypeVar("State")


class TrainingCheckpoints:
    """The states of one training in a folder, by step; the two latest are kept."""

    def __init__(self, manager: ocp.CheckpointManager, folder: Path):
        """States that `manager` keeps in `folder`; `open_checkpoints` makes one."""
        self._manager = manager
        self._folder = folder

    def restore(self, state: State) -> State:
        """The latest state, or `state` itself where there is none yet.

        Args:
            state: of the same shapes and dtypes.

        Raises:
            ValueError: the folder holds a state of other shapes, or a damaged one.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{self._folder / str(step)} is damaged or of another training ({error}): delete "
                "it to go on from the state before, or pass another folder"
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, and returns when it is whole on disk."""
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()


@contextlib.contextmanager
def open_checkpoints(folder: Path) -> Iterator[TrainingCheckpoints]:
    """The states of a training, in a folder that is created if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        yield TrainingCheckpoints(manager, folder)
