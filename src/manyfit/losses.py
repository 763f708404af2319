"""What is minimised and what is reported: one number per example, so that members never mix."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CLASSIFICATION, REGRESSION = "classification", "regression"


class Loss(ABC):
    """A loss per example, and the task it suits. Means are taken by whoever knows the weights of the rows."""

    task: str
    unit: str = ""
    """What it is measured in, for the labels of figures."""

    @abstractmethod
    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example: outputs (members, rows, width), targets (members, rows) -> (members, rows)."""

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each example (members, rows) and its gradient by the outputs (members, rows, width)."""
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            losses = self.per_example(outputs, targets)
            return losses.detach(), torch.autograd.grad(losses.sum(), outputs)[0]

    def width(self, classes: int) -> int:
        """How many outputs the model needs for so many classes (0: regression)."""
        return max(classes, 1)

    @abstractmethod
    def constant(self, targets: Tensor) -> Tensor:
        """The best output (width,) that ignores the input, for targets (rows,): what a model must beat."""

    def baseline(self, targets: Tensor, classes: int) -> float:
        """Mean loss of the best input-independent prediction on targets (rows,)."""
        outputs = self.constant(targets).expand(1, len(targets), self.width(classes))
        return float(self.per_example(outputs, targets[None]).double().mean())


class Smoothed(Loss):
    """A cross-entropy whose targets are spread: `(1 - s) onehot(y) + s / classes`. Source: Szegedy et al. 2016, sec. 7.

    Args:
        label_smoothing: s, in [0, 1); it is part of every loss that is reported.
    """

    task = CLASSIFICATION
    unit = "nats"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), but got {label_smoothing}.")
        self.label_smoothing = label_smoothing


class CrossEntropy(Smoothed):
    """Softmax cross-entropy, `-log softmax(z)_y`, in nats."""

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return self._of(F.log_softmax(outputs, -1), targets)

    def _of(self, logs: Tensor, targets: Tensor) -> Tensor:
        losses = -logs.gather(-1, targets[..., None]).squeeze(-1)
        if self.label_smoothing == 0:
            return losses
        return (1 - self.label_smoothing) * losses - self.label_smoothing * logs.mean(-1)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By the outputs: `softmax(z) - onehot(y)`, with smoothing less of it."""
        logs = F.log_softmax(outputs, -1)
        here = (targets[..., None] == torch.arange(logs.shape[-1], device=logs.device)).to(logs.dtype)
        if self.label_smoothing:
            here = here * (1 - self.label_smoothing) + self.label_smoothing / logs.shape[-1]
        return self._of(logs, targets), logs.exp().sub_(here)

    def constant(self, targets: Tensor) -> Tensor:
        """Log class frequencies, spread."""
        counts = torch.bincount(targets).float()
        spread = self.label_smoothing * (len(targets) / len(counts) - counts)
        return (counts + spread).log() - torch.tensor(float(len(targets))).log()


class BCE(Smoothed):
    """Binary cross-entropy of one logit, `-[y log p + (1 - y) log(1 - p)]` with `p = sigmoid(z)`, in nats."""

    def _spread(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        y = targets.to(dtype)
        return y if self.label_smoothing == 0 else y * (1 - self.label_smoothing) + self.label_smoothing / 2

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        z, y = outputs.squeeze(-1), self._spread(targets, outputs.dtype)
        return z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By the logit: `sigmoid(z) - y`."""
        gradient = torch.sigmoid(outputs) - self._spread(targets, outputs.dtype)[..., None]
        return self.per_example(outputs, targets), gradient

    def width(self, classes: int) -> int:
        """One logit; two classes only."""
        if classes != 2:
            raise ValueError(
                f"loss must suit the data: bce needs 2 classes, but got {classes}. Use loss=cross_entropy."
            )
        return 1

    def constant(self, targets: Tensor) -> Tensor:
        """Logit of the frequency of class 1, spread."""
        return torch.logit(self._spread(targets, torch.float32).mean())[None]


class SquaredProbability(BCE):
    """`(p - y)^2` of one logit, with `p = sigmoid(z)`. Source: Brier 1950, halved to the one probability."""

    unit = "squared error"

    def __init__(self) -> None:
        super().__init__()

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return (torch.sigmoid(outputs.squeeze(-1)) - targets.to(outputs.dtype)).square()

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By the logit: `2 (p - y) p (1 - p)`, which vanishes where a wrong answer is certain."""
        p = torch.sigmoid(outputs)
        error = p - targets[..., None].to(outputs.dtype)
        return error.squeeze(-1).square(), 2 * error * p * (1 - p)


class Balanced(Loss):
    """Another loss, each example's times `n / (classes n_c)`: all classes weigh alike. Source: King & Zeng 2001.

    Args:
        loss: That of an example.
        counts: Training examples of each class, n_c.
    """

    task = CLASSIFICATION

    def __init__(self, loss: Loss, counts: Sequence[int]) -> None:
        self.loss, self.unit = loss, loss.unit
        self.weights = sum(counts) / (len(counts) * torch.tensor(counts, dtype=torch.float64))
        self.moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        place = outputs.device, outputs.dtype
        if place not in self.moved:
            self.moved[place] = self.weights.to(*place)
        return self.moved[place][targets.long()]

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return self.loss.per_example(outputs, targets) * self._of(outputs, targets)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See Loss."""
        (losses, gradient), weights = self.loss.with_gradient(outputs, targets), self._of(outputs, targets)
        return losses * weights, gradient * weights[..., None]

    def width(self, classes: int) -> int:
        """See Loss."""
        return self.loss.width(classes)

    def constant(self, targets: Tensor) -> Tensor:  # noqa: ARG002  # whatever they are
        """Of classes that weigh alike: all equally probable."""
        return torch.zeros(self.width(len(self.weights)))


class MSE(Loss):
    """Squared error `(z - y)^2`, in units of the (standardised) target, squared."""

    task = REGRESSION
    unit = "squared error"

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return (outputs.squeeze(-1) - targets).square()

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By the output: `2 (z - y)`."""
        error = outputs - targets[..., None]
        return error.squeeze(-1).square(), 2 * error

    def constant(self, targets: Tensor) -> Tensor:
        """The mean."""
        return targets.mean()[None]


class Huber(Loss):
    """`e^2 / 2` for `|e| <= delta`, else `delta (|e| - delta / 2)`. Source: Huber 1964, eq. 5.1.

    Args:
        delta: Where it turns from square to linear, in units of the (standardised) target; > 0.
    """

    task = REGRESSION
    unit = "Huber"

    def __init__(self, delta: float = 1.0) -> None:
        if delta <= 0:
            raise ValueError(f"loss.delta must be > 0, but got {delta}.")
        self.delta = delta

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See Loss."""
        return F.huber_loss(outputs.squeeze(-1), targets, reduction="none", delta=self.delta)

    def constant(self, targets: Tensor) -> Tensor:
        """The median: near the best constant for every delta."""
        return targets.median()[None]


def auto(task: str, classes: int, label_smoothing: float = 0.0) -> Loss:
    """The task's usual loss: bce for two classes, cross-entropy for more, squared error for numbers.

    Args:
        task: `classification` or `regression`.
        classes: How many.
        label_smoothing: See Smoothed; 0 in a regression.
    """
    if task == REGRESSION:
        if label_smoothing:
            raise ValueError(f"loss.label_smoothing must be 0 in a regression, but got {label_smoothing}.")
        return MSE()
    return BCE(label_smoothing) if classes == 2 else CrossEntropy(label_smoothing)


def balanced(task: str, classes: int, counts: Sequence[int], label_smoothing: float = 0.0) -> Loss:
    """The usual loss of classes, weighted so that all weigh alike; arguments as for `auto`."""
    if task == REGRESSION:
        raise ValueError("loss must suit the data: balanced is for classification, but got a regression task.")
    return Balanced(auto(task, classes, label_smoothing), counts)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each example is classified right: (members, rows, width), (members, rows) -> (members, rows) bool."""
    guess = outputs.argmax(-1) if outputs.shape[-1] > 1 else outputs.squeeze(-1) > 0
    return guess == targets
