"""The scale on which a network learns a target with outliers: its logarithm, or its rank."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TargetScale = Literal["log", "rank"]
KNOTS = 1000  # at most, of the curve from ranks to values

Reals = NDArray[np.float64]


def fitted_knots(scale: TargetScale | None, train: Reals) -> Tensor | None:
    """What a scale remembers of the training targets (n,): for ranks the curve, (2, knots), normal scores over values.

    Source of the normal scores: Blom 1958, `(i - 3/8) / (n + 1/4)`.
    """
    if scale != "rank":
        return None
    from scipy.special import ndtri

    values, counts = np.unique(train, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal values share the middle one
    scores = ndtri((ranks - 0.375) / (len(train) + 0.25))
    some = np.unique(np.linspace(0, len(values) - 1, KNOTS).round().astype(int))
    return torch.from_numpy(np.stack([scores[some], values[some]]))


def scaled(scale: TargetScale | None, knots: Tensor | None, target: Reals) -> Reals:
    """Targets (n,) as they are learnt; beyond the training targets a rank stays the last.

    Raises:
        ValueError: A target has no logarithm.
    """
    if scale == "log":
        if (least := target.min()) <= 0:
            raise ValueError(
                f"data.target_scale must be rank or null with targets that are not > 0, but got log and {least:g}."
            )
        return np.log(target)
    if scale == "rank":
        assert knots is not None
        return np.asarray(np.interp(target, knots[1].numpy(), knots[0].numpy()))
    return target


def unscaled(scale: TargetScale | None, knots: Tensor | None, learnt: Tensor) -> Tensor:
    """What a network says, in the target's own units; of any shape."""
    if scale == "log":
        return learnt.exp()
    if scale == "rank":
        assert knots is not None
        scores, values = knots.to(learnt.dtype)
        place = torch.searchsorted(scores, learnt.contiguous()).clamp(1, scores.shape[0] - 1)
        low, high = scores[place - 1], scores[place]
        share = ((learnt - low) / (high - low)).clamp(0, 1)
        found: Tensor = values[place - 1] + share * (values[place] - values[place - 1])
        return found
    return learnt
