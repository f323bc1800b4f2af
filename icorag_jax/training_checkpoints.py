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
        path = self._folder / str(step)
        damaged = f"{path} is damaged: delete it to go on from the state before"
        try:
            stored = _shapes(self._manager.item_metadata(step))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{damaged} ({error})") from error
        if not stored:
            raise ValueError(damaged)
        expected = _shapes(state)
        for name in sorted(stored.keys() | expected.keys()):
            found, wanted = (shapes.get(name, "not there") for shapes in (stored, expected))
            if found != wanted:
                raise ValueError(
                    f"{path} is of another training ({name} is {found}, in this one {wanted}): "
                    "pass another folder"
                )
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{damaged} ({error})") from error
        return restored

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, and returns when it is whole on disk."""
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()


@contextlib.contextmanager
def open_checkpoints(folder: Path) -> Iterator[TrainingCheckpoints]:
    """The states of a training, in a folder that is created if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(
        folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
    ) as manager:
        yield TrainingCheckpoints(manager, folder)


def _shapes(state: Any) -> dict[str, str]:
    """Dtype and shape of each array of a state, or of what is known of a stored one."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {leaf.shape}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
