"""Schedules: progress of training in [0, 1] -> factor on lr. Pure numpy, but for the two that stand on torch."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

SLACK = 1e-6  # of an interval: i / N * intervals must not fall into the interval before by rounding


class Schedule(ABC):
    """A factor on lr as a function of progress, which for step i of N (i = 0 .. N - 1) is i / N."""

    @abstractmethod
    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Factors (steps,) at progress (steps,), float64 in [0, 1]."""

    def observe(self, loss_val: float) -> None:  # noqa: B027  # most schedules look at nothing
        """Take note of the validation loss at the end of an epoch."""

    def state(self) -> dict[str, float]:
        """What an exact resume needs: plain numbers."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a `state()`."""
        assert not state


class _Formula(Schedule):
    """A schedule without memory."""

    def __init__(self, formula: Callable[[np.ndarray], np.ndarray]) -> None:
        self.formula = formula

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        return self.formula(np.asarray(progress, np.float64))


def constant() -> Schedule:
    """1 throughout."""
    return _Formula(np.ones_like)


def linear(final: float = 0.0) -> Schedule:
    """`1 + (final - 1) p`.

    Args:
        final: Factor reached at the end, >= 0.
    """
    final = _within("final", final, "[0, inf)")
    return _Formula(lambda p: 1 + (final - 1) * p)


def cosine(final: float = 0.0) -> Schedule:
    """`final + (1 - final) (1 + cos(pi p)) / 2`, half a cosine. Source: SGDR (Loshchilov & Hutter 2017), eq. 5.

    Args:
        final: Factor reached at the end, >= 0.
    """
    final = _within("final", final, "[0, inf)")
    return _Formula(lambda p: _cosine(p, 1.0, final))


def warmup_cosine(warmup: float = 0.1, start: float = 0.01, final: float = 0.0) -> Schedule:
    """A line from start to 1, then half a cosine from 1 to final. Source: Goyal et al. 2017, sec. 2.2, for the warmup.

    Args:
        warmup: Share of training spent warming up, in [0, 1).
        start: Factor of the first step, in [0, 1]; above 0, so that it is no step lost.
        final: Factor reached at the end, >= 0.
    """
    warmup, start = _within("warmup", warmup, "[0, 1)"), _within("start", start, "[0, 1]")
    final = _within("final", final, "[0, inf)")
    return _Formula(
        lambda p: np.where(
            p < warmup, start + (1 - start) * p / (warmup or 1.0), _cosine((p - warmup) / (1 - warmup), 1.0, final)
        )
    )


def step(every: float = 1 / 3, gamma: float = 0.1) -> Schedule:
    """`gamma ^ floor(p / every)`, a staircase.

    Args:
        every: Length of a stair as a share of training, in (0, 1].
        gamma: Factor from one stair to the next, > 0.
    """
    every, gamma = _within("every", every, "(0, 1]"), _within("gamma", gamma, "(0, inf)")
    return _Formula(lambda p: gamma ** np.floor(p / every + SLACK))


def exponential(final: float = 0.01) -> Schedule:
    """`final ^ p`: the same factor from every step to the next. Above 1 it is a learning rate range test.

    Args:
        final: Factor reached at the end, > 0.
    """
    final = _within("final", final, "(0, inf)")
    return _Formula(lambda p: final**p)


def one_cycle(peak: float = 0.3, start: float = 0.04, final: float = 4e-6) -> Schedule:
    """Half a cosine from start up to 1, then half a cosine down to final. Source: Smith & Topin 2018.

    torch's OneCycleLR also cycles the momentum, and reaches final at the last step; here it is one step after it.

    Args:
        peak: Share of training after which the factor is 1, in (0, 1).
        start: Factor of the first step, in [0, 1].
        final: Factor reached at the end, in [0, 1].
    """
    peak = _within("peak", peak, "(0, 1)")
    start, final = _within("start", start, "[0, 1]"), _within("final", final, "[0, 1]")
    return _Formula(
        lambda p: np.where(p < peak, _cosine(p / peak, start, 1.0), _cosine((p - peak) / (1 - peak), 1.0, final))
    )


class _Plateau(Schedule):
    """torch's ReduceLROnPlateau on an optimizer of lr 1 that optimizes nothing."""

    def __init__(self, factor: float, patience: int, threshold: float, minimum: float) -> None:
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        self.optimizer = _dummy()
        self.scheduler = ReduceLROnPlateau(
            self.optimizer, factor=factor, patience=patience, threshold=threshold, min_lr=minimum, eps=0.0
        )

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        return np.full(np.shape(progress), self.optimizer.param_groups[0]["lr"], np.float64)

    def observe(self, loss_val: float) -> None:
        self.scheduler.step(loss_val)

    def state(self) -> dict[str, float]:
        return {
            "factor": float(self.optimizer.param_groups[0]["lr"]),
            "best": self.scheduler.best,
            "bad_epochs": self.scheduler.num_bad_epochs,
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        self.optimizer.param_groups[0]["lr"] = state["factor"]
        self.scheduler.best, self.scheduler.num_bad_epochs = state["best"], int(state["bad_epochs"])


def plateau(factor: float = 0.1, patience: int = 5, threshold: float = 1e-4, minimum: float = 0.0) -> Schedule:
    """Reduces the factor when the validation loss has stopped falling. Source: torch's ReduceLROnPlateau.

    Args:
        factor: What the factor is multiplied by, in (0, 1).
        patience: Epochs without improvement that are let pass.
        threshold: Relative improvement of the loss that counts as one, in [0, 1).
        minimum: The factor goes no lower, in [0, 1].
    """
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 0:
        raise ValueError(f"schedule.patience must be a whole number of epochs >= 0, but got {patience!r}.")
    factor, threshold = _within("factor", factor, "(0, 1)"), _within("threshold", threshold, "[0, 1)")
    return _Plateau(factor, patience, threshold, _within("minimum", minimum, "[0, 1]"))


def torch_schedule(
    cls: "type[LRScheduler]", arguments: Mapping[str, Any], unit: str, epochs: int, steps_per_epoch: int
) -> Schedule:
    """Any class of torch.optim.lr_scheduler, tabulated on an optimizer of lr 1: what it does to lr is the factor.

    Arguments that are learning rates in torch (eta_min, max_lr) are therefore factors here.

    Args:
        cls: The class.
        arguments: Its arguments, without the optimizer.
        unit: Its step() is called after every "epoch" or after every "step".
        epochs: Of the whole training.
        steps_per_epoch: Optimizer steps in one epoch.

    Raises:
        ValueError: An argument that the class does not know or refuses, or a class that needs more than progress.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if issubclass(cls, ReduceLROnPlateau):
        raise ValueError(
            "schedule._target_ must be a function of progress, but got ReduceLROnPlateau. Use schedule=plateau."
        )
    if unit not in ("epoch", "step"):
        raise ValueError(f"schedule.unit must be epoch or step, but got {unit!r}.")
    _check_arguments(cls, arguments)
    count = epochs if unit == "epoch" else epochs * steps_per_epoch
    table = _tabulate(cls, arguments, count)
    return _Formula(lambda p: table[np.minimum((p * count + SLACK).astype(np.int64), count - 1)])


def _check_arguments(cls: "type[LRScheduler]", arguments: Mapping[str, Any]) -> None:
    known = {
        name: p for name, p in inspect.signature(cls).parameters.items() if name not in ("optimizer", "last_epoch")
    }
    for name in arguments:
        if name not in known:
            raise ValueError(f"schedule.{name} must be an argument of {cls.__name__}; it has {', '.join(known)}.")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"schedule.{name} must be given: {cls.__name__} needs it.")


def _tabulate(cls: "type[LRScheduler]", arguments: Mapping[str, Any], count: int) -> np.ndarray:
    """The lr (count,) that the scheduler gives an optimizer of lr 1."""
    optimizer = _dummy()
    table = np.empty(count)
    try:
        scheduler = cls(optimizer, **arguments)
        for i in range(count):
            table[i] = optimizer.param_groups[0]["lr"]
            if optimizer.param_groups[0]["momentum"]:
                raise ValueError("it would change the momentum too. Set schedule.cycle_momentum=false.")
            if i + 1 < count:  # OneCycleLR raises when it is stepped beyond its end
                optimizer.step()  # torch warns when a scheduler is stepped before its optimizer
                scheduler.step()
    except Exception as error:  # whatever this class raises, it is about the user's arguments
        raise ValueError(f"schedule must be buildable: {cls.__name__} says: {error}") from error
    unusable = table[~((table >= 0) & (table < np.inf))]
    if len(unusable):
        raise ValueError(f"schedule must give factors >= 0, but got {unusable[0]} from {cls.__name__}.")
    return table


def _dummy() -> Any:
    import torch

    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def _cosine(p: np.ndarray, begin: float, end: float) -> np.ndarray:
    return end + (begin - end) * (1 + np.cos(np.pi * p)) / 2


def _within(name: str, value: Any, interval: str) -> float:
    """The value as a float, if it lies in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"schedule.{name} must be a number in {interval}, but got {value!r}.")
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"schedule.{name} must be in {interval}, but got {value}.")
    return float(value)
