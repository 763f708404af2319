"""Maps of what a classifier decides, where its examples lie in a plane."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from manyfit.experiments.verdict import Region

if TYPE_CHECKING:
    from torch import nn

    from manyfit.data.splits import Dataset
    from manyfit.experiments.runs import Run

SIDE = 121  # points


def is_plane(runs: Sequence["Run"]) -> bool:
    """Whether the data have two features and two classes, so that there is a map of them."""
    data = [run.job.data for run in runs if run.job is not None]
    return all(one.x_train.shape[1] == 2 and len(one.classes) == 2 for one in data)


def region(title: str, data: "Dataset", predictor: "nn.Module") -> Region:
    """What a predictor, on raw features, decides over the plane of the training examples."""
    import torch

    points = (data.x_train * data.x_std + data.x_mean).numpy()
    low, high = points.min(0), points.max(0)
    margin = 0.05 * (high - low)
    x, y = np.linspace(low - margin, high + margin, SIDE).T
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    with torch.no_grad():
        p = predictor(torch.from_numpy(grid.astype(np.float32)))[:, 1].numpy()
    names = (data.features[0], data.features[1])
    return Region(title, names, x, y, p.reshape(len(y), len(x)), points, data.y_train.numpy())
