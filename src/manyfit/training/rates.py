"""The learning rate of every member at every step."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from manyfit.schedules import Schedule
from manyfit.training.prepared import Job


class Rates:
    """Learning rates, each times what its schedule says.

    Args:
        lr: One per member.
        schedules: One per member.
        steps: Of the whole training; progress of the schedules counts against it.

    Attributes:
        last: Those that were asked for last, (members,).
    """

    def __init__(self, lr: Sequence[float], schedules: Sequence[Schedule], steps: int) -> None:
        self.lr, self.schedules, self.steps = np.array(lr, np.float64), list(schedules), steps
        self.last = self.lr.copy()

    def of(self, done: int, count: int) -> np.ndarray:
        """Rates (count, members) of the steps that come after so many."""
        rates: np.ndarray = self.lr * self._factors(done, count)
        self.last = rates[-1]
        return rates

    def _factors(self, done: int, count: int) -> np.ndarray:
        progress = np.arange(done, done + count) / self.steps
        keys = list(map(id, self.schedules))
        kinds = dict(zip(keys, self.schedules, strict=True))
        column = {key: k for k, key in enumerate(kinds)}
        made = np.stack([schedule(progress) for schedule in kinds.values()], 1)
        return made[:, [column[key] for key in keys]]

    def observe(self, loss: np.ndarray) -> None:
        """Show every schedule its member's validation loss (members,) after an epoch."""
        for value, schedule in zip(loss.tolist(), self.schedules, strict=True):
            schedule.observe(value)

    def keep(self, stay: np.ndarray) -> None:
        """Leave only these members'."""
        self.lr, self.last = self.lr[stay], self.last[stay]
        self.schedules = [s for s, here in zip(self.schedules, stay, strict=True) if here]

    def state(self) -> list[dict[str, float]]:
        """Of every schedule."""
        return [schedule.state() for schedule in self.schedules]

    def load_state(self, states: Iterable[Mapping[str, float]], last: np.ndarray) -> None:
        """Go on from a `state()` after a step of these rates."""
        for schedule, state in zip(self.schedules, states, strict=True):
            schedule.load_state(state)
        self.last = last


def schedules_of(jobs: Sequence[Job]) -> list[Schedule]:
    """One for each member; those of one config share one of ours, unless it looks at what becomes of the member."""
    shared: dict[str, Schedule] = {}
    schedules = []
    for job in jobs:
        ours = type(job.schedule).__module__.startswith("manyfit.")
        looks = not ours or type(job.schedule).observe is not Schedule.observe
        key = job.config.schedule.model_dump_json(by_alias=True)
        schedules.append(copy.deepcopy(job.schedule) if looks else shared.setdefault(key, job.schedule))
    return schedules
