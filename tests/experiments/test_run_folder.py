import contextlib
import dataclasses
import enum
import errno
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.support import environment, files, run_folder
from experiments.support.run_folder import RunFolderError, open_run
from icorag_jax.files import is_leftover

REPOSITORY = Path(__file__).parents[2]

SWEEP = textwrap.dedent(
    '''
    """A small sweep with a cell that can be interrupted: `STOP` is `kill` or `wait`."""

    import dataclasses
    import os
    import signal
    import time
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from experiments.support.command import run_command
    from experiments.support.run_folder import open_run


    @dataclasses.dataclass(frozen=True)
    class Config:
        out: Path
        seed: int = 0
        resume: bool = False


    def main(config):
        with open_run(config.out, "sweep", config, resume=config.resume) as run:
            tables = [run.cell(f"cell_{i}", lambda i=i: cell(config, i)) for i in range(3)]
            table = pd.concat(tables, ignore_index=True)
            run.write_table("sweep", table)
            run.write_summary({"mean": table["value"].mean()})


    def cell(config, index):
        with open("computed.txt", "a") as log:
            print(index, file=log)
        if index == 1 and os.environ.get("STOP") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 1 and os.environ.get("STOP") == "wait":
            print("waiting", flush=True)
            time.sleep(60)
        values = np.random.default_rng([config.seed, index]).normal(size=5)
        return pd.DataFrame({"index": index, "value": values})


    if __name__ == "__main__":
        run_command(main, Config, {"quick": {}})
    '''
)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    seed: int = 0
    resume: bool = False
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    colour: Colour = Colour.RED
    clip: float = float("inf")
    data: Path | None = None


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: bytes of files, None of folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def opened(out: Path, command: str = "sweep", *, resume: bool = False, **settings):
    return open_run(out, command, Config(out, resume=resume, **settings), resume=resume)


@contextlib.contextmanager
def refused(folder: Path, *parts: str):
    """A block that ends with a RunFolderError that says all of `parts`, and writes nothing."""
    before = snapshot(folder)
    with pytest.raises(RunFolderError) as raised:
        yield
    assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert snapshot(folder) == before


def never():
    raise AssertionError("the cell is there, nothing is to be computed")


def table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "name": ["a", None, "c"],
            "value": rng.normal(size=3),
            "single": rng.normal(size=3).astype(np.float32),
            "count": np.arange(3, dtype=np.int8),
            "kind": pd.Categorical(["x", "y", "x"]),
            "missing": [1.0, np.nan, np.inf],
        }
    )


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.normal(size=(3, 2)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(2, 2))),
        "names": np.array(["a", "bc"]),
        "scalar": np.array(3),
    }


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([0, 1], [1, 0])
    return drawn


def whole_run(out: Path, *, resume: bool = False) -> None:
    """A run with each kind of file."""
    with opened(out, resume=resume) as run:
        first = run.cell("first", table)
        second = run.cell_arrays("second", arrays)
        run.write_table("results", first)
        run.write_figure("curve", figure())
        run.write_account("# Run\n")
        run.write_summary({"total": second["weights"].sum()})


# What a folder holds.


def test_a_run_writes_its_folder(tmp_path):
    out = tmp_path / "new" / "run"
    with opened(out) as run:
        assert run.path == out
        assert not (out / "summary.json").exists()
        run.write_summary({})
        assert (out / "summary.json").exists()
    whole_run(out, resume=True)
    assert set(snapshot(out)) == {
        *(".lock", "config.json", "environment.json", "account.md", "summary.json"),
        *("cells", "cells/first.parquet", "cells/first.parquet.sha256"),
        *("cells/second.npz", "cells/second.npz.sha256"),
        *("results.parquet", "figures", "figures/curve.png"),
    }


def test_config_holds_every_setting_but_out_and_resume(tmp_path):
    with opened(tmp_path, data=tmp_path / "texts"):
        pass
    text = (tmp_path / "config.json").read_text()
    found = json.loads(text)
    data = found["config"].pop("data")
    assert found == {
        "command": "sweep",
        "config": {
            "seed": 0,
            "sizes": [1, 2],
            "inner": {"rate": 0.1},
            "colour": "RED",
            "clip": "inf",
        },
    }
    assert data.startswith("texts (") and str(tmp_path) not in text
    assert list(found["config"]) == sorted(found["config"])


def test_environment_names_versions_and_device_but_no_place(tmp_path):
    whole_run(tmp_path)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert set(found) == {"python", "platform", "code", "settings", "packages", "device"}
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "icorag_jax"} <= set(
        found["packages"]
    )
    assert found["settings"]["x64"] is False
    flags = os.environ["XLA_FLAGS"].split()
    assert found["settings"]["xla_flags"] == [flag for flag in flags if "/" not in flag]
    assert found["device"] == {"kind": "cpu", "platform": "cpu", "count": found["device"]["count"]}
    for data in snapshot(tmp_path).values():
        assert str(tmp_path).encode() not in (data or b"")
        assert os.uname().nodename.encode() not in (data or b"")


def test_code_that_changed_is_seen(tmp_path, monkeypatch):
    here = environment.describe_environment()["code"]
    monkeypatch.setattr(environment.icorag_jax, "__path__", [str(tmp_path)])
    (tmp_path / "module.py").write_text("one = 1")
    one = environment.describe_environment()["code"]
    (tmp_path / "module.py").write_text("one = 2")
    assert len({here, one, environment.describe_environment()["code"]}) == 3


def test_same_run_same_bytes(tmp_path):
    whole_run(tmp_path / "one")
    whole_run(tmp_path / "two")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole_run(tmp_path)
    before = snapshot(tmp_path)
    whole_run(tmp_path, resume=True)
    assert snapshot(tmp_path) == before


def test_no_file_holds_the_time(tmp_path):
    data = files.arrays_bytes(arrays())
    (tmp_path / "arrays.npz").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "arrays.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert b"Matplotlib" not in files.figure_bytes(figure())


def test_chunks_of_a_table_do_not_show():
    parts = [pd.DataFrame({"name": [name] * 3, "value": 1.0}) for name in "ab"]
    joined = pd.concat(parts, ignore_index=True)
    whole = pd.DataFrame({"name": ["a"] * 3 + ["b"] * 3, "value": 1.0})
    assert files.table_bytes(joined) == files.table_bytes(whole)


def test_summary_is_plain_json_in_the_order_given(tmp_path):
    summary = {
        "z": np.float32(0.5),
        "a": float("nan"),
        "list": [np.inf, np.int64(3), np.bool_(True), None],
        "array": np.array([[1.0, np.nan]]),
        0.1: Inner(rate=-np.inf),
        "path": Path("a/b"),
        "text": "α",
    }
    with opened(tmp_path) as run:
        run.write_summary(summary)
        with pytest.raises(TypeError, match="JSON has no complex"):
            run.write_summary({"bad": 1j})
    text = (tmp_path / "summary.json").read_text()
    assert "α" in text and text.endswith("}\n")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "z": 0.5,
        "a": None,
        "list": [None, 3, True, None],
        "array": [[1.0, None]],
        "0.1": {"rate": None},
        "path": "a/b",
        "text": "α",
    }
    assert list(json.loads(text))[:3] == ["z", "a", "list"]


# Cells.


def test_a_cell_is_computed_once_and_always_read_back(tmp_path):
    with opened(tmp_path) as run:
        fresh, fresh_arrays = run.cell("one.a-b_2", table), run.cell_arrays("two", arrays)
    with opened(tmp_path, resume=True) as run:
        again, again_arrays = run.cell("one.a-b_2", never), run.cell_arrays("two", never)
    pd.testing.assert_frame_equal(fresh, again)
    pd.testing.assert_frame_equal(fresh, table())
    assert fresh_arrays.keys() == again_arrays.keys() == arrays().keys()
    for name, array in arrays().items():
        for found in (fresh_arrays[name], again_arrays[name]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_a_table_keeps_its_index(tmp_path):
    with opened(tmp_path) as run:
        kept = run.cell("kept", lambda: table().iloc[1:])
    assert list(kept.index) == [1, 2]


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "é", "a\n"])
def test_bad_names_are_refused(tmp_path, name):
    with opened(tmp_path) as run:
        before = snapshot(tmp_path)
        for write in (
            lambda: run.cell(name, never),
            lambda: run.cell_arrays(name, never),
            lambda: run.write_table(name, table()),
            lambda: run.write_figure(name, figure()),
        ):
            with pytest.raises(ValueError, match="name"):
                write()
        assert snapshot(tmp_path) == before


def test_objects_are_refused(tmp_path):
    with opened(tmp_path) as run, pytest.raises(ValueError, match="array bad holds"):
        run.cell_arrays("cell", lambda: {"bad": np.array([{}], dtype=object)})
    assert not (tmp_path / "cells").exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name(f"{path.name}.sha256").unlink(),
        lambda path: path.with_name(f"{path.name}.sha256").write_text("0"),
    ],
    ids=["flipped", "truncated", "empty", "no checksum", "other checksum"],
)
@pytest.mark.parametrize("name", ["first.parquet", "second.npz"])
def test_a_damaged_cell_is_refused_until_deleted(tmp_path, damage, name):
    def cells(resume: bool) -> None:
        with opened(tmp_path, resume=resume) as run:
            run.cell("first", table)
            run.cell_arrays("second", arrays)

    cells(resume=False)
    whole = snapshot(tmp_path)
    path = tmp_path / "cells" / name
    damage(path)
    with refused(tmp_path, str(path), "not as it was written", "delete it", "--resume"):
        cells(resume=True)
    path.unlink()
    cells(resume=True)
    assert snapshot(tmp_path) == whole


# Folders that are refused.


def test_a_file_as_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "it"):
        with refused(tmp_path, str(file), "not a folder", "--out"), opened(out):
            pass


def test_a_dangling_link_as_folder(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RunFolderError, match="not a folder"), opened(tmp_path / "link"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("out", ["there", "there/new"])
def test_a_folder_without_permission(tmp_path, out, monkeypatch):
    (tmp_path / "there").mkdir()
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    with (
        refused(tmp_path, str(tmp_path / "there"), "no permission to write"),
        opened(tmp_path / out),
    ):
        pass


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    def mkdir(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with refused(tmp_path, "cannot write to", "Read-only"), opened(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "mine"),
        (".hidden", ""),
        ("environment.json", "{}"),
        ("config.json", "{}"),
        ("config.json", '{"hidden_size": 384}'),
        ("config.json", "not JSON"),
        ("config.json", "[]"),
    ],
)
@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else(tmp_path, name, content, lock, resume):
    (tmp_path / name).write_text(content)
    if lock:
        (tmp_path / ".lock").write_text("")
    with refused(tmp_path, str(tmp_path), "holds no run"), opened(tmp_path, resume=resume):
        pass


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_other_settings(tmp_path, lock, resume):
    with opened(tmp_path):
        pass
    if not lock:
        (tmp_path / ".lock").unlink()
    lines = ("config.seed: 0 there, 5 now", "config.inner.rate: 0.1 there, 0.2 now", "--out")
    with refused(tmp_path, *lines), opened(tmp_path, resume=resume, seed=5, inner=Inner(0.2)):
        pass
    with pytest.raises(RunFolderError) as raised, opened(tmp_path, resume=resume, seed=5):
        pass
    assert "sizes" not in str(raised.value)


def test_paths_of_one_name_are_told_apart(tmp_path):
    with opened(tmp_path, data=Path("/a/texts")):
        pass
    with refused(tmp_path, "config.data: texts ("), opened(tmp_path, data=Path("/b/texts")):
        pass


def test_another_command(tmp_path):
    with opened(tmp_path):
        pass
    with refused(tmp_path, "command: sweep there, other now"), opened(tmp_path, "other"):
        pass


@pytest.mark.parametrize("lock", [True, False])
def test_a_run_is_gone_on_with_only_on_request(tmp_path, lock):
    with opened(tmp_path):
        pass
    if not lock:
        (tmp_path / ".lock").unlink()
    with refused(tmp_path, "--resume", "--out"), opened(tmp_path):
        pass


def test_another_environment(tmp_path, monkeypatch):
    whole_run(tmp_path)
    here = run_folder.describe_environment()
    other = here | {
        "packages": here["packages"] | {"jax": "0.0.1"},
        "device": {"kind": "TPU v5", "platform": "tpu", "count": 4},
    }
    monkeypatch.setattr(run_folder, "describe_environment", lambda: other)
    jax_line = f"packages.jax: {here['packages']['jax']} there, 0.0.1 now"
    with refused(tmp_path, jax_line, "device.kind: cpu there, TPU v5 now"):
        whole_run(tmp_path, resume=True)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_lost_environment(tmp_path, damage):
    whole_run(tmp_path)
    damage(tmp_path / "environment.json")
    with refused(tmp_path, "python: (none) there"):
        whole_run(tmp_path, resume=True)


@pytest.mark.parametrize("exists", [True, False])
def test_resuming_nothing_starts(tmp_path, exists):
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    whole_run(out, resume=True)
    whole_run(tmp_path / "fresh")
    assert snapshot(out) == snapshot(tmp_path / "fresh")


def test_one_run_at_a_time(tmp_path):
    with opened(tmp_path):
        for resume in (True, False):
            second = opened(tmp_path, resume=resume)
            with refused(tmp_path, "another run is writing to", str(tmp_path)), second:
                pass
    with opened(tmp_path, resume=True):
        pass


def test_a_run_that_comes_first_by_a_hair_is_seen(tmp_path, monkeypatch):
    looked = run_folder._read_identity

    def look_then_lose(out):
        found = looked(out)
        monkeypatch.setattr(run_folder, "_read_identity", looked)
        with opened(out, seed=7):
            pass
        return found

    monkeypatch.setattr(run_folder, "_read_identity", look_then_lose)
    with pytest.raises(RunFolderError, match="seed: 7 there, 0 now"), opened(tmp_path):
        pass


# Runs that die.


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole_run(tmp_path)
    before = snapshot(tmp_path)
    with opened(tmp_path, resume=True) as run:
        monkeypatch.setattr(os, "fsync", full)
        for write in (
            lambda: run.cell("new", table),
            lambda: run.cell_arrays("new", arrays),
            lambda: run.write_table("results", table(seed=1)),
            lambda: run.write_summary({"other": 1}),
            lambda: run.write_figure("curve", figure()),
            lambda: run.write_account("other"),
        ):
            with pytest.raises(OSError, match="No space left"):
                write()
    assert snapshot(tmp_path) == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("done", [True, False], ids=["after", "before"])
def test_a_kill_at_any_write_changes_no_byte(tmp_path, monkeypatch, done):
    """The process stops before or after each move of a temporary file to its name in turn."""
    moves = []
    move = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: moves.append(paths) or move(*paths))
    # What a killed process cannot do any more.
    monkeypatch.setattr(Path, "unlink", functools.partialmethod(lambda *_, **__: None))
    whole_run(tmp_path / "whole")
    total = len(moves)

    def deadly(number, *paths):
        moves.append(paths)
        if len(moves) == number:
            if done:
                move(*paths)
            raise Killed
        move(*paths)

    assert total == 10
    for number in range(1, total + 1):
        out = tmp_path / str(number)
        moves.clear()
        monkeypatch.setattr(os, "replace", functools.partial(deadly, number))
        with pytest.raises(Killed):
            whole_run(out)
        leftovers = [path for path in out.rglob("*") if is_leftover(path)]
        assert len(leftovers) == (0 if done else 1)
        monkeypatch.undo()
        whole_run(out, resume=True)
        assert snapshot(out) == snapshot(tmp_path / "whole")
        monkeypatch.setattr(Path, "unlink", functools.partialmethod(lambda *_, **__: None))


@pytest.fixture
def sweep(tmp_path):
    """Starts the sweep in a process of its own: `sweep(out, *options, stop="")`."""
    (tmp_path / "sweep.py").write_text(SWEEP)
    started = []

    def start(out, *options, stop=""):
        process = subprocess.Popen(
            [sys.executable, "sweep.py", "--out", out, *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "STOP": stop},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_9_then_resume_gives_the_same_bytes(tmp_path, sweep):
    whole, killed, waiting = sweep("whole"), sweep("run", stop="kill"), sweep("busy", stop="wait")
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait() == 0, whole.stderr.read()
    assert not (tmp_path / "run" / "summary.json").exists()

    # While one process is in a cell another keeps out; when it is killed the way is free.
    assert waiting.stdout.readline() == "waiting\n"
    before = snapshot(tmp_path / "busy")
    second = sweep("busy", "--resume")
    _, message = second.communicate()
    assert second.returncode == 2
    assert message.strip().startswith("error: another run is writing to busy")
    assert snapshot(tmp_path / "busy") == before
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()

    (tmp_path / "computed.txt").unlink()
    resumed = [sweep("run", "--resume"), sweep("busy", "--resume")]
    for process in resumed:
        assert process.wait() == 0, process.stderr.read()
    assert sorted((tmp_path / "computed.txt").read_text().split()) == ["1", "1", "2", "2"]
    for out in ("run", "busy"):
        assert snapshot(tmp_path / out) == snapshot(tmp_path / "whole")
