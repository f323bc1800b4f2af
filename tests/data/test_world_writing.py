"""Worlds as folders: complete, the same bytes each time, and there or not there."""

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from icorag_jax.data.records import CorpusPassage, Passage, Question
from icorag_jax.data.world import FAMILIES, SPLITS, WorldConfig, generate_world, writing
from icorag_jax.data.world.__main__ import main
from icorag_jax.data.world.writing import write_world

TINY = WorldConfig(seed=5, size=3, held_out=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    write_world(TINY, folder)
    return folder


class TestWriteWorld:
    def test_files(self, folder: Path):
        names = {f"{family}/{split}.jsonl.gz" for family in FAMILIES for split in SPLITS}
        assert set(contents(folder)) == {*names, "corpora/world.jsonl.gz", "world.json"}

    def test_rows_are_the_world(self, folder: Path):
        world = generate_world(TINY)
        for split in SPLITS:
            for family in FAMILIES:
                found = rows(folder / family / f"{split}.jsonl.gz")
                questions = [
                    Question(
                        **{
                            **row,
                            "answers": tuple(row["answers"]),
                            "passages": tuple(Passage(**passage) for passage in row["passages"]),
                        }
                    )
                    for row in found
                ]
                assert tuple(questions) == world.questions[split][family]
        corpus = [CorpusPassage(**row) for row in rows(folder / "corpora" / "world.jsonl.gz")]
        assert tuple(corpus) == world.corpus

    def test_description(self, folder: Path):
        described = json.loads((folder / "world.json").read_text())
        fingerprint = described.pop("fingerprint")
        assert described["config"] == {
            **dataclasses.asdict(TINY),
            "families": list(FAMILIES),
        }
        for name, entry in described["files"].items():
            content = gzip.decompress((folder / name).read_bytes())
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()
            assert entry["rows"] == content.count(b"\n")
        assert set(described["files"]) == set(contents(folder)) - {"world.json"}
        content = json.dumps(described, sort_keys=True).encode()
        assert fingerprint == hashlib.sha256(content).hexdigest()
        assert fingerprint.startswith("9203a268fe388848")

    def test_same_bytes(self, folder: Path, tmp_path: Path):
        (tmp_path / "again").mkdir()
        write_world(TINY, tmp_path / "again")
        assert contents(folder) == contents(tmp_path / "again")
        write_world(dataclasses.replace(TINY, seed=6), tmp_path / "other")
        other = contents(tmp_path / "other")
        assert all(other[name] != content for name, content in contents(folder).items())

    def test_gzip_has_neither_name_nor_time(self, folder: Path):
        header = (folder / "bridge" / "dev.jsonl.gz").read_bytes()[:10]
        assert header[3] == 0 and header[4:8] == bytes(4)

    def test_splits_without_questions_have_no_file(self, tmp_path: Path):
        config = dataclasses.replace(TINY, size=0, families=("bridge", "clues"))
        write_world(config, tmp_path / "world")
        assert set(contents(tmp_path / "world")) == {
            *("bridge/dev.jsonl.gz", "bridge/test.jsonl.gz"),
            *("clues/dev.jsonl.gz", "clues/test.jsonl.gz"),
            *("corpora/world.jsonl.gz", "world.json"),
        }

    def test_a_folder_with_something_in_it_is_refused(self, tmp_path: Path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="choose a new folder, or remove it"):
            write_world(TINY, tmp_path)
        assert contents(tmp_path) == {"notes.txt": b"mine"}

    def test_nothing_is_left_of_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        generate = writing.generate_questions

        def fail_in_dev(config, split):
            yield from generate(config, split)
            if split == "dev":
                raise OSError("disk full")

        monkeypatch.setattr(writing, "generate_questions", fail_in_dev)
        with pytest.raises(OSError, match="disk full"):
            write_world(TINY, tmp_path / "world")
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    def test_writes(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
        out = tmp_path / "deep" / "world"
        main(["--out", str(out), "--seed", "5", "--size", "3", "--held-out", "2"])
        assert contents(out) == contents(folder)
        assert "49/49" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--passages", "2"], "passages must be at least 4 for clues, got 2"),
            (["--hard-share", "2"], "hard_share must be in"),
            (["--families", "bridge", "bridge"], "none twice"),
        ],
    )
    def test_bad_settings(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--out", str(tmp_path / "world"), *options])
        assert stopped.value.code == 2
        found = capsys.readouterr().err
        assert message in found and "Traceback" not in found
        assert not (tmp_path / "world").exists()

    def test_folder_is_taken(self, folder: Path, capsys: pytest.CaptureFixture):
        before = contents(folder)
        with pytest.raises(SystemExit) as stopped:
            main(["--out", str(folder), "--size", "1", "--held-out", "0"])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert contents(folder) == before

    def test_help(self, capsys: pytest.CaptureFixture):
        with pytest.raises(SystemExit) as stopped:
            main(["--help"])
        assert stopped.value.code == 0
        found = " ".join(capsys.readouterr().out.split())
        assert "python -m icorag_jax.data.world" in found and "--hard-share" in found
