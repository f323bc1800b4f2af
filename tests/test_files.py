"""Files are whole or absent, whoever else writes and whatever fails."""

import threading

import pytest

from icorag_jax.files import is_leftover, open_atomically, remove_leftovers, write_atomically


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (temporary,) = [p for p in path.parent.iterdir() if p != path]
        assert is_leftover(temporary) and temporary.read_bytes() == b"new"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(error), open_atomically(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_write_the_same_file_at_once(tmp_path):
    path, both_write, found = tmp_path / "file", threading.Barrier(2, timeout=60), []

    def write(content: bytes) -> None:
        with open_atomically(path) as file:
            both_write.wait()
            file.write(content)
            both_write.wait()
        found.append(path.read_bytes())

    contents = [b"one" * 99, b"two"]
    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and set(found) <= set(contents)
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_and_nothing_else_are_removed(tmp_path):
    (tmp_path / "deep").mkdir()
    others = ["file", "file.tmp", ".file.tmp", ".file.12.tmp.gz", ".12.tmp"]
    for name in [*others, ".file.12.tmp", ".file.12.345.tmp", "deep/.a.b.1.2.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)
