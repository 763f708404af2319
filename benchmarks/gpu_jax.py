"""What benchmarks/gpu.py compares with: Adam on a stack of dense layers by `jax.jit(vmap(scan))`, a line a size.

An epoch is one call: a permutation, then a scan over its mini-batches; nothing is evaluated. Products are float32
unless another of JAX's precisions is named.

    python benchmarks/gpu_jax.py [highest]
"""

import functools
import statistics
import sys
import time

try:
    import jax
    import jax.numpy as jnp
    import optax
except ImportError as error:
    raise SystemExit(f"benchmarks/gpu_jax.py needs jax and optax: {error}") from None

EPOCHS = 5
WORKLOADS = {  # widths, examples, batch, dropout
    "2-16-2, batch 32": ((2, 16, 2), 350, 32, 0.0),
    "digits 64-64-64-10, batch 32": ((64, 64, 64, 10), 1257, 32, 0.0),
    "64-256-256-10, batch 64": ((64, 256, 256, 10), 1257, 64, 0.0),
    "MNIST 784-256-128-10, batch 128": ((784, 256, 128, 10), 3500, 128, 0.5),
    "784-1024-1024-10, batch 128": ((784, 1024, 1024, 10), 3500, 128, 0.0),
}
OPTIMIZER = optax.adam(1e-3)


def initial(key: jax.Array, widths: tuple[int, ...]) -> tuple[list, optax.OptState]:
    """A member's weights and optimizer state."""
    keys = jax.random.split(key, len(widths))
    sizes = list(zip(keys, widths, widths[1:], strict=False))
    weights = [(jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b)) for k, a, b in sizes]
    return weights, OPTIMIZER.init(weights)


def loss(weights: list, x: jax.Array, y: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Mean cross-entropy of a mini-batch."""
    for i, (w, b) in enumerate(weights[:-1]):
        x = jax.nn.relu(x @ w + b)
        if rate:
            x = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape), x / (1 - rate), 0)
    outputs = x @ weights[-1][0] + weights[-1][1]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def epoch(weights: list, state: optax.OptState, key: jax.Array, x: jax.Array, y: jax.Array, batch: int, rate: float):
    """All mini-batches of a member's epoch."""
    order = jax.random.permutation(key, len(x))[: len(x) // batch * batch].reshape(-1, batch)

    def step(carried, index):
        weights, state, key = carried
        key, own = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(weights, x[index], y[index], own, rate)
        update, state = OPTIMIZER.update(gradient, state, weights)
        return (optax.apply_updates(weights, update), state, key), value

    (weights, state, _), losses = jax.lax.scan(step, (weights, state, key), order)
    return weights, state, losses.mean()


def measure(name: str, members: int) -> None:
    """Print microseconds a member-step, and the seconds of the compilation."""
    widths, n, batch, rate = WORKLOADS[name]
    x = jax.random.normal(jax.random.PRNGKey(0), (n, widths[0]))
    y = jax.random.randint(jax.random.PRNGKey(1), (n,), 0, widths[-1])
    keys = jax.random.split(jax.random.PRNGKey(2), members)
    weights, state = jax.jit(jax.vmap(functools.partial(initial, widths=widths)))(keys)
    one = functools.partial(epoch, x=x, y=y, batch=batch, rate=rate)
    run = jax.jit(jax.vmap(lambda weights, state, key: one(weights, state, key)))
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
    for name in WORKLOADS:
        for members in (1, 64, 256 if "1024" in name else 1000):
            measure(name, members)
