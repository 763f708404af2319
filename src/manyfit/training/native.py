"""The engine of a CPU: members of any widths, batch sizes, optimizers and losses, each by itself in compiled code."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from manyfit.data.draws import orders
from manyfit.native import tables
from manyfit.native.members import Member, Members, filled, parts_of
from manyfit.native.tables import FLOATS, INTEGERS
from manyfit.native.task import SHORT, Task
from manyfit.parallel.ranks import Ranks
from manyfit.population import dense
from manyfit.training.best import Best
from manyfit.training.engine import Engine, Outputs
from manyfit.training.evaluation import metrics
from manyfit.training.faults import Faults, networks_of
from manyfit.training.gathered import Gathered, Sets
from manyfit.training.prepared import Job, dtype_of
from manyfit.training.rates import rates_of

EVALUATED = 64  # examples at once: their activations stay in the first cache
SUMS = [FLOATS.loss, FLOATS.score]
STATE = [FLOATS.momenta, FLOATS.square]  # what an optimizer and the angles remember besides their tables


class Native(Engine):
    """Members of the kernel. All stay in its tables; who is present is a list of numbers.

    Args:
        jobs: They.
        angles: Whether cosines of successive updates are wanted.
    """

    name = "native"

    def __init__(self, jobs: Sequence[Job], angles: bool = False) -> None:
        dtype = dtype_of(jobs[0].config)
        self.networks = [_stack(network) for network in networks_of(jobs)]
        self.members = Members([_member(job, net) for job, net in zip(jobs, self.networks, strict=True)], dtype, angles)
        self.sets = Sets(jobs, dtype)
        self.faults = Faults(len(jobs) > 1)
        self.seeds, self.rates, self.ranks = [job.config.seed for job in jobs], rates_of(jobs, self.faults), Ranks()
        self.present = np.arange(len(jobs))
        self.all_batch_sizes = np.array([job.batch_size for job in jobs])
        self.training = self.sets.training()
        self.per_epoch = -(-self.training.counts // self.all_batch_sizes)
        self.steps = self._task(tables.TRAIN, self.training, self.all_batch_sizes)
        self.parts = 1 + int(max(self.steps.seconds.sum() / self.members.threads, self.steps.seconds.max()) / SHORT)
        self.evaluations: dict[str, Task] = {}

    @property
    def batch_sizes(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.asarray(self.all_batch_sizes[self.present])

    @property
    def examples_per_epoch(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.asarray(self.training.counts[self.present])

    @property
    def parameters(self) -> np.ndarray:  # type: ignore[override]  # read-only here
        """(members,)."""
        return np.asarray(self.members.integers[self.present, INTEGERS.weights])

    @property
    def weights(self) -> Tensor:
        """(members, parameters), each row with zeros behind its own."""
        return self._present(self.members.weights)

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """A dense stack has none."""
        return {}

    @property
    def steps_done(self) -> np.ndarray:
        """(members,)."""
        return np.asarray(self.steps.integers[self.present, INTEGERS.done])

    def _task(self, mode: int, on: Gathered, batch: int | np.ndarray) -> Task:
        order, which = on.all()
        task = Task(self.members, mode, on.x, on.y, batch, order, on.counts, on.targets)
        task.integers[:, INTEGERS.order] = which
        return task

    def _present(self, table: Tensor) -> Tensor:
        return table if len(self.present) == len(table) else table[torch.from_numpy(self.present)]

    def begin(self, epoch: int) -> None:
        """Draw the orders, and ask for the rates: of the whole epoch, whatever the parts it is trained in."""
        k = self.present
        self.epoch_rates = self.rates.of(self.steps.integers[k, INTEGERS.done], self.per_epoch[k])
        firsts, counts = self.training.firsts[k], self.training.counts[k]
        whose = list(zip(firsts.tolist(), counts.tolist(), self.seeds, strict=True))
        drawn: list[Tensor] = []
        rows: dict[tuple[int, int, int], int] = {}
        for first, count in dict.fromkeys((first, count) for first, count, _ in whose):
            unique = list(dict.fromkeys(seed for *its, seed in whose if its == [first, count]))
            rows |= {(first, count, seed): len(rows) + row for row, seed in enumerate(unique)}
            order = orders(unique, epoch, count)
            drawn.append(order.add_(first) if first else order)
        self.steps.visit(pad_sequence([row for order in drawn for row in order], True) if len(drawn) > 1 else drawn[0])
        self.steps.integers[k, INTEGERS.order] = [rows[its] for its in whose]

    def train(self, part: int) -> None:
        """See Engine: each member does its share of its steps."""
        integers, k = self.steps.integers, self.present
        first, last = (at * self.per_epoch[k] // self.parts for at in (part, part + 1))
        integers[k, INTEGERS.first], integers[k, INTEGERS.steps] = first, last - first
        spans = zip(self.epoch_rates, first, last, strict=True)
        self.steps.run(k, rates=np.concatenate([rates[a:b] for rates, a, b in spans]))

    def running(self) -> np.ndarray:
        """See Engine."""
        losses: np.ndarray = self.members.floats[self.present, FLOATS.running] / self.examples_per_epoch
        self.members.floats[:, FLOATS.running] = 0
        return losses

    def measure(self, splits: Sequence[str], best: Best | None = None) -> dict[str, np.ndarray]:
        """See Engine."""
        which = self.present if best is None else np.arange(len(self.all_batch_sizes))
        found: dict[str, np.ndarray] = {}
        for split in splits:
            sums = self._sums(split, which, None if best is None else best.weights)
            for number in np.unique(self.sets.which[which]):
                its = np.flatnonzero(self.sets.which[which] == number)
                one = self.sets.sets[number]
                y = one.split(split)[1]
                measured = metrics(sums[:, its], y if len(y) == 1 else y[self.sets.rows[which[its]]], one.data)
                for name, values in measured.items():
                    found.setdefault(f"{name}/{split}", np.empty(len(which)))[its] = values
        return found

    def outputs(self, split: str, best: Best | None = None) -> list[Outputs]:
        """See Engine; by torch's products, which differ from the kernel's in their last bits."""
        which = self.present if best is None else np.arange(len(self.all_batch_sizes))
        weights, found = self.members.weights if best is None else best.weights, []
        for k in which:
            x, y = self.sets.of(int(k)).split(split)
            stack, parts = dense.Stack(list(self.networks[k])), parts_of(self.networks[k], weights[k])
            z = stack.forward([dense.stored(part)[None] for part in parts], x[None])[0]
            found.append(Outputs(z, y[self.sets.rows[k] if len(y) > 1 else 0], self.sets.of(int(k)).data))
        return found

    def _sums(self, split: str, which: np.ndarray, weights: Tensor | None) -> np.ndarray:
        """Of losses, and of those right or squared errors, (2, which)."""
        if split not in self.evaluations:
            self.evaluations[split] = self._task(tables.EVALUATE, self.sets.split(split), EVALUATED)
        task, floats = self.evaluations[split], self.members.floats
        steps, pieces = -(-task.integers[:, INTEGERS.visited] // EVALUATED), 1 + int(task.seconds.max() / SHORT)
        floats[:, SUMS] = 0
        for piece in range(pieces):
            first, last = (at * steps // pieces for at in (piece, piece + 1))
            task.integers[:, INTEGERS.first], task.integers[:, INTEGERS.steps] = first, last - first
            task.run(which, weights=weights)
        return np.ascontiguousarray(floats[which][:, SUMS].T)

    def keep(self, stay: np.ndarray) -> None:
        """See Engine."""
        self.present = self.present[stay]
        self.rates.keep(stay)
        self.seeds = [seed for seed, here in zip(self.seeds, stay, strict=True) if here]

    def state(self) -> dict[str, Any]:
        """See Engine."""
        updates = self.members.updates
        return {
            "steps": self.steps_done.copy(),
            "weights": self.weights.clone(),
            "moments": self._present(self.members.moments).clone(),
            "optimizer": self.members.floats[self.present][:, STATE],
            "updates": None if updates is None else self._present(updates).clone(),
            **self.rates.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See Engine."""
        rows = torch.from_numpy(self.present)
        self.steps.integers[self.present, INTEGERS.done] = state["steps"]
        self.members.floats[self.present[:, None], STATE] = state["optimizer"]
        self.members.weights[rows] = state["weights"]
        self.members.moments[rows] = state["moments"]
        if self.members.updates is not None and state["updates"] is not None:
            self.members.updates[rows] = state["updates"]
        self.rates.load_state(state["schedules"], state["last_lr"])

    def gradients(self, index: Tensor, members: np.ndarray) -> Tensor:
        """See Engine."""
        k, on = self.present[members], self.training
        index = index + torch.from_numpy(on.firsts[k])[:, None]
        task = Task(self.members, tables.GRADIENT, on.x, on.y, index.shape[1], index, targets=on.targets)
        task.integers[k, INTEGERS.order] = np.arange(len(k))
        found = torch.zeros_like(self.members.weights)
        task.run(k, gradients=found)
        own = int(self.members.integers[k, INTEGERS.weights].max())  # not the zeros that others' rows are longer by
        return found[torch.from_numpy(k), :own].contiguous()

    def ends(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine."""
        norms = []
        for k, row in zip(self.present, gradients, strict=True):
            matrices = [part for part in parts_of(self.networks[k], row) if part.ndim > 1]
            norms.append([torch.linalg.vector_norm(part) for part in (matrices[0], matrices[-1])])
        first, last = torch.tensor(norms).unbind(1)
        return first, last

    def dead_share(self, index: Tensor) -> Tensor:
        """See Engine."""
        shares = []
        for k in self.present:
            x = self.sets.of(int(k)).x_train[index][None]
            stack = dense.Stack(list(self.networks[k]))
            parts = parts_of(self.networks[k], self.members.weights[k])
            shares.append(dense.dead_share(stack, [dense.stored(part)[None] for part in parts], x))
        return torch.cat(shares)

    def network(self, member: int) -> nn.Module:
        """See Engine."""
        k = self.present[member]
        row = self.members.weights[k, : int(self.members.integers[k, INTEGERS.weights])]
        return filled(copy.deepcopy(self.networks[k]).to(row.dtype), row)

    def examples_of(self, member: int) -> tuple[Tensor, Tensor]:
        """See Engine."""
        k = int(self.present[member])
        one = self.sets.of(k)
        return one.x_train, one.y_train[self.sets.rows[k]]

    def cosines(self) -> Tensor:
        """See Engine."""
        floats = self.members.floats
        sums, counts = floats[self.present, FLOATS.cosines], floats[self.present, FLOATS.angles]
        floats[:, [FLOATS.cosines, FLOATS.angles]] = 0
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(sums / counts)


def _stack(network: nn.Module) -> nn.Sequential:
    assert isinstance(network, nn.Sequential)
    return network


def _member(job: Job, network: nn.Sequential) -> Member:
    config = job.config
    return Member(
        network=network,
        loss=job.loss,
        optimizer=job.optimizer,
        options=job.options,
        weight_decay=config.optimizer.weight_decay,
        gradient_clip=config.trainer.gradient_clip,
        seed=config.seed,
    )
