"""Alone and in company: manyfit against the plain PyTorch loop, a jitted JAX loop, scikit-learn, and vmap in JAX.

    pip install -e ".[bench]"
    python benchmarks/rivals.py [--repeats 5] [--only digits]

Arms alternate in one process on the same data, model and evaluation work (train and validation loss and accuracy
after every epoch); an arm's first epoch is its warm-up and not counted. Ratios are of one repeat's arms, and their
median is reported.
JAX: a scan over the steps of an epoch in one jitted call, optax's Adam, threefry's dropout; for many members, vmap of
it. In company the plain loop is 64 runs one after another, so that a member's step is the one alone.
"""

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from single_run import WORKLOADS, config_of, manyfit, plain, sklearn

from manyfit.config.schema import Config
from manyfit.data.splits import Dataset
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare

MEMBERS = 64
MNIST1D = {
    "mnist1d 40-100-100-10, batch 32, dropout 0.5": (
        ["data=mnist1d", "model.hidden=[100,100]", "model.dropout=0.5"],
        6,
        1,
    )
}


def losses_of(z: jax.Array, y: jax.Array) -> jax.Array:
    """Binary or softmax cross-entropy, (rows,)."""
    if z.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(z[:, 0], y.astype(z.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(z, y)


def outputs(weights: Any, x: jax.Array, dropout: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """Of a stack with ReLU; in training with masks."""
    for i, (w, b) in enumerate(weights):
        x = x @ w + b
        if i < len(weights) - 1:
            x = jax.nn.relu(x)
            if dropout and key is not None:
                key, own = jax.random.split(key)
                x = jnp.where(jax.random.bernoulli(own, 1 - dropout, x.shape), x / (1 - dropout), 0)
    return x


class Jax:
    """One training, or with `members` as many under vmap."""

    def __init__(self, config: Config, data: Dataset, members: int | None) -> None:
        self.members, self.batch = members, config.batch_size
        self.x, self.y = (jnp.asarray(t.numpy()) for t in (data.x_train, data.y_train))
        self.splits = [(self.x, self.y), tuple(jnp.asarray(t.numpy()) for t in (data.x_val, data.y_val))]
        self.optimizer = optax.adam(config.optimizer.lr)
        widths = [
            self.x.shape[1],
            *config.model.arguments["hidden"],
            1 if len(data.classes) == 2 else len(data.classes),
        ]
        rng = np.random.default_rng(0)
        lead = (members,) if members else ()
        self.weights = [
            (jnp.asarray(rng.uniform(-1, 1, (*lead, a, b)) / np.sqrt(a), jnp.float32), jnp.zeros((*lead, b)))
            for a, b in itertools.pairwise(widths)
        ]
        dropout = config.model.arguments["dropout"]

        def step(state: Any, given: Any) -> Any:
            weights, moments = state
            index, key = given

            def mean(w: Any) -> jax.Array:
                return losses_of(outputs(w, self.x[index], dropout, key), self.y[index]).mean()

            updates, moments = self.optimizer.update(jax.grad(mean)(weights), moments)
            return (optax.apply_updates(weights, updates), moments), None

        def epoch(state: Any, whole: jax.Array, rest: jax.Array, keys: jax.Array) -> Any:
            state, _ = lax.scan(step, state, (whole, keys[:-1]))
            state = step(state, (rest, keys[-1]))[0] if rest.shape[0] else state
            measured = []
            for x, y in self.splits:
                z = outputs(state[0], x)
                guess = z[:, 0] > 0 if z.shape[1] == 1 else z.argmax(1)
                measured += [losses_of(z, y).mean(), (guess == y).mean()]
            return state, measured

        begin = jax.vmap(self.optimizer.init) if members else self.optimizer.init
        self.state = (self.weights, begin(self.weights))
        self.epoch = jax.jit(jax.vmap(epoch) if members else epoch, donate_argnums=0)
        self.rng = rng

    def train(self, epochs: int) -> float:
        """Microseconds a step, of one member; the first epoch compiles."""
        n, k = len(self.x), self.members or 1
        steps, start = -(-n // self.batch), 0.0
        for number in range(epochs + 1):
            if number == 1:
                start = time.perf_counter()
            order = np.stack([self.rng.permutation(n) for _ in range(k)])
            whole = order[:, : n // self.batch * self.batch].reshape(k, -1, self.batch)
            keys = jax.random.split(jax.random.key(number), (k, n // self.batch + 1))
            given = [whole, order[:, n // self.batch * self.batch :], keys]
            self.state, measured = self.epoch(self.state, *(given if self.members else [each[0] for each in given]))
            [np.asarray(value) for value in measured]
        return (time.perf_counter() - start) / epochs / steps / k * 1e6


def jax_loop(members: int | None, config: Config, data: Dataset, epochs: int) -> float:
    """Microseconds a step of a member."""
    return Jax(config, data, members).train(epochs)


def population(configs: Sequence[Config]) -> float:
    """Microseconds of all members' training, without the first epoch, over the number of members."""
    clock = fit(configs)[0].metrics["time/seconds"]
    return float(clock[-1] - clock[1]) / len(configs) * 1e6


def many(config: Config, _: Dataset, epochs: int) -> float:
    """Microseconds a step of a member of 64."""
    given = [config.model_copy(update={"epochs": epochs + 1, "seed": seed}) for seed in range(MEMBERS)]
    return population(given) / epochs / prepare(config).steps_per_epoch


def table(title: str, arms: dict[str, Callable[..., float]], share: float, repeats: int, only: str) -> None:
    """Each arm's time, and manyfit's over each other's."""
    names = list(arms)
    print(f"\n| {title} | " + " | ".join(f"{arm}, us" for arm in names) + " | ", end="")
    print(" | ".join(f"manyfit / {arm}" for arm in names[1:]) + " |")
    print("|---|" + "---|" * (2 * len(names) - 1))
    for name, (overrides, epochs, _) in (WORKLOADS | MNIST1D).items():
        if only not in name:
            continue
        config = config_of(*overrides)
        data, some = prepare(config).data, max(2, round(epochs * share))
        rows = [{arm: run(config, data, some) for arm, run in arms.items()} for _ in range(repeats)]
        cells = [f"{statistics.median(row[arm] for row in rows):.1f}" for arm in names]
        cells += [f"{statistics.median(row['manyfit'] / row[arm] for row in rows):.3f}" for arm in names[1:]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def mixture(repeats: int) -> None:
    """64 members of four batch sizes and four widths in one population, against each kind in one of its own."""
    kinds = [(batch, width) for batch in (16, 32, 64, 128) for width in (32, 64, 96, 128)]

    def members(kind: tuple[int, int], count: int) -> list[Config]:
        batch, width = kind
        return [
            config_of("data=digits", "epochs=6", f"batch_size={batch}", f"model.hidden=[{width}]", f"seed={seed}")
            for seed in range(count)
        ]

    mixed = [config for kind in kinds for config in members(kind, MEMBERS // len(kinds))]
    alike = [members(kind, MEMBERS) for kind in kinds]
    ratios = [population(mixed) / statistics.mean(map(population, alike)) for _ in range(repeats)]
    print(f"\n64 members of four batch sizes and four widths / as many that are alike: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for noisy in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    alone = {"manyfit": manyfit, "plain PyTorch": plain, "JAX": partial(jax_loop, None), "scikit-learn": sklearn}
    table("alone: a step", alone, 1, args.repeats, args.only)
    company = {"manyfit": many, "plain PyTorch": plain, "JAX's vmap": partial(jax_loop, MEMBERS)}
    table("64 members: a member's step", company, 0.4, args.repeats, args.only)
    mixture(args.repeats)
