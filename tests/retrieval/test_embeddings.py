"""Embeddings of a corpus in shards: what is kept, what is done again, and what is never served."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_corpus, make_encoder

from icorag_jax.retrieval import embeddings as embeddings_module
from icorag_jax.retrieval.embeddings import Embedding, Embeddings
from icorag_jax.retrieval.encoder import embed
from icorag_jax.retrieval.encoder_files import Prompts
from icorag_jax.retrieval.retriever import passage_text

CORPUS = make_corpus(11)


def make_embedding(folder: Path | None, **changes) -> Embedding:
    encoder = changes.pop("encoder", None) or make_encoder()
    return Embedding(encoder, **{"batch_size": 4, "shard_passages": 4, "cache": folder, **changes})


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """All embeddings, with no shards and no cache."""
    return make_embedding(None, shard_passages=100).passages(CORPUS).rows(0, len(CORPUS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A cache with all three shards."""
    folder = tmp_path_factory.mktemp("finished")
    assert make_embedding(folder).passages(CORPUS).computed == 11
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the finished cache."""
    return Path(shutil.copytree(finished, tmp_path / "cache"))


class TestShards:
    def test_in_order_and_mapped(self, folder, expected):
        found = make_embedding(folder).passages(CORPUS)
        assert found.computed == 0
        assert len(found) == 11 and found.width == 16
        assert [len(shard) for shard in found.shards] == [4, 4, 3]
        assert all(isinstance(shard, np.memmap) for shard in found.shards)
        np.testing.assert_allclose(found.rows(0, 11), expected, atol=1e-6)

    @given(counts=st.integers(1, 20), length=st.integers(1, 7), ends=st.tuples(
        st.integers(0, 20), st.integers(0, 20)))  # fmt: skip
    def test_any_rows(self, counts, length, ends):
        whole = np.arange(counts * 2, dtype=np.float32).reshape(counts, 2)
        shards = tuple(whole[start : start + length] for start in range(0, counts, length))
        start, end = sorted(min(end, counts) for end in ends)
        np.testing.assert_array_equal(Embeddings(shards, 0).rows(start, end), whole[start:end])

    def test_prompts_come_before_texts(self):
        encoder = make_encoder(prompts=Prompts("query : ", "passage : "))
        embedding = make_embedding(None, encoder=encoder)
        found = embedding.passages(CORPUS[:3]).rows(0, 3)
        texts = ["passage : " + passage_text(passage) for passage in CORPUS[:3]]
        plain = embed(make_encoder(), texts, batch_size=4)
        np.testing.assert_allclose(found, plain, atol=1e-6)
        seen = []
        embedding.search(["alpha"], 2, lambda vectors: seen.append(vectors) or ([[0, 1]], [[1, 0]]))
        query = embed(make_encoder(), ["query : alpha"], batch_size=1)
        np.testing.assert_allclose(seen[0], query, atol=1e-6)

    def test_progress(self, folder, capsys):
        make_embedding(folder, progress=True).passages(CORPUS)
        assert "11/11" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [{"shard_passages": 0}, {"batch_size": 0}])
    def test_bad_sizes(self, change):
        with pytest.raises(ValueError, match="must be at least 1"):
            make_embedding(None, **change)


class TestFingerprint:
    def test_of_all_that_embeddings_depend_on(self, tmp_path):
        changes = [
            {}, {"encoder": make_encoder(1)}, {"max_length": 8}, {"shard_passages": 5},
            {"encoder": make_encoder(prompts=Prompts("a", ""))}, {"batch_size": 3},
        ]  # fmt: skip
        corpora = [CORPUS, CORPUS[::-1], CORPUS[:10]]
        found = {make_embedding(tmp_path, **change).fingerprint(CORPUS) for change in changes}
        found |= {make_embedding(tmp_path).fingerprint(corpus) for corpus in corpora}
        assert len(found) == len(changes) + len(corpora) - 1

    def test_of_the_format(self, tmp_path, monkeypatch):
        before = make_embedding(tmp_path).fingerprint(CORPUS)
        monkeypatch.setattr(embeddings_module, "_FORMAT", 0)
        assert make_embedding(tmp_path).fingerprint(CORPUS) != before

    def test_not_of_where_they_are_kept(self, tmp_path):
        here, there = make_embedding(tmp_path), make_embedding(None, progress=True)
        assert here.fingerprint(CORPUS) == there.fingerprint(CORPUS)


class TestCache:
    def test_a_stopped_indexer_goes_on(self, tmp_path, expected, monkeypatch):
        calls = []

        def stop_at_third(encoder, texts, **settings):
            calls.append(len(texts))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return embed(encoder, texts, **settings)

        monkeypatch.setattr(embeddings_module, "embed", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            make_embedding(tmp_path).passages(CORPUS)
        found = make_embedding(tmp_path).passages(CORPUS)
        assert calls == [4, 4, 3, 3] and found.computed == 3
        np.testing.assert_allclose(found.rows(0, 11), expected, atol=1e-6)

    @pytest.mark.parametrize("damage", ["cut", "empty", "flip", "delete", "swap", "no checksum"])
    def test_a_damaged_shard_alone_is_done_again(self, folder, expected, damage):
        first, path = sorted(folder.glob("*/*.npy"))[:2]
        data = bytearray(path.read_bytes())
        match damage:
            case "cut":
                path.write_bytes(data[:-5])
            case "empty":
                path.write_bytes(b"")
            case "flip":
                data[-9] ^= 64
                path.write_bytes(data)
            case "delete":
                path.unlink()
            case "swap":  # another shard with the checksum that is right for it
                for end in ("", ".sha256"):
                    shutil.copy(f"{first}{end}", f"{path}{end}")
            case "no checksum":
                Path(f"{path}.sha256").unlink()
        found = make_embedding(folder).passages(CORPUS)
        assert found.computed == 4
        np.testing.assert_allclose(found.rows(0, 11), expected, atol=1e-6)
        assert make_embedding(folder).passages(CORPUS).computed == 0

    def test_shards_of_another_index_are_not_taken(self, folder, expected):
        (home,) = folder.iterdir()
        other = make_embedding(folder, encoder=make_encoder(1))
        shutil.copytree(home, folder / other.fingerprint(CORPUS))
        found = other.passages(CORPUS)
        assert found.computed == 11
        assert np.abs(found.rows(0, 11) - expected).max() > 0.01

    def test_what_was_half_written_goes(self, folder):
        (home,) = folder.iterdir()
        leftover = home / ".shard-00001.npy.123.tmp"
        leftover.write_bytes(b"half")
        make_embedding(folder).passages(CORPUS)
        assert not leftover.exists()


INDEXER = """
import os
import signal
import sys
from pathlib import Path
import test_embeddings as here
from icorag_jax.retrieval import embeddings

def die_at_last(encoder, texts, **settings):
    calls.append(len(texts))
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(encoder, texts, **settings)

calls = []
embed, embeddings.embed = embeddings.embed, die_at_last
here.make_embedding(Path(sys.argv[1]), shard_passages=1).passages(here.CORPUS)
"""


@pytest.mark.slow
def test_a_killed_indexer_loses_no_finished_shard(tmp_path, expected):
    """Killed at its nth shard, whatever n: all before it are there, and are not done again."""
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path])
    )
    for n in (1, 4, 8):
        folder = tmp_path / str(n)
        done = subprocess.run(
            [sys.executable, "-c", INDEXER, str(folder), str(n)],
            env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npy")}
        assert len(before) == n - 1
        found = make_embedding(folder, shard_passages=1).passages(CORPUS)
        assert found.computed == len(CORPUS) - (n - 1)
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
        np.testing.assert_allclose(found.rows(0, 11), expected, atol=1e-6)
