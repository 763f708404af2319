"""Squared error of a classifier's probability, for the experiment `losses`; apart, since it needs torch."""

from torch import Tensor

from manyfit.losses import BCE, sigmoid


class SquaredProbability(BCE):
    """`(p - y)^2` of one logit, with `p = sigmoid(z)`. Source: Brier 1950, halved to the one probability."""

    unit = "squared error"

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return (sigmoid(outputs.squeeze(-1)) - targets.to(outputs.dtype)).square()

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By the logit: `2 (p - y) p (1 - p)`, which vanishes where a wrong answer is certain."""
        p = sigmoid(outputs)
        error = p - targets[..., None].to(outputs.dtype)
        return error.squeeze(-1).square(), 2 * error * p * (1 - p)
