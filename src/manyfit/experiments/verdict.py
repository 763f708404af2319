"""What a claim comes to: an answer with an effect and its interval, and the chart that shows it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from manyfit.statistics import LEVEL, Effect, effect

Marked = TypeVar("Marked", bound=Callable[..., Any])
Answer = Literal["holds", "fails", "undecided"]
SEEDS = 8  # fewer do not decide anything


@dataclass(frozen=True)
class Series:
    """One line or set of points of a chart: a mean and, where there are seeds, its band."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """A panel: what is on its axes, with units.

    Attributes:
        x, y: Labels.
        series: Lines; `x` values that are words become bars.
        x_log, y_log: Whether an axis is logarithmic.
        level: A value of y to compare with, and its name.
    """

    x: str
    y: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class Region:
    """A map of two features: the class probability on a grid, and the examples.

    Attributes:
        title: Of the panel.
        names: Of the two features.
        x, y: Grid coordinates (n,), (m,).
        probability: (m, n), of the second class.
        points: (rows, 2).
        classes: (rows,).
    """

    title: str
    names: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    probability: np.ndarray
    points: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """The answer to a claim.

    Attributes:
        answer: holds, fails or undecided.
        effect: What was measured, with its 95% interval.
        unit: Of the effect, in words.
        sentence: What came out, for a reader who knows the claim.
        panels: The figure.
        headline: Its message.
        table: What stands beside the effect, row by row, the first of them the head.
    """

    answer: Answer
    effect: Effect
    unit: str
    sentence: str
    headline: str
    panels: Sequence[Chart | Region] = field(default_factory=tuple)
    table: Sequence[Sequence[str]] = field(default_factory=tuple)

    @property
    def measured(self) -> str:
        """The effect with its interval and unit, in words."""
        return f"{self.effect} {self.unit}" if self.effect.n else "nothing was measured"


def about(task: str) -> Callable[[Marked], Marked]:
    """Mark a claim that only `classification`, or only `regression`, can answer: other data are refused beforehand."""

    def marked(claim: Marked) -> Marked:
        claim.task = task  # type: ignore[attr-defined]  # functions take attributes
        return claim

    return marked


def with_networks(claim: Marked) -> Marked:
    """Mark a claim that looks at the predictors of its runs: for others a sweep lets go of nearly all of them."""
    claim.networks = True  # type: ignore[attr-defined]  # functions take attributes
    return claim


def told(found: Effect, above: str, below: str) -> str:
    """A difference in words, by its sign: `0.12 [0.1, 0.14] lower`."""
    return f"{-found} {below}" if found.mean < 0 else f"{found} {above}"


def known(words: str) -> str:
    """Of a mean over nothing, as where all runs diverged, a claim's own words would say `nan%`: it is unknown."""
    return re.sub(r"[+-]?\bnan\b%?", "unknown", words)


def decide(found: Effect, above: float = 0.0) -> Answer:
    """holds: the whole interval lies above the threshold; fails: below it; undecided: neither, or too few seeds.

    What is left of seeds of which some gave no value decides nothing either.
    """
    if found.n < SEEDS or found.lost:
        return "undecided"
    if found.low > above:
        return "holds"
    return "fails" if found.high < above else "undecided"


def holm(effects: Mapping[str, Sequence[float] | np.ndarray], above: float = 0.0) -> dict[str, tuple[Answer, Effect]]:
    """Several comparisons at once: each is decided at the level that Holm (1979) leaves it, by t-test and interval.

    Args:
        effects: By name, one value per seed.
        above: The threshold.

    Returns:
        By name the answer, and the effect with its 95% interval.
    """
    from scipy.stats import ttest_1samp

    def p_value(values: np.ndarray) -> float:
        v = values[np.isfinite(values)]
        if len(v) < 2 or np.ptp(v) == 0:
            return 0.0 if len(v) > 1 and v[0] != above else 1.0
        return float(ttest_1samp(v, above).pvalue)

    arrays = {name: np.asarray(values, float) for name, values in effects.items()}
    p_values = {name: p_value(values) for name, values in arrays.items()}
    ordered = sorted(arrays, key=lambda name: p_values[name])
    answers: dict[str, tuple[Answer, Effect]] = {}
    going = True  # after the first that is not decided, none is
    for i, name in enumerate(ordered):
        alpha = (1 - LEVEL) / (len(ordered) - i)
        answer: Answer = (
            decide(effect(arrays[name], 1 - alpha), above) if going and p_values[name] <= alpha else "undecided"
        )
        going = going and answer != "undecided"
        answers[name] = (answer, effect(arrays[name]))
    return {name: answers[name] for name in arrays}


def all_of(answers: Sequence[Answer]) -> Answer:
    """Together: one that fails refutes, one that is open leaves it open."""
    if "fails" in answers:
        return "fails"
    return "undecided" if "undecided" in answers or not answers else "holds"
