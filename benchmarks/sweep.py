"""Sweeps: many runs as one population against the plain PyTorch loop, stock Lightning, and one run after another.

    python benchmarks/sweep.py [--repeats 3] [--only members|command]

Ratios are of arms that alternate in one process (members) or of whole commands that alternate (command).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from single_run import config_of, stock

import torch  # isort: skip
from torch import nn
from torch.nn import functional as F

from manyfit.config.schema import Config
from manyfit.data.splits import Dataset
from manyfit.training.fitting import fit
from manyfit.training.grouping import members
from manyfit.training.loop import Training
from manyfit.training.prepared import prepare

RUN = str(Path(__file__).parent.parent / "run.py")
WORKLOADS = {
    "2-16-2, batch 32": ["data=moons", "data.n=1500", "loss=cross_entropy", "model.hidden=[16]", "model.dropout=0.5"],
    "digits 64-64-10, batch 32": ["data=digits", "model.hidden=[64]", "model.dropout=0.5"],
    "MNIST 784-256-128-10, batch 128": [
        "data=mnist", "model.hidden=[256,128]", "model.dropout=0.5", "batch_size=128",
    ],
}  # fmt: skip
COMMAND = [
    "data=digits", "epochs=20", "optimizer.lr=1e-4,3e-4,1e-3,2e-3,3e-3,6e-3,1e-2,3e-2", "seed=range(0,8)",
]  # fmt: skip


def plain(config: Config, data: Dataset, steps: int) -> float:
    """Microseconds a training step of the loop a good user writes, evaluation left out."""
    layers: list[nn.Module] = []
    width = data.x_train.shape[1]
    for units in config.model.arguments["hidden"]:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(config.model.arguments["dropout"])]
        width = units
    model = nn.Sequential(*layers, nn.Linear(width, len(data.classes)))
    optimizer, batch, done, spent = torch.optim.Adam(model.parameters(), lr=1e-3), config.batch_size, 0, 0.0
    while done < steps:
        order = torch.randperm(len(data.x_train))
        start = time.perf_counter()
        for i in range(0, len(order), batch):
            index = order[i : i + batch]
            loss = F.cross_entropy(model(data.x_train[index]), data.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spent += time.perf_counter() - start if done else 0.0
        done += -(-len(order) // batch)
    return spent / (done - -(-len(data.x_train) // batch)) * 1e6


def population(config: Config, count: int, epochs: int) -> tuple[float, float]:
    """Microseconds a member-step: of training alone, and of everything after the first epoch, evaluation included."""
    spent = []
    honest = Training.training_step

    def timed(self: Training, block: tuple, index: int) -> None:
        start = time.perf_counter()
        honest(self, block, index)
        spent.append((self.current_epoch, time.perf_counter() - start))

    Training.training_step = timed
    try:
        results = fit([config.model_copy(update={"seed": k, "epochs": epochs + 1}) for k in range(count)])
    finally:
        Training.training_step = honest
    clock, steps = results[0].metrics["time/seconds"], results[0].metrics["progress/steps"]
    counted = (steps[-1] - steps[1]) * count / 1e6
    return sum(s for epoch, s in spent if epoch > 0) / counted, (clock[-1] - clock[1]) / counted


def members_table(repeats: int) -> None:
    """Time per member-step against the plain loop, for growing populations."""
    titles = ["workload", "members", "plain, us/step", "manyfit, us/member-step", "with evaluation", "plain / manyfit"]
    print(f"| {' | '.join([*titles, 'peak memory'])} |")
    print("|---|---|---|---|---|---|---|")
    for name, overrides in WORKLOADS.items():
        config = config_of(*overrides)
        job = prepare(config)
        steps = -(-len(job.data.x_train) // job.batch_size)
        for count in sorted({1, 4, 16, 64, 256, members(job)}):
            epochs = max(2, min(15, 60000 // (count * steps)) if "MNIST" not in name else 8 // count)
            rows = []
            for _ in range(repeats):
                rows.append((plain(config, job.data, 6 * steps), *population(config, count, epochs)))
            loop, step, everything = (statistics.median(row[i] for row in rows) for i in range(3))
            ratio = statistics.median(row[0] / row[1] for row in rows)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            chosen = " (chosen)" if count == members(job) else ""
            cells = [name, f"{count}{chosen}", f"{loop:.0f}", f"{step:.1f}", f"{everything:.1f}", f"{ratio:.1f}"]
            print(f"| {' | '.join(cells)} | {memory:.1f} GiB |", flush=True)


def seconds(folder: str, *arguments: str) -> float:
    """A whole command, start to end."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, RUN, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def command_table(repeats: int) -> None:
    """64 digits runs, everything tracked: fused, one by one, and stock Lightning."""
    arms = {
        "fused": ["-m", *COMMAND],
        "fused, tracking=off": ["-m", *COMMAND, "tracking=off"],
        "hydra/launcher=basic": ["-m", *COMMAND, "hydra/launcher=basic"],
    }
    took: dict[str, list[float]] = {name: [] for name in arms}
    few = 8
    took["stock Lightning + MLFlowLogger"] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, arguments in arms.items():
                took[name].append(seconds(folder, *arguments))
        config = config_of("data=digits")
        data = prepare(config).data
        steps = -(-len(data.x_train) // 32)
        per_run = statistics.mean(stock(config, data, 20) * 20 * steps / 1e6 for _ in range(few))
        took["stock Lightning + MLFlowLogger"].append(64 * per_run)
    print("\n| 64 digits runs of 20 epochs | seconds | / fused |\n|---|---|---|")
    for name, values in took.items():
        ratio = statistics.median(a / b for a, b in zip(values, took["fused"], strict=True))
        print(f"| {name} | {statistics.median(values):.1f} | {ratio:.1f} |", flush=True)
    share = statistics.median(1 - b / a for a, b in zip(took["fused"], took["fused, tracking=off"], strict=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\ntracking's share of the command: {share:.0%}; peak memory of a command: {peak:.1f} GiB")
    print(f"stock Lightning: {few} runs measured, times 8, its epochs only (no start-up)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["members", "command"])
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    if options.only in (None, "members"):
        members_table(options.repeats)
    if options.only in (None, "command"):
        command_table(options.repeats)
