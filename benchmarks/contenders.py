"""Ways to train the same layer of linear attention on the same kind of episodes, to be timed.

The reference setting: `d` features, `n` examples, one query, one output, AdamW with clipping. Each
way draws its episodes as it goes, and trains all `seeds` for `steps` steps:

* `one_program`: what this library does, seeds under `vmap` and spread over the cores, steps under
  `scan`;
* `plain_loop`: the same loss and optimizer, one jitted call a step, one seed after another;
* `plain_loop_same_draws`: the plain loop with the older way to draw random bits, which
  `training.spread_runs` draws with too, and so on the very episodes of `one_program`;
* `pytorch`: the same model in PyTorch on CPU, eager, one seed after another.

A contender is prepared for a size, and then trains as often as it is called.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.support.command import use_all_cores
from icorag_jax.theory import alignment, architectures, training
from icorag_jax.theory.architectures import Architecture, Model, Parameters
from icorag_jax.theory.episodes import Episode

if TYPE_CHECKING:
    import torch

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


class Trained(NamedTuple):
    """What training ends with.

    Attributes:
        weights: the layer's `query`, `key`, `value` and `output`, each `[seeds, d + 1, d + 1]`.
        losses: of each step, `[seeds, steps]`.
    """

    weights: dict[str, Float[np.ndarray, "seeds _ _"]]
    losses: Float[np.ndarray, "seeds steps"]


def one_program(size: Size) -> Callable[[], Trained]:
    """All seeds in one compiled program."""
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
        state, losses = training.train_chunk(state, keys, no_data, loss=loss, config=config)
        return Trained(_weights(state.parameters), np.asarray(losses))

    return run


def plain_loop(size: Size, *, partitionable: bool) -> Callable[[], Trained]:
    """One jitted call a step, one seed after another.

    Args:
        size: what is trained.
        partitionable: draw random bits the newer way, which is JAX's default.
    """
    model, loss = model_and_loss(size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, B1, B2, weight_decay=0.0)
    )

    @jax.jit
    def step(parameters, state, key, number):
        with jax.threefry_partitionable(partitionable):
            step_key = jax.random.fold_in(key, number)
            value, slope = jax.value_and_grad(loss)(parameters, step_key, None)
        # optax mixes integer step counts with floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(slope, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    keys = jax.random.split(jax.random.key(0), size.seeds)
    starts = [architectures.init_parameters(model, key, 1) for key in keys]

    def run():
        trained, losses = [], []
        for parameters, key in zip(starts, keys, strict=True):
            state = optimizer.init(parameters)
            for number in range(size.steps):
                parameters, state, value = step(parameters, state, key, number)
                losses.append(value)
            trained.append(parameters)
        weights = _weights(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained))
        return Trained(weights, np.reshape(jax.device_get(losses), (size.seeds, size.steps)))

    return run


def pytorch(size: Size) -> Callable[[], Trained]:
    """The same model in PyTorch, one seed after another."""
    import torch

    width = size.d + 1
    generator = torch.Generator().manual_seed(0)

    def start():
        scale = (INIT_SCALE / width) ** 0.5
        return {
            name: scale * torch.randn(width, width, generator=generator)
            for name in ("query", "key", "value", "output")
        }

    def draws():
        for _ in range(size.steps):
            features = torch.rand(size.batch, size.n + 1, size.d, generator=generator) - 0.5
            yield features, features @ torch.randn(size.batch, size.d, 1, generator=generator)

    def run():
        runs = [torch_train(start(), draws()) for _ in range(size.seeds)]
        weights = {name: np.stack([w[name].numpy() for w, _ in runs]) for name in runs[0][0]}
        return Trained(weights, np.stack([losses.numpy() for _, losses in runs]))

    return run


def torch_train(
    weights: "dict[str, torch.Tensor]", batches: "Iterable[tuple[torch.Tensor, torch.Tensor]]"
) -> "tuple[dict[str, torch.Tensor], torch.Tensor]":
    """One seed's training in PyTorch.

    Args:
        weights: `query`, `key`, `value` and `output` to start from, each `[d + 1, d + 1]`.
        batches: features and targets of each step, as for `torch_loss`.

    Returns:
        Trained weights, and the loss of each step, `[steps]`.
    """
    import torch

    weights = {name: start.clone().requires_grad_() for name, start in weights.items()}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=LEARNING_RATE, betas=(B1, B2), weight_decay=0.0
    )
    losses = []
    for features, targets in batches:
        loss = torch_loss(weights, features, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimizer.step()
        losses.append(loss.detach())
    return {name: trained.detach() for name, trained in weights.items()}, torch.stack(losses)


def torch_loss(
    weights: "dict[str, torch.Tensor]", features: "torch.Tensor", targets: "torch.Tensor"
) -> "torch.Tensor":
    """`batch_loss` in PyTorch.

    Args:
        weights: `query`, `key`, `value` and `output`, each `[d + 1, d + 1]`.
        features: of the context and then of the query, `[batch, n + 1, d]`.
        targets: likewise, `[batch, n + 1, 1]`.
    """
    import torch

    count = features.shape[1] - 1
    context = torch.cat([features[:, :-1], targets[:, :-1]], dim=-1) * count**-0.5
    asked = torch.cat([features[:, -1:], torch.zeros_like(targets[:, -1:])], dim=-1)
    mixing = (asked @ weights["query"].T) @ (context @ weights["key"].T).mT
    predictions = -(mixing @ (context @ weights["value"].T) @ weights["output"].T)[..., -1]
    return 0.5 * ((predictions - targets[:, -1]) ** 2).mean()


CONTENDERS: dict[str, Callable[[Size], Callable[[], Trained]]] = {
    "one_program": one_program,
    "plain_loop": functools.partial(plain_loop, partitionable=True),
    "plain_loop_same_draws": functools.partial(plain_loop, partitionable=False),
    "pytorch": pytorch,
}


def seconds_to_train(contender: str, size: Size) -> float:
    """Seconds for all seeds and steps: the median of three runs, after one that compiles."""
    run = CONTENDERS[contender](size)
    run()
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def model_and_loss(size: Size) -> tuple[Model, training.Loss]:
    """One layer of linear attention, and its loss on a batch drawn from the key."""
    model = Model(Architecture(), size.d, INIT_SCALE)

    def loss(parameters, key, data):
        return batch_loss(model, parameters, draw_batch(size, key))

    return model, loss


def batch_loss(model: Model, parameters: Parameters, episodes: Episode) -> Float[Array, ""]:
    """The mean loss of the queries of episodes `[batch, ...]`."""

    def one(episode):
        predictions = architectures.predict(model, parameters, episode)
        return alignment.query_loss(predictions, episode.query_targets)

    return jnp.mean(jax.vmap(one)(episodes))


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


def _weights(parameters: Parameters) -> dict[str, np.ndarray]:
    """The weights of the one head of the one layer of all seeds, `[seeds, d + 1, d + 1]` each."""
    layer = architectures.attention_weights(parameters, 0)
    return {name: np.asarray(weight)[:, 0] for name, weight in layer._asdict().items()}
