"""Questions to train on and to evaluate on, with the passages that a retriever finds for them.

From the generated world, by family, or from a local folder of benchmarks (`docs/data.md`). What is
found depends on the settings alone, and is kept on disk: another run on the same questions neither
indexes nor searches again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from experiments.support.retrieval_measures import find_benchmarks
from experiments.support.retrievers import (
    RetrieverName,
    make_retriever,
    read_encoder,
    read_sample,
    search_stored,
)
from icorag_jax.data.folders import find_corpus, find_splits, read_corpus
from icorag_jax.data.records import CorpusPassage, Question
from icorag_jax.data.world import (
    FAMILIES,
    Family,
    Split,
    WorldConfig,
    corpus_of,
    generate_questions,
)
from icorag_jax.ranges import check_at_least
from icorag_jax.retrieval.encoder_files import Prompts
from icorag_jax.retrieval.retrieved import RetrievedQuestion, pair
from icorag_jax.retrieval.retriever import Retriever

EvaluationSplit = Literal["dev", "test"]
# The questions of each by name.
Benchmarks = Mapping[str, tuple[RetrievedQuestion, ...]]
# Those whose passages the questions of a split have, by split.
Retrievers = Mapping[str, Sequence[Retriever]]


@dataclasses.dataclass(frozen=True)
class QaData:
    """Which questions, and how their passages are found.

    Attributes:
        data: `world`, or a folder of benchmarks and corpora.
        benchmarks: which of the folder's, or none for all that have the evaluation split; of the
            world, which families.
        train_questions: how many of each benchmark to train on, or all if there are fewer; 0 for
            none.
        evaluation_questions: how many of each benchmark to evaluate on, or all if there are fewer.
        evaluation_split: dev or test.
        seed: of the draws of questions from a folder.
        train_seed: of the world to train on.
        evaluation_seed: of the world to evaluate on.
        retriever: bm25, dense, dense by sentences, or the hybrid of bm25 and dense.
        train_retrievers: likewise, whose passages training questions have: each question comes
            once with those of each. By default `retriever` alone.
        passages: to a question, at most.
        encoder: folder or hub id of dense retrieval's encoder; by default the installed one.
        query_prompt: what it wants before a query, if its files do not say.
        passage_prompt: what it wants before a passage, if its files do not say.
        max_length: tokens a passage is cut to; the world's have about 40.
        batch_size: texts embedded at once.
    """

    data: Literal["world"] | Path = "world"
    benchmarks: tuple[str, ...] = ()
    train_questions: int = 1000
    evaluation_questions: int = 300
    evaluation_split: EvaluationSplit = "dev"
    seed: int = 0
    train_seed: int = 0
    evaluation_seed: int = 1
    retriever: RetrieverName = "bm25"
    train_retrievers: tuple[RetrieverName, ...] = ()
    passages: int = 10
    encoder: str | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    max_length: int = 256
    batch_size: int = 32

    def __post_init__(self):
        """Checks names and ranges.

        Raises:
            ValueError: names the setting that is not right.
        """
        for name, given, choices in (
            ("retriever", (self.retriever,), get_args(RetrieverName)),
            ("train_retrievers", self.train_retrievers, get_args(RetrieverName)),
            ("evaluation_split", (self.evaluation_split,), get_args(EvaluationSplit)),
        ):
            for value in given:
                if value not in choices:
                    raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        check_at_least(
            self,
            train_questions=0,
            evaluation_questions=1,
            seed=0,
            train_seed=0,
            evaluation_seed=0,
            passages=1,
            max_length=1,
            batch_size=1,
        )
        for name in ("benchmarks", "train_retrievers"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must be named once each, got {given}")
        unknown = [name for name in self.benchmarks if name not in FAMILIES]
        if self.data == "world" and unknown:
            raise ValueError(
                f"benchmarks of the world must be among its families, {', '.join(FAMILIES)}, "
                f"got {unknown[0]!r}"
            )


@dataclasses.dataclass(frozen=True)
class QuestionSets:
    """Questions by benchmark, or by family of the world.

    Attributes:
        train: to train on; a held-out benchmark, which has no training questions, is not there.
        evaluation: to evaluate on; every benchmark has some.
    """

    train: Benchmarks
    evaluation: Benchmarks


def load_questions(settings: QaData, cache: Path) -> QuestionSets:
    """The questions with their passages, from the cache as far as they are there.

    The world's questions are searched for in the passages of all questions of their set, those of
    a folder in the whole corpus of their benchmark.

    Args:
        settings: which, and how they are found.
        cache: folder to keep indexes and results of searches in.

    Raises:
        ValueError: data or an encoder that are not right, or a world too large for its names.
        OSError: the cache cannot be written.
    """
    names = settings.train_retrievers or (settings.retriever,)
    used: set[RetrieverName] = {*names, settings.retriever}
    made = {name: _retriever(settings, name, cache) for name in used}
    retrievers = {
        "train": [made[name] for name in names],
        settings.evaluation_split: [made[settings.retriever]],
    }
    if settings.data == "world":
        return _load_world(settings, retrievers, cache)
    return _load_folder(settings, Path(settings.data), retrievers, cache)


def _load_world(settings: QaData, retrievers: Retrievers, cache: Path) -> QuestionSets:
    families: tuple[Family, ...] = tuple(
        family for family in FAMILIES if not settings.benchmarks or family in settings.benchmarks
    )

    def load(config: WorldConfig, split: Split) -> Benchmarks:
        questions = list(generate_questions(config, split))
        corpus = list(corpus_of(questions))
        found = _retrieve(settings, retrievers[split], corpus, questions, cache)
        return {
            family: tuple(each for each in found if each.question.type == family)
            for family in families
        }

    train = {}
    if settings.train_questions:
        seed, size = settings.train_seed, settings.train_questions
        train = load(WorldConfig(seed, size=size, held_out=0, families=families), "train")
    seed, size = settings.evaluation_seed, settings.evaluation_questions
    world = WorldConfig(seed, size=0, held_out=size, families=families)
    return QuestionSets(train, load(world, settings.evaluation_split))


def _load_folder(
    settings: QaData, folder: Path, retrievers: Retrievers, cache: Path
) -> QuestionSets:
    corpora = find_benchmarks(folder, settings.evaluation_split, settings.benchmarks)
    # All of them now: what is malformed is found before anything is indexed.
    questions = {}
    for name in corpora:
        for split, count in (
            ("train", settings.train_questions),
            (settings.evaluation_split, settings.evaluation_questions),
        ):
            if count and split in find_splits(folder / name):
                sample = read_sample(folder / name, split, count, settings.seed)
                questions[name, split] = sample
    found = {}
    for corpus_name in dict.fromkeys(corpora.values()):
        corpus = list(read_corpus(find_corpus(folder, corpus_name)))
        for (name, split), asked in questions.items():
            if corpora[name] == corpus_name:
                those = _retrieve(settings, retrievers[split], corpus, asked, cache)
                found[name, split] = tuple(those)
    train, evaluation = (
        {name: found[name, split] for name in corpora if (name, split) in found}
        for split in ("train", settings.evaluation_split)
    )
    return QuestionSets(train, evaluation)


def _retriever(settings: QaData, name: RetrieverName, cache: Path) -> Retriever:
    encoder = None
    if name != "bm25":
        prompts = Prompts(settings.query_prompt, settings.passage_prompt)
        encoder = read_encoder(settings.encoder, prompts, settings.max_length)
    return make_retriever(name, encoder, settings.max_length, settings.batch_size, cache)


def _retrieve(
    settings: QaData,
    retrievers: Sequence[Retriever],
    corpus: Sequence[CorpusPassage],
    questions: Sequence[Question],
    cache: Path,
) -> list[RetrievedQuestion]:
    """Each question once with the passages of each retriever, one question after the other."""
    texts = [question.question for question in questions]
    found = []
    for retriever in retrievers:
        results = search_stored(retriever, corpus, texts, settings.passages, cache)
        found.append(pair(questions, corpus, results))
    return [each for same in zip(*found, strict=True) for each in same]
