"""How epochs follow each other: the LightningModule of a population, whatever engine computes it."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from manyfit.config.errors import TrainingError
from manyfit.progress import OnEpoch
from manyfit.training import process
from manyfit.training.best import Best
from manyfit.training.engine import Engine
from manyfit.training.history import History

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
    """K members in training. Lightning runs the epochs; the engine takes the steps (manual optimization).

    Args:
        engine: Trains and measures them.
        history: Of them.
        observers: Of it.
    """

    def __init__(self, engine: Engine, history: History, observers: Observers) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.engine, self.history, self.observers = engine, history, observers
        self.best = Best(engine.weights, engine.buffers)
        self.probed: dict[str, np.ndarray] = {}  # of this epoch, (members present,), from probes
        self.failed: dict[int, Exception] = {}  # members, by themselves
        self.epochs_done = 0
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of the training that this one goes on from
        self.random_state: Tensor | None = None  # of it

    def configure_optimizers(self) -> None:
        """The engine's is no business of Lightning's."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """It is a number."""
        return batch

    def on_train_start(self) -> None:
        """Epoch 0, the untrained network; or where the training that this one goes on from had come to."""
        self.started = time.perf_counter() - self.seconds_before
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
            self._let_go(self.epochs_done)
        else:
            first = np.ones(len(self.history.members), int)
            self.engine.rates.of(0 * first, first)  # the untrained network's is that of the first step
            if self._without_faults():
                self._measure(0)

    def training_step(self, part: int, batch_idx: int) -> None:  # noqa: ARG002
        """A part of an epoch's optimizer steps."""
        with process.going_on():
            self.engine.train(part)

    def on_train_epoch_end(self) -> None:
        """Measure, note the best, and let members go that have ended."""
        self.epochs_done += 1
        self._require_steps()
        if not self._without_faults():
            return
        with process.going_on():
            self._measure(self.epochs_done)
        self.engine.rates.observe(self.history.of("loss/val", self.epochs_done)[:, -1])
        if self.observers.save:
            last = len(self.history.ends(self.epochs_done, self.best.epoch)) == len(self.history.members)
            self.observers.save(self.epochs_done, self.state, last)
        if self._without_faults():
            self._let_go(self.epochs_done)

    def _without_faults(self) -> bool:
        """Let go of members that failed by themselves, before this epoch is theirs; whether any are left."""
        faults, members = self.engine.faults.taken(), self.history.members
        if not faults:
            return True
        self.failed |= {int(members[place]): error for place, error in faults.items()}
        self.history.ended |= dict.fromkeys((int(members[place]) for place in faults), "failed")
        stay = self.history.stay()
        if stay.any():
            self.best.keep(stay)
            self.probed = {name: values[stay] for name, values in self.probed.items()}
            self._keep(stay)
        else:
            self.trainer.should_stop = True
        return bool(stay.any())

    def _require_steps(self) -> None:
        """Raise TrainingError unless every member has taken all steps of its epochs."""
        due = self.epochs_done * -(-self.engine.examples_per_epoch // self.engine.batch_sizes)
        if (short := self.engine.steps_done != due).any():
            raise TrainingError(
                f"epoch {self.epochs_done} must end with step {due[short][0]}, but {self.engine.steps_done[short][0]} "
                "were taken"
            )

    def _measure(self, epoch: int) -> None:
        """This epoch's metrics of the members present."""
        members, engine = self.history.members, self.engine
        measured = engine.measure(("train", "val"))
        with np.errstate(invalid="ignore"):  # of a run that diverges both may be infinite: the gap is NaN
            measured["loss/gap"] = measured["loss/val"] - measured["loss/train"]
        measured["lr"] = engine.rates.last.copy()
        measured |= self.probed
        self.probed = {}
        if epoch > 0:
            measured["loss/train_running"] = engine.running()
        every = np.ones(len(members))
        measured["progress/steps"] = every * engine.steps_done
        measured["progress/examples"] = every * epoch * engine.examples_per_epoch
        measured["time/seconds"] = every * (time.perf_counter() - self.started)
        self.history.note(epoch, measured)
        loss = self.history.of("loss/val", epoch)
        self.best.note(members, loss, engine.weights, engine.buffers)
        if self.observers.report:
            self.observers.report(epoch, members, measured)

    def _let_go(self, epoch: int) -> None:
        """Of the members that have ended; when none is left, training stops."""
        history = self.history
        history.ended = history.ends(epoch, self.best.epoch) | history.ended
        if self.observers.stops:
            history.ended |= dict.fromkeys(self.observers.stops(epoch, history.going(epoch)), "pruned")
        history.ended = self.engine.ranks.agree(history.ended)
        stay = history.stay()
        if stay.all():
            return
        self.best.leave(history.members, history.of("loss/val", epoch), stay)
        if stay.any():
            self._keep(stay)
        else:
            self.trainer.should_stop = True

    def _keep(self, stay: np.ndarray) -> None:
        """Leave only these of the members present."""
        self.engine.keep(stay)
        self.history.keep(stay)

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bit for bit; copies, on the CPU."""
        return {
            "engine": self.engine.name,
            "epoch": self.epochs_done,
            "members": self.history.members,
            "ended": dict(self.history.ended),
            "history": self.history.state(self.epochs_done),
            "best": self.best.state(),
            "random": torch.get_rng_state(),
            "seconds": time.perf_counter() - self.started,
            **self.engine.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of the same members; there may be more epochs to come."""
        self.history.load_state(state["history"], state["ended"])
        if len(state["members"]) < len(self.history.members):
            self._keep(np.isin(self.history.members, state["members"]))
        self.epochs_done = state["epoch"]
        self.engine.load_state(state)
        self.best.load_state(state["best"], self.engine.weights, self.engine.buffers)
        self.random_state, self.seconds_before = state["random"], state["seconds"]


class Parts:
    """An epoch, for Lightning: the numbers of its parts."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __len__(self) -> int:
        return self.training.engine.parts

    def __iter__(self) -> Iterator[int]:
        self.training.engine.begin(self.training.epochs_done)
        yield from range(len(self))
