"""The learning rate of every member at every step."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from manyfit.schedules import Schedule
from manyfit.training.faults import Faults
from manyfit.training.prepared import Job


class Rates:
    """Learning rates, each times what its schedule says.

    Args:
        lr: One per member.
        schedules: One per member.
        steps: Of each member's whole training; progress of the schedules counts against it.
        faults: Of schedules that raise; such a member's rates are 0.

    Attributes:
        last: Those that were asked for last, (members,).
    """

    def __init__(
        self, lr: Sequence[float], schedules: Sequence[Schedule], steps: Sequence[int], faults: Faults
    ) -> None:
        self.faults = faults
        self.lr, self.schedules, self.steps = np.array(lr, np.float64), list(schedules), np.array(steps)
        self.last = self.lr.copy()

    def of(self, done: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
        """Rates of the steps that come after so many: for each member, (counts[k],)."""
        known: dict[tuple[int, ...], np.ndarray] = {}
        rates = []
        for k, (schedule, *its) in enumerate(
            zip(self.schedules, self.steps.tolist(), done.tolist(), counts.tolist(), strict=True)
        ):
            key = (id(schedule), *its)
            if key not in known:
                steps, first, count = its
                with self.faults.of(k):
                    known[key] = schedule(np.arange(first, first + count) / steps)
            rates.append(self.lr[k] * known.get(key, np.zeros(its[2])))
            if len(rates[k]):
                self.last[k] = rates[k][-1]
        return rates

    def together(self, done: int, count: int) -> np.ndarray:
        """The same of members that are in step: (count, members)."""
        progress = np.arange(done, done + count) / self.steps[0]
        made: dict[int, np.ndarray] = {}
        for k, schedule in enumerate(self.schedules):
            if id(schedule) not in made:
                with self.faults.of(k):
                    made[id(schedule)] = schedule(progress)
        column = {key: number for number, key in enumerate(made)}
        factors = np.stack([*made.values(), np.zeros(count)], 1)
        rates: np.ndarray = self.lr * factors[:, [column.get(id(schedule), -1) for schedule in self.schedules]]
        self.last = rates[-1]
        return rates

    def observe(self, loss: np.ndarray) -> None:
        """Show every schedule its member's validation loss (members,) after an epoch."""
        for k, (value, schedule) in enumerate(zip(loss.tolist(), self.schedules, strict=True)):
            with self.faults.of(k):
                schedule.observe(value)

    def keep(self, stay: np.ndarray) -> None:
        """Leave only these members'."""
        self.lr, self.last, self.steps = self.lr[stay], self.last[stay], self.steps[stay]
        self.schedules = [s for s, here in zip(self.schedules, stay, strict=True) if here]

    def state(self) -> dict[str, object]:
        """Of every schedule, and the last rates."""
        return {"schedules": [schedule.state() for schedule in self.schedules], "last_lr": self.last.copy()}

    def load_state(self, schedules: Iterable[Mapping[str, float]], last: np.ndarray) -> None:
        """Go on from a `state()` after a step of these rates."""
        for schedule, state in zip(self.schedules, schedules, strict=True):
            schedule.load_state(state)
        self.last = last


def rates_of(jobs: Sequence[Job], faults: Faults) -> Rates:
    """Of jobs that train together; those of one config share a schedule of ours, unless it looks at the member."""
    shared: dict[str, Schedule] = {}
    schedules = []
    for job in jobs:
        ours = type(job.schedule).__module__.startswith("manyfit.")
        looks = not ours or type(job.schedule).observe is not Schedule.observe
        key = job.config.schedule.model_dump_json(by_alias=True)
        schedules.append(copy.deepcopy(job.schedule) if looks else shared.setdefault(key, job.schedule))
    steps = [job.config.epochs * job.steps_per_epoch for job in jobs]
    return Rates([job.config.optimizer.lr for job in jobs], schedules, steps, faults)
