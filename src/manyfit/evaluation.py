"""The metrics of a population on a split, in evaluation mode; over several ranks every example counts once."""

import numpy as np
import torch
from torch import Tensor

from manyfit.data import Dataset
from manyfit.losses import CLASSIFICATION, Loss, correct
from manyfit.population import Population
from manyfit.ranks import Ranks

EVAL_ROWS = 512  # examples evaluated at once: keeps a population's activations in cache


def measure(
    population: Population, weights: Tensor, x: Tensor, y: Tensor, loss: Loss, data: Dataset, ranks: Ranks
) -> dict[str, np.ndarray]:
    """Loss and accuracy, or loss, RMSE and R2, (members,) each.

    Args:
        population: Evaluates.
        weights: (members, parameters).
        x: (n, ...), the same for all members.
        y: (members, n), or (1, n).
        loss: One number per example.
        data: Whose split it is: task and unit of the target.
        ranks: Each evaluates its rows; sums are added up.
    """
    members, n, own = len(weights), len(x), ranks.share(len(x))
    chunks = -(-(own.stop - own.start) // EVAL_ROWS) or 1
    size = -(-(own.stop - own.start) // chunks) or 1
    sums = torch.zeros(2, members, dtype=torch.float64, device=x.device)
    losses, score = sums
    for start in range(own.start, own.stop, size):
        rows = slice(start, min(start + size, own.stop))
        x_part, y_part = x[rows], y[:, rows].expand(members, -1)
        outputs = population(weights, x_part.expand(members, *x_part.shape)).to(weights.dtype)
        with torch.autocast(x.device.type, enabled=False):
            losses += loss.per_example(outputs, y_part).double().sum(1)
            if data.task == CLASSIFICATION:
                score += correct(outputs, y_part).double().sum(1)
            else:
                score += (outputs.squeeze(-1) - y_part).double().square().sum(1)
    ranks.sum(sums)
    mean = {"loss": (losses / n).cpu().numpy()}
    if data.task == CLASSIFICATION:
        return mean | {"accuracy": (score / n).cpu().numpy()}
    variance = y.double().var(1, correction=0).clamp(min=1e-300)
    rmse = (score / n).sqrt() * data.y_std
    return mean | {"rmse": rmse.cpu().numpy(), "r2": (1 - score / n / variance).cpu().numpy()}
