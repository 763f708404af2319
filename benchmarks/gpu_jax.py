"""What benchmarks/gpu.py compares with: Adam on the same networks by JAX's `jit(vmap(scan))`, a line a size.

An epoch is one call: a permutation, then a scan over its mini-batches; nothing is evaluated. Products are float32
unless another of JAX's precisions is named.

    python benchmarks/gpu_jax.py [highest] [how the names of the wanted workloads begin ...]
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import optax
except ImportError as error:
    raise SystemExit(f"benchmarks/gpu_jax.py needs jax and optax: {error}") from None

EPOCHS = 5
OPTIMIZER = optax.adam(1e-3)
Weights = Any
Apply = Callable[[Weights, jax.Array, jax.Array], jax.Array]
Initial = Callable[[jax.Array], Weights]


def linear(key: jax.Array, a: int, b: int) -> Weights:
    """A layer's weights."""
    return jax.random.normal(key, (a, b)) / a**0.5, jnp.zeros(b)


def dense(*widths: int, dropout: float = 0.0) -> tuple[Initial, Apply]:
    """A multilayer perceptron."""

    def initial(key: jax.Array) -> Weights:
        return [
            linear(k, a, b) for k, a, b in zip(jax.random.split(key, len(widths)), widths, widths[1:], strict=False)
        ]

    def apply(weights: Weights, x: jax.Array, key: jax.Array) -> jax.Array:
        for i, (w, b) in enumerate(weights[:-1]):
            x = jax.nn.relu(x @ w + b)
            if dropout:
                kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - dropout, x.shape)
                x = jnp.where(kept, x / (1 - dropout), 0)
        return x @ weights[-1][0] + weights[-1][1]

    return initial, apply


def cnn() -> tuple[Initial, Apply]:
    """networks.CNN."""
    shapes = ((25, 1, 5), (25, 25, 3), (25, 25, 3))

    def initial(key: jax.Array) -> Weights:
        filters = [(jax.random.normal(key, s) / (s[1] * s[2]) ** 0.5, jnp.zeros((s[0], 1))) for s in shapes]
        return filters, linear(key, 125, 10)

    def apply(weights: Weights, x: jax.Array, key: jax.Array) -> jax.Array:  # noqa: ARG001
        x = x[:, None]
        for w, b in weights[0]:
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, w, (2,), [(1, 1)]) + b)
        return x.reshape(len(x), -1) @ weights[1][0] + weights[1][1]

    return initial, apply


def gru(width: int = 32) -> tuple[Initial, Apply]:
    """networks.GRU."""

    def initial(key: jax.Array) -> Weights:
        return linear(key, 1, 3 * width), linear(key, width, 3 * width), linear(key, width, 10)

    def apply(weights: Weights, x: jax.Array, key: jax.Array) -> jax.Array:  # noqa: ARG001
        (wi, bi), (wh, bh), (wo, bo) = weights

        def cell(h: jax.Array, given: jax.Array) -> tuple[jax.Array, None]:
            (r, z, n), (hr, hz, hn) = jnp.split(given, 3, -1), jnp.split(h @ wh + bh, 3, -1)
            z = jax.nn.sigmoid(z + hz)
            return (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h, None

        h, _ = jax.lax.scan(cell, jnp.zeros((len(x), width)), jnp.swapaxes(x[..., None] @ wi + bi, 0, 1))
        return h @ wo + bo

    return initial, apply


def transformer(width: int = 32, heads: int = 4) -> tuple[Initial, Apply]:
    """networks.Transformer."""

    def block(key: jax.Array) -> Weights:
        norm = (jnp.ones(width), jnp.zeros(width))
        sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        return norm, norm, [linear(k, a, b) for k, (a, b) in zip(jax.random.split(key, 4), sizes, strict=True)]

    def initial(key: jax.Array) -> Weights:
        place = jax.random.normal(key, (40, width)) / 10
        return linear(key, 1, width), place, [block(k) for k in jax.random.split(key)], linear(key, width, 10)

    def normed(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift

    def apply(weights: Weights, x: jax.Array, key: jax.Array) -> jax.Array:  # noqa: ARG001
        (we, be), place, blocks, (wo, bo) = weights
        x = x[..., None] @ we + be + place
        for norm1, norm2, ((wq, bq), (wm, bm), (wu, bu), (wd, bd)) in blocks:
            mixed = jnp.split(normed(x, *norm1) @ wq + bq, 3, -1)
            q, k, v = (t.reshape(*t.shape[:2], heads, -1).swapaxes(1, 2) for t in mixed)
            attention = jax.nn.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -1)
            x = x + (attention @ v).swapaxes(1, 2).reshape(x.shape) @ wm + bm
            x = x + jax.nn.gelu(normed(x, *norm2) @ wu + bu, approximate=False) @ wd + bd
        return x.mean(1) @ wo + bo

    return initial, apply


WORKLOADS: dict[str, tuple[tuple[Initial, Apply], int, int, int, int, tuple[int, ...]]] = {
    # network, features, classes, examples, batch, members
    "2-16-2, batch 32": (dense(2, 16, 2), 2, 2, 350, 32, (1, 100, 1000)),
    "digits 64-64-64-10, batch 32": (dense(64, 64, 64, 10), 64, 10, 1257, 32, (1, 64, 100, 1000)),
    "64-256-256-10, batch 64": (dense(64, 256, 256, 10), 64, 10, 1257, 64, (1, 100, 1000)),
    "MNIST 784-256-128-10, batch 128": (dense(784, 256, 128, 10, dropout=0.5), 784, 10, 3500, 128, (1, 64, 256)),
    "784-1024-1024-10, batch 128": (dense(784, 1024, 1024, 10), 784, 10, 3500, 128, (1, 64)),
    "CNN on mnist1d, batch 100": (cnn(), 40, 10, 3500, 100, (1, 64)),
    "GRU on mnist1d, batch 100": (gru(), 40, 10, 3500, 100, (1, 64)),
    "attention on mnist1d, batch 100": (transformer(), 40, 10, 3500, 100, (1, 64)),
}


def epoch(apply: Apply, batch: int, x: jax.Array, y: jax.Array, weights: Weights, state: Any, key: jax.Array) -> Any:
    """All mini-batches of a member's epoch."""
    order = jax.random.permutation(key, len(x))[: len(x) // batch * batch].reshape(-1, batch)

    def loss(weights: Weights, index: jax.Array, key: jax.Array) -> jax.Array:
        outputs = apply(weights, x[index], key)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y[index]).mean()

    def step(carried: Any, index: jax.Array) -> Any:
        weights, state, key = carried
        key, own = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(weights, index, own)
        update, state = OPTIMIZER.update(gradient, state, weights)
        return (optax.apply_updates(weights, update), state, key), value

    (weights, state, _), losses = jax.lax.scan(step, (weights, state, key), order)
    return weights, state, losses.mean()


def measure(name: str, members: int) -> None:
    """Print microseconds a member-step, and the seconds of the compilation."""
    (initial, apply), features, classes, n, batch, _ = WORKLOADS[name]
    x = jax.random.normal(jax.random.PRNGKey(0), (n, features))
    y = jax.random.randint(jax.random.PRNGKey(1), (n,), 0, classes)
    keys = jax.random.split(jax.random.PRNGKey(2), members)
    weights = jax.jit(jax.vmap(initial))(keys)
    state = jax.jit(jax.vmap(OPTIMIZER.init))(weights)
    run = jax.jit(jax.vmap(functools.partial(epoch, apply, batch, x, y)))
    seconds = []
    for _ in range(EPOCHS + 1):
        start = time.perf_counter()
        weights, state, value = run(weights, state, keys)
        value.block_until_ready()
        seconds.append(time.perf_counter() - start)
    each = statistics.median(seconds[1:]) / (n // batch) / members * 1e6
    print(f"| {name} | {members} | {each:.2f} | {seconds[0]:.1f} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", sys.argv[1] if len(sys.argv) > 1 else "highest")
    print(f"| jit(vmap(scan)) by JAX {jax.__version__} | members | us/member-step | compilation, s |")
    print("|---|---|---|---|")
    for name, (*_, sizes) in WORKLOADS.items():
        for members in sizes if any(map(name.startswith, sys.argv[2:] or [""])) else ():
            measure(name, members)
