"""Learning on two devices; `test_placement.py` runs this under pytest in a process that has two."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import small
import small_backbones

from icorag_jax.backbones.loading import load_backbone
from icorag_jax.data.world import WorldConfig, corpus_of, generate_questions
from icorag_jax.lm import sharding
from icorag_jax.rag import learning
from icorag_jax.rag.batches import BatchConfig, make_batch
from icorag_jax.rag.frozen import read
from icorag_jax.rag.learning import LearningConfig, learn
from icorag_jax.rag.method import init_method
from icorag_jax.rag.placement import split_questions
from icorag_jax.rag.readings import Pool
from icorag_jax.retrieval.bm25 import Bm25
from icorag_jax.retrieval.retrieved import retrieve

SIZES = BatchConfig(passages=3, evidence_tokens=200, question_tokens=160, answer_tokens=4)
METHOD = dataclasses.replace(small_backbones.METHOD, passages=SIZES.passages)
LEARNING = LearningConfig(
    selection_steps=1, selection_batch=4, selection_rate=1e-2,
    steps=4, batch=4, learning_rate=1e-2, weight_decay=0.0, bias_penalty=0.1, selection_weight=0.5,
    seed=0, checkpoint_every=2,
)  # fmt: skip


def drawn(method, decoder, key):
    """Parameters to start from.

    At zero all passages weigh the same, and keys less their mean add up to nothing: Adam's first
    step would go by the signs of rounding errors.
    """
    return small.add_noise(init_method(method, decoder, key), seed=0, scale=0.1)


def with_slopes(parameters):
    """Zeros in the place of those that have no slope.

    What is added to the scores of all passages of a question changes nothing, so the columns of
    passages' constant have slopes of rounding errors alone, and Adam goes by their signs.
    """
    shared, updater = parameters["interface"], parameters["updater"]
    shared = {**shared, "bias": shared["bias"].at[:, -1].set(0)}
    updater = {**updater, "weighing": updater["weighing"].at[-1].set(0)}
    return {**parameters, "interface": shared, "updater": updater}


def test_learning_is_that_of_one_device_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "init_method", drawn)
    assert jax.device_count() == 2
    small_backbones.write_backbone(tmp_path / "backbone")
    world = WorldConfig(size=2, held_out=1, families=("bridge", "conflict"))
    questions = list(generate_questions(world, "train"))
    corpus = list(corpus_of(questions))
    retrieved = retrieve(Bm25().index(corpus), corpus, questions, SIZES.passages, 64)

    def train(mesh, out):
        backbone = load_backbone(str(tmp_path / "backbone"), jnp.float32, mesh=mesh)
        decoder, parameters = backbone.model.config, backbone.model.parameters
        place = (lambda rows: rows) if mesh is None else (lambda rows: split_questions(rows, mesh))
        batch = make_batch(
            SIZES, decoder, backbone.tokenizer, backbone.template, retrieved, answers=True
        )
        reading = read(decoder, parameters, place(batch), layer=small_backbones.LAYER)
        assert len(reading.tokens.sharding.device_set) == (1 if mesh is None else 2)
        pool = Pool(jax.device_get(reading))
        found, _ = learn(METHOD, decoder, LEARNING, parameters, pool, pool, out, place=place)
        return backbone.fingerprint, jax.device_get(found)

    mesh = sharding.make_mesh(data=2, tensor=1)
    one, two = train(None, tmp_path / "one"), train(mesh, tmp_path / "two")
    assert one[0] == two[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        *(with_slopes(jax.tree.map(jnp.asarray, found)) for _, found in (one, two)),
    )

    # As if it had been killed after the first checkpoint.
    shutil.rmtree(tmp_path / "two" / "4")
    _, resumed = train(mesh, tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, resumed, two[1])
