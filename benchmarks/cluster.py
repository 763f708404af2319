"""What Ray costs and brings: a population's trip, and a sweep on one node and two.

    python benchmarks/cluster.py [--repeats 3]

Nodes are those of `ray.cluster_utils.Cluster`, with a CPU each, on this machine: of two the cores may be one physical
one. Arms alternate; workers have started, and trained once, before anything is measured. In process: on one thread.
"""

import argparse
import functools
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from ray.cluster_utils import Cluster as Nodes
from single_run import config_of

from manyfit.config.schema import Config
from manyfit.parallel.launch import Launch
from manyfit.parallel.ray_cluster import Cluster
from manyfit.parallel.workers import Pool, processes
from manyfit.training.fitting import Elsewhere

TINY = ["data=iris", "model.hidden=[4]", "epochs=1"]
SWEEP = ["data=digits", "model.hidden=[64]", "model.dropout=0.5", "epochs=20"]
POPULATIONS, MEMBERS = 8, 32
Train = Callable[[Sequence[Config]], object]


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def through(pool: Pool, configs: Sequence[Config]) -> None:
    """Train a population in a worker, hearing of every epoch."""
    with pool.turn:
        pool.train(Elsewhere, configs, lambda *_: None, None)


def side_by_side(trains: Sequence[Train], populations: Sequence[Sequence[Config]]) -> None:
    """Each takes the next population when it is done with one."""
    with ThreadPoolExecutor(len(trains)) as threads:
        for future in [threads.submit(trains[i % len(trains)], those) for i, those in enumerate(populations)]:
            future.result()


def main(repeats: int) -> None:
    """Both tables."""
    tiny = [config_of(*TINY)]
    one = config_of(*SWEEP)
    seeded = [one.model_copy(update={"seed": seed}) for seed in range(POPULATIONS * MEMBERS)]
    sweep = [seeded[i::POPULATIONS] for i in range(POPULATIONS)]
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    torch.set_num_threads(1)
    here = Elsewhere()
    with (
        Cluster(Launch(ray=True, address=nodes.address)) as cluster,
        Pool(cluster.workers(False)) as ray,
        Pool(processes(2)) as ours,
    ):
        for pool in (ray, ours):  # each worker has imported what it needs
            pool.ready()
            while pool.free.qsize() < len(pool.workers):
                time.sleep(0.1)
            side_by_side([functools.partial(through, pool)] * 2, [tiny] * 4)
        trips: dict[str, Train] = {
            "in process": lambda configs: here(configs, lambda *_: None, None),
            "spawned worker": functools.partial(through, ours),
            "worker of Ray": functools.partial(through, ray),
        }
        took = {name: [] for name in trips}
        for _ in range(20 * repeats):
            for name, train in trips.items():
                took[name].append(seconds(functools.partial(train, tiny)))
        print("| a population of one, one epoch of iris | ms |\n|---|---|")
        for name, values in took.items():
            print(f"| {name} | {statistics.median(values) * 1e3:.1f} |", flush=True)

        arms = {f"{name}, {count}": [train] * count for name, train in trips.items() for count in (1, 2)}
        del arms["in process, 2"]
        whole = {name: [] for name in arms}
        for _ in range(repeats):
            for name, trains in arms.items():
                whole[name].append(seconds(functools.partial(side_by_side, trains, sweep)))
        print(f"\n| {POPULATIONS} populations of {MEMBERS}, digits 64-64-10, 20 epochs | s | in process / arm |")
        print("|---|---|---|")
        for name, values in whole.items():
            ratio = statistics.median(a / b for a, b in zip(whole["in process, 1"], values, strict=True))
            print(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f} |", flush=True)
    nodes.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    warnings.filterwarnings("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    main(parser.parse_args().repeats)
