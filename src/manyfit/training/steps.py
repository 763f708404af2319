"""The optimizer steps of a population."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from manyfit.losses import Loss
from manyfit.parallel.ranks import Ranks
from manyfit.population.dense import norms
from manyfit.population.members import Population
from manyfit.population.unit_rate import Plain, Scaling, UnitRate
from manyfit.training.captured import STEPS, Captured
from manyfit.training.examples import Examples

MASKS_IN_CACHE = 2**17  # elements of dropout masks made at once: about what stays in a core's cache
MASKS_ON_GPU = 2**24  # likewise: what fills one


class Steps:
    """Trains the members of a population on mini-batches.

    Args:
        population: The members.
        optimizer: `UnitRate`, or `Plain` for a single member.
        loss: One number per example.
        examples: Theirs.
        batch_size: Examples per step.
        gradient_clip: Largest norm of a member's gradient.
        scaling: Of gradients, where products are in float16.
        captured: Records steps as CUDA graphs; None: they are made one by one.
        ranks: The processes that train these members together.

    Attributes:
        done: How many steps have been taken.
        running: Losses since it was last set to 0, (members,): after an epoch, added up over ranks, their mean.
        after: Called after every step.
    """

    def __init__(
        self,
        population: Population,
        optimizer: UnitRate | Plain,
        loss: Loss,
        examples: Examples,
        batch_size: int,
        *,
        gradient_clip: float | None = None,
        scaling: Scaling | None = None,
        captured: Captured | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.population, self.optimizer, self.loss, self.examples = population, optimizer, loss, examples
        self.batch_size, self.gradient_clip, self.scaling, self.captured = batch_size, gradient_clip, scaling, captured
        self.ranks = ranks or Ranks()
        self.done = 0
        self.running = torch.zeros_like(population.weights[:, 0])
        self.after: list[Callable[[], None]] = []
        self._row_weights: dict[int, Tensor] = {}
        self._calls: dict[int, list[tuple[int, torch.Size]]] = {}

    @property
    def per_epoch(self) -> int:
        """The last may be of fewer examples."""
        return -(-len(self.examples) // self.batch_size)

    @torch.no_grad()
    def take(self, index: Tensor, rows: Sequence[int], rates: np.ndarray) -> None:
        """Consecutive steps.

        Args:
            index: Numbers of examples, (steps, members, batch).
            rows: How many of each mini-batch count.
            rates: (steps, members).
        """
        lr = torch.from_numpy(rates).to(self.population.weights)[..., None]
        keys = self.population.dropout.keys(self.done + 1, len(rows))
        some = self._at_once(*index.shape)
        for count in set(rows):
            self._weights(count)  # made where nothing is recorded
        for start in range(0, len(rows), some):
            part = slice(start, start + some)
            take, given = functools.partial(self._take, rows[part]), (index[part], lr[part], keys[part])
            if self.captured:
                self.captured.run(tuple(rows[part]), take, *given)
            else:
                take(*given)
        self.done += len(rows)

    def _at_once(self, steps: int, members: int, batch: int) -> int:
        """Of how many steps the masks are made at once, and how many a graph holds."""
        elements = members * sum(seen.numel() for _, seen in self._masked(batch))
        most = MASKS_IN_CACHE if self.running.device.type == "cpu" else MASKS_ON_GPU
        some = max(1, most // max(elements, 1)) if self.population.dropout.active else steps
        return min(STEPS, some) if self.captured else some

    def _take(self, rows: Sequence[int], index: Tensor, lr: Tensor, keys: Tensor) -> None:
        """As `take`; lr is (steps, members, 1), keys of the masks are (steps, members, layers)."""
        batch, first = index.shape[-1], self.ranks.share(self.batch_size).start
        masks = self.population.dropout.applied(keys, self._masked(batch), first)
        for step, count in enumerate(rows):
            here = min(max(count - first, 0), batch)  # rows of this rank that count
            losses = self._step(here, index[step], self._weights(count), lr[step], [m[step] for m in masks])
            self.running.add_(losses * (count / len(self.examples)))
            for note in self.after:
                note()

    def _masked(self, batch: int) -> list[tuple[int, torch.Size]]:
        """The calls of dropout on a mini-batch."""
        if batch not in self._calls:
            self._calls[batch] = self.population.dropout_calls(self.examples.x_train[:batch])
        return self._calls[batch]

    def _step(self, rows: int, index: Tensor, row_weights: Tensor, lr: Tensor, masks: list[Tensor]) -> Tensor:
        x, y = self.examples.batch(index)
        return self.optimizer.step(self.population.weights, lambda: self._gradient(x, y, row_weights, masks, rows), lr)

    def _gradient(
        self, x: Tensor, y: Tensor, row_weights: Tensor, masks: list[Tensor], rows: int
    ) -> tuple[Tensor, Tensor]:
        """Losses (members,) of one mini-batch and the gradient (members, parameters) of each member's own, clipped."""
        scale = self.scaling.scale if self.scaling else None
        several = self.ranks if self.ranks.world > 1 else None
        losses, gradient = self.population.gradient(x, y, row_weights, masks, self.loss, several, scale, rows)
        if self.scaling:
            self.scaling.undo(gradient)
        if self.gradient_clip is not None:
            gradient.mul_((self.gradient_clip / (norms(gradient) + 1e-6)).clamp(max=1))
        return losses, gradient

    def _weights(self, rows: int) -> Tensor:
        """Weights of this rank's rows in the mean over a batch: 1 / rows, and 0 on padding."""
        if rows not in self._row_weights:
            weights = torch.full((self.batch_size,), 1 / rows, dtype=self.examples.x_train.dtype)
            weights[rows:] = 0
            self._row_weights[rows] = weights[self.ranks.share(self.batch_size)].to(self.population.weights.device)
        return self._row_weights[rows]

    def keep(self, rows: Tensor) -> None:
        """Leave only these members; of the population, too."""
        self.population.keep(rows)
        self.optimizer.keep(rows)
        if self.scaling:
            self.scaling.keep(rows)
        self.running = self.running[rows]
        if self.captured:
            self.captured.forget()
