"""States of training on disk: the latest comes back bit for bit, and others are refused."""

import gc
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from icorag_jax.training_checkpoints import open_checkpoints


class State(NamedTuple):
    step: object
    weights: dict


def make(step, shape=(3, 2), dtype=jnp.float32):
    rng = np.random.default_rng(step)
    return State(jnp.int32(step), {"a": jnp.asarray(rng.normal(size=shape), dtype)})


def restore(folder, like):
    with open_checkpoints(folder) as stored:
        return stored.restore(like)


@pytest.fixture
def folder(tmp_path):
    with open_checkpoints(tmp_path / "some" / "states") as stored:
        for step in (1, 2, 5):
            stored.save(step, make(step))
    return tmp_path / "some" / "states"


def test_without_a_state_one_starts_anew(tmp_path):
    state = make(0)
    assert restore(tmp_path, state) is state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_latest_state_comes_back(tmp_path, dtype):
    with open_checkpoints(tmp_path) as stored:
        for step in (1, 4):
            stored.save(step, make(step, dtype=dtype))
    found, expected = restore(tmp_path, make(0, dtype=dtype)), make(4, dtype=dtype)
    assert isinstance(found, State) and found.step == 4
    assert found.weights["a"].dtype == dtype
    assert np.asarray(found.weights["a"]).tobytes() == np.asarray(expected.weights["a"]).tobytes()


def test_two_states_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["2", "5"]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (make(0, shape=(2, 3)), r"weights/a is float32 \(3, 2\), in this one float32 \(2, 3\)"),
        (make(0, shape=(4, 2)), r"weights/a is float32 \(3, 2\), in this one float32 \(4, 2\)"),
        (make(0, dtype=jnp.bfloat16), r"weights/a is float32 .*, in this one bfloat16 .*"),
        (
            State(jnp.int32(0), {"b": jnp.zeros((3, 2))}),
            r"weights/a is float32 .*, in this one not there",
        ),
        (
            make(0)._replace(weights={**make(0).weights, "b": jnp.zeros(1)}),
            r"weights/b is not there, in this one float32 \(1,\)",
        ),
    ],
)
def test_a_state_of_another_training_is_refused(folder, other, difference):
    message = rf"states/5 is of another training \({difference}\): pass another folder"
    with pytest.raises(ValueError, match=message):
        restore(folder, other)


# Orbax leaves reads that it has begun, and then not awaited, to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_state_is_refused_and_the_one_before_it_is_there(folder):
    for path in (folder / "5").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"states/5 is damaged.*delete it to go on from the state"):
        restore(folder, make(0))
    gc.collect()
    for path in sorted((folder / "5").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "5").rmdir()
    assert restore(folder, make(0)).step == 2


def test_a_write_that_never_ended_is_not_a_state(folder):
    """A folder that has not come to its name yet is passed over."""
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "9.orbax-checkpoint-tmp" / "half").write_bytes(b"x")
    assert restore(folder, make(0)).step == 5
