"""Several devices: examples/s and efficiency of data parallelism, and of a sweep with its populations spread over them.

    python benchmarks/devices.py [--repeats 3] [--only parallel|sweep]

A device is a GPU, or without one a process with one core. Arms alternate in one script. An epoch includes its
evaluation; the first of each arm is not counted. Efficiency is the speed of n devices over n times that of one.
"""

import argparse
import os
import statistics
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
from manyfit.parallel.launch import Launch
from manyfit.sweeps.parent import Sweep
from manyfit.tracking.provenance import hardware
from manyfit.training.fitting import fit

warnings.filterwarnings("ignore")
CONF = str(Path(__file__).parent.parent / "conf")
GPUS = torch.cuda.device_count()
WORKLOADS = {
    "digits 64-64-10, batch 32": ["data=digits", "model.hidden=[64]", "batch_size=32", "epochs=8"],
    "MNIST 784-256-128-10, batch 128": ["data=mnist", "model.hidden=[256,128]", "batch_size=128", "epochs=6"],
    "784-4096-4096-4096-10, batch 512": [
        "data=mnist", "data.train_size=2048", "data.val_fraction=0.05", "data.test_fraction=0.05",
        "model.hidden=[4096,4096,4096]", "batch_size=512", "epochs=3", "eval_train_size=64",
    ],
}  # fmt: skip
MEMBERS = 64


def config_of(*overrides: str) -> Config:
    """As the command composes it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["tracking=off", *overrides], return_hydra_config=True)
    return schema.parse(cfg, cfg.hydra.runtime.choices)


def parallel(workload: list[str], devices: int) -> float:
    """Examples/s of one run."""
    kind = "gpu" if GPUS else "cpu"
    torch.set_num_threads(1)
    (result,) = fit([config_of(*workload, f"trainer={kind}", f"trainer.devices={devices}")])
    seconds = np.diff(result.metrics["time/seconds"])[1:]
    return float(result.metrics["progress/examples"][1] / np.median(seconds))


def spread(workload: list[str], workers: int) -> float:
    """Examples/s of all members of a sweep together, recording included; the processes are there before."""
    first = config_of(*workload)
    configs = {n: first.model_copy(update={"seed": n}) for n in range(MEMBERS)}
    folder = os.getcwd()
    with tempfile.TemporaryDirectory() as there:
        os.chdir(there)
        torch.set_num_threads(1)
        with Sweep("spread", first, launch=Launch(workers=workers)) as sweep:
            sweep.train({n: configs[n].model_copy(update={"epochs": 1}) for n in range(workers)})
            start = time.perf_counter()
            children = sweep.train({n + MEMBERS: config for n, config in configs.items()})
            seconds = time.perf_counter() - start
        os.chdir(folder)
    examples = sum(child.result.metrics["progress/examples"][-1] for child in children if child.result)
    return float(examples / seconds)


def table(title: str, measure: Callable[[list[str], int], float], counts: list[int], repeats: int) -> None:
    """One row a workload and number of devices."""
    print(f"\n{title}\n\n| workload | devices | examples/s | against one | efficiency |\n|---|---|---|---|---|")
    for name, workload in WORKLOADS.items():
        if measure is spread and "4096" in name:
            continue  # 64 of these are no sweep for one machine
        rows = [{count: measure(workload, count) for count in counts} for _ in range(repeats)]
        for count in counts:
            ratio = statistics.median(row[count] / row[counts[0]] for row in rows)
            speed = statistics.median(row[count] for row in rows)
            print(f"| {name} | {count} | {speed:,.0f} | {ratio:.2f} | {ratio / count:.0%} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["parallel", "sweep"])
    args = parser.parse_args()
    most = GPUS or len(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8) if n <= most]
    print(hardware())
    if args.only != "sweep":
        table("One run, data parallel", parallel, counts, args.repeats)
    if args.only != "parallel":
        table(f"{MEMBERS} runs, populations over workers", spread, counts, args.repeats)
