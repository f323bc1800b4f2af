"""Benchmarks end to end: prepared from folders and from a server here, killed, and damaged."""

import dataclasses
import functools
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from icorag_jax.data.benchmarks import builders, examples, sources
from icorag_jax.data.benchmarks.loading import BenchmarkConfig, load, load_corpus
from icorag_jax.data.benchmarks.raw_files import RawFile
from icorag_jax.data.folders import DataError, write_corpus, write_questions
from icorag_jax.data.records import CorpusPassage, Passage, Question
from icorag_jax.data.texts import find_text_folder

REAL = find_text_folder()


class Killed(BaseException):
    """A process that is no more: nothing catches it."""


def make_questions(count: int) -> list[Question]:
    """Questions of every kind that there is."""
    gold = [None, False, True]
    return [
        Question(
            f"made/{index}",
            f"who is {index}?",
            (f"name {index}", "Zoë"),
            tuple(
                Passage("" if p else "Title", f"Name {index}. \n東京 {p}", gold[(index + p) % 3])
                for p in range(index % 3)
            ),
            [None, "bridge", "comparison"][index % 3],
        )
        for index in range(count)
    ]


def write_benchmark(folder: Path, count: int, name: str = "made") -> list[Question]:
    questions = make_questions(count)
    write_questions(folder / name / "dev.jsonl.gz", questions)
    return questions


@pytest.fixture
def config(tmp_path) -> BenchmarkConfig:
    """Of eleven questions in a local folder, in shards of four."""
    write_benchmark(tmp_path / "data", 11)
    return BenchmarkConfig("made", "dev", tmp_path / "data", tmp_path / "cache", None, 0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(builders, "_EXAMPLES_PER_SHARD", 4)


def count_serialized(monkeypatch) -> list[str]:
    """Collects the ids of the questions that are made into records from now on."""
    ids = []
    features = tfds.features.FeaturesDict
    serialize = features.serialize_example

    def recording(self, example):
        ids.append(example["id"])
        return serialize(self, example)

    monkeypatch.setattr(features, "serialize_example", recording)
    return ids


def test_all_questions_come_back(config):
    found = load(config)
    expected = make_questions(11)
    assert list(found) == expected
    assert len(found) == 11
    assert found.ids == tuple(question.id for question in expected)
    assert found[-1] == expected[-1]
    assert list(found[2:9:3]) == expected[2:9:3]
    assert found[2:9:3].ids == tuple(question.id for question in expected[2:9:3])
    assert found[3:][1:3].ids == tuple(question.id for question in expected[4:6])
    with pytest.raises(IndexError):
        found[11]


def test_questions_are_parsed_when_asked_for(config, monkeypatch):
    parsed = []
    parse = examples.question_from_example
    monkeypatch.setattr(examples, "question_from_example", lambda e: parsed.append(1) or parse(e))
    found = load(dataclasses.replace(config, size=5))
    # The type checks of these tests look at one item of any sequence.
    assert len(found.ids) == 5 and len(parsed) <= 1
    parsed.clear()
    assert found[3].id == found.ids[3]
    assert len(parsed) == 1


def test_every_benchmark_is_read_from_a_folder_by_its_own_builder(tmp_path):
    for name in sources.SOURCES:
        write_benchmark(tmp_path / "data", 2, name)
        config = BenchmarkConfig(name, "dev", tmp_path / "data", tmp_path / "cache", None, 0)
        assert list(load(config)) == make_questions(2)
        assert list((tmp_path / "cache").glob(f"*/{builders.BUILDERS[name].name}/local"))


def test_corpora_come_back(tmp_path, monkeypatch):
    passages = [CorpusPassage(str(i), "" if i % 2 else "Zoë", f"text {i}") for i in range(11)]
    for name, part in (("wiki", passages), ("other-1.0", passages[:3])):
        write_corpus(tmp_path / "corpora" / f"{name}.jsonl.gz", part)
    found = load_corpus(tmp_path, "wiki", tmp_path / "cache")
    assert list(found) == passages
    assert found.ids == tuple(map(str, range(11)))
    assert list(load_corpus(tmp_path, "other-1.0", tmp_path / "cache")[1:]) == passages[1:3]
    serialized = count_serialized(monkeypatch)
    assert len(load_corpus(tmp_path, "wiki", tmp_path / "cache")) == 11
    assert serialized == []


def test_builders_work_without_load(tmp_path, capsys):
    write_benchmark(tmp_path / "data", 11, "musique")
    found = tfds.data_source(
        "musique/local",
        split="dev",
        data_dir=tmp_path / "tfds",
        download=True,
        download_and_prepare_kwargs={
            "file_format": "array_record",
            "download_config": tfds.download.DownloadConfig(
                manual_dir=tmp_path / "data" / "musique"
            ),
        },
    )
    assert [examples.question_from_example(example) for example in found] == make_questions(11)
    assert "downloaded and prepared" in capsys.readouterr().out


def test_tensorflow_is_never_imported(config):
    code = f"""
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from icorag_jax.data.benchmarks.loading import BenchmarkConfig, load
folder, cache = Path({str(config.folder)!r}), Path({str(config.cache)!r})
config = BenchmarkConfig("made", "dev", folder, cache, None, 0)
assert "tensorflow_datasets" not in sys.modules
print(len(list(load(config))), "tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "11 False\n"


class TestSelection:
    @given(size=st.integers(1, 11), seed=st.integers(0, 99))
    def test_draws_are_nested_and_in_order(self, tmp_path_factory, size, seed):
        root = tmp_path_factory.getbasetemp() / "selection"
        if not root.exists():
            write_benchmark(root / "data", 11)
        config = BenchmarkConfig("made", "dev", root / "data", root / "cache", size, seed)
        found, all_ids = load(config).ids, [f"made/{i}" for i in range(11)]
        assert len(found) == size
        assert list(found) == [id_ for id_ in all_ids if id_ in found]
        smaller = load(dataclasses.replace(config, size=max(1, size - 1))).ids
        assert set(smaller) <= set(found)

    def test_draws_are_fair(self, config):
        draws = [load(dataclasses.replace(config, size=3, seed=s)).ids for s in range(60)]
        counts = [sum(f"made/{i}" in ids for ids in draws) for i in range(11)]
        # Binomial with mean 60 * 3 / 11 = 16.4 and standard deviation 3.4.
        assert all(5 <= count <= 28 for count in counts)

    def test_the_draw_is_the_same_everywhere(self, config):
        found = load(dataclasses.replace(config, size=4, seed=7)).ids
        # By sha256sum of "7 made/0" and so on: the four lowest.
        assert found == ("made/0", "made/1", "made/5", "made/9")

    def test_a_draw_does_not_depend_on_the_order_of_rows(self, config):
        before = load(dataclasses.replace(config, size=4)).ids
        write_questions(config.folder / "made" / "dev.jsonl.gz", make_questions(11)[::-1])
        assert load(dataclasses.replace(config, size=4)).ids == before[::-1]

    @pytest.mark.parametrize(
        ("filters", "keeps"),
        [
            ({"types": ("bridge",)}, lambda q: q.type == "bridge"),
            ({"types": ("bridge", "comparison")}, lambda q: q.type is not None),
            ({"evidence": "some"}, lambda q: q.passages),
            ({"evidence": "gold"}, lambda q: any(p.is_gold is True for p in q.passages)),
            ({"evidence": "answer"}, lambda q: q.passages),  # each has the first answer
            (
                {"evidence": "gold", "types": ("comparison",)},
                lambda q: q.type == "comparison" and any(p.is_gold for p in q.passages),
            ),
        ],
    )
    def test_filters(self, config, filters, keeps):
        found = list(load(dataclasses.replace(config, **filters)))
        assert found == [question for question in make_questions(11) if keeps(question)]
        assert 0 < len(found) < 11

    def test_size_counts_what_passes_the_filters(self, config):
        found = load(dataclasses.replace(config, types=("bridge",), size=2))
        assert [question.type for question in found] == ["bridge"] * 2


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"benchmark": "nowhere"}, "nowhere holds no benchmark"),
            ({"split": "test"}, "made has no split 'test'; there are: dev"),
            ({"folder": None}, "no benchmark 'made' has a public source known here; .*nq, trivia"),
            ({"folder": None, "benchmark": "popqa"}, "popqa has no split 'dev'; there are: test"),
            ({"size": 12}, "made dev has 11 questions of types any with evidence 'any'; 12 are"),
            ({"size": 0}, "size must be at least 1, or None for all, got 0"),
            ({"types": ("bridge", "other"), "size": 5}, "has 4 questions of types"),
            ({"types": ("other",)}, "has 0 questions .* at least one are wanted"),
        ],
    )
    def test_what_cannot_be_had_is_refused(self, config, changes, message):
        with pytest.raises(DataError, match=message):
            load(dataclasses.replace(config, **changes))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("empty", "is empty"),
            ("other", "no corpus 'other'; there are: empty, twice"),
            ("twice", "line 2: id 'a' is that of row 1 too"),
        ],
    )
    def test_corpora_that_cannot_be_had_are_refused(self, tmp_path, name, message):
        (tmp_path / "corpora").mkdir()
        (tmp_path / "corpora" / "empty.jsonl").touch()
        row = json.dumps({"id": "a", "title": "", "text": "x"}) + "\n"
        (tmp_path / "corpora" / "twice.jsonl").write_text(row * 2)
        with pytest.raises(DataError, match=message):
            load_corpus(tmp_path, name, tmp_path / "cache")

    def test_a_malformed_row_is_reported_and_nothing_is_served(self, config):
        path = config.folder / "made" / "dev.jsonl.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        path.write_bytes(gzip.compress(b"".join([*lines[:6], b"{}\n", *lines[6:]])))
        for _ in range(2):
            with pytest.raises(DataError, match=r"made/dev\.jsonl\.gz, line 7: no 'answers'"):
                load(config)


class TestCache:
    def test_a_second_load_prepares_nothing(self, config, monkeypatch):
        load(config)
        serialized = count_serialized(monkeypatch)
        assert list(load(config)) == make_questions(11)
        assert serialized == []

    def test_a_changed_source_is_prepared_anew(self, config):
        load(config)
        changed = [dataclasses.replace(q, question="changed?") for q in make_questions(11)]
        write_questions(config.folder / "made" / "dev.jsonl.gz", changed)
        assert list(load(config)) == changed

    def test_a_source_that_changes_while_it_is_read_is_refused(self, config, monkeypatch):
        path = config.folder / "made" / "dev.jsonl.gz"
        before, read = path.read_bytes(), builders.read_questions

        def change_and_read(path):
            write_questions(path, make_questions(7))
            return read(path)

        with monkeypatch.context() as patch:
            patch.setattr(builders, "read_questions", change_and_read)
            with pytest.raises(DataError, match=r"made/dev\.jsonl\.gz changed while being read"):
                load(config)
        assert list(load(config)) == make_questions(7)
        path.write_bytes(before)
        assert list(load(config)) == make_questions(11)

    def test_a_corpus_that_changes_while_it_is_read_is_refused(self, tmp_path, monkeypatch):
        path = tmp_path / "corpora" / "wiki.jsonl"
        write_corpus(path, [CorpusPassage("a", "", "old")])
        new, read = CorpusPassage("a", "", "new"), builders.read_corpus
        with monkeypatch.context() as patch:
            patch.setattr(builders, "read_corpus", lambda p: write_corpus(p, [new]) or read(p))
            with pytest.raises(DataError, match=r"wiki\.jsonl changed while being read"):
                load_corpus(tmp_path, "wiki", tmp_path / "cache")
        assert list(load_corpus(tmp_path, "wiki", tmp_path / "cache")) == [new]

    def test_local_folders_leave_downloads_alone(self, config):
        downloads = config.cache / "downloads"
        downloads.mkdir(parents=True)
        # As of a download that goes on: the note is there, the file is not.
        (downloads / "live.INFO").write_text("{}")
        (downloads / "whole").touch()
        (downloads / "whole.INFO").write_text("{}")
        load(config)
        assert {path.name for path in downloads.iterdir()} >= {"live.INFO", "whole", "whole.INFO"}

    @pytest.mark.parametrize("damage", ["truncated", "edited", "deleted", "added"])
    def test_every_file_that_is_damaged_is_found_out(self, config, damage, caplog):
        load(config)
        dataset = next(config.cache.glob("local-*/local_questions/local/1.0.0"))
        names = sorted(path.name for path in dataset.iterdir())
        assert len(names) == 3 + 4  # shards, ids, checksums and two files about the dataset
        for name in names:
            path = dataset / name
            data = path.read_bytes()
            match damage:
                case "truncated":
                    path.write_bytes(data[: len(data) // 2])
                case "edited":
                    middle = len(data) // 2
                    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
                case "deleted":
                    path.unlink()
                case "added":
                    (dataset / f"{name}.more").touch()
            caplog.clear()
            assert list(load(config)) == make_questions(11), name
            assert "is not as it was written" in caplog.text
            assert sorted(path.name for path in dataset.iterdir()) == names

    def test_a_kill_anywhere_loses_no_finished_shard(self, config, monkeypatch):
        calls = count_writes(monkeypatch, functools.partial(load, config))
        assert calls > 10
        for allowed in range(calls):
            fresh = dataclasses.replace(config, cache=config.cache / f"killed-{allowed}")
            with monkeypatch.context() as patch:
                kill_after(patch, allowed)
                with pytest.raises(Killed):
                    load(fresh)
            shards = fresh.cache.glob("local-*/shards/**/*.array_record")
            finished = 4 * len([path for path in shards if not path.name.startswith(".")])
            with monkeypatch.context() as patch:
                serialized = count_serialized(patch)
                assert list(load(fresh)) == make_questions(11)
                assert serialized in ([f"made/{i}" for i in range(finished, 11)], [])
            assert not list(fresh.cache.glob("local-*/shards/*"))


def count_writes(monkeypatch, act) -> int:
    """How often files get their final name while something is done."""
    with monkeypatch.context() as patch:
        kill_after(patch, 10**6)
        act()
        return 10**6 - os.replace.left


def kill_after(patch, allowed: int) -> None:
    """Ends the process, so to speak, when files are about to get names once more than allowed."""

    def deadly(function, *args, **kwargs):
        if not patched.left:
            raise Killed
        patched.left -= 1
        return function(*args, **kwargs)

    replace, rename, link = os.replace, os.rename, os.link
    patched = functools.partial(deadly, replace)
    patched.left = allowed
    patch.setattr(os, "replace", patched)
    patch.setattr(os, "rename", functools.partial(deadly, rename))
    patch.setattr(os, "link", functools.partial(deadly, link))


def test_a_process_killed_for_good_loses_no_finished_shard(config, monkeypatch):
    code = f"""
import os, signal
from pathlib import Path
from icorag_jax.data.benchmarks import builders
from icorag_jax.data.benchmarks.loading import BenchmarkConfig, load
builders._EXAMPLES_PER_SHARD = 4
link, links = os.link, []
def deadly(*args):
    links.append(args)
    if len(links) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    link(*args)
os.link = deadly
folder, cache = Path({str(config.folder)!r}), Path({str(config.cache)!r})
load(BenchmarkConfig("made", "dev", folder, cache, None, 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list(config.cache.rglob("*incomplete*"))
    serialized = count_serialized(monkeypatch)
    assert list(load(config)) == make_questions(11)
    assert serialized == []
    assert not list(config.cache.rglob("*incomplete*"))


def musique_row(split: str) -> dict:
    return {
        "id": f"2hop__{split}",
        "question": f"Where is {split}?",
        "paragraphs": [{"title": "Oslo", "paragraph_text": "A city.", "is_supporting": True}],
        "answer": "Oslo",
        "answer_aliases": [],
    }


class TestPublicSources:
    @pytest.fixture
    def served(self, tmp_path, monkeypatch):
        """A folder whose files a server here publishes, in place of Bamboogle's and MuSiQue's."""
        folder = tmp_path / "served"
        folder.mkdir()
        (folder / "bamboogle.csv").write_text("Question,Answer\nWho?,Me\nWhen?,1999\n")
        with zipfile.ZipFile(folder / "musique.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for split in ("train", "dev"):
                archive.writestr(f"data/{split}.jsonl", json.dumps(musique_row(split)) + "\n")

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format, *args):
                requests.append(self.path)

        requests: list[str] = []
        handler = functools.partial(Handler, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{server.server_port}"
            files = {
                "bamboogle": {"test": RawFile(f"{url}/bamboogle.csv", "csv")},
                "musique": {
                    split: RawFile(f"{url}/musique.zip", "json_lines", f"{split}.jsonl")
                    for split in ("train", "dev")
                },
            }
            for name in files:
                source = dataclasses.replace(sources.SOURCES[name], files=files[name])
                monkeypatch.setitem(sources.SOURCES, name, source)
            yield folder, requests
            server.shutdown()
            thread.join()

    @pytest.fixture
    def public(self, tmp_path) -> BenchmarkConfig:
        return BenchmarkConfig("bamboogle", "test", None, tmp_path / "cache", None, 0)

    EXPECTED = (
        Question("bamboogle/test_0", "Who?", ("Me",), ()),
        Question("bamboogle/test_1", "When?", ("1999",), ()),
    )

    def test_downloaded_once(self, served, public):
        assert tuple(load(public)) == self.EXPECTED
        assert tuple(load(public)) == self.EXPECTED
        assert served[1] == ["/bamboogle.csv"]

    def test_an_archive_of_two_splits_is_downloaded_once(self, served, public):
        for split in ("train", "dev"):
            passages = (Passage("Oslo", "A city.", True),)
            assert list(load(dataclasses.replace(public, benchmark="musique", split=split))) == [
                Question(
                    f"musique/2hop__{split}", f"Where is {split}?", ("Oslo",), passages, "2hop"
                )
            ]
        assert served[1] == ["/musique.zip"]

    def test_a_damaged_download_is_downloaded_again(self, served, public):
        load(public)
        (download,) = [
            path
            for path in (public.cache / "downloads").rglob("*bamboogle*")
            if path.is_file() and path.suffix != ".INFO"
        ]
        download.write_text("Question,Answer\nWho?,Nobody\n")
        dataset = next((public.cache / "public" / "bamboogle").rglob("checksums.json"))
        dataset.unlink()
        assert tuple(load(public)) == self.EXPECTED
        assert len(served[1]) == 2

    def test_what_cannot_be_downloaded_is_an_error(self, served, public):
        (served[0] / "bamboogle.csv").unlink()
        with pytest.raises(DataError, match=r"cannot download bamboogle: .*404.*local folder"):
            load(public)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="no real data here")
@pytest.mark.parametrize(
    ("benchmark", "train", "dev"),
    [
        ("nq", 2117, 400),
        ("triviaqa", 400, 300),
        ("popqa", 400, 300),
        ("hotpotqa", 60, 69),
        ("2wikimultihopqa", 500, 82),
        ("musique", 60, 69),
        ("bamboogle", 0, 62),
        ("squad", 1190, 0),
    ],
)
def test_real_data_have_the_rows_that_they_say(tmp_path, benchmark, train, dev):
    for split, count in (("train", train), ("dev", dev)):
        config = BenchmarkConfig(benchmark, split, REAL, tmp_path, None, 0)
        if count:
            found = load(config)
            assert len(found) == len({question.id for question in found}) == count
        else:
            with pytest.raises(DataError, match=f"no split '{split}'"):
                load(config)
