"""Which jobs are trained together, and how many at once."""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manyfit.config import place
from manyfit.config.errors import ConfigError
from manyfit.config.schema import flattened
from manyfit.parallel.devices import on_gpu
from manyfit.population import dense
from manyfit.population.members import Population
from manyfit.population.unit_rate import is_linear
from manyfit.training.prepared import Job, dtype_of

CACHE = 48 * 2**20  # bytes that a step of a population may touch; benchmarks/sweep.py shows time per member against it
SATURATED = 4 * 2**30  # likewise on a GPU, whose time per member is flat from there on: benchmarks/gpu.py
CLEARLY = 1.25  # times as long as by itself takes a step that does not pay in company
TRIED = 4  # members whose step under vmap is compared with one by itself, on a CPU
UNLIKE = 8  # times as many weights as another are too many for the same population
NATIVE = 2**30  # bytes that members of the native engine may keep; and their data sets, if there are several
COPIES = 6  # of a member's weights that a step touches: weights, gradient, update, two moments, best
MOST = 1024  # members
HELD = 2  # times what a step touches is in memory at most: copies to build from, results; measured 1.2 to 1.9
SPARED = 2  # half of the memory that is left is for all else


@dataclass(frozen=True)
class Group:
    """Job numbers that train as one population; `alone` is why they cannot, and then it is one number."""

    numbers: list[int]
    alone: str | None = None


def signature(job: Job) -> str:
    """What jobs must share to be trained in one population: see `_shared`."""
    return json.dumps(_shared(job), sort_keys=True)


def require_same_signature(jobs: Sequence[Job]) -> None:
    """Raise ConfigError unless jobs may share a population; names each key in which they may not differ."""
    first, *others = [dict(flattened(_shared(job), "")) for job in jobs]
    keys = sorted({key for other in others for key in {*first, *other} if first.get(key) != other.get(key)})
    if keys:
        values = [list(dict.fromkeys(str(flat.get(key, "none")) for flat in (first, *others))) for key in keys]
        raise ConfigError(
            "\n".join(
                f"{key} must be the same in all members of a population, but got {', '.join(got)}. Train them apart."
                for key, got in zip(keys, values, strict=True)
            )
        )


def grouped(
    jobs: Mapping[int, Job], max_members: int | None = None, workers: int = 1, together: int = 1, beside: int = 1
) -> list[Group]:
    """Split jobs into populations: same signature, and no more members than pays.

    Args:
        jobs: By job number.
        max_members: Largest population; None: chosen from the memory that a step touches.
        workers: Processes to be kept busy.
        together: So many jobs, one after the other, are not to be separated where a population may be so large.
        beside: So many workers share the memory of a machine, each like this one.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for number, job in jobs.items():
        alike[signature(job)].append(number)
    groups: list[Group] = []
    held = (those for numbers in alike.values() for those in _held(numbers, jobs))
    for numbers in (band for those in held for band in _bands(those, jobs)):
        first = jobs[numbers[0]]
        if len(numbers) == 1 and first.engine == "lightning":
            groups.append(Group(numbers))
            continue
        if reason := len(numbers) > 1 and (why_alone(first) or _why_apart(first)):
            groups += [Group([number], str(reason)) for number in numbers]
            continue
        largest = max((jobs[number] for number in numbers), key=lambda job: job.weights)
        most = max_members or members(largest, beside)
        size = -(-len(numbers) // max(-(-len(numbers) // most), min(workers, len(numbers))))
        if together <= most:
            size = max(together, size - size % together)
        groups += [Group(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    return groups


def _held(numbers: Sequence[int], jobs: Mapping[int, Job]) -> list[list[int]]:
    """Job numbers, in order, whose data sets memory holds side by side; where it does not, those of one data set."""
    apart: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        apart[jobs[number].data.digest].append(number)
    bytes_of_all = sum(jobs[its[0]].data.x_train.nbytes for its in apart.values())
    return [list(numbers)] if bytes_of_all <= NATIVE else list(apart.values())


def _bands(numbers: Sequence[int], jobs: Mapping[int, Job]) -> list[list[int]]:
    """Job numbers, in order, whose weights are alike: the rows of a population are as long as the longest."""
    bands: list[list[int]] = []
    top = math.inf
    for number in sorted(numbers, key=lambda number: -jobs[number].weights):
        if jobs[number].weights * UNLIKE < top:
            bands.append([])
            top = jobs[number].weights
        bands[-1].append(number)
    return [sorted(band) for band in bands]


def members(job: Job, beside: int = 1) -> int:
    """The largest population of members like this one that pays, and that memory holds so many of beside each other.

    Of the native engine `NATIVE` bytes. Of the batched one on a CPU one whose step stays in cache, at least one member
    a core; on a GPU one that fills it, and half its memory at most.
    """
    network, weights = job.network, job.weights
    room = place.memory() // (SPARED * HELD * beside)
    if job.engine == "native":
        return int(min(max(min(NATIVE, room) // (dtype_of(job.config).itemsize * COPIES * weights), 1), MOST))
    if on_gpu(job.config.trainer) and torch.cuda.is_available():
        touched = 4 * (COPIES * weights + 3 * job.batch_size * kept(network, job.data.x_train[:2].clone()))
        return int(min(max(min(SATURATED, torch.cuda.mem_get_info()[0] // 2) // touched, 1), MOST))
    if dense.is_dense(network):
        numbers = 3 * (sum(p.shape[0] for p in network.parameters() if p.ndim > 1) + job.data.x_train.shape[1])
    else:
        numbers = kept(network, job.data.x_train[:2].clone())
    touched = 4 * (COPIES * weights + job.batch_size * numbers)
    return int(max(min(max(CACHE // touched, os.cpu_count() or 1), room // touched, MOST), 1))


def kept(network: nn.Module, x: Tensor) -> int:
    """How many numbers backpropagation keeps of one example, the example included, for x (rows, ...)."""
    sizes = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), hooks:
        outputs = network.train()(x)  # held while they are counted: what is kept must not move
        of_weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    del outputs
    return x[0].numel() + sum(n for place, n in sizes.items() if place not in of_weights) // len(x)


def why_alone(job: Job) -> str | None:
    """Why such a job cannot share a population; None when it can."""
    if job.engine == "native":
        return None
    if job.engine == "lightning":
        return "a LightningModule trains itself"
    if not is_linear(job.optimizer):
        return f"a step of {job.optimizer.__name__} is not linear in lr"
    pair = Population([job.network, job.network], [0, 0], torch.device("cpu"))
    if pair.stack is not None:
        return None
    if pair.buffers:
        return "the model has buffers (batch statistics and the like) or frozen parameters"
    rows = job.data.x_train[:2]
    try:
        pair.gradient(
            rows.expand(2, *rows.shape), job.data.y_train[:2].expand(2, -1), torch.full((2,), 0.5), [], job.loss
        )
    except RuntimeError as error:
        return f"torch.vmap refuses the model: {str(error).splitlines()[0]}"
    return None


def _why_apart(job: Job) -> str | None:
    """Why such jobs are trained one by one although they could share a population: on a CPU, where vmap costs time."""
    if job.engine == "native" or on_gpu(job.config.trainer) or dense.is_dense(job.network):
        return None
    one, some = (Population([job.network] * k, [0] * k, torch.device("cpu")) for k in (1, TRIED))
    alone, together = _seconds(one, job), _seconds(some, job)
    if together < CLEARLY * alone:  # not as noise has it: where it hardly matters, they train together
        return None
    return f"a step of such a model takes {1e3 * alone:.2g} ms by itself, {1e3 * together:.2g} ms in company"


def _seconds(population: Population, job: Job) -> float:
    """What a member's gradient of a mini-batch takes, the fastest of three times."""
    n, k = job.batch_size, len(population)
    x, y = job.data.x_train[:n].expand(k, n, -1), job.data.y_train[:n].expand(k, -1)
    found = []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        population.gradient(x, y, torch.full((n,), 1 / n), [], job.loss)
        found.append(time.perf_counter() - start)
    return min(found[1:]) / k


def _shared(job: Job) -> dict[str, Any]:
    """All of a config but what members may differ in.

    To the native engine that is everything but the width and task of the data, the epochs, what is measured and the
    precision; with probes, which look at some training examples, the data are the same as well. To the batched engine
    it is lr, weight decay, schedule, seed, and dropout where the model is ours.
    """
    config = job.config
    # by alias: a source may have an argument `target` beside its `_target_`
    values = config.model_dump(mode="json", by_alias=True, exclude={"seed", "schedule", "name"})
    values["trainer"]["engine"] = job.engine
    if job.engine == "native":
        for key in ("optimizer", "model", "loss", "batch_size"):
            del values[key]
        data = {"task": job.data.task, "inputs": job.data.x_train.shape[1]}
        values["data"] = data | ({"digest": job.data.digest} if {*config.probes} - {"test_set"} else {})
        for key in ("gradient_clip", "patience", "cuda_graph"):
            del values["trainer"][key]
        return values
    for key in ("lr", "weight_decay"):
        values["optimizer"].pop(key, None)
    if config.model.target.startswith("manyfit."):  # a user's model may build other layers for another dropout
        values["model"].pop("dropout", None)
    return values
