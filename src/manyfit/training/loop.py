"""What a training step and an evaluation are: the LightningModule of a population."""

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from manyfit.data.splits import TOGETHER, Dataset, order_states, orders
from manyfit.losses import Loss
from manyfit.parallel.ranks import Ranks
from manyfit.population.dense import gpu_kernels, norms
from manyfit.population.members import Population
from manyfit.population.unit_rate import Plain, Scaling, UnitRate
from manyfit.schedules import Schedule
from manyfit.training.best import Best
from manyfit.training.captured import STEPS, Captured
from manyfit.training.evaluation import metrics, totals, wide

BLOCK = 64  # optimizer steps in what Lightning calls a batch: its 0.4 to 1.1 ms a batch then weigh little
MASKS_IN_CACHE = 2**17  # elements of dropout masks made at once: about what stays in a core's cache
MASKS_ON_GPU = 2**24  # likewise: what fills one

Report = Callable[[int, np.ndarray, Mapping[str, np.ndarray]], None]
"""Takes note of an epoch: its number, the members present, and their metrics (members present,) by name."""
Stops = Callable[[int, Mapping[int, Mapping[str, float]]], Collection[int]]
"""Which members are to stop after an epoch, of these with their metrics."""

Keep = Callable[[int, Callable[[], Mapping[str, Any]]], None]
"""May put away the state after an epoch, which it has to ask for."""


class Blocks:
    """An epoch as blocks of up to `BLOCK` mini-batches, each a list of (indices (members, batch), rows that count).

    The last short batch is padded with example 0, whose rows do not count. Of several ranks each has its own part of
    every batch.
    """

    def __init__(self, module: "Training") -> None:
        self.module = module

    def __len__(self) -> int:
        return -(-self.module.steps_per_epoch // BLOCK)

    def __iter__(self) -> Iterator[tuple[Tensor, list[int]]]:
        m = self.module
        n, batch, steps = len(m.data.x_train), m.batch_size, m.steps_per_epoch
        drawn = self._orders(m.epochs_done, n)
        padded = torch.nn.functional.pad(drawn, (0, steps * batch - n))
        index = padded.view(len(drawn), steps, batch)[..., m.ranks.share(batch)].transpose(0, 1).contiguous()
        rows = [batch] * (steps - 1) + [n - (steps - 1) * batch]
        for start in range(0, steps, BLOCK):
            yield index[start : start + BLOCK], rows[start : start + BLOCK]

    def _orders(self, epoch: int, n: int) -> Tensor:
        """(members, n), on the device."""
        m, device = self.module, self.module.population.weights.device
        seeds = list(dict.fromkeys(m.seeds))
        if device.type == "cuda" and len(seeds) >= TOGETHER and (kernels := gpu_kernels()):
            states = torch.from_numpy(order_states(seeds, epoch).view(np.int64))
            drawn: Tensor = kernels.permutations(states.to(device), n)
        else:
            drawn = orders(seeds, epoch, n).to(device)
        rows = {seed: row for row, seed in enumerate(seeds)}
        return drawn if seeds == m.seeds else drawn[[rows[seed] for seed in m.seeds]]


class Training(pl.LightningModule):
    """K members in training. Lightning runs the epochs; a step is ours (manual optimization on a raw optimizer).

    Args:
        population: The members.
        optimizer: `UnitRate`, or `Plain` for a single member.
        loss: One number per example.
        data: On the device after `setup`.
        y_train: Training targets (members, n), or (1, n) where they are the same for all.
        seeds, lr, schedules, patience: One per member.
        batch_size: Examples per step.
        epochs: Of the whole training; progress of the schedules counts against it.
        eval_rows: Indices (m,) of the training examples that loss/train is measured on.
        gradient_clip: Largest norm of a member's gradient.
        captured: Whether steps are a CUDA graph; "auto": where they can be.
        half: Whether products are in float16, so that gradients have to be scaled.
        ranks: The processes that train these members together.
    """

    def __init__(
        self,
        population: Population,
        optimizer: UnitRate | Plain,
        loss: Loss,
        data: Dataset,
        y_train: Tensor,
        *,
        seeds: Sequence[int],
        lr: Sequence[float],
        schedules: Sequence[Schedule],
        batch_size: int,
        epochs: int,
        eval_rows: Tensor,
        patience: int | None = None,
        gradient_clip: float | None = None,
        captured: bool | Literal["auto"] = False,
        half: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.ranks = ranks or Ranks()
        self.several = self.ranks if self.ranks.world > 1 else None
        self.automatic_optimization = False
        self.population, self.optimizer, self.loss, self.data = population, optimizer, loss, data
        self.x_train, self.y_train, self.eval_rows = data.x_train, y_train, eval_rows
        self.seeds, self.schedules = list(seeds), list(schedules)
        self.lr = np.array(lr, np.float64)
        self.batch_size, self.epochs, self.patience, self.gradient_clip = batch_size, epochs, patience, gradient_clip
        self.steps_per_epoch = -(-len(data.x_train) // batch_size)
        self.members = np.arange(len(population))  # which of the members we began with are still here
        self.history: dict[str, np.ndarray] = {}
        self.ended: dict[int, str] = {}
        self.epochs_done = self.steps_done = 0
        self.seconds_before = 0.0  # of the training that this one goes on from
        self.random_state: Tensor | None = None  # of it
        self.keep: Keep | None = None
        self.running = torch.zeros_like(population.weights[:, 0])  # mean loss of the mini-batches of this epoch
        self.last_lr = self.lr.copy()
        self.row_weights: dict[int, Tensor] = {}
        self.calls: dict[int, list[tuple[int, torch.Size]]] = {}
        self.report: Report | None = None
        self.stops: Stops | None = None
        self.probed: dict[str, np.ndarray] = {}  # of this epoch, (members present,), from probes
        self.after_step: list[Callable[[], None]] = []  # empty without probes
        self.started = time.perf_counter()
        self.scaling = Scaling(len(population), population.weights.device) if half else None
        self.captured = Captured(must=captured is True) if captured else None  # steps
        self.evaluation = Captured(must=captured is True) if captured else None
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self.sums: dict[str, Tensor] = {}
        self.best = Best(population.weights, population.buffers)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The raw optimizer: Lightning only asks that there be one."""
        return self.optimizer.raw

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """It is there already."""
        return batch

    def on_train_start(self) -> None:
        """Epoch 0, the untrained network; or where the training that this one goes on from had come to."""
        self.started = time.perf_counter() - self.seconds_before
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
            self._retire_ended(self.epochs_done)
        else:
            self.last_lr = self.lr * self._factors(1)[0]
            self.finish_epoch(0)

    @torch.no_grad()
    def training_step(self, block: tuple[Tensor, list[int]], batch_idx: int) -> None:  # noqa: ARG002
        """A block of optimizer steps: indices (steps, members, batch) and how many rows of each step count."""
        index, rows = block
        factors = self._factors(len(rows))
        rates = torch.from_numpy(self.lr * factors).to(self.population.weights)[..., None]  # (steps, members, 1)
        keys = self.population.dropout.keys(self.steps_done + 1, len(rows))
        some = self._steps_at_once(index.shape[1:])
        for count in set(rows):
            self._row_weights(count)  # made where nothing is recorded
        for start in range(0, len(rows), some):
            part = slice(start, start + some)
            steps, given = functools.partial(self._steps, rows[part]), (index[part], rates[part], keys[part])
            if self.captured:
                self.captured.run(tuple(rows[part]), steps, *given)
            else:
                steps(*given)
        self.steps_done += len(rows)
        self.last_lr = self.lr * factors[-1]

    def _steps_at_once(self, shape: torch.Size) -> int:
        """Of how many steps the masks are made at once, and how many a graph holds."""
        elements = shape[0] * sum(seen.numel() for _, seen in self._calls(shape[1]))
        most = MASKS_IN_CACHE if self.running.device.type == "cpu" else MASKS_ON_GPU
        some = max(1, most // max(elements, 1)) if self.population.dropout.active else BLOCK
        return min(STEPS, some) if self.captured else some

    def _steps(self, rows: Sequence[int], index: Tensor, rates: Tensor, keys: Tensor) -> None:
        """Optimizer steps on consecutive mini-batches.

        Args:
            rows: How many of each count.
            index: (steps, members, batch).
            rates: (steps, members, 1).
            keys: Of the masks, (steps, members, layers).
        """
        batch, first = index.shape[-1], self.ranks.share(self.batch_size).start
        masks = self.population.dropout.applied(keys, self._calls(batch), first)
        for step, count in enumerate(rows):
            here = min(max(count - first, 0), batch)  # rows of this rank that count
            losses = self._step(here, index[step], self._row_weights(count), rates[step], [m[step] for m in masks])
            self.running.add_(losses * (count / len(self.x_train)))
            for note in self.after_step:
                note()

    def _factors(self, steps: int) -> np.ndarray:
        """Factors on lr (steps, members) of the coming steps."""
        progress = np.arange(self.steps_done, self.steps_done + steps) / (self.epochs * self.steps_per_epoch)
        keys = list(map(id, self.schedules))
        kinds = dict(zip(keys, self.schedules, strict=True))
        column = {key: k for k, key in enumerate(kinds)}
        made = np.stack([schedule(progress) for schedule in kinds.values()], 1)
        return made[:, [column[key] for key in keys]]

    def _calls(self, batch: int) -> list[tuple[int, torch.Size]]:
        if batch not in self.calls:
            self.calls[batch] = self.population.dropout_calls(self.x_train[:batch])
        return self.calls[batch]

    def _step(self, rows: int, index: Tensor, row_weights: Tensor, lr: Tensor, masks: list[Tensor]) -> Tensor:
        members, batch = index.shape
        flat = index.view(-1)
        x = self.x_train.index_select(0, flat).view(members, batch, *self.x_train.shape[1:])
        if len(self.y_train) > 1:
            y = self.y_train.gather(1, index)
        else:
            y = self.y_train[0].index_select(0, flat).view(members, batch)
        return self.optimizer.step(self.population.weights, lambda: self._gradient(x, y, row_weights, masks, rows), lr)

    def _gradient(
        self, x: Tensor, y: Tensor, row_weights: Tensor, masks: list[Tensor], rows: int
    ) -> tuple[Tensor, Tensor]:
        """Losses (members,) of one mini-batch and the gradient (members, parameters) of each member's own, clipped."""
        scale = self.scaling.scale if self.scaling else None
        losses, gradient = self.population.gradient(x, y, row_weights, masks, self.loss, self.several, scale, rows)
        if self.scaling:
            self.scaling.undo(gradient)
        if self.gradient_clip is not None:
            gradient.mul_((self.gradient_clip / (norms(gradient) + 1e-6)).clamp(max=1))
        return losses, gradient

    def _row_weights(self, rows: int) -> Tensor:
        """Weights of this rank's rows in the mean over a batch: 1 / rows, and 0 on padding."""
        if rows not in self.row_weights:
            weights = torch.full((self.batch_size,), 1 / rows, dtype=self.x_train.dtype)
            weights[rows:] = 0
            self.row_weights[rows] = weights[self.ranks.share(self.batch_size)].to(self.population.weights.device)
        return self.row_weights[rows]

    def on_train_epoch_end(self) -> None:
        """Measure, note the best, and let members go that have ended."""
        self.epochs_done += 1
        self.finish_epoch(self.epochs_done)
        loss = self.history["loss/val"][self.members, self.epochs_done]
        for value, schedule in zip(loss.tolist(), self.schedules, strict=True):
            schedule.observe(value)
        if self.keep:
            self.keep(self.epochs_done, self.state)
        self._retire_ended(self.epochs_done)

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bit for bit; copies, on the CPU."""
        return {
            "epoch": self.epochs_done,
            "steps": self.steps_done,
            "members": self.members,
            "ended": dict(self.ended),
            "history": {name: values[:, : self.epochs_done + 1] for name, values in self.history.items()},
            "last_lr": self.last_lr,
            "weights": self.population.weights.cpu().clone(),
            "buffers": {name: b.cpu().clone() for name, b in self.population.buffers.items()},
            "optimizer": copied(self.optimizer.raw.state_dict()["state"]),
            "best": self.best.state(),
            "schedules": [schedule.state() for schedule in self.schedules],
            "probes": [copied(probe.state_dict()) for probe in self.trainer.callbacks],  # type: ignore[attr-defined]
            "random": torch.get_rng_state(),
            "scaling": copied([self.scaling.scale, self.scaling.good]) if self.scaling else None,
            "seconds": time.perf_counter() - self.started,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` of the same members; there may be more epochs to come."""
        self.members = np.arange(len(self.best.epoch))
        self.ended = {int(member): reason for member, reason in state["ended"].items()}
        if len(state["members"]) < len(self.members):
            self._leave_only(np.isin(self.members, state["members"]))
        self.epochs_done, self.steps_done, self.last_lr = state["epoch"], state["steps"], state["last_lr"]
        for name, values in state["history"].items():
            self.history[name] = np.full((len(values), self.epochs + 1), np.nan)
            self.history[name][:, : values.shape[1]] = values
        self.population.weights.copy_(state["weights"])
        self.population.buffers = {name: b.to(self.y_train.device) for name, b in state["buffers"].items()}
        groups = self.optimizer.raw.state_dict()["param_groups"]
        self.optimizer.raw.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.best.load_state(state["best"], self.population.weights, self.population.buffers)
        for schedule, its in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state(its)
        if self.scaling and state["scaling"]:
            self.scaling.load(*state["scaling"])
        self.random_state, self.seconds_before = state["random"], state["seconds"]

    def finish_epoch(self, epoch: int) -> None:
        """Write this epoch's metrics of the members present into `history`, (all members, epochs + 1) each."""
        measured = self.evaluate(self.population.weights, self.population.buffers, ("train", "val"))
        with np.errstate(invalid="ignore"):  # of a run that diverges both may be infinite: the gap is NaN
            measured["loss/gap"] = measured["loss/val"] - measured["loss/train"]
        measured["lr"] = self.last_lr
        measured |= self.probed
        self.probed = {}
        if epoch > 0:
            self.ranks.sum(self.running)
            measured["loss/train_running"] = self.running.cpu().double().numpy().copy()  # it is written to again
            self.running.zero_()
        every = np.ones(len(self.members))
        measured["progress/steps"] = every * self.steps_done
        measured["progress/examples"] = every * epoch * len(self.x_train)
        measured["time/seconds"] = every * (time.perf_counter() - self.started)
        for name, values in measured.items():
            row = self.history.setdefault(name, np.full((len(self.best.epoch), self.epochs + 1), np.nan))
            row[self.members, epoch] = values
        loss = self.history["loss/val"][self.members, : epoch + 1]
        self.best.note(self.members, loss, self.population.weights, self.population.buffers)
        if self.report:
            self.report(epoch, self.members, measured)

    def _retire_ended(self, epoch: int) -> None:
        loss = np.stack([self.history[f"loss/{split}"][self.members, epoch] for split in ("train", "val")])
        finite = np.isfinite(loss).all(0)
        since = epoch - 1 - self.best.epoch[self.members]
        early = since >= self.patience if self.patience is not None else np.zeros_like(finite)
        for reason, these in (("diverged", ~finite), ("stopped early", early), ("finished", epoch == self.epochs)):
            for member in self.members[np.broadcast_to(these, finite.shape)]:
                self.ended.setdefault(int(member), reason)
        if self.stops:
            going = {int(m): self._values(int(m), epoch) for m in self.members if int(m) not in self.ended}
            self.ended |= dict.fromkeys(self.stops(epoch, going), "pruned")
        self.ended = self.ranks.agree(self.ended)
        self.retire(epoch)

    def _values(self, member: int, epoch: int) -> dict[str, float]:
        return {name: float(values[member, epoch]) for name, values in self.history.items()}

    def retire(self, epoch: int) -> None:
        """Compact away the members named in `ended`; stop the trainer when none is left."""
        stay = np.array([int(m) not in self.ended for m in self.members])
        if stay.all():
            return
        self.best.leave(self.members, self.history["loss/val"][self.members, : epoch + 1], stay)
        if not stay.any():
            self.trainer.should_stop = True
            return
        self._leave_only(stay)

    def _leave_only(self, stay: np.ndarray) -> None:
        rows = torch.from_numpy(np.flatnonzero(stay)).to(self.population.weights.device)
        self.population.keep(rows)
        self.optimizer.keep(rows)
        if self.scaling:
            self.scaling.keep(rows)
        self.running = self.running[rows]
        self.splits.clear()
        self.sums.clear()
        for graphs in (self.captured, self.evaluation):
            if graphs:
                graphs.forget()
        if len(self.y_train) > 1:
            self.y_train = self.y_train[rows]
        self.members, self.lr, self.last_lr = self.members[stay], self.lr[stay], self.last_lr[stay]
        self.seeds = [s for s, here in zip(self.seeds, stay, strict=True) if here]
        self.schedules = [s for s, here in zip(self.schedules, stay, strict=True) if here]

    @torch.no_grad()
    def evaluate(self, weights: Tensor, buffers: Mapping[str, Tensor], splits: Sequence[str]) -> dict[str, np.ndarray]:
        """Metrics (members,) of these weights in evaluation mode, named `loss/val`, `accuracy/test` and so on."""
        present, self.population.buffers = self.population.buffers, dict(buffers)
        try:
            result: dict[str, np.ndarray] = {}
            for split in splits:
                _, y = self._split(split)
                sums = self._totals(split, weights)
                self.ranks.sum(sums)
                result |= {f"{name}/{split}": v for name, v in metrics(sums, y, self.data).items()}
            return result
        finally:
            self.population.buffers = present

    def _totals(self, split: str, weights: Tensor) -> Tensor:
        """Sums over this rank's examples of a split; overwritten by the next of this split."""
        sums = self.sums.get(split)
        if sums is None or sums.shape[1] != len(weights):
            sums = self.sums[split] = torch.zeros(2, len(weights), dtype=wide(weights.device), device=weights.device)
        x, y = self._split(split)
        share = self.ranks.share(len(x))

        def measure() -> None:
            with self.trainer.precision_plugin.val_step_context():
                totals(sums, self.population, weights, x, y, self.loss, self.data, share)

        if self.evaluation and weights is self.population.weights:
            self.evaluation.run(split, measure)
        else:
            measure()
        return sums

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        """Examples, and targets (members, n) or (1, n), that a split is measured on; they stay where they are."""
        if name not in self.splits:
            x, y = getattr(self.data, f"x_{name}"), getattr(self.data, f"y_{name}")[None]
            self.splits[name] = (x[self.eval_rows], self.y_train[:, self.eval_rows]) if name == "train" else (x, y)
        return self.splits[name]


def copied(node: Any) -> Any:
    """A tree of dicts and lists with its tensors copied to the CPU."""
    if isinstance(node, Tensor):
        return node.detach().cpu().clone()
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node
