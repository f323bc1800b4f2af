"""The benchmarks as `tensorflow-datasets` builders, which run without TensorFlow.

Each has two configs: `public`, from its public source, and `local`, from `train`, `dev` and `test`
files in the `manual_dir` of the download config. Records are array_record files:

    tfds.data_source("hotpotqa", split="dev")

`tensorflow_datasets` takes a second to import, so that other modules import this one late.
"""

import contextlib
import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import filelock
import tensorflow_datasets as tfds

from icorag_jax.data.benchmarks.examples import (
    CORPUS_FEATURES,
    QUESTION_FEATURES,
    Example,
    passage_to_example,
    question_to_example,
)
from icorag_jax.data.benchmarks.prepared import (
    discard_damaged_downloads,
    is_intact,
    read_ids,
    write_checksums,
    write_ids,
)
from icorag_jax.data.benchmarks.shards import write_shards
from icorag_jax.data.benchmarks.sources import SOURCES, read_public_questions
from icorag_jax.data.folders import (
    DataError,
    find_corpus,
    find_splits,
    read_corpus,
    read_questions,
)
from icorag_jax.data.records import CorpusPassage, Question

_LOG = logging.getLogger(__name__)
_EXAMPLES_PER_SHARD = 2048


class _OwnInfo(tfds.core.DatasetInfo):
    """Facts that are all in the code: no bucket is asked, nor a temporary folder made for it."""

    def initialize_from_bucket(self) -> None:
        """Does nothing."""


class ResumableBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder that loses no finished shard when it is killed.

    A prepared dataset also has the ids of its records and the checksums of its files.

    Attributes:
        record_features: of the dataset's records.
    """

    record_features: ClassVar[tfds.features.FeaturesDict]
    # To be raised with every change of the records that are made of a source, in `sources.py`,
    # `folders.py` or `examples.py`: prepared datasets of the same version are served as they are.
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, confirm: Callable[[], None] = lambda: None, **settings: Any):
        """A builder.

        Args:
            confirm: called when all sources are read and before a dataset is made of them; raises
                if they are no longer what they were.
            **settings: of any builder.
        """
        self._confirm = confirm
        super().__init__(**settings)

    def _generate_splits(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> list[tfds.core.SplitInfo]:
        """Writes shards outside of the dataset, then links them into it.

        The dataset itself grows in a folder that is lost when its process is killed.
        """
        del download_config
        infos, ids = [], {}
        for split, examples in self._split_generators(dl_manager).items():
            ids[split] = []

            def remember(key: str, example: Example, split: str = split) -> Example:
                ids[split].append(key)
                return example

            shards = write_shards(
                self._shards / split,
                (remember(key, example) for key, example in examples),
                self.record_features.serialize_example,
                _EXAMPLES_PER_SHARD,
            )
            template = tfds.core.ShardedFileTemplate(
                data_dir=self.data_path,
                dataset_name=self.name,
                split=split,
                filetype_suffix="array_record",
            )
            for index, shard in enumerate(shards):
                name = template.sharded_filepath(shard_index=index, num_shards=len(shards))
                _link(shard.path, Path(name))
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard.count for shard in shards],
                    num_bytes=sum(shard.path.stat().st_size for shard in shards),
                    filename_template=template,
                )
            )
        self._confirm()
        write_ids(Path(self.data_path), ids)
        return infos

    def _post_download_and_prepare_hook(self) -> None:
        write_checksums(Path(self.data_dir))
        shutil.rmtree(self._shards, ignore_errors=True)

    @property
    def _shards(self) -> Path:
        """Where finished shards wait until the dataset is whole."""
        full_name = f"{self.name}-{self.builder_config_name}-{self.version}"
        return Path(self.data_dir_root) / "shards" / full_name


class LocalQuestions(ResumableBuilder):
    """Questions of any benchmark, from a local folder; a `data_dir` holds those of one.

    Attributes:
        benchmark: a key of `SOURCES`, or empty for one that has no public source here.
    """

    name = "local_questions"
    record_features = QUESTION_FEATURES
    benchmark: ClassVar[str] = ""
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="local")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put train, dev or test files there as docs/data.md has them."

    def _info(self) -> tfds.core.DatasetInfo:
        source = SOURCES.get(self.benchmark)
        return _OwnInfo(
            builder=self,
            features=self.record_features,
            homepage=source and source.homepage,
            license=source and source.license,
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, Example]]]:
        files = find_splits(Path(dl_manager.manual_dir))
        return {split: self._generate_examples(read_questions(files[split])) for split in files}

    def _generate_examples(self, questions: Iterator[Question]) -> Iterator[tuple[str, Example]]:
        for question in questions:
            yield question.id, question_to_example(question)


class LocalCorpus(ResumableBuilder):
    """A corpus from a local folder; its one split is `corpus`, and a `data_dir` holds one."""

    name = "local_corpus"
    record_features = CORPUS_FEATURES
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="local")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the folder corpora there, as docs/data.md has it."

    def __init__(self, *, corpus: str, **settings: Any):
        """A builder of the corpus of this name; the settings are those of any builder."""
        self.corpus = corpus
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        return _OwnInfo(builder=self, features=self.record_features, disable_shuffling=True)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, Example]]]:
        path = find_corpus(Path(dl_manager.manual_dir), self.corpus)
        return {"corpus": self._generate_examples(read_corpus(path))}

    def _generate_examples(
        self, passages: Iterator[CorpusPassage]
    ) -> Iterator[tuple[str, Example]]:
        for passage in passages:
            yield passage.id, passage_to_example(passage)


class PublicQuestions(LocalQuestions, skip_registration=True):
    """Questions of one of the benchmarks, from its public source or from a local folder."""

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="public"),
        tfds.core.BuilderConfig(name="local"),
    ]

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, Example]]]:
        if self.builder_config_name == "local":
            return super()._split_generators(dl_manager)
        return {
            split: self._generate_examples(
                read_public_questions(self.benchmark, split, self._download(dl_manager, file.url))
            )
            for split, file in SOURCES[self.benchmark].files.items()
        }

    def _download(self, dl_manager: tfds.download.DownloadManager, url: str) -> Path:
        try:
            return Path(os.fspath(dl_manager.download(url)))
        except (OSError, tfds.download.DownloadError) as error:
            raise DataError(
                f"cannot download {self.benchmark}: {error}. Without a network, use a local folder"
            ) from error


class Nq(PublicQuestions):
    """Natural Questions, open: questions and short answers."""

    benchmark = name = "nq"


class Triviaqa(PublicQuestions):
    """TriviaQA, unfiltered, without its documents."""

    benchmark = name = "triviaqa"


class Popqa(PublicQuestions):
    """PopQA: questions about entities, many of them rare."""

    benchmark = name = "popqa"


class Hotpotqa(PublicQuestions):
    """HotpotQA in its distractor setting: bridge and comparison questions with ten passages."""

    benchmark = name = "hotpotqa"


class Twowikimultihopqa(PublicQuestions):
    """2WikiMultihopQA; a name in `tensorflow-datasets` begins with a letter."""

    benchmark, name = "2wikimultihopqa", "twowikimultihopqa"


class Musique(PublicQuestions):
    """MuSiQue-Answerable: two to four hops, twenty passages."""

    benchmark = name = "musique"


class Bamboogle(PublicQuestions):
    """Bamboogle: two-hop questions that a search engine answers wrongly."""

    benchmark = name = "bamboogle"


BUILDERS: dict[str, type[PublicQuestions]] = {
    cls.benchmark: cls
    for cls in (Nq, Triviaqa, Popqa, Hotpotqa, Twowikimultihopqa, Musique, Bamboogle)
}


def open_prepared(
    builder_class: type[ResumableBuilder],
    config: str,
    split: str,
    root: Path,
    cache: Path,
    manual: Path | None,
    confirm: Callable[[], None],
    **settings: str,
) -> tuple[Sequence[Example], list[str]]:
    """The examples of a split and their ids, prepared first unless they are there, intact.

    Args:
        builder_class: of the dataset.
        config: name of the dataset's config.
        split: of the dataset.
        root: the folder of datasets that this one is kept in; of these sources and no others.
        cache: where downloads are kept. Those that are not as they were downloaded are downloaded
            again.
        manual: the folder of the local files, for datasets that are made of some.
        confirm: raises if the sources are no longer those that `root` is for; called after they
            are read.
        **settings: of the builder, beside its config.

    Raises:
        DataError: a row is malformed, or a file cannot be downloaded.
        OSError: a file cannot be written.
        Exception: what `confirm` raises.
    """
    root.mkdir(parents=True, exist_ok=True)
    make = functools.partial(builder_class, data_dir=root, config=config, **settings)
    folder = root / builder_class.name / config / str(builder_class.VERSION)
    with filelock.FileLock(root / ".lock"):
        if not is_intact(folder):
            if folder.exists():
                _LOG.warning("%s is not as it was written: it is prepared anew", folder)
                shutil.rmtree(folder)
            # Datasets that killed processes had begun; their shards are elsewhere.
            for begun in folder.parent.glob("incomplete.*"):
                shutil.rmtree(begun)
            if manual is None:
                # Under the lock of the root that all public datasets are kept in.
                discard_damaged_downloads(cache / "downloads")
            # What is printed on the way is no result of whoever asked for the data.
            with contextlib.redirect_stdout(sys.stderr):
                make(confirm=confirm).download_and_prepare(
                    download_dir=cache / "downloads",
                    download_config=tfds.download.DownloadConfig(manual_dir=manual),
                    file_format="array_record",
                )
    return make().as_data_source(split), read_ids(folder, split)  # pyright: ignore


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
