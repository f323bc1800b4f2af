"""Texts drawn from files written here, and generated texts."""

import gzip
import hashlib
import itertools
import json
from pathlib import Path

import pytest

from icorag_jax.data import texts as texts_module
from icorag_jax.data.sentences import generate_sentences
from icorag_jax.data.texts import default_texts, find_text_folder, load_texts


def write_rows(path: Path, rows: list[str]) -> None:
    """Writes lines, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{row}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def make_row(question: str, *passages: tuple[str, str]) -> str:
    """One line of a benchmark file, with an id of its own."""
    found = [{"title": title, "text": text} for title, text in passages]
    key = f"x/{next(_NUMBERS)}"
    return json.dumps({"id": key, "question": question, "passages": found, "answers": ["y"]})


_NUMBERS = itertools.count()
QUESTIONS = {"who?", "what is it?", "where was Zoë born?"}
PASSAGES = {"Tea. Tea is a drink.", "No title at all.", "Oslo. Oslo is a city. It is cold."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two benchmarks of three distinct questions and three distinct passages, and other files."""
    root = tmp_path / "benchmarks"
    tea, oslo = ("Tea", "Tea is a drink."), ("Oslo", "Oslo is  a city.\nIt is cold.")
    write_rows(root / "one" / "train.jsonl.gz", [make_row("who?", tea), make_row("what is it?")])
    write_rows(
        root / "one" / "dev.jsonl",
        [make_row(" who? ", tea, ("", "who?"), ("", "No title at all."))],
    )
    write_rows(root / "two" / "dev.jsonl.gz", [make_row("where was Zoë born?", oslo)])
    write_rows(root / "corpora" / "one.jsonl.gz", ['{"title": "A", "text": "not to be read"}'])
    write_rows(root / "two" / "test.jsonl", ["not to be read"])
    (root / "README.md").write_text("not to be read")
    (root / "sealed.tar.gz.enc").write_bytes(b"\x00\x01")
    return root


class TestLoadTexts:
    def test_everything(self, folder: Path):
        found = load_texts(folder, 6, seed=0)
        assert set(found[::2]) == QUESTIONS and set(found[1::2]) == PASSAGES
        assert len(found) == 6

    def test_odd_count(self, folder: Path):
        found = load_texts(folder, 3, seed=0)
        assert set(found[::2]) < QUESTIONS and len(set(found[::2])) == 2
        assert found[1] in PASSAGES

    def test_seed(self, folder: Path):
        draws = [tuple(load_texts(folder, 4, seed)) for seed in range(20)]
        assert draws == [tuple(load_texts(folder, 4, seed)) for seed in range(20)]
        assert len(set(draws)) > 5

    def test_order_of_files_and_rows_does_not_matter(self, tmp_path: Path):
        rows = [make_row(f"question {i}?", ("", f"Passage {i}.")) for i in range(300)]
        write_rows(tmp_path / "first" / "a" / "train.jsonl", rows[:100])
        write_rows(tmp_path / "first" / "b" / "train.jsonl", rows[100:])
        write_rows(tmp_path / "second" / "c" / "dev.jsonl", rows[::-1])
        found = load_texts(tmp_path / "first", 100, seed=3)
        assert found == load_texts(tmp_path / "second", 100, seed=3)

    def test_too_few(self, folder: Path):
        with pytest.raises(ValueError, match=r"3 questions and 3 passages; 4 and 4 are wanted"):
            load_texts(folder, 8, seed=0)

    def test_empty_folder(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"0 questions and 0 passages; 1 and 1 are wanted"):
            load_texts(tmp_path, 2, seed=0)

    def test_not_a_folder(self, tmp_path: Path):
        with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
            load_texts(tmp_path / "nowhere", 2, seed=0)

    def test_malformed_row(self, folder: Path):
        write_rows(folder / "two" / "train.jsonl.gz", [make_row("fine?"), "{"])
        with pytest.raises(ValueError, match=r"two/train\.jsonl\.gz, line 2: .*not JSON"):
            load_texts(folder, 2, seed=0)

    def test_passage_without_text_is_its_title(self, tmp_path: Path):
        write_rows(tmp_path / "one" / "dev.jsonl", [make_row("who?", ("Tea", ""))])
        assert load_texts(tmp_path, 2, seed=0) == ["who?", "Tea"]


class TestDefaultTexts:
    def test_named_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("ICORAG_QA_FOLDER", str(folder))
        assert find_text_folder() == folder
        found, source = default_texts(4, seed=1)
        assert found == load_texts(folder, 4, seed=1)
        assert source == "questions and passages in benchmarks"

    def test_named_folder_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("ICORAG_QA_FOLDER", str(tmp_path / "nowhere"))
        with pytest.raises(NotADirectoryError, match=r"ICORAG_QA_FOLDER names .*nowhere"):
            find_text_folder()

    def test_folder_beside_the_repository(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("ICORAG_QA_FOLDER", raising=False)
        module = tmp_path / "repository" / "icorag_jax" / "data" / "texts.py"
        monkeypatch.setattr(texts_module, "__file__", str(module))
        assert find_text_folder() is None
        assert default_texts(5, seed=2) == (generate_sentences(5, seed=2), "generated sentences")
        (tmp_path / "shared" / "qa").mkdir(parents=True)
        assert find_text_folder() == tmp_path / "shared" / "qa"


class TestGenerateSentences:
    def test_distinct_and_in_turn(self):
        found = generate_sentences(2000, seed=0)
        assert len(found) == len(set(found)) == 2000
        assert all(text.endswith(".") for text in found[1::2])
        assert not any(text.endswith(".") for text in found[::2])

    def test_no_slot_is_left(self):
        assert not any(set(text) & set("{}") for text in generate_sentences(2000, seed=1))

    def test_varied(self):
        found = generate_sentences(2000, seed=0)
        assert len({text.split()[0] for text in found[::2]}) > 10
        assert len({word for text in found for word in text.split()}) > 3000

    def test_seed_and_start(self):
        assert generate_sentences(50, seed=4) == generate_sentences(90, seed=4)[:50]
        assert not set(generate_sentences(50, seed=4)) & set(generate_sentences(50, seed=5))
        assert generate_sentences(0, seed=4) == []

    def test_same_on_every_machine(self):
        content = "\n".join(generate_sentences(1000, seed=0)).encode()
        assert hashlib.sha256(content).hexdigest().startswith("0276189c46b5efc0")
