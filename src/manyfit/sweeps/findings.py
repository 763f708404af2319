"""The runs of a sweep -> what they say: settings ranked over seeds, sensitivity, importance. Pure."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from manyfit.config.schema import Config
from manyfit.statistics import ANY, Effect, Limits, effect, limits_of
from manyfit.tracking.run import TrackedRun
from manyfit.training.trained import Result

Value = str | int | float | bool | None
Space = Mapping[str, tuple[float, float] | Sequence[Value]]

NEAR = 0.05
"""As good as the best: within this share of it. Two seeds of one config commonly differ by a few percent."""

ENOUGH = 8
"""Finished runs from which importances are worth a picture."""


@dataclass(frozen=True)
class Row:
    """One run of a sweep, of this session or an earlier one.

    Attributes:
        number: Job or trial number.
        params: What varies in the sweep, by full config key, without seed.
        value: The objective; NaN where there is none.
        state: `finished`, `pruned`, `diverged` or `failed`.
        seed: Of the run.
        loss_val: Its curve (epochs + 1,).
        run: Of this session.
        run_id: MLflow's, where it is known.
        config: Where it is known.
        result: Of this session.
    """

    number: int
    params: Mapping[str, Value]
    value: float
    state: str
    seed: int
    loss_val: np.ndarray | None
    run: TrackedRun | None
    run_id: str | None
    config: Config | None
    result: Result | None

    @property
    def stored(self) -> str | None:
        """MLflow's id, as soon as it is known."""
        return self.run_id or (self.run.run_id if self.run else None)

    @property
    def fold(self) -> int | None:
        """Of its data, that it was tested on; None: they are not cut into folds."""
        return self.config.data.fold if self.config else None

    @property
    def counts(self) -> bool:
        """Whether its value can be compared: it finished, with a finite one."""
        return self.state == "finished" and math.isfinite(self.value)

    @property
    def best_epoch(self) -> int | None:
        """Of its validation loss."""
        if self.result is not None:
            return self.result.summary.best_epoch
        if self.loss_val is None or not np.isfinite(self.loss_val).any():
            return None
        return int(np.nanargmin(np.where(np.isfinite(self.loss_val), self.loss_val, np.nan)))


@dataclass(frozen=True)
class Setting:
    """The runs that differ in their seed only, or in their fold.

    `mean` and its 95% interval `low`, `high` are of those that count; without two of them low and high are NaN, without
    one mean is as well.
    """

    params: Mapping[str, Value]
    rows: Sequence[Row]
    mean: float
    low: float
    high: float

    @property
    def counted(self) -> list[Row]:
        """The runs that the mean is of."""
        return [row for row in self.rows if row.counts]

    @property
    def states(self) -> Counter[str]:
        """How many runs ended how."""
        return Counter(row.state for row in self.rows)

    @property
    def best_epoch(self) -> float:
        """Median over the runs that count; NaN without one."""
        epochs = [row.best_epoch for row in self.counted if row.best_epoch is not None]
        return float(np.median(epochs)) if epochs else math.nan

    @property
    def reliable(self) -> bool:
        """None of its runs diverged."""
        return not self.states["diverged"]

    @property
    def name(self) -> str:
        """What a person calls it: `optimizer=adam, optimizer.lr=0.003`."""
        return ", ".join(f"{key}={text(value)}" for key, value in self.params.items()) or "the one setting"


def ranked(rows: Sequence[Row], direction: str = "minimize", limits: Limits = ANY) -> list[Setting]:
    """Settings, best first. One that diverged for some seed comes after all that never did; without a value: last.

    Args:
        rows: The runs.
        direction: `minimize` or `maximize`.
        limits: Between what the objective lies.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[repr(sorted(row.params.items()))].append(row)
    sign = 1.0 if direction == "minimize" else -1.0
    settings = [_setting(group, limits) for group in groups.values()]
    return sorted(settings, key=lambda s: (math.isnan(s.mean), not s.reliable, float(np.nan_to_num(sign * s.mean))))


def over_folds(rows: Sequence[Row], values: Sequence[float], limits: Limits = ANY) -> Effect:
    """The mean of values, one for each row, with its interval: over seeds, or over folds (each the mean of its seeds).

    Training sets of different folds overlap, which the interval is corrected for: see `statistics.effect`.
    """
    if {row.fold for row in rows} <= {None}:
        return effect(values, limits=limits)
    means = by_fold(rows, np.array(values))
    return effect(means, limits=limits, overlap=overlap(rows))


def by_fold(rows: Sequence[Row], values: np.ndarray) -> np.ndarray:
    """Means over the seeds of each fold (folds, ...) of what each row has (rows, ...)."""
    folds = np.array([-1 if row.fold is None else row.fold for row in rows])
    return np.stack([values[folds == fold].mean(0) for fold in np.unique(folds)])


def overlap(rows: Sequence[Row]) -> float:
    """How many examples of a fold are tested on for one that is trained on; 0 where there are no folds."""
    train, _, test = next((row.result.sizes for row in rows if row.result), (0, 0, 0))
    folds = next((row.config.data.folds for row in rows if row.config and row.config.data.folds), None)
    if folds is None:
        return 0.0
    return test / train if train else 1 / (folds - 1)  # of data that nobody here has counted


def _setting(rows: Sequence[Row], limits: Limits) -> Setting:
    counted = [row for row in rows if row.counts]
    found = over_folds(counted, [row.value for row in counted], limits)
    return Setting(rows[0].params, rows, found.mean, found.low, found.high)


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The same setting and seed is one observation, however often it was run: copies tell nothing about the spread."""
    kept: dict[tuple[str, int, int | None], Row] = {}
    for row in rows:
        key = repr(sorted(row.params.items())), row.seed, row.fold
        if key not in kept or (row.counts and not kept[key].counts):
            kept[key] = row
    return list(kept.values())


def tested(setting: Setting) -> dict[str, Effect]:
    """Each test score over all folds: every example was scored once, by a network that had not seen it."""
    rows = [row for row in setting.counted if row.result and row.fold is not None]
    names = [name for row in rows[:1] if row.result for name in row.result.test]
    return {
        name: over_folds(rows, [row.result.test[name] for row in rows if row.result], limits_of(name)) for name in names
    }


def guessed(setting: Setting) -> float:
    """The accuracy over all folds of the most frequent class alone; NaN where there are no classes."""
    shares = [row.result.most_frequent for row in setting.counted if row.result]
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else math.nan


def best_of(setting: Setting, direction: str = "minimize") -> Row:
    """The best run of a setting that has a value."""
    return (min if direction == "minimize" else max)(setting.counted, key=lambda row: row.value)


def replicates(rows: Sequence[Row]) -> str:
    """What a mean is over: `8 seeds`, `5 folds`, `5 folds of 2 seeds`."""
    seeds, folds = len({row.seed for row in rows}), len({row.fold for row in rows} - {None})
    said = f"{seeds} seed{'s' * (seeds != 1)}"
    return said if not folds else f"{folds} folds" + (f" of {said}" if seeds > 1 else "")


def varying(settings: Sequence[Setting]) -> list[str]:
    """The params that take more than one value."""
    seen: dict[str, set[str]] = defaultdict(set)
    for setting in settings:
        for key, value in setting.params.items():
            seen[key].add(repr(value))
    return [key for key, values in seen.items() if len(values) > 1]


def tolerance(settings: Sequence[Setting], key: str) -> tuple[float, float] | None:
    """Smallest and largest value of a numeric param among settings as good as the best; None where there are none."""
    values = [float(value) for setting in close(settings) if is_number(value := setting.params.get(key))]
    return (min(values), max(values)) if values else None


def close(settings: Sequence[Setting]) -> list[Setting]:
    """Those as good as the best."""
    best = settings[0].mean if settings else math.nan
    return [setting for setting in settings if setting.reliable and abs(setting.mean - best) <= NEAR * abs(best)]


def importances(settings: Sequence[Setting]) -> dict[str, float]:
    """How much of the ranking each varying param explains, in shares of all, largest first.

    Source: permutation importance (Breiman 2001, section 10) of a random forest over the ranks of the settings' values:
    ranks, because the few huge losses of rates near divergence would outweigh all others.
    """
    from scipy.stats import rankdata
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    known = [setting for setting in settings if math.isfinite(setting.mean)]
    keys = varying(known)
    if not keys or len(known) < 2:
        return {}
    x = np.column_stack([_column([setting.params.get(key) for setting in known]) for key in keys])
    y = rankdata([setting.mean for setting in known])
    forest = RandomForestRegressor(100, random_state=0).fit(x, y)
    share = np.maximum(permutation_importance(forest, x, y, n_repeats=10, random_state=0).importances_mean, 0)
    share = share / (share.sum() or 1.0)
    return {keys[i]: float(share[i]) for i in np.argsort(-share, kind="stable")}


def _column(values: Sequence[Value]) -> np.ndarray:
    """A param as numbers (settings,): in decades where it spans at least one, names as their place in the alphabet."""
    if not all(is_number(value) for value in values):
        order = sorted({str(value) for value in values})
        return np.array([order.index(str(value)) for value in values], float)
    numbers = np.array(values, float)
    return np.log10(numbers) if numbers.min() > 0 and numbers.max() / numbers.min() >= 10 else numbers


def incomparable(keys: Iterable[str], objective: str, classification: bool) -> list[str]:
    """Of the keys that vary those that make objectives incomparable.

    With other data runs are validated on other examples, and another loss has another scale. The unit of a regression's
    loss, the deviation of the training targets, changes with the training examples.
    """
    loss = "loss" in objective
    alike = {"data.label_noise"} | ({"data.train_size", "data.standardise"} if classification or not loss else set())
    if not any(name in objective for name in ("loss", "rmse", "r2")):  # others are in the target's own units
        alike |= {"data.target_scale"}
    groups = ("data", "loss") if loss else ("data",)
    return [key for key in keys if key.split(".")[0] in groups and key not in alike]


def is_number(value: object) -> TypeGuard[int | float]:
    """A number that has neighbours: not a switch, not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text(value: object) -> str:
    """A param's value as it reads best."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def value_of(result: Result, objective: str, direction: str = "minimize") -> float:
    """A result's objective by its name, `<best or last> <metric>`, of the measured epochs; NaN when none was."""
    reducer, _, name = objective.partition(" ")
    if (reducer, name, direction) == ("best", "loss/val", "minimize"):
        return result.summary.best_loss_val  # of the epoch whose weights are kept
    curve = result.metrics[name]
    finite = curve[np.isfinite(curve)]
    if not len(finite):
        return math.nan
    if reducer == "last":
        return float(finite[-1])
    return float(finite.min() if direction == "minimize" else finite.max())
