"""The metrics of a population on a split, in evaluation mode; over several ranks every example counts once."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from manyfit.data.splits import Dataset
from manyfit.losses import CLASSIFICATION, Loss, correct
from manyfit.parallel.ranks import Ranks
from manyfit.population.dense import sum_rows
from manyfit.population.members import Population
from manyfit.training.captured import Captured
from manyfit.training.examples import Examples

EVAL_ROWS = 512  # examples evaluated at once: keeps a population's activations in cache
GPU_ROWS = 4096  # on a GPU, where launches are what costs; of so many members at once that memory is enough:
GPU_ELEMENTS = 2**26  # of a layer's activations


class Evaluation:
    """Measures the members of a population.

    Args:
        population: The members.
        loss: One number per example.
        examples: Theirs.
        precision: What products are computed in.
        captured: Records evaluations as CUDA graphs; None: they are made as they are.
        ranks: The processes that measure these members together.
    """

    def __init__(
        self,
        population: Population,
        loss: Loss,
        examples: Examples,
        *,
        precision: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        captured: Captured | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.population, self.loss, self.examples = population, loss, examples
        self.precision, self.captured, self.ranks = precision, captured, ranks or Ranks()
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, weights: Tensor, buffers: Mapping[str, Tensor], splits: Sequence[str]) -> dict[str, np.ndarray]:
        """Metrics (members,) of these weights on train, val or test, named `loss/val`, `accuracy/test` and so on."""
        present, self.population.buffers = self.population.buffers, dict(buffers)
        try:
            result: dict[str, np.ndarray] = {}
            for split in splits:
                sums = self._totals(split, weights)
                self.ranks.sum(sums)
                measured = metrics(sums.cpu().numpy(), self.examples.split(split)[1], self.examples.data)
                result |= {f"{name}/{split}": values for name, values in measured.items()}
            return result
        finally:
            self.population.buffers = present

    @torch.no_grad()
    def outputs(self, weights: Tensor, buffers: Mapping[str, Tensor], split: str) -> Tensor:
        """Outputs (members, n, width) of these weights for the examples of a split; every rank has all."""
        present, self.population.buffers = self.population.buffers, dict(buffers)
        try:
            every, found = self.examples.split(split)[0], []
            for start in range(0, len(every), EVAL_ROWS):
                x = every[start : start + EVAL_ROWS]
                with self.precision():
                    found.append(self.population(weights, x.expand(len(weights), *x.shape)).to(weights.dtype))
            return torch.cat(found, 1)
        finally:
            self.population.buffers = present

    def _totals(self, split: str, weights: Tensor) -> Tensor:
        """Sums over this rank's examples of a split; overwritten by the next of this split."""
        sums = self._sums.get(split)
        if sums is None or sums.shape[1] != len(weights):
            sums = self._sums[split] = torch.zeros(2, len(weights), dtype=wide(weights.device), device=weights.device)
        x, y = self.examples.split(split)
        share = self.ranks.share(len(x))

        def measure() -> None:
            with self.precision():
                totals(sums, self.population, weights, x, y, self.loss, self.examples.data, share)

        if self.captured and weights is self.population.weights:
            self.captured.run(split, measure)
        else:
            measure()
        return sums

    def forget(self) -> None:
        """That there were other members, in other places."""
        self._sums.clear()
        if self.captured:
            self.captured.forget()


def wide(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64; on mps, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def totals(
    out: Tensor, population: Population, weights: Tensor, x: Tensor, y: Tensor, loss: Loss, data: Dataset, share: slice
) -> None:
    """Sums over examples, (2, members) in `wide`: of the loss; and of those classified right, or of squared errors.

    Args:
        out: They are written here.
        population: Evaluates.
        weights: (members, parameters).
        x: (n, ...), the same for all members.
        y: (members, n), or (1, n).
        loss: One number per example.
        data: Whose split it is.
        share: Which of the examples.
    """
    members, rows, together = len(weights), EVAL_ROWS, len(weights)
    if x.device.type == "cuda":
        rows, together = GPU_ROWS, max(2, GPU_ELEMENTS // (GPU_ROWS * population.widest(x)))
    chunks = -(-(share.stop - share.start) // rows) or 1
    size = -(-(share.stop - share.start) // chunks) or 1
    out.zero_()
    for first, start in itertools.product(range(0, members, together), range(share.start, share.stop, size)):
        some, part = slice(first, first + together), slice(start, min(start + size, share.stop))
        x_part, y_part, weights_part = x[part], y[:, part].expand(members, -1)[some], weights[some]
        outputs = population(weights_part, x_part.expand(len(weights_part), *x_part.shape)).to(weights.dtype)
        losses, score = out[:, some]
        with torch.autocast(x.device.type, enabled=False):
            losses += sum_rows(loss.per_example(outputs, y_part).to(out.dtype))
            if data.task == CLASSIFICATION:
                score += correct(outputs, y_part).to(out.dtype).sum(1)
            else:
                score += sum_rows((outputs.squeeze(-1) - y_part).to(out.dtype).square())


def metrics(sums: np.ndarray, y: Tensor, data: Dataset) -> dict[str, np.ndarray]:
    """Loss and accuracy, or loss, RMSE and R2, (members,) each, of `totals` over all examples with targets y."""
    loss, score = sums / y.shape[1]
    if data.task == CLASSIFICATION:
        return {"loss": loss, "accuracy": score}
    variance = np.maximum(y.cpu().numpy().astype(np.float64).var(1), 1e-300)  # NumPy's bits are a row's own
    return {"loss": loss, "rmse": np.sqrt(score) * data.y_std, "r2": 1 - score / variance}
