"""On a GPU: microseconds per member-step, of populations of every size, against what one would use instead.

    python benchmarks/gpu.py [--repeats 3] [--most 1000] [--only steps precision company jax command] [--workloads GRU]

steps: manyfit, evaluation included, against the eager loop that a good user writes, one network after another; arms
alternate in one process. jax: `jit(vmap(scan))` of the same training without evaluation, where JAX is installed.
precision: what bf16, float16 and TF32 save and cost. company: how far the curves of one member part. command: a
whole command from start to end.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from manyfit.config import schema
from manyfit.config.schema import Config
from manyfit.tracking.provenance import hardware
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare
from manyfit.training.trained import Result

warnings.filterwarnings("ignore")
ROOT = Path(__file__).parent.parent
OWN = tuple(f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma"))


WORKLOADS: dict[str, tuple[str, ...]] = {
    "64-256-256-10, batch 64": ("data=digits", "model.hidden=[256,256]", "batch_size=64"),
    "MNIST 784-256-128-10, batch 128": (
        "data=mnist", "model.hidden=[256,128]", "model.dropout=0.5", "batch_size=128",
    ),
    "digits 64-64-64-10, batch 32": ("data=digits", "batch_size=32"),
    "2-16-2, batch 32": ("data=moons", "model.hidden=[16]", "batch_size=32"),
    "CNN on mnist1d, batch 100": ("data=mnist1d", "batch_size=100", "model._target_=networks.CNN", *OWN),
    "GRU on mnist1d, batch 100": ("data=mnist1d", "batch_size=100", "model._target_=networks.GRU", *OWN),
    "attention on mnist1d, batch 100": ("data=mnist1d", "batch_size=100", "model._target_=networks.Transformer", *OWN),
    "784-1024-1024-10, batch 128": ("data=mnist", "model.hidden=[1024,1024]", "batch_size=128"),
}  # fmt: skip
DENSE = [name for name in WORKLOADS if "mnist1d" not in name]
SIZES = dict.fromkeys(WORKLOADS, (1, 16, 64, 100, 256, 1000))
SIZES |= dict.fromkeys((name for name in WORKLOADS if name not in DENSE), (1, 16, 64, 256))
SIZES["784-1024-1024-10, batch 128"] = (1, 16, 64, 100, 256)


def config_of(*overrides: str) -> Config:
    """As the command composes it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["trainer=gpu", *overrides], return_hydra_config=True)
    return schema.parse(cfg, cfg.hydra.runtime.choices)


def population(config: Config, count: int) -> tuple[float, Result]:
    """Microseconds of a step of all members, evaluation included; and the first member's result."""
    (first, *_) = fit([config.model_copy(update={"seed": k}) for k in range(count)])
    seconds, steps = np.diff(first.metrics["time/seconds"])[2:], first.metrics["progress/steps"][1]
    return float(np.median(seconds) / steps * 1e6), first


def loop(config: Config) -> float:
    """Microseconds a step of the eager loop, data on the device, evaluation left out: one epoch, after half of one."""
    job = prepare(config)
    x, y = job.data.x_train.cuda(), job.data.y_train.cuda()
    model, n, batch = job.network.cuda().train(), len(x), job.batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    each = -(-n // batch)
    for step in range(each // 2 + each):
        if step == each // 2:
            torch.cuda.synchronize()
            start = time.perf_counter()
        if step % each == 0 or step == each // 2:
            order = torch.randperm(n, device="cuda")
        index = order[step % each * batch : (step % each + 1) * batch]
        loss = job.loss.per_example(model(x[index])[None], y[index][None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / each * 1e6


def steps(repeats: int, most: int, wanted: list[str]) -> None:
    """The table of every workload and size."""
    print("| workload | members | loop, us/step | eager, us/member-step | graph | loop / eager | loop / graph |")
    print("|---|---|---|---|---|---|---|")
    for name, overrides in WORKLOADS.items():
        if not any(name.startswith(word) for word in wanted):
            continue
        own = name not in DENSE
        for count in (k for k in SIZES[name] if k <= most):
            epochs = "epochs=4" if own or count > 100 else "epochs=6"
            graph, eager = (config_of(*overrides, epochs, f"trainer.cuda_graph={g}") for g in ("auto", "false"))
            rows = []
            for _ in range(repeats if count <= 100 else 1):
                slow = population(eager, count)[0] / count if count in (1, 64) and not own else math.nan
                rows.append((loop(graph), slow, population(graph, count)[0] / count))
            by_one, slow, fast = (statistics.median(column) for column in zip(*rows, strict=True))
            ratios = " | ".join(f"{by_one / x:.1f}" if x == x else "" for x in (slow, fast))
            times = f"{by_one:.0f} | {slow:.1f} | {fast:.2f}".replace("nan", "")
            print(f"| {name} | {count} | {times} | {ratios} |", flush=True)


def precision() -> None:
    """Time and accuracy of every precision."""
    print("| workload, 64 members | precision | us/member-step | test accuracy of the first | its loss/val parts by |")
    print("|---|---|---|---|---|")
    for name in (DENSE[1], DENSE[2], DENSE[4]):
        exact = None
        for kind in ("32-true", "tf32", "bf16-mixed", "16-mixed"):
            us, result = population(config_of(*WORKLOADS[name], "epochs=10", f"trainer.precision={kind}"), 64)
            exact = exact or result
            apart = np.abs(result.metrics["loss/val"] / exact.metrics["loss/val"] - 1).max()
            accuracy = result.test["accuracy/test"]
            print(f"| {name} | {kind} | {us / 64:.2f} | {accuracy:.3f} | {apart:.1e} |", flush=True)


def company() -> None:
    """How far the curves of one member part when it trains alone, and with others."""
    print("| workload | precision | members | loss/val of the first parts by |")
    print("|---|---|---|---|")
    cases = [(name, kind) for name in DENSE for kind in ("32-true", "bf16-mixed", "tf32")]
    for name, kind in [*cases, *((name, "32-true") for name in WORKLOADS if name not in DENSE)]:
        config, alone = config_of(*WORKLOADS[name], "epochs=5", f"trainer.precision={kind}"), None
        for count in (1, 2, 17, 128):
            _, result = population(config, count)
            alone = alone or result
            a, b = alone.metrics["loss/val"], result.metrics["loss/val"]
            apart = "0" if np.array_equal(a, b) else f"{np.abs(a / b - 1).max():.1e}"
            if count > 1:
                print(f"| {name} | {kind} | {count} | {apart} |", flush=True)


def jax() -> None:
    """The same by JAX, in a process of its own."""
    script = Path(__file__).with_name("gpu_jax.py")
    subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, check=False
    )


def command() -> None:
    """Seconds of whole commands, from start to end, in an empty folder."""
    print("| command | seconds |")
    print("|---|---|")
    for words in (
        ["data=digits", "optimizer=adam"],
        ["-m", "data=digits", "optimizer.lr=0.0001,0.0003,0.001,0.003,0.01,0.03,0.1,0.3", "seed=range(0,8)"],
    ):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(ROOT / "run.py"), *words, "trainer=gpu"], cwd=folder, check=False
            )
            print(f"| `{' '.join(words)}` | {time.perf_counter() - start:.1f} (exit {done.returncode}) |", flush=True)


PARTS: dict[str, Callable[..., None]] = {"precision": precision, "company": company, "jax": jax, "command": command}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=["steps", *PARTS], choices=["steps", *PARTS])
    parser.add_argument("--workloads", nargs="*", default=[""], help="for steps: how their names begin")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA device, and there is none.")
    print(hardware())
    for part in args.only:
        print()
        steps(args.repeats, args.most, args.workloads) if part == "steps" else PARTS[part]()
