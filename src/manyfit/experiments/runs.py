"""The runs of an experiment, as a claim looks at them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from manyfit.experiments.verdict import Series
from manyfit.statistics import ANY, Effect, Limits, effect, interval, limits_of

if TYPE_CHECKING:
    from torch import nn

    from manyfit.training.prepared import Job
    from manyfit.training.trained import Result


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        settings: Its config by dotted key, as numbers, lists and words.
        metrics: (epochs + 1,) curves by name.
        once: What is measured once: `accuracy/test`, `best/epoch` and the like.
        stage: `grid`; `report`: trained again on a fresh seed with what was chosen on validation; or `beside` that, on
            the same fresh seed.
        diverged: Whether it ended in NaN or infinity.
        job, result: As trained; for maps of what a network decides. Of a claim marked `with_networks` the result has
            its predictor.
    """

    settings: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    once: Mapping[str, float] = field(default_factory=dict)
    stage: str = "grid"
    diverged: bool = False
    job: "Job | None" = None
    result: "Result | None" = None

    @classmethod
    def of(cls, job: "Job", result: "Result", stage: str) -> Self:
        """A run as it was trained."""
        diverged = result.reason == "diverged"
        return cls(job.config.flat(), result.metrics, result.once, stage, diverged, job, result)

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.settings["seed"])

    @property
    def predictor(self) -> "nn.Module":
        """The trained network with the weights of the best epoch, as `Result` has it.

        Raises:
            ValueError: It is not there any more.
        """
        if self.result is None or self.result.predictor is None:
            raise ValueError(
                "a claim must be marked manyfit.experiments.with_networks to look at a predictor, but got none."
            )
        return self.result.predictor

    def __getitem__(self, key: str) -> Any:
        """A setting by its dotted key; a group such as `optimizer` alone gives the name of what is built."""
        if key in self.settings:
            return self.settings[key]
        if f"{key}._target_" not in self.settings:
            raise KeyError(f"the runs have no setting {key!r}")
        return str(self.settings[f"{key}._target_"]).rsplit(".", 1)[-1]

    def final(self, name: str) -> float:
        """The last finite value of a curve; infinite if the run diverged or has none."""
        curve = np.asarray(self.metrics[name], float)
        known = curve[np.isfinite(curve)]
        return float(known[-1]) if len(known) and not self.diverged else math.inf

    def best(self, name: str) -> float:
        """The lowest value of a curve; infinite if there is none."""
        curve = np.asarray(self.metrics[name], float)
        return float(np.nanmin(curve)) if np.isfinite(curve).any() else math.inf

    def reaches(self, name: str, target: float) -> float:
        """The first epoch at which a curve is at or below a target, between epochs interpolated; infinite if never."""
        curve = np.asarray(self.metrics[name], float)
        below = np.flatnonzero(curve <= target)
        if not len(below):
            return math.inf
        i = int(below[0])
        if i == 0 or not np.isfinite(curve[i - 1]):
            return float(i)
        return i - 1 + float((curve[i - 1] - target) / (curve[i - 1] - curve[i]))

    def test(self, name: str = "accuracy") -> float:
        """A test score, with the weights of the best epoch; NaN where the run came to none."""
        return self.once.get(f"{name}/test", math.nan)


def by(runs: Iterable[Run], *keys: str) -> dict[Any, list[Run]]:
    """Runs by a setting, or by a tuple of several, in the order of their values; lists become tuples."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        values = tuple(tuple(v) if isinstance(v := run[key], list) else v for key in keys)
        groups[values if len(keys) > 1 else values[0]].append(run)
    try:
        return {key: groups[key] for key in sorted(groups)}
    except TypeError:  # values of several kinds have no order
        return dict(groups)


def in_unit(loss: str, runs: Iterable[Run]) -> str:
    """A loss as a figure calls it, with the unit of these runs: `validation loss (nats)`."""
    unit = next((run.job.loss.unit for run in runs if run.job is not None), "")
    return f"{loss} ({unit})" if unit else loss


def differences(ours: Sequence[Run], theirs: Sequence[Run], measure: Any) -> np.ndarray:
    """`measure(ours) - measure(theirs)` for every seed that both have."""
    others = {run.seed: run for run in theirs}
    return np.array([measure(run) - measure(others[run.seed]) for run in ours if run.seed in others], float)


def banded(name: str, found: Mapping[Any, Effect]) -> Series:
    """Means with their intervals, by place; what has no mean is left out."""
    known = {place: e for place, e in found.items() if math.isfinite(e.mean)}
    every = list(known.values())
    return Series(name, list(known), [e.mean for e in every], [e.low for e in every], [e.high for e in every])


def line(
    name: str, groups: Mapping[Any, Sequence[Run]], measure: Any, x: Any = None, *, limits: Limits = ANY
) -> Series:
    """Mean and interval of a measure for each group.

    Args:
        name: Of the line.
        groups: Runs, by key.
        measure: Of a run.
        x: From a group's key to its place; None: the key itself.
        limits: Between what the measure lies, such as `POSITIVE` for a loss: so does its interval.
    """
    return banded(
        name,
        {
            x(key) if x else key: effect([measure(run) for run in members], limits=limits)
            for key, members in groups.items()
        },
    )


def curve(name: str, runs: Sequence[Run], metric: str, over: str | None = None) -> Series:
    """A metric's mean over runs, with its interval, by epoch or `over` what another metric counts (in the mean)."""
    length = min(len(run.metrics[metric]) for run in runs)
    stacked = np.array([run.metrics[metric][:length] for run in runs], float)
    keep = np.isfinite(stacked).all(0)
    low, high = interval(stacked[:, keep], limits=limits_of(metric))
    x = np.mean([run.metrics[over][:length] for run in runs], 0) if over else np.arange(length)
    return Series(name, list(x[keep]), list(stacked[:, keep].mean(0)), list(low), list(high))


def by_batch_size(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """Runs by the number of examples that a step sees."""
    sizes: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        sizes[batch_of(run)].append(run)
    return dict(sorted(sizes.items()))


def batch_of(run: Run) -> int:
    """How many examples a step sees."""
    size = run["batch_size"]
    return int(run["data.train_size"] if size == "full" else size)


def nearest(sizes: Iterable[int], size: int) -> int:
    """The one of these that is nearest to a size, in proportion."""
    return min(sizes, key=lambda one: abs(math.log(one / size)))
