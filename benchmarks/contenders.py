"""Three ways to train the same layer of linear attention on the same episodes, to be timed.

The reference setting: `d` features, `n` examples, one query, one output, AdamW with clipping. Each
way draws its episodes as it goes, and trains all `seeds` for `steps` steps:

* `one_program`: what this library does, seeds under `vmap` and spread over the cores, steps under
  `scan`;
* `plain_loop`: the same loss and optimizer, one jitted call a step, one seed after another;
* `pytorch`: the same model in PyTorch on CPU, one seed after another.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from experiments.support.command import use_all_cores
from icorag_jax.theory import alignment, architectures, training
from icorag_jax.theory.architectures import Architecture, Model
from icorag_jax.theory.episodes import Episode

INIT_SCALE = 0.002
LEARNING_RATE, B1, B2, CLIP = 1e-3, 0.9, 0.98, 0.001


@dataclasses.dataclass(frozen=True)
class Size:
    """What is trained.

    Attributes:
        seeds: runs.
        batch: episodes a step.
        d: features.
        n: context examples.
        steps: optimizer steps of each run.
    """

    seeds: int
    batch: int
    d: int = 10
    n: int = 10
    steps: int = 50


def one_program(size: Size) -> float:
    """Seconds for all seeds in one compiled program, compilation aside."""
    use_all_cores()
    model, loss = model_and_loss(size)
    config = training.TrainingConfig(
        optimizer="adamw", steps=size.steps, batch=size.batch, learning_rate=LEARNING_RATE,
        b1=B1, b2=B2, weight_decay=0.0, clip=CLIP, cosine=False, chunk=size.steps,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), size.seeds)
    parameters = jax.vmap(lambda key: architectures.init_parameters(model, key, 1))(keys)
    keys, no_data = training.shard_runs((keys, jnp.zeros(size.seeds)))

    def run():
        start = training.start_training(jax.tree.map(jnp.copy, parameters), config)
        state = training.shard_runs(start)
        _, losses = training.train_chunk(state, keys, no_data, loss=loss, config=config)
        return losses.block_until_ready()

    return _time(run)


def plain_loop(size: Size) -> float:
    """Seconds for one jitted call a step, one seed after another, compilation aside."""
    model, loss = model_and_loss(size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, B1, B2, weight_decay=0.0)
    )

    @jax.jit
    def step(parameters, state, key):
        value, slope = jax.value_and_grad(loss)(parameters, key, None)
        # optax mixes integer step counts with floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(slope, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    keys = jax.random.split(jax.random.key(0), size.seeds)
    starts = [architectures.init_parameters(model, key, 1) for key in keys]

    def run():
        for parameters, key in zip(starts, keys, strict=True):
            state = optimizer.init(parameters)
            value = None
            for step_key in jax.random.split(key, size.steps):
                parameters, state, value = step(parameters, state, step_key)
            jax.block_until_ready(value)

    return _time(run)


def pytorch(size: Size) -> float:
    """Seconds for the same model in PyTorch, one seed after another."""
    import torch

    width = size.d + 1
    generator = torch.Generator().manual_seed(0)

    def run():
        for _ in range(size.seeds):
            weights = [
                (
                    (INIT_SCALE / width) ** 0.5 * torch.randn(width, width, generator=generator)
                ).requires_grad_()
                for _ in range(4)
            ]
            query, key, value, output = weights
            optimizer = torch.optim.AdamW(
                weights, lr=LEARNING_RATE, betas=(B1, B2), weight_decay=0.0
            )
            for _ in range(size.steps):
                z = torch.rand(size.batch, size.n + 1, size.d, generator=generator) - 0.5
                w = torch.randn(size.batch, size.d, 1, generator=generator)
                y = z @ w
                context = torch.cat([z[:, :-1], y[:, :-1]], dim=-1) * size.n**-0.5
                asked = torch.cat([z[:, -1:], torch.zeros(size.batch, 1, 1)], dim=-1)
                mixing = (asked @ query.T) @ (context @ key.T).mT
                predictions = -(mixing @ (context @ value.T) @ output.T)[..., -1]
                loss = 0.5 * ((predictions - y[:, -1]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()

    return _time(run)


CONTENDERS: dict[str, Callable[[Size], float]] = {
    "one_program": one_program,
    "plain_loop": plain_loop,
    "pytorch": pytorch,
}


def model_and_loss(size: Size) -> tuple[Model, training.Loss]:
    """One layer of linear attention, and its loss on a batch drawn from the key."""
    model = Model(Architecture(), size.d, INIT_SCALE)

    def loss(parameters, key, data):
        def one(episode):
            predictions = architectures.predict(model, parameters, episode)
            return alignment.query_loss(predictions, episode.query_targets)

        return jnp.mean(jax.vmap(one)(draw_batch(size, key)))

    return model, loss


def draw_batch(size: Size, key: PRNGKeyArray) -> Episode:
    """Episodes of the reference setting, `[batch, ...]`."""
    feature_key, interface_key = jax.random.split(key)
    features = jax.random.uniform(
        feature_key, (size.batch, size.n + 1, size.d), minval=-0.5, maxval=0.5
    )
    interfaces = jax.random.normal(interface_key, (size.batch, size.d))
    targets = jnp.einsum("ed,end->en", interfaces, features)[..., None]
    readouts = jnp.ones((size.batch, size.n + 1, 1, 1))
    n = size.n
    return Episode(
        features=features[:, :n], readouts=readouts[:, :n], targets=targets[:, :n],
        weights=jnp.ones((size.batch, n)), query_features=features[:, n:],
        query_readouts=readouts[:, n:], query_targets=targets[:, n:],
    )  # fmt: skip


def _time(run: Callable[[], object]) -> float:
    """The median of three runs, after one that warms up and compiles."""
    run()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))
