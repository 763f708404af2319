"""The one interval: a mean over seeds, and how far it can be trusted. Tables, figures and verdicts all use it."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # of the intervals
RESAMPLES = 5000
BLOCK = 2**22  # numbers that are resampled at once

Limits = tuple[float, float]
ANY, POSITIVE, SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)
"""Between what the values of a quantity lie: a difference, a loss, an accuracy."""
LIMITED = {
    "loss": POSITIVE,
    "rmse": POSITIVE,
    "gradient_norm": POSITIVE,
    "gradient_noise": POSITIVE,
    "accuracy": SHARE,
    "dead_units": SHARE,
}
"""Metrics that have limits, by the first or last part of their names."""


@dataclass(frozen=True)
class Effect:
    """A mean over seeds with its interval, NaN where there is none; `lost` values were no finite numbers."""

    mean: float
    low: float
    high: float
    n: int
    lost: int = 0

    def __str__(self) -> str:
        """`0.12 [0.1, 0.14]`."""
        return format(self)

    def __format__(self, digits: str) -> str:
        """The same with other digits; in words where there is no interval, or no value."""
        digits = digits or ".3g"
        if math.isnan(self.mean):
            return "no value"
        if math.isnan(self.low):
            return f"{self.mean:{digits}} [interval unknown]"
        return f"{self.mean:{digits}} [{self.low:{digits}}, {self.high:{digits}}]"

    def __neg__(self) -> "Effect":
        """The same with its signs turned."""
        return Effect(-self.mean, -self.high, -self.low, self.n, self.lost)


def limits_of(metric: str) -> Limits:
    """Between what the values of a metric lie, by its name: `loss/val`, `best loss/val`, `accuracy/test`."""
    first, *rest = metric.split()[-1].split("/")
    if "gap" in rest:
        return ANY
    return LIMITED.get(first) or LIMITED.get(rest[-1] if rest else "", ANY)


def effect(
    values: Sequence[float] | np.ndarray, level: float = LEVEL, limits: Limits = ANY, overlap: float = 0.0
) -> Effect:
    """The mean of one value per seed with its interval. Values that are not finite are left out and counted.

    Args:
        values: One for each seed; or for each fold.
        level: Of the interval.
        limits: Between what values lie.
        overlap: Of folds, whose training sets overlap: examples of a test set over those of a training set. The
            variance of the mean is then `(1/n + overlap) s^2`, not `s^2 / n`. Source: Nadeau & Bengio 2003, eq. 8.
    """
    v = np.asarray(values, float)
    finite = v[np.isfinite(v)]
    if not len(finite):
        return Effect(math.nan, math.nan, math.nan, 0, len(v))
    low, high = interval(finite, level, limits, overlap)
    return Effect(float(finite.mean()), float(low), float(high), len(finite), len(v) - len(finite))


def interval(
    values: np.ndarray, level: float = LEVEL, limits: Limits = ANY, overlap: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends (...,) of the interval of the mean over the first axis of finite values (n, ...); NaN where n < 2.

    On each side the wider of Student's and the bootstrap's (BCa; Efron 1987), which alone covers the mean of eight
    values in 88% of the cases instead of 95%. Student's is computed on a scale on which `limits` are infinitely far
    (logarithm or logit, by the delta method), so that no interval of a loss reaches below 0. Of folds that overlap, see
    `effect`, it is Student's.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    if len(values) < 2 or not values.size:
        unknown = np.full(values.shape[1:], np.nan)
        return unknown, unknown
    mean = values.mean(0)
    low, high = _student(values, mean, level, limits, overlap)
    if overlap:
        return low, high
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():  # of two values BCa may know none
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (values,),
            np.mean,
            axis=0,
            method="BCa",
            n_resamples=RESAMPLES,
            batch=max(1, BLOCK // values.size),
            confidence_level=level,
            rng=np.random.default_rng(0),
        ).confidence_interval
    same = np.ptp(values, 0) <= 1e-12 * np.abs(values).max(0)  # but for rounding
    low, high = np.fmin(low, found.low), np.fmax(high, found.high)
    return np.where(same, mean, low), np.where(same, mean, high)


def _student(
    values: np.ndarray, mean: np.ndarray, level: float, limits: Limits, overlap: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval on a scale that has no ends; on the plain one where a value is beyond the limits."""
    from scipy.stats import t

    reach = t.ppf((1 + level) / 2, len(values) - 1) * values.std(0, ddof=1) * math.sqrt(1 / len(values) + overlap)
    floor, ceiling = limits if np.min(values) >= limits[0] and np.max(values) <= limits[1] else ANY
    if math.isinf(floor):
        return mean - reach, mean + reach
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a mean on its limit has no spread either
        if math.isinf(ceiling):
            factor = np.exp(reach / (mean - floor))
            return floor + (mean - floor) / factor, floor + (mean - floor) * factor
        share = (mean - floor) / (ceiling - floor)
        odds, factor = share / (1 - share), np.exp(reach / (ceiling - floor) / (share * (1 - share)))
        low, high = (floor + (ceiling - floor) / (1 + 1 / o) for o in (odds / factor, odds * factor))
        return low, high
