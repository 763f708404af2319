"""Is the best config better than the default one? Both, on seeds that the search never saw."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from manyfit.config import Config
from manyfit.jobs import Result
from manyfit.reports.findings import interval

SEEDS_FROM = 1000
"""Fresh seeds are counted from here: those that people search with are small."""

TAGS = {"manyfit.role": "confirmation"}


class Trained(Protocol):
    """What a training returns: a parent.Child."""

    @property
    def result(self) -> Result | None:
        """None where it failed."""


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences (seeds,) with its 95% interval; positive: the best config is better."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Confirmation:
    """What came of it: `objective` and `test` are None where no pair of runs can be compared."""

    seeds: int
    name: str
    objective: Paired | None
    score: str
    test: Paired | None

    def words(self) -> str:
        """In a sentence."""
        if self.objective is None:
            return f"not confirmed: best or default failed on each of {self.seeds} fresh seeds."
        verdict, difference = _verdict(self.objective), _interval(abs_of(self.objective))
        test = f" and {_test(self)}" if self.test else ""
        lost = self.seeds - self.objective.n
        failed = f" ({lost} more failed or diverged)" if lost else ""
        return f"{verdict} {difference} in {self.name}{test}, over {self.objective.n} fresh seeds{failed}"


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """So many seeds that are not among those used."""
    taken = set(used)
    free = (seed for seed in range(SEEDS_FROM, SEEDS_FROM + count + len(taken)) if seed not in taken)
    return [next(free) for _ in range(count)]


def with_seed(config: Config, seed: int) -> Config:
    """The same config with another seed, in what is logged as well."""
    source = copy.deepcopy(dict(config.source))
    if source:
        source["seed"] = seed
    return config.model_copy(update={"seed": seed, "source": source})


def same(a: Config, b: Config) -> bool:
    """Whether two configs train the same, seeds and bookkeeping aside."""
    aside = {"seed", "tracking", "name"}
    return a.model_dump(exclude=aside) == b.model_dump(exclude=aside)


def confirm(
    train: Callable[[Mapping[int, Config]], Sequence[Trained]],
    best: Config,
    default: Config,
    first: int,
    seeds: Sequence[int],
    measure: Callable[[Result], float],
    name: str,
    direction: str = "minimize",
) -> Confirmation:
    """Train both on each seed, in one call, and compare pairwise.

    Args:
        train: Trains configs by number.
        best: The config that won.
        default: The config it must beat.
        first: Number of the first of these runs.
        seeds: Fresh ones.
        measure: A result's objective.
        name: What the objective is called.
        direction: Of the objective.
    """
    configs = [with_seed(config, seed) for config in (best, default) for seed in seeds]
    children = train({first + i: config for i, config in enumerate(configs)})
    results = [child.result for child in children]
    found = [
        (ours, theirs)
        for ours, theirs in zip(results[: len(seeds)], results[len(seeds) :], strict=True)
        if ours is not None and theirs is not None and "FAILED" not in (ours.status, theirs.status)
    ]
    sign = -1.0 if direction == "minimize" else 1.0
    objective = paired([sign * (measure(ours) - measure(theirs)) for ours, theirs in found])
    score = "accuracy/test" if any("accuracy/test" in ours.test for ours, _ in found) else "rmse/test"
    factor = 100.0 if score == "accuracy/test" else -1.0
    nan = math.nan
    test = paired([factor * (a.test.get(score, nan) - b.test.get(score, nan)) for a, b in found])
    return Confirmation(len(seeds), name, objective, score, test)


def paired(differences: Sequence[float]) -> Paired | None:
    """Their mean with the interval of a paired t-test; what is not finite is left out."""
    values = [value for value in differences if math.isfinite(value)]
    return Paired(*interval(values), len(values)) if values else None


def abs_of(found: Paired) -> Paired:
    """The same seen from the better side: where the interval lies below 0, its signs turned."""
    if found.high < 0:
        return Paired(-found.mean, -found.high, -found.low, found.n)
    return found


def _verdict(found: Paired) -> str:
    if found.low > 0:
        return "confirmed: best beats default by"
    if found.high < 0:
        return "refuted: default beats best by"
    return "not confirmed: best and default cannot be told apart, the gain is"


def _test(confirmation: Confirmation) -> str:
    assert confirmation.test is not None
    assert confirmation.objective is not None
    turned = confirmation.objective.high < 0
    found = confirmation.test
    if turned:
        found = Paired(-found.mean, -found.high, -found.low, found.n)
    unit = "points of test accuracy" if confirmation.score == "accuracy/test" else "in test RMSE"
    digits = ".1f" if confirmation.score == "accuracy/test" else ".3g"
    return f"{_interval(found, digits)} {unit}"


def _interval(found: Paired, digits: str = ".3g") -> str:
    if math.isnan(found.low):
        return f"{found.mean:{digits}} [interval unknown]"
    return f"{found.mean:{digits}} [{found.low:{digits}}, {found.high:{digits}}]"
