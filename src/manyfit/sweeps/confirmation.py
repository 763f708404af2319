"""Is what a search found better than the default? Its best few against it, on seeds that the search never saw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manyfit.config.schema import Config, with_seed
from manyfit.statistics import LEVEL, Effect, effect, limits_of
from manyfit.sweeps.parent import Child
from manyfit.training.trained import Result

SEEDS_FROM = 1000
"""Fresh seeds are counted from here: those that people search with are small."""

TAGS = {"manyfit.role": "confirmation"}
PLACES = ("best", "second best", "third best", "fourth best")  # of the search
RIVALS = 3  # of them are compared with the default, which may be one


@dataclass(frozen=True)
class Confirmation:
    """What came of it.

    Attributes:
        seeds: How many fresh ones.
        name: Of the objective.
        compared: How many candidates there were.
        place: Which of them did best on the fresh seeds.
        rank: Its place in the search, 0 being the best.
        gain: Of that one over the default, paired by seed, with an interval that holds for all candidates at once.
        test: The same in the test score.
        score: Which that is.
        lost: Runs of the candidate that came to no value.
        default_lost: Runs of the default that did not.
        runs: Those of the better choice.
        means: Of the objective on the fresh seeds, of each candidate and last of the default.
    """

    seeds: int
    name: str
    compared: int
    place: int
    rank: int
    gain: Effect
    test: Effect
    score: str
    lost: int = 0
    default_lost: int = 0
    runs: Sequence[Child] = ()
    means: Sequence[Effect] = ()

    @property
    def wins(self) -> bool:
        """Whether the candidate is the better choice, by the mean over the fresh seeds; first of all it must train."""
        if self.lost != self.default_lost:
            return self.lost < self.default_lost
        return not self.gain.mean <= 0

    def words(self) -> str:
        """In a sentence."""
        which = PLACES[self.rank]
        if not self.gain.n and self.lost == self.default_lost:
            return f"not confirmed: {which} or default failed on each of {self.seeds} fresh seeds."
        if self.lost > self.default_lost:
            return (
                f"refuted: {which} failed or diverged on {self.lost} of {self.seeds} fresh seeds, "
                f"default on {self.default_lost}."
            )
        if self.lost < self.default_lost:
            return (
                f"confirmed: default failed or diverged on {self.default_lost} of {self.seeds} fresh seeds, "
                f"{which} on {self.lost}."
            )
        turned = self.gain.high < 0
        gain, test = (-self.gain, -self.test) if turned else (self.gain, self.test)
        tested = f", with test {_tested(test, self.score)}" if test.n else ""
        failed = f" ({self.seeds - gain.n} more failed or diverged)" if gain.n < self.seeds else ""
        several = f"; {self.compared} settings were compared: intervals of {level_of(self.compared):.1%}"
        return (
            f"{_verdict(self.gain, which)} {gain} in {self.name}{tested}, over {gain.n} fresh seeds{failed}"
            f"{several if self.compared > 1 else ''}"
        )


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """So many seeds that are not among those used."""
    taken = set(used)
    free = (seed for seed in range(SEEDS_FROM, SEEDS_FROM + count + len(taken)) if seed not in taken)
    return [next(free) for _ in range(count)]


def same(a: Config, b: Config) -> bool:
    """Whether two configs train the same, seeds and bookkeeping aside."""
    aside = {"seed", "tracking", "name"}
    return a.model_dump(by_alias=True, exclude=aside) == b.model_dump(by_alias=True, exclude=aside)


def level_of(comparisons: int) -> float:
    """The level of each interval for which all of them hold at 95% (Bonferroni 1936): the best is picked afterwards."""
    return 1 - (1 - LEVEL) / comparisons


def confirm(
    train: Callable[[Mapping[int, Config]], Sequence[Child]],
    candidates: Mapping[int, Config],
    default: Config,
    first: int,
    seeds: Sequence[int],
    measure: Callable[[Result], float],
    name: str,
    direction: str = "minimize",
) -> Confirmation:
    """Train candidates and default on each seed, in one call, and compare the best of them with the default.

    Args:
        train: Trains configs by number.
        candidates: What did best in the search, by its rank, 0 being the best.
        default: The config they must beat.
        first: Number of the first of these runs.
        seeds: Fresh ones.
        measure: A result's objective.
        name: What the objective is called.
        direction: Of the objective.
    """
    configs = [with_seed(config, seed) for config in (*candidates.values(), default) for seed in seeds]
    children = train({first + i: config for i, config in enumerate(configs)})
    sign = -1.0 if direction == "minimize" else 1.0
    shape = len(candidates) + 1, len(seeds)
    values = np.array([sign * _value(child, measure) for child in children]).reshape(shape)
    score = "accuracy/test" if any(c.result and "accuracy/test" in c.result.test for c in children) else "rmse/test"
    factor = 100.0 if score == "accuracy/test" else -1.0
    tests = np.array([factor * _value(c, lambda r: r.test.get(score, np.nan)) for c in children]).reshape(shape)
    lost = np.isnan(values).sum(1)
    place = min(range(len(candidates)), key=lambda i: (lost[i], -np.nan_to_num(effect(values[i]).mean, nan=-np.inf)))
    level = level_of(len(candidates))
    found = Confirmation(
        seeds=len(seeds),
        name=name,
        compared=len(candidates),
        place=place,
        rank=list(candidates)[place],
        gain=effect(values[place] - values[-1], level),
        test=effect(tests[place] - tests[-1], level),
        score=score,
        lost=int(lost[place]),
        default_lost=int(lost[-1]),
        means=[effect(sign * its, limits=limits_of(name)) for its in values],
    )
    first_run = (place if found.wins else len(candidates)) * len(seeds)
    return replace(found, runs=children[first_run : first_run + len(seeds)])


def _value(child: Child, measure: Callable[[Result], float]) -> float:
    """NaN for a run that came to a bad end."""
    if child.result is None or child.result.status == "FAILED":
        return np.nan
    value = measure(child.result)
    return value if np.isfinite(value) else np.nan


def _verdict(gain: Effect, which: str) -> str:
    if gain.low > 0:
        return f"confirmed: {which} beats default by"
    if gain.high < 0:
        return f"refuted: default beats {which} by"
    return f"not confirmed: {which} and default cannot be told apart, it gains"


def _tested(test: Effect, score: str) -> str:
    """How much better, as a mean that is not negative: `accuracy 1.2 [0.4, 2.0] points higher`."""
    size, better = (test, True) if test.mean >= 0 else (-test, False)
    if score == "accuracy/test":
        return f"accuracy {size:.1f} points {'higher' if better else 'lower'}"
    return f"RMSE {size:.3g} {'lower' if better else 'higher'}"
