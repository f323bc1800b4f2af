"""Questions of a benchmark: which ones is all in the config, and they are read when asked for."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

from icorag_jax.data.answers import contains_answer
from icorag_jax.data.benchmarks.shards import file_checksum
from icorag_jax.data.benchmarks.sources import SOURCES
from icorag_jax.data.folders import DataError, find_corpus, find_splits
from icorag_jax.data.records import CorpusPassage, Question

Record = TypeVar("Record", Question, CorpusPassage)
Evidence = Literal["any", "some", "gold", "answer"]

_FILTERS: dict[Evidence, Callable[[Question], bool]] = {
    "any": lambda question: True,
    "some": lambda question: bool(question.passages),
    "gold": lambda question: any(passage.is_gold for passage in question.passages),
    "answer": lambda question: any(
        contains_answer(passage.text, question.answers) for passage in question.passages
    ),
}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Which questions.

    Attributes:
        benchmark: a key of `sources.SOURCES`, or with `folder` any benchmark in there.
        split: `train`, `dev` or `test`.
        folder: the folder of local benchmarks, or None for the public source.
        cache: where downloads and prepared datasets are kept.
        size: how many questions of those that pass the filters, or None for all.
        seed: of the draw of `size` questions. A question's place in the draw depends on the seed
            and its id alone: a smaller draw is part of a larger one.
        types: the question types to keep, or None for all.
        evidence: the questions to keep by their passages: `any` question; those with `some`
            passage; with a `gold` one; with one whose text has an `answer` in it.
    """

    benchmark: str
    split: str
    folder: Path | None
    cache: Path
    size: int | None
    seed: int
    types: tuple[str, ...] | None = None
    evidence: Evidence = "any"

    def __post_init__(self):
        """Checks what can be checked without reading."""
        if self.size is not None and self.size < 1:
            raise DataError(f"size must be at least 1, or None for all, got {self.size}")
        if self.evidence not in _FILTERS:
            raise DataError(f"evidence must be one of {', '.join(_FILTERS)}, got {self.evidence}")


class Records(Sequence[Record]):
    """Records that are read and parsed when they are asked for.

    Attributes:
        ids: of all records, in order; known without reading any.
    """

    def __init__(self, read: Callable[[int], Record], ids: Sequence[str], indices: Sequence[int]):
        """Those records that are at `indices`.

        Args:
            read: gives a record by its index.
            ids: of all records that there are.
            indices: of the records to take.
        """
        self._read, self._all_ids, self._indices = read, ids, indices
        self.ids = tuple(ids[index] for index in indices)

    def __len__(self) -> int:
        """How many records."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records[Record]": ...

    def __getitem__(self, index: int | slice) -> "Record | Records[Record]":
        """A record, or several that are not read yet."""
        if isinstance(index, slice):
            return Records(self._read, self._all_ids, self._indices[index])
        return self._read(self._indices[index])


def load(config: BenchmarkConfig) -> Records[Question]:
    """The questions that a config names, in the order of their source.

    The first call for a benchmark prepares it in the cache: every row of all its splits is checked.
    Further calls compare checksums, of the local files and of what was prepared from them: if
    either changed, the benchmark is prepared anew. Filters read the whole split.

    Raises:
        DataError: there is no such benchmark or split, a row is malformed, a local file changed
            while it was read, fewer than `size` questions pass the filters, or none do; the
            message says where and what.
        OSError: a file cannot be read or written.
    """
    splits = _find_splits(config)
    if config.split not in splits:
        raise DataError(
            f"{config.benchmark} has no split {config.split!r}; there are: {', '.join(splits)}"
        )
    read, ids = _open_questions(config)
    indices: Sequence[int] = range(len(ids))
    if config.types is not None or config.evidence != "any":
        indices = [index for index in indices if _passes(read(index), config)]
    return Records(read, ids, _draw(indices, ids, config))


def load_corpus(folder: Path, name: str, cache: Path) -> Records[CorpusPassage]:
    """The passages of a local corpus, in its order; prepared as `load` does it.

    Args:
        folder: the folder of the benchmarks, which has `corpora` in it.
        name: of the corpus.
        cache: where prepared datasets are kept.

    Raises:
        DataError: there is no such corpus, it is empty, a row is malformed, or the file changed
            while it was read.
        OSError: a file cannot be read or written.
    """
    from icorag_jax.data.benchmarks import builders, examples

    files = _LocalFiles(lambda: [find_corpus(folder, name)])
    root = cache / f"corpus-{files.fingerprint}"
    found, ids = builders.open_prepared(
        builders.LocalCorpus, "local", "corpus", root, cache, folder, files.confirm, corpus=name
    )
    return Records(lambda index: examples.passage_from_example(found[index]), ids, range(len(ids)))


def _find_splits(config: BenchmarkConfig) -> tuple[str, ...]:
    """The splits that a benchmark has."""
    if config.folder is not None:
        return tuple(find_splits(config.folder / config.benchmark))
    if config.benchmark not in SOURCES:
        raise DataError(
            f"no benchmark {config.benchmark!r} has a public source known here; there are: "
            f"{', '.join(SOURCES)}"
        )
    return tuple(SOURCES[config.benchmark].files)


def _open_questions(config: BenchmarkConfig) -> tuple[Callable[[int], Question], list[str]]:
    """A reader of the questions of a split by index, and their ids."""
    # Here, as it takes a second to import.
    from icorag_jax.data.benchmarks import builders, examples

    if config.folder is None:
        builder_class = builders.BUILDERS[config.benchmark]
        # Downloads are checked by their own checksums.
        found, ids = builders.open_prepared(
            builder_class,
            "public",
            config.split,
            config.cache / "public",
            config.cache,
            None,
            lambda: None,
        )
    else:
        builder_class = builders.BUILDERS.get(config.benchmark, builders.LocalQuestions)
        folder = config.folder / config.benchmark
        files = _LocalFiles(lambda: find_splits(folder).values())
        found, ids = builders.open_prepared(
            builder_class,
            "local",
            config.split,
            config.cache / f"local-{files.fingerprint}",
            config.cache,
            folder,
            files.confirm,
        )
    return lambda index: examples.question_from_example(found[index]), ids


class _LocalFiles:
    """Files as they are now.

    Attributes:
        fingerprint: what tells them from any others.
    """

    def __init__(self, find: Callable[[], Iterable[Path]]):
        self._find = find
        self.fingerprint = self._take_fingerprint()

    def confirm(self) -> None:
        """Raises a DataError if the files are no longer what they were."""
        if self._take_fingerprint() != self.fingerprint:
            names = ", ".join(str(path) for path in self._find())
            raise DataError(f"{names} changed while being read; load again when they are whole")

    def _take_fingerprint(self) -> str:
        files = [(path.name, file_checksum(path)) for path in self._find()]
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def _passes(question: Question, config: BenchmarkConfig) -> bool:
    return (config.types is None or question.type in config.types) and _FILTERS[config.evidence](
        question
    )


def _draw(indices: Sequence[int], ids: Sequence[str], config: BenchmarkConfig) -> Sequence[int]:
    """The indices of the questions drawn, in order."""
    if not indices or (config.size is not None and config.size > len(indices)):
        raise DataError(
            f"{config.benchmark} {config.split} has {len(indices)} questions of types "
            f"{config.types or 'any'} with evidence {config.evidence!r}; "
            f"{config.size or 'at least one'} are wanted"
        )
    if config.size is None:
        return indices

    # A hash, unlike a random generator, is the same for all versions of all libraries.
    def place(index: int) -> bytes:
        return hashlib.sha256(f"{config.seed} {ids[index]}".encode()).digest()

    return sorted(sorted(indices, key=place)[: config.size])
