"""The folder of a run: what was run, on what, its cells and its results.

A run is put together from cells, the parts that take time. A cell that is done stays on disk, so
that a run killed at any point goes on from there, and ends with the very bytes that it would have
ended with. No file holds a time, a host's name or an absolute path:

    config.json           the command and its settings
    environment.json      versions and the device
    cells/NAME.parquet    a cell, beside its checksum; or NAME.npz
    NAME.parquet          a table of results
    figures/NAME.png
    account.md            the run in words
    summary.json          written last: where it is, the run is finished
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.support import files
from experiments.support.environment import describe_environment
from experiments.support.files import json_bytes, plain
from icorag_jax.files import is_leftover, remove_leftovers, write_atomically

_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_SUMMARY = "summary.json"
_LOCK = ".lock"
_CELLS = "cells"
# Settings that say where and how to run, not what.
_NOT_OF_THE_RUN = ("out", "resume")


class RunFolderError(OSError):
    """A folder cannot take this run; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder, open for one run. Every file in it is whole or absent at any time.

    All names are of letters, digits, `_`, `.` and `-`; others raise a ValueError. A write that
    fails raises an OSError and leaves the file as it was.

    Attributes:
        path: the folder.
    """

    path: Path

    def cell(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A part of the run as a table, computed unless it is there already.

        The table always comes from disk, so that a run that goes on sees what a fresh one saw.

        Args:
            name: name of the cell: one name, one computation.
            compute: called without arguments if the cell is not there.

        Raises:
            RunFolderError: the stored cell is not as it was written.
        """
        data = self._stored_cell(f"{_checked(name)}.parquet", lambda: files.table_bytes(compute()))
        return files.read_table(data)

    def cell_arrays(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Same as `cell`, for arrays by name.

        Raises:
            RunFolderError: the stored cell is not as it was written.
            ValueError: an array holds Python objects.
        """
        data = self._stored_cell(f"{_checked(name)}.npz", lambda: files.arrays_bytes(compute()))
        return files.read_arrays(data)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes `NAME.parquet`."""
        write_atomically(self.path / f"{_checked(name)}.parquet", files.table_bytes(table))

    def write_figure(self, name: str, figure: Figure) -> None:
        """Writes `figures/NAME.png`, with 120 dots an inch."""
        path = self.path / "figures" / f"{_checked(name)}.png"
        write_atomically(path, files.figure_bytes(figure))

    def write_account(self, markdown: str) -> None:
        """Writes `account.md`."""
        write_atomically(self.path / "account.md", markdown.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, the last file of a run; NaN and infinities become null.

        Raises:
            TypeError: there is a value that JSON cannot hold.
        """
        write_atomically(self.path / _SUMMARY, json_bytes(plain(summary)))

    def _stored_cell(self, filename: str, compute: Callable[[], bytes]) -> bytes:
        path = self.path / _CELLS / filename
        checksum = path.with_name(f"{filename}.sha256")
        if not path.exists():
            data = compute()
            # The checksum first: wherever a kill falls, a cell that is there has one.
            write_atomically(checksum, _checksum(filename, data))
            write_atomically(path, data)
        data = path.read_bytes()
        if not checksum.exists() or checksum.read_bytes() != _checksum(filename, data):
            raise RunFolderError(
                f"{path} is not as it was written; delete it, and run with --resume to compute "
                "it again"
            )
        return data


@contextlib.contextmanager
def open_run(out: Path, command: str, config: Any, *, resume: bool) -> Iterator[Run]:
    """Opens a folder for a run, new or gone on with, and keeps all other runs out of it.

    Args:
        out: the folder; created if need be.
        command: name of the experiment.
        config: its settings, a dataclass. `out` and `resume` in it are not part of what the run
            is; absolute paths are known by their last name and a hash.
        resume: go on with the run that the folder holds, if it holds one.

    Raises:
        RunFolderError: the folder holds something else, or a run with other settings, or, with
            `resume`, from another environment; or `resume` is not set and there is a run already;
            or another process writes to it; or it cannot be written. In each case nothing is
            written.
    """
    identity = {"command": command, "config": _settings(config)}
    environment = describe_environment()
    stored = _read_identity(out)
    # A lock file that is there can be locked with nothing written. A run that comes without one,
    # copied say, has to be fit to go on with first.
    if not (out / _LOCK).exists():
        _check_run(out, stored, identity, environment, resume=resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / _LOCK).acquire(timeout=0)
    except filelock.Timeout:
        raise RunFolderError(
            f"another run is writing to {out}; wait for it, or pass another --out"
        ) from None
    except OSError as error:
        raise RunFolderError(f"cannot write to {out} ({error.strerror})") from error
    with lock:
        # Once more: before the lock was taken, another run may have come and gone.
        stored = _read_identity(out)
        _check_run(out, stored, identity, environment, resume=resume)
        remove_leftovers(out)
        if stored is None:
            write_atomically(out / _CONFIG, json_bytes(identity, sort_keys=True))
        if not (out / _ENVIRONMENT).exists():
            write_atomically(out / _ENVIRONMENT, json_bytes(environment, sort_keys=True))
        yield Run(out)


def _read_identity(out: Path) -> dict[str, Any] | None:
    """What the run in a folder is, or None where a new one can begin."""
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise RunFolderError(f"{nearest} is not a folder; pass another --out")
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        raise RunFolderError(f"no permission to write to {nearest}; pass another --out")
    if nearest != out:
        return None
    names = sorted(path.name for path in out.iterdir() if not is_leftover(path))
    if not set(names) - {_LOCK}:
        return None
    identity = _read_json(out / _CONFIG) if _CONFIG in names else None
    if not isinstance(identity, dict) or set(identity) != {"command", "config"}:
        raise RunFolderError(f"{out} is not empty and holds no run; pass another --out")
    return identity


def _check_run(
    out: Path,
    stored: dict[str, Any] | None,
    identity: dict[str, Any],
    environment: dict[str, Any],
    *,
    resume: bool,
) -> None:
    if stored is None:
        return
    if different := list(_differences(stored, identity)):
        raise RunFolderError(_listing(f"{out} holds another run; pass another --out", different))
    if not resume:
        raise RunFolderError(
            f"{out} holds this run already; pass --resume to go on with it, or another --out"
        )
    # Nothing was computed before the environment was written.
    if not (out / _ENVIRONMENT).exists() and not (out / _CELLS).exists():
        return
    if different := list(_differences(_read_json(out / _ENVIRONMENT) or {}, environment)):
        raise RunFolderError(
            _listing(
                f"{out} holds a run from another environment, where results may differ; go back "
                "to that one or pass another --out",
                different,
            )
        )


def _differences(there: Any, now: Any, key: str = "") -> Iterator[str]:
    """A line for each entry that two nested mappings do not share."""
    if isinstance(there, dict) and isinstance(now, dict):
        for name in sorted(there.keys() | now.keys()):
            at = f"{key}.{name}" if key else name
            yield from _differences(there.get(name, "(none)"), now.get(name, "(none)"), at)
    elif there != now:
        yield f"{key or 'all'}: {there} there, {now} now"


def _listing(problem: str, lines: list[str]) -> str:
    return "\n  ".join([f"{problem}. These differ:", *lines])


def _read_json(path: Path) -> Any:
    """What a JSON file holds, None where it is absent or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _settings(config: Any) -> dict[str, Any]:
    return {
        field.name: plain(_portable(getattr(config, field.name)), nonfinite=str)
        for field in dataclasses.fields(config)
        if field.name not in _NOT_OF_THE_RUN
    }


def _portable(value: Any) -> Any:
    """An absolute path as its last name and a hash, in nested settings too, all else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _portable(getattr(value, field.name)) for field in fields}
    if isinstance(value, str | Path) and (path := Path(value)).is_absolute():
        return f"{path.name} ({hashlib.sha256(bytes(path)).hexdigest()[:12]})"
    return value


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"a name takes letters, digits, '_', '.' and '-' only, got {name!r}")
    return name


def _checksum(filename: str, data: bytes) -> bytes:
    """As `sha256sum` writes it, and checks it."""
    return f"{hashlib.sha256(data).hexdigest()}  {filename}\n".encode()
