"""A LightningModule's training as the epochs of a run: measured by what it logs, judged, saved, stopped."""

import contextlib
import copy
import math
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from manyfit.config.errors import TrainingError
from manyfit.config.schema import Config
from manyfit.parallel.ranks import Ranks
from manyfit.population.dropout import seed_of
from manyfit.training.best import Best
from manyfit.training.history import History
from manyfit.training.logged import LOSSES, Curves, NoLossError, named
from manyfit.training.loop import Observers
from manyfit.training.prepared import schedule_of

RETURNED = "what training_step returns"  # is the loss of training where none is logged
NO_WEIGHTS = torch.zeros(1, 0)  # beside the buffers, which hold all that a module stores


class Epochs(Checkpoint):
    """Turns what is logged into the epochs of a run: Lightning calls it last, when all of an epoch has been logged.

    Args:
        config: Of the run.
        logger: Of the trainer.
        observers: Are told of every epoch, and asked.
        ranks: That train together: what each has logged is averaged.
        scheduled: The config's schedule, where that is the module's.
        state: To go on from, see `_state`.
    """

    def __init__(
        self,
        config: Config,
        logger: Curves,
        observers: Observers,
        ranks: Ranks,
        scheduled: "Scheduled | None" = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.logger, self.observers, self.ranks = config, logger, observers, ranks
        self.scheduled, self.state_before = scheduled, state
        self.history = History(1, config.epochs, [config.trainer.patience])
        self.best: Best | None = None  # of copies on the CPU
        self.example: Tensor | None = None  # (1, ...), of the first batch of validation
        self.epochs_done = self.examples = 0
        self.rates: list[float | Tensor] = []  # of the last step, for each optimizer
        self.names: list[str] = []  # that were logged in the last epoch
        self.started = time.perf_counter()
        if state:
            self.history.load_state(state["history"], {})
            self.epochs_done, self.examples, self.example = state["epoch"], state["examples"], state["example"]
        self._begin()

    def _begin(self) -> None:
        """An epoch: nothing has been logged."""
        self.sums: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.returned: Tensor | float = 0.0  # by training_step
        self.weight = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The weights are where they are trained, and as; the order of the first epoch's examples is drawn next."""
        self.best = Best(NO_WEIGHTS, weights_of(pl_module))
        if self.state_before:
            self.best.load_state(self.state_before["best"], NO_WEIGHTS, weights_of(pl_module))
        self._seed()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a first example of what the network is given."""
        x = batch[0] if isinstance(batch, list | tuple) and len(batch) else batch
        if self.example is None and isinstance(x, Tensor) and x.ndim > 0:
            self.example = x[:1].detach().cpu().clone()
            self.example = self.example.float() if x.is_floating_point() else self.example

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Epoch 0, the untrained network. To it training and validation examples are alike: it has seen neither."""
        measured = self._measured(trainer)
        if "loss/val" in measured:  # if not, epoch 1 will say what there is
            measured["loss/train"] = measured["loss/val"]
            self._note(trainer, pl_module, 0, measured)
        self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seconds are of training."""
        spent = self.history.values.get("time/seconds", np.zeros((1, 1)))[0, self.epochs_done]
        self.started = time.perf_counter() - float(spent)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The rates of a step, which schedules change after it."""
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add up what is logged of every step alone: an epoch's value is the mean over examples, as Lightning's is."""
        size = 1
        with contextlib.suppress(MisconfigurationException), warnings.catch_warnings():  # of no size that it can tell
            warnings.simplefilter("ignore")
            size = extract_batch_size(batch)
            self.examples += size * self.ranks.world
        self.last, self.weight = dict(trainer.callback_metrics), self.weight + size
        returned = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(returned, Tensor) and returned.numel() == 1:
            self.returned = self.returned + returned.detach() * size
        for name, value in self.last.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() * size

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch."""
        self.epochs_done += 1
        self._require_batches(trainer)
        self._note(trainer, pl_module, self.epochs_done, self._measured(trainer))
        self._begin()
        self._let_go(trainer)
        self._seed()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Now the schedules have made their step, too: the state after the last epoch."""
        self._save(trainer, last=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise; what stopped it, if we have not, is a callback of its own. The last epoch is judged, too."""
        if not (self.history.ended or trainer.should_stop):  # it ends for a StopIteration, wherever that was raised
            raise TrainingError(f"training must go on to its end, but it ended after epoch {self.epochs_done}")
        self.history.ended.setdefault(0, "stopped early")
        self._save(trainer, last=True)
        assert self.best
        self.best.leave(self.history.members, self.history.of("loss/val", self.epochs_done), np.zeros(1, bool))

    def _require_batches(self, trainer: pl.Trainer) -> None:
        """Raise TrainingError if examples that can be counted ended early, unless the module skipped the rest."""
        loop, most = trainer.fit_loop, trainer.num_training_batches
        taken, loaders = loop.epoch_loop.batch_progress.current, loop._combined_loader
        assert loaders is not None
        counted = not any(isinstance(getattr(one, "dataset", None), IterableDataset) for one in loaders.flattened)
        if counted and taken.ready == taken.completed < most and math.isfinite(most) and not trainer.should_stop:
            raise TrainingError(
                f"epoch {self.epochs_done} must have {most:g} batches, as its data say, but they ended after "
                f"{taken.completed}"
            )

    def _measured(self, trainer: pl.Trainer) -> dict[str, float]:
        """Curves of an epoch, the same on all ranks."""
        logged = dict(trainer.callback_metrics)
        for name, value in self.last.items():
            if name in logged and torch.equal(logged[name], value):  # as its last step was: no mean was made of it
                logged[name] = self.sums[name] / self.weight
        if isinstance(self.returned, Tensor):
            logged[RETURNED] = self.returned / self.weight
        direct = {name: torch.tensor(float(v)) for name, v in self.logger.taken().items() if name not in logged}
        means = mean_over(
            self.ranks, {name: v.detach().cpu().double().reshape(()) for name, v in (direct | logged).items()}
        )
        returned = means.pop(RETURNED, None)
        self.names = list(means)
        found = named(means, self.config.model.curves)
        return found if returned is None else {"loss/train": returned} | found

    def _note(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int, measured: Mapping[str, float]) -> None:
        """Keep an epoch, judge it, and tell of it."""
        if not measured.keys() >= set(LOSSES):
            raise NoLossError(measured, self.names)
        values = dict(measured) | {"loss/gap": measured["loss/val"] - measured["loss/train"]}
        for number, rate in enumerate(self.rates):
            values.setdefault(f"lr/{number}" if number else "lr", float(rate))
        values |= {"progress/steps": trainer.global_step, "progress/examples": float(self.examples or math.nan)}
        values["progress/examples"] = 0.0 if epoch == 0 else values["progress/examples"]
        values["time/seconds"] = time.perf_counter() - self.started if epoch else 0.0
        noted = {name: np.array([float(value)]) for name, value in values.items()}
        self.history.note(epoch, noted)
        loss = self.history.of("loss/val", epoch)
        assert self.best
        self.best.note(self.history.members, loss, NO_WEIGHTS, weights_of(module))
        if self.scheduled and epoch:
            self.scheduled.schedule.observe(measured["loss/val"])
        if self.observers.report:
            self.observers.report(epoch, self.history.members, noted)

    def _let_go(self, trainer: pl.Trainer) -> None:
        """Stop, if it has ended or somebody wants it to."""
        history, epoch = self.history, self.epochs_done
        assert self.best
        history.ended = history.ends(epoch, self.best.epoch) | history.ended
        if self.observers.stops:
            history.ended |= dict.fromkeys(self.observers.stops(epoch, history.going(epoch)), "pruned")
        history.ended = self.ranks.agree(history.ended)
        if history.ended:
            trainer.should_stop = True

    def _seed(self) -> None:
        """Random numbers are a function of seed and epoch, so that a training goes on as if it had not stopped."""
        seed_everywhere(seed_of("guest", self.config.seed, self.epochs_done, self.ranks.rank))

    def _save(self, trainer: pl.Trainer, last: bool) -> None:
        """Offer the state after the last epoch."""
        if self.observers.save and self.epochs_done:
            self.observers.save(self.epochs_done, partial(self._state, trainer), last)

    def _state(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Lightning's checkpoint, and ours; copies."""
        assert self.best
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(False)
        for part in ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_name"):
            checkpoint.pop(part, None)  # the config has them
        checkpoint = copied(checkpoint)
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress |= dict.fromkeys(("ready", "started", "completed"), progress["processed"])  # as after an epoch
        return {
            "engine": "lightning",
            "epoch": self.epochs_done,
            "ended": dict(self.history.ended),
            "history": self.history.state(self.epochs_done),
            "best": self.best.state(),
            "examples": self.examples,
            "example": self.example,
            "checkpoint": checkpoint,
        }


class Scheduled(pl.Callback):
    """The config's schedule, for a module that defines no optimizers: the rate of every step.

    Args:
        config: Of the run.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.schedule, self.steps = config, schedule_of(config, 1), math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Progress is counted in steps; in epochs where nobody knows how many steps there will be."""
        state = self.schedule.state()
        if math.isfinite(trainer.num_training_batches):
            self.steps = trainer.estimated_stepping_batches
        if math.isfinite(self.steps):
            self.schedule = schedule_of(self.config, max(1, round(self.steps / self.config.epochs)))
            self.schedule.load_state(state)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The rate of a step."""
        progress = trainer.current_epoch / self.config.epochs
        if math.isfinite(self.steps):
            progress = min(trainer.global_step / self.steps, 1.0)
        rate = self.config.optimizer.lr * float(self.schedule(np.array([progress]))[0])
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """See Callback."""
        return self.schedule.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Callback."""
        self.schedule.load_state(state_dict)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a module stores, (1, ...) each, on the CPU, for `Best`."""
    return {name: value.detach().cpu().clone()[None] for name, value in module.state_dict().items()}


def mean_over(ranks: Ranks, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers by name, the mean of what the ranks have; NaN where one has none."""
    names = sorted(ranks.agree(list(values)))
    table = torch.stack([values.get(name, torch.tensor(math.nan)).double() for name in names] or [torch.zeros(())])
    ranks.sum(table)
    return dict(zip(names, (table / ranks.world).tolist(), strict=False))


def copied(tree: Any) -> Any:
    """A checkpoint's copy on the CPU; what is no tree of tensors and plain values is left to who writes it down."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(copied, tree)) if type(tree) in (list, tuple) else list(map(copied, tree))
    return copy.deepcopy(tree)


def seed_everywhere(seed: int) -> None:
    """What a user's code may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """torch's, NumPy's and Python's are afterwards what they were."""
    before, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before)
        np.random.set_state(legacy)
