"""How epochs follow each other: the LightningModule of a population, and the blocks of steps that it is given."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from manyfit.data.draws import order_states, orders
from manyfit.population.dense import gpu_kernels
from manyfit.progress import OnEpoch
from manyfit.training.best import Best
from manyfit.training.evaluation import Evaluation
from manyfit.training.history import History
from manyfit.training.rates import Rates
from manyfit.training.steps import Steps

DRAWN_ON_GPU = 16  # members whose orders a GPU draws sooner than a CPU
BLOCK = 64  # optimizer steps in what Lightning calls a batch: its 0.4 to 1.1 ms a batch then weigh little

Stops = Callable[[int, Mapping[int, Mapping[str, float]]], Collection[int]]
"""Which members are to stop after an epoch, of these with their metrics."""
Save = Callable[[int, Callable[[], Mapping[str, Any]], bool], None]
"""May put away the state after an epoch, which it has to ask for, and does if it is the last."""


@dataclass(frozen=True)
class Observers:
    """Who is told of a training, and asked, after every epoch."""

    report: OnEpoch | None = None
    stops: Stops | None = None
    save: Save | None = None


class Training(pl.LightningModule):
    """K members in training. Lightning runs the epochs; a step is ours (manual optimization on a raw optimizer).

    Args:
        seeds: One per member.
        steps: Train them.
        evaluation: Measures them.
        rates: Theirs.
        history: Of them.
        observers: Of it.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        steps: Steps,
        evaluation: Evaluation,
        rates: Rates,
        history: History,
        observers: Observers,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seeds, self.steps, self.evaluation, self.rates = list(seeds), steps, evaluation, rates
        self.history, self.observers = history, observers
        self.population, self.examples, self.ranks = steps.population, steps.examples, steps.ranks
        self.best = Best(self.population.weights, self.population.buffers)
        self.probed: dict[str, np.ndarray] = {}  # of this epoch, (members present,), from probes
        self.epochs_done = 0
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of the training that this one goes on from
        self.random_state: Tensor | None = None  # of it

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The raw optimizer: Lightning only asks that there be one."""
        return self.steps.optimizer.raw

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """It is there already."""
        return batch

    def on_train_start(self) -> None:
        """Epoch 0, the untrained network; or where the training that this one goes on from had come to."""
        self.started = time.perf_counter() - self.seconds_before
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
            self._let_go(self.epochs_done)
        else:
            self.rates.of(0, 1)  # the untrained network's is that of the first step
            self._measure(0)

    def training_step(self, block: tuple[Tensor, list[int]], batch_idx: int) -> None:  # noqa: ARG002
        """A block of optimizer steps: indices (steps, members, batch) and how many rows of each step count."""
        index, rows = block
        self.steps.take(index, rows, self.rates.of(self.steps.done, len(rows)))

    def on_train_epoch_end(self) -> None:
        """Measure, note the best, and let members go that have ended."""
        self.epochs_done += 1
        self._measure(self.epochs_done)
        self.rates.observe(self.history.of("loss/val", self.epochs_done)[:, -1])
        if self.observers.save:
            last = len(self.history.ends(self.epochs_done, self.best.epoch)) == len(self.history.members)
            self.observers.save(self.epochs_done, self.state, last)
        self._let_go(self.epochs_done)

    def _measure(self, epoch: int) -> None:
        """This epoch's metrics of the members present."""
        members, running = self.history.members, self.steps.running
        measured = self.evaluation.measure(self.population.weights, self.population.buffers, ("train", "val"))
        with np.errstate(invalid="ignore"):  # of a run that diverges both may be infinite: the gap is NaN
            measured["loss/gap"] = measured["loss/val"] - measured["loss/train"]
        measured["lr"] = self.rates.last
        measured |= self.probed
        self.probed = {}
        if epoch > 0:
            self.ranks.sum(running)
            measured["loss/train_running"] = running.cpu().double().numpy().copy()  # it is written to again
            running.zero_()
        every = np.ones(len(members))
        measured["progress/steps"] = every * self.steps.done
        measured["progress/examples"] = every * epoch * len(self.examples)
        measured["time/seconds"] = every * (time.perf_counter() - self.started)
        self.history.note(epoch, measured)
        loss = self.history.of("loss/val", epoch)
        self.best.note(members, loss, self.population.weights, self.population.buffers)
        if self.observers.report:
            self.observers.report(epoch, members, measured)

    def _let_go(self, epoch: int) -> None:
        """Of the members that have ended; when none is left, training stops."""
        history = self.history
        history.ended = history.ends(epoch, self.best.epoch) | history.ended
        if self.observers.stops:
            history.ended |= dict.fromkeys(self.observers.stops(epoch, history.going(epoch)), "pruned")
        history.ended = self.ranks.agree(history.ended)
        stay = history.stay()
        if stay.all():
            return
        self.best.leave(history.members, history.of("loss/val", epoch), stay)
        if stay.any():
            self._keep(stay)
        else:
            self.trainer.should_stop = True

    def _keep(self, stay: np.ndarray) -> None:
        """Compact everything to these of the members present."""
        rows = torch.from_numpy(np.flatnonzero(stay)).to(self.population.weights.device)
        self.steps.keep(rows)
        self.examples.keep(rows)
        self.evaluation.forget()
        self.rates.keep(stay)
        self.history.keep(stay)
        self.seeds = [seed for seed, here in zip(self.seeds, stay, strict=True) if here]

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bit for bit; copies, on the CPU."""
        scaling = self.steps.scaling
        return {
            "epoch": self.epochs_done,
            "steps": self.steps.done,
            "members": self.history.members,
            "ended": dict(self.history.ended),
            "history": self.history.state(self.epochs_done),
            "last_lr": self.rates.last,
            "weights": self.population.weights.cpu().clone(),
            "buffers": {name: b.cpu().clone() for name, b in self.population.buffers.items()},
            "optimizer": copied(self.steps.optimizer.raw.state_dict()["state"]),
            "best": self.best.state(),
            "schedules": self.rates.state(),
            "probes": [copied(probe.state_dict()) for probe in self.trainer.callbacks],  # type: ignore[attr-defined]
            "random": torch.get_rng_state(),
            "scaling": copied([scaling.scale, scaling.good]) if scaling else None,
            "seconds": time.perf_counter() - self.started,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of the same members; there may be more epochs to come."""
        self.history.load_state(state["history"], state["ended"])
        if len(state["members"]) < len(self.history.members):
            self._keep(np.isin(self.history.members, state["members"]))
        self.epochs_done, self.steps.done = state["epoch"], state["steps"]
        self.population.weights.copy_(state["weights"])
        device, raw = self.population.weights.device, self.steps.optimizer.raw
        self.population.buffers = {name: b.to(device) for name, b in state["buffers"].items()}
        raw.load_state_dict({"state": state["optimizer"], "param_groups": raw.state_dict()["param_groups"]})
        self.best.load_state(state["best"], self.population.weights, self.population.buffers)
        self.rates.load_state(state["schedules"], state["last_lr"])
        if self.steps.scaling and state["scaling"]:
            self.steps.scaling.load(*state["scaling"])
        self.random_state, self.seconds_before = state["random"], state["seconds"]


class Blocks:
    """An epoch as blocks of up to `BLOCK` mini-batches: examples (steps, members, batch), and how many of each count.

    The last short batch is padded with example 0, whose rows do not count. Of several ranks each has its own part of
    every batch.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def __len__(self) -> int:
        return -(-self.training.steps.per_epoch // BLOCK)

    def __iter__(self) -> Iterator[tuple[Tensor, list[int]]]:
        training, steps = self.training, self.training.steps
        n, batch, count = len(training.examples), steps.batch_size, steps.per_epoch
        drawn = _orders(training.seeds, training.epochs_done, n, training.population.weights.device)
        padded = torch.nn.functional.pad(drawn, (0, count * batch - n))
        index = padded.view(len(drawn), count, batch)[..., steps.ranks.share(batch)].transpose(0, 1).contiguous()
        rows = [batch] * (count - 1) + [n - (count - 1) * batch]
        for start in range(0, count, BLOCK):
            yield index[start : start + BLOCK], rows[start : start + BLOCK]


def _orders(seeds: Sequence[int], epoch: int, n: int, device: torch.device) -> Tensor:
    """In which order each member visits n examples in an epoch, (members, n), on the device."""
    unique = list(dict.fromkeys(seeds))
    if device.type == "cuda" and len(unique) >= DRAWN_ON_GPU and (kernels := gpu_kernels()):
        states = torch.from_numpy(order_states(unique, epoch).view(np.int64))
        drawn: Tensor = kernels.permutations(states.to(device), n)
    else:
        drawn = orders(unique, epoch, n).to(device)
    rows = {seed: row for row, seed in enumerate(unique)}
    return drawn if unique == seeds else drawn[[rows[seed] for seed in seeds]]


def copied(node: Any) -> Any:
    """A tree of dicts and lists with its tensors copied to the CPU."""
    if isinstance(node, Tensor):
        return node.detach().cpu().clone()
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node
