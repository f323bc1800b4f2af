"""Shards on disk: read back by array_record itself, killed at every write, damaged."""

import json
import os

import pytest
from array_record.python import array_record_data_source
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.benchmarks.shards import write_shards


class Killed(BaseException):
    """A process that is no more: nothing catches it."""


def serialize(example):
    return json.dumps(example).encode()


class Recorder:
    """Serializes, and remembers what."""

    def __init__(self):
        self.seen = []

    def __call__(self, example):
        self.seen.append(example)
        return serialize(example)


def read(shards):
    """All records, in order, as another reader finds them."""
    with array_record_data_source.ArrayRecordDataSource([str(s.path) for s in shards]) as source:
        return [json.loads(source[index]) for index in range(len(source))]


@given(count=st.integers(1, 20), per_shard=st.integers(1, 7))
def test_all_records_are_there_in_order(tmp_path_factory, count, per_shard):
    folder = tmp_path_factory.mktemp("shards") / "new"
    shards = write_shards(folder, iter(range(count)), serialize, per_shard)
    assert read(shards) == list(range(count))
    full, rest = divmod(count, per_shard)
    assert [shard.count for shard in shards] == [per_shard] * full + [rest] * (rest > 0)


def test_a_kill_at_any_write_loses_no_finished_shard(tmp_path, monkeypatch):
    replace, examples = os.replace, list(range(10))
    for allowed in range(8):  # four shards, two files each
        folder = tmp_path / str(allowed)
        left = allowed

        def deadly(source, target):
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", deadly)
            with pytest.raises(Killed):
                write_shards(folder, iter(examples), serialize, 3)
        finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
        assert len(finished) == allowed // 2
        recorder = Recorder()
        shards = write_shards(folder, iter(examples), recorder, 3)
        assert read(shards) == examples
        assert recorder.seen == examples[3 * (allowed // 2) :]
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "edited", "account", "gone"])
def test_a_damaged_shard_is_written_anew(tmp_path, damage):
    shards = write_shards(tmp_path, iter(range(9)), serialize, 3)
    path = shards[1].path
    data = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(data[:-1])
        case "edited":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "account":
            path.with_suffix(".json").write_text("[]")
        case "gone":
            path.unlink()
    serialized = []
    again = write_shards(
        tmp_path, iter(range(9)), lambda e: serialized.append(e) or serialize(e), 3
    )
    assert again == shards
    assert serialized == [3, 4, 5]
    assert read(again) == list(range(9))


def test_shards_of_other_examples_are_written_anew(tmp_path):
    write_shards(tmp_path, iter(range(9)), serialize, 3)
    examples = [0, 1, 2, 3, 4, 50, 6, 7, 8]
    assert read(write_shards(tmp_path, iter(examples), serialize, 3)) == examples
