"""FAISS: the same passages as exact search, from a file that is checked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import make_corpus, make_encoder

from icorag_jax.files import is_leftover
from icorag_jax.retrieval import cache
from icorag_jax.retrieval.dense import Dense
from icorag_jax.retrieval.embeddings import Embedding
from icorag_jax.retrieval.faiss_index import Faiss

CORPUS = make_corpus(200, seed=5)
QUERIES = ["alpha beta", "gamma", "theta eta zeta"]


def make_faiss(folder, **changes) -> Faiss:
    return Faiss(Embedding(make_encoder(), shard_passages=64, cache=folder), **changes)


def test_flat_is_exact(tmp_path):
    index = make_faiss(tmp_path).index(CORPUS)
    expected = Dense(Embedding(make_encoder())).index(CORPUS).search(QUERIES, 9)
    found = index.search(QUERIES, 9)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert index.size_bytes > 200 * 16 * 4
    # Among those whose score no other has, passages are the same.
    for row in range(len(QUERIES)):
        scores = expected.scores[row]
        lone = [i for i in range(8) if (np.abs(np.delete(scores, i) - scores[i]) > 1e-5).all()]
        assert lone
        np.testing.assert_array_equal(found.ids[row, lone], expected.ids[row, lone])


def test_equal_scores_come_in_the_corpus_order(tmp_path):
    index = make_faiss(tmp_path).index(CORPUS)
    ids, scores = index.search(QUERIES, 200)
    ties = np.diff(scores, axis=1) == 0
    assert ties.any()
    assert (np.diff(ids, axis=1)[ties] > 0).all()


def test_lists_that_are_searched_in_part(tmp_path):
    """Trained on a sample; with all lists searched it is exact again."""
    settings = {"factory": "IVF4,Flat", "training_passages": 160}
    every, one = (
        make_faiss(tmp_path, search_parameters=f"nprobe={n}", **settings).index(CORPUS)
        for n in (4, 1)
    )
    exact = make_faiss(tmp_path).index(CORPUS)
    np.testing.assert_allclose(
        every.search(QUERIES, 5).scores, exact.search(QUERIES, 5).scores, atol=1e-5
    )
    ids, scores = one.search(QUERIES, 200)
    missing = ids == -1
    assert missing.any() and (scores[missing] == -np.inf).all()
    assert (np.diff(missing.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_file_is_built_anew(tmp_path, damage):
    settings = make_faiss(tmp_path)
    expected = settings.index(CORPUS).search(QUERIES, 5)
    (path,) = tmp_path.glob("*/index.faiss")
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[-100] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-10])
    found = settings.index(CORPUS).search(QUERIES, 5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_an_index_that_is_there_is_not_built_again(tmp_path, monkeypatch):
    settings = make_faiss(tmp_path)
    first = settings.index(CORPUS)
    assert first.computed == len(CORPUS)
    expected = first.search(QUERIES, 5)
    monkeypatch.setattr(Faiss, "_build", lambda *arguments: 1 / 0)
    # Nor are its embeddings asked for.
    monkeypatch.setattr(Embedding, "passages", lambda *arguments: 1 / 0)
    again = settings.index(CORPUS)
    assert again.computed == 0
    np.testing.assert_array_equal(again.search(QUERIES, 5).ids, expected.ids)
    with pytest.raises(ZeroDivisionError):
        make_faiss(tmp_path, factory="SQ8").index(CORPUS)


KILLED = """
import os, signal, sys
from pathlib import Path
import test_faiss_index as here
from icorag_jax.retrieval import cache

def kill(path, data):
    if path.name == "index.faiss.sha256":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

write, cache.write_atomically = cache.write_atomically, kill
here.make_faiss(Path(sys.argv[1])).index(here.CORPUS)
"""


def test_a_kill_before_the_checksum_leaves_nothing_that_is_served(tmp_path):
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path])
    )
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (leftover,) = tmp_path.glob("*/.index.faiss*")
    assert is_leftover(leftover) and not list(tmp_path.glob("*/index.faiss*"))
    expected = Dense(Embedding(make_encoder())).index(CORPUS).search(QUERIES, 5)
    found = make_faiss(tmp_path).index(CORPUS).search(QUERIES, 5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert not leftover.exists() and len(list(tmp_path.glob("*/index.faiss"))) == 1


def test_an_error_before_the_checksum_leaves_nothing(tmp_path):
    path = tmp_path / "folder" / "index.faiss"
    path.parent.mkdir()
    with pytest.raises(ZeroDivisionError), cache.storing(path) as write:
        write(b"half")
        raise ZeroDivisionError
    assert not list(path.parent.iterdir())
    with cache.storing(path) as write:
        write(b"who")
        write(b"le")
    assert path.read_bytes() == b"whole" and cache.is_intact(path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    """Everything is written to a device that is always full."""
    settings = make_faiss(tmp_path)
    settings.embedding.passages(CORPUS)
    original = Path.open

    def full(path, mode="r", **options):
        return original(Path("/dev/full") if "index.faiss" in path.name else path, mode, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "open", full)
        settings.index(CORPUS)
    assert not list(tmp_path.glob("*/index.faiss*"))


@pytest.mark.parametrize("factory", ["NoSuchIndex", "IVF4096,Flat"])
def test_an_index_that_cannot_be_built(tmp_path, factory):
    with pytest.raises(ValueError, match=f"FAISS cannot build '{factory}' of 200 passages"):
        make_faiss(tmp_path, factory=factory).index(CORPUS)


def test_unknown_search_parameters(tmp_path):
    with pytest.raises(ValueError, match="no search parameters 'nprobe=3'"):
        make_faiss(tmp_path, search_parameters="nprobe=3").index(CORPUS)


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="give its embedding a cache folder"):
        make_faiss(None)
    with pytest.raises(ValueError, match="training_passages must be at least 1"):
        make_faiss(tmp_path, training_passages=0)


def test_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'icorag_jax\[faiss\]'"):
        make_faiss(tmp_path).index(CORPUS)
