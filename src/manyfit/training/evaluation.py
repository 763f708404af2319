"""The metrics of a population on a split, in evaluation mode; over several ranks every example counts once."""

import itertools

import numpy as np
import torch
from torch import Tensor

from manyfit.data.splits import Dataset
from manyfit.losses import CLASSIFICATION, Loss, correct
from manyfit.population.dense import sum_rows
from manyfit.population.members import Population

EVAL_ROWS = 512  # examples evaluated at once: keeps a population's activations in cache
GPU_ROWS = 4096  # on a GPU, where launches are what costs; of so many members at once that memory is enough:
GPU_ELEMENTS = 2**26  # of a layer's activations


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


def metrics(sums: Tensor, y: Tensor, data: Dataset) -> dict[str, np.ndarray]:
    """Loss and accuracy, or loss, RMSE and R2, (members,) each, of `totals` over all examples with targets y."""
    n = y.shape[1]
    losses, score = sums
    mean = {"loss": (losses / n).cpu().numpy()}
    if data.task == CLASSIFICATION:
        return mean | {"accuracy": (score / n).cpu().numpy()}
    variance = y.to(sums.dtype).var(1, correction=0).clamp(min=1e-300)
    rmse = (score / n).sqrt() * data.y_std
    return mean | {"rmse": rmse.cpu().numpy(), "r2": (1 - score / n / variance).cpu().numpy()}
