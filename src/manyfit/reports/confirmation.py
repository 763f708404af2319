"""Is the best config better than the default one? Both, on seeds that the search never saw."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from manyfit.config import Config
from manyfit.config import with_seed as with_seed
from manyfit.jobs import Result
from manyfit.statistics import Effect, effect

SEEDS_FROM = 1000
"""Fresh seeds are counted from here: those that people search with are small."""

TAGS = {"manyfit.role": "confirmation"}


class Trained(Protocol):
    """What a training returns: a parent.Child."""

    @property
    def result(self) -> Result | None:
        """None where it failed."""


@dataclass(frozen=True)
class Confirmation:
    """What came of it: `objective` and `test` are None where no pair of runs can be compared."""

    seeds: int
    name: str
    objective: Effect | None
    score: str
    test: Effect | None

    def words(self) -> str:
        """In a sentence."""
        if self.objective is None:
            return f"not confirmed: best or default failed on each of {self.seeds} fresh seeds."
        verdict, difference = _verdict(self.objective), _better_side(self.objective)
        test = f" and {_test(self)}" if self.test else ""
        lost = self.seeds - self.objective.n
        failed = f" ({lost} more failed or diverged)" if lost else ""
        return f"{verdict} {difference} in {self.name}{test}, over {self.objective.n} fresh seeds{failed}"


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """So many seeds that are not among those used."""
    taken = set(used)
    free = (seed for seed in range(SEEDS_FROM, SEEDS_FROM + count + len(taken)) if seed not in taken)
    return [next(free) for _ in range(count)]


def same(a: Config, b: Config) -> bool:
    """Whether two configs train the same, seeds and bookkeeping aside."""
    aside = {"seed", "tracking", "name"}
    return a.model_dump(by_alias=True, exclude=aside) == b.model_dump(by_alias=True, exclude=aside)


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


def paired(differences: Sequence[float]) -> Effect | None:
    """Their mean with its interval; None where none is finite."""
    found = effect(differences)
    return found if found.n else None


def _verdict(found: Effect) -> str:
    if found.low > 0:
        return "confirmed: best beats default by"
    if found.high < 0:
        return "refuted: default beats best by"
    return "not confirmed: best and default cannot be told apart, the gain is"


def _better_side(found: Effect) -> Effect:
    """Where the interval lies below 0, the same with its signs turned."""
    return -found if found.high < 0 else found


def _test(confirmation: Confirmation) -> str:
    assert confirmation.test is not None
    assert confirmation.objective is not None
    found = -confirmation.test if confirmation.objective.high < 0 else confirmation.test
    if confirmation.score == "accuracy/test":
        return f"{found:.1f} points of test accuracy"
    return f"{found:.3g} in test RMSE"
