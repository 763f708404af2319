"""On a GPU: microseconds per member-step of one run and of populations, against the eager plain loop, MNIST size.

    python benchmarks/gpu.py [--repeats 3] [--most 1024]

Arms alternate in one process: the plain loop, manyfit eager, manyfit with the step captured as a CUDA graph.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F

from manyfit import config as configuration
from manyfit.config import Config
from manyfit.jobs import prepare
from manyfit.provenance import hardware
from manyfit.training import fit

warnings.filterwarnings("ignore")
CONF = str(Path(__file__).parent.parent / "conf")
MNIST = ["data=mnist", "model.hidden=[256,128]", "model.dropout=0.5", "batch_size=128", "trainer=gpu", "epochs=6"]


def config_of(*overrides: str) -> Config:
    """As the command composes it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*MNIST, *overrides], return_hydra_config=True)
    return configuration.parse(cfg, cfg.hydra.runtime.choices)


def plain() -> float:
    """Microseconds a step of the loop a good user writes, data on the device, evaluation left out."""
    data = prepare(config_of()).data
    x, y = data.x_train.cuda(), data.y_train.cuda()
    model = nn.Sequential(
        nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(),
        nn.Linear(128, 10),
    ).cuda()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(6):
        if epoch == 1:
            torch.cuda.synchronize()
            start = time.perf_counter()
        order = torch.randperm(len(x), device="cuda")
        for i in range(0, len(x), 128):
            loss = F.cross_entropy(model(x[order[i : i + 128]]), y[order[i : i + 128]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (5 * -(-len(x) // 128)) * 1e6


def population(count: int, graph: bool) -> float:
    """Microseconds a member-step, evaluation included."""
    first = config_of(f"trainer.cuda_graph={str(graph).lower()}")
    (result, *_) = fit([first.model_copy(update={"seed": k}) for k in range(count)])
    seconds, steps = np.diff(result.metrics["time/seconds"])[1:], result.metrics["progress/steps"][1]
    return float(np.median(seconds) / steps / count * 1e6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=int, default=1024)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA device, and there is none.")
    print(hardware())
    print("| members | plain, us/step | eager, us/member-step | captured | plain / eager | plain / captured |")
    print("|---|---|---|---|---|---|")
    for count in [k for k in (1, 4, 16, 64, 256, 1024) if k <= args.most]:
        rows = [(plain(), population(count, False), population(count, True)) for _ in range(args.repeats)]
        loop, eager, captured = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"| {count} | {loop:.0f} | {eager:.1f} | {captured:.1f} | {loop / eager:.1f} | {loop / captured:.1f} |",
            flush=True,
        )
