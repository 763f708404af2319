"""Curves of a run -> best epoch, gap, onset, verdict. Pure numpy.

A curve holds one value per epoch (epochs + 1,), the first that of the untrained network. Losses are >= 0.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

# Every threshold is relative to the curve's own level, to the baseline or to the curve's own noise, so that a verdict
# does not depend on the unit of the loss.
EXPLODED = 10.0
"""Diverged: training loss so many times the larger of baseline and start. A network that learns nothing stays near
them; growing weights pass 10 in a few epochs. Validation loss alone may get that high by overfitting."""

LEARNED = 0.05
"""Underfit: less than this share of the baseline was learned; for squared error, a training R2 below 0.05."""

RISEN = 0.10
"""Overfit: validation loss rose by more than this share of its best. Two seeds of one config commonly differ by a few
percent, and so does one run as it wanders about a plateau."""

FALLING = 0.05
"""Unfinished: validation loss lost more than this share of itself in the last part of the run ..."""

RECENT = 5
"""... the last fifth: what it gained there, about as much again is to be had in as many epochs."""

UNSLOWED = 0.75
"""Unfinished, too: it lost as much below the baseline, however slowly, and in the second half of that way it was at
least so many times as fast as in all of it. An exponential fall that is half way after a third of its epochs: 0.65."""

NEGLIGIBLE = 0.005
"""Share of the baseline that is nothing: from 1e-6 to 1e-5 is ten times as much, and not worth a word beside 1."""

NOISE, FEW = 1.5, 4.0
"""A rise or fall counts when it exceeds NOISE (1 + FEW / sqrt(epochs)) standard deviations of the curve's own noise:
few epochs tell little about the noise, many average it out. False alarms are counted in tests/test_curves.py."""

WINDOW = 10
"""A level is a median over a tenth of the run to either side: a lucky epoch is no best, a knee stays a knee."""

STEADY = 3
"""Falls in a row, each of more than FALLING, that are no accident: noise of 10% makes three in a row in 2% of runs, and
rarely so that they end at the best."""


GUESSING = "guessing without a look at the inputs"


class Fit(StrEnum):
    """What became of a run (`tags.fit`)."""

    DIVERGED = "diverged"
    UNDERFIT = "underfit"
    UNFINISHED = "unfinished"
    OVERFIT = "overfit"
    GOOD = "good"


@dataclass(frozen=True)
class Summary:
    """A run's curves in a few numbers."""

    best_epoch: int | None
    """Epoch of the lowest smoothed validation loss; None when it was never finite."""
    best_loss_val: float
    """Validation loss at the best epoch, as measured."""
    onset: int | None
    """Epoch from which the run overfits (= best epoch); None when it does not."""
    gap: float
    """Validation minus training loss at the last finite epoch."""
    best_gap: float
    """The same at the best epoch."""
    severity: float
    """Relative rise of the smoothed validation loss from its best to the end; 0 when there is none."""
    verdict: Fit
    epochs: int
    """Epochs that were run."""
    last_epoch: int | None
    """Last epoch at which both losses were finite."""
    loss_train: float
    """Training loss at the last finite epoch."""
    loss_val: float
    """Validation loss at the last finite epoch."""
    baseline: float
    """Training loss of the input-independent predictor, or of another that a network must beat."""
    against: str
    """Which that is, in words."""


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean with weights 1, 2, 1 (2, 1 at the ends) along the last axis (..., epochs + 1).

    What is not finite is left out of its neighbours' means and becomes NaN. A value depends on its two neighbours only,
    to the last bit.
    """
    finite = np.isfinite(values)
    both = finite[..., 1:] & finite[..., :-1]
    step = np.subtract(values[..., 1:], values[..., :-1], out=np.zeros(both.shape), where=both)
    pull, weight = np.zeros(values.shape), np.full(values.shape, 2.0)
    pull[..., :-1] += step
    pull[..., 1:] -= step
    weight[..., :-1] += both
    weight[..., 1:] += both
    return np.where(finite, values + pull / weight, np.nan)  # in this form a flat curve stays flat to the last bit


def best_epoch(loss_val: np.ndarray) -> int | None:
    """Epoch of the lowest smoothed validation loss (epochs + 1,), the first of ties; None when none is finite."""
    level = smooth(loss_val)
    return int(np.nanargmin(level)) if np.isfinite(level).any() else None


def summarise(loss_train: np.ndarray, loss_val: np.ndarray, baseline: float, against: str = GUESSING) -> Summary:
    """Judge a run by its losses in evaluation mode, (epochs + 1,) each, and the training loss of a baseline.

    The curves end with the last epoch that was run: a value that is not finite means that the run diverged.
    """
    train, val = np.asarray(loss_train, np.float64), np.asarray(loss_val, np.float64)
    assert train.shape == val.shape
    assert train.ndim == 1
    assert len(train) > 0
    finite = np.flatnonzero(np.isfinite(train) & np.isfinite(val))
    last = int(finite[-1]) if len(finite) else None
    best = best_epoch(val)
    gaps = val[finite] - train[finite]
    verdict = _fit(train, val, baseline)
    return Summary(
        best_epoch=best,
        best_loss_val=math.nan if best is None else float(val[best]),
        onset=best if verdict is Fit.OVERFIT else None,
        gap=math.nan if last is None else float(gaps[-1]),
        best_gap=math.nan if best is None or best not in finite else float(val[best] - train[best]),
        severity=_severity(val),
        verdict=verdict,
        epochs=len(val) - 1,
        last_epoch=last,
        loss_train=math.nan if last is None else float(train[last]),
        loss_val=math.nan if last is None else float(val[last]),
        baseline=float(baseline),
        against=against,
    )


def sentence(summary: Summary) -> str:
    """The verdict in one sentence, for someone new to the field."""
    s = summary
    match s.verdict:
        case Fit.DIVERGED:
            return _diverged(s)
        case Fit.UNDERFIT:
            beside = "no better than" if s.loss_train >= s.baseline else "hardly below"
            return (
                f"Underfits: training loss ended at {s.loss_train:.3g}, {beside} the {s.baseline:.3g} of {s.against}."
            )
        case Fit.UNFINISHED:
            return (
                f"Unfinished: validation loss, {s.loss_val:.3g} at the end, was still falling; train for more epochs."
            )
        case Fit.OVERFIT:
            trend = "went on falling" if s.loss_train < _best_loss_train(s) else "stayed low"
            return (
                f"Overfits from epoch {s.onset}: validation loss rose {_rise(s.severity)} while training loss {trend}."
            )
        case Fit.GOOD:
            return _good(s)


def _diverged(s: Summary) -> str:
    if s.last_epoch is None:
        return "Diverged: the loss was never a finite number; try a smaller learning rate."
    if s.last_epoch < s.epochs:
        return (
            f"Diverged: after epoch {s.last_epoch} the loss was no longer a finite number; try a smaller learning rate."
        )
    return f"Diverged: training loss ended at {s.loss_train:.3g}, beyond all bounds; try a smaller learning rate."


def _good(s: Summary) -> str:
    where = f"at epoch {s.best_epoch} ({s.best_loss_val:.3g})"
    unsteady = s.loss_train > _best_loss_train(s) + NEGLIGIBLE * s.baseline and s.gap + s.loss_train > s.best_loss_val
    if unsteady and s.severity > RISEN:
        return f"Good fit at its best, {where}, but unsteady: at the end both losses were higher again."
    return f"Good fit: validation loss, lightly smoothed, was lowest {where} and did not clearly rise again."


def _best_loss_train(s: Summary) -> float:
    return s.best_loss_val - s.best_gap


def _rise(severity: float) -> str:
    if math.isinf(severity):
        return "from 0"
    return f"{severity:.0%} above its best" if severity < 2 else f"to {1 + severity:.3g} times its best"


def _severity(val: np.ndarray) -> float:
    level = smooth(val)
    level = level[np.isfinite(level)]
    if not len(level) or level[-1] <= level.min():
        return 0.0
    return float(level[-1] / level.min() - 1) if level.min() > 0 else math.inf


def _fit(train: np.ndarray, val: np.ndarray, baseline: float) -> Fit:
    if not (np.isfinite(train).all() and np.isfinite(val).all()):
        return Fit.DIVERGED
    final = float(np.median(train[-max(1, len(train) // WINDOW) :]))
    if final > EXPLODED * max(baseline, train[0]):
        return Fit.DIVERGED
    if final > (1 - LEARNED) * baseline:
        return Fit.UNDERFIT
    return _shape(train, val, baseline)


def _shape(train: np.ndarray, val: np.ndarray, baseline: float) -> Fit:
    """Of a run that learned: unfinished, overfit or good."""
    epochs, best, level = len(val) - 1, int(smooth(val).argmin()), _level(val)
    margin = max(NEGLIGIBLE * baseline, NOISE * (1 + FEW / math.sqrt(max(epochs, 1))) * _noise(val, level))
    recent = max(1, epochs // RECENT)
    now = level if epochs >= WINDOW else val  # smoothing would shorten a fall of one epoch
    falls = -np.diff(val[-1 - STEADY :])  # of a few epochs, a steep descent looks like noise: but it does not turn back
    steadily = bool(len(falls)) and bool((falls > max(FALLING * val[-1], NEGLIGIBLE * baseline)).all())
    fell = steadily or now[-1 - recent] - now[-1] > max(FALLING * now[-1], margin)
    if best > epochs - recent and (fell or _has_not_slowed(val, baseline, margin)):
        return Fit.UNFINISHED
    rose = level[-1] - level.min() > max(RISEN * level.min(), margin) and _severity(val) > RISEN
    went_on = _level(train)[-1] - _level(train)[best] < NEGLIGIBLE * baseline
    return Fit.OVERFIT if rose and went_on else Fit.GOOD


def _has_not_slowed(val: np.ndarray, baseline: float, margin: float) -> bool:
    """Whether a fall that is slow is as fast at the end: from the baseline, or the start if that is lower.

    What the second half gained is what it came to below all that was before: the far side of a hump is no fall.
    """
    capped = np.minimum(val, baseline)
    loss = _level(capped) if len(val) > WINDOW else capped
    below = np.flatnonzero(loss < baseline)
    way = loss[below[0] :] if len(below) else loss[-1:]
    epochs = len(way) - 1
    half, whole = max(1, epochs // 2), way[0] - way[-1]
    late = way[:-half].min(initial=way[0]) - way[-1]
    return bool(whole > FALLING * way[-1] and late > margin and late / half >= UNSLOWED * whole / max(epochs, 1))


def _level(values: np.ndarray) -> np.ndarray:
    """Running median over a tenth of the run to either side, smoothed: one lucky epoch does not count."""
    reach = (len(values) - 1) // WINDOW
    padded = np.pad(values, reach, constant_values=np.nan)
    return smooth(np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1))


def _noise(values: np.ndarray, level: np.ndarray) -> float:
    """Standard deviation of the noise from epoch to epoch; 0 where there are too few to tell.

    Taken from third differences, of which a smooth curve has none (those of white noise have 20 times its variance),
    and in longer runs also from the distance to the level. The untrained network is left out: the drop from it is no
    noise. 0.6745 is the median of |N(0, 1)|.
    """
    third = np.diff(values[1:], 3)
    if len(values) <= WINDOW:
        return float(np.sqrt(np.square(third).mean() / 20)) if len(third) else 0.0
    slow, fast = np.median(np.abs(values - level)[1:]), np.median(np.abs(third)) / math.sqrt(20)
    return float(max(slow, fast)) / 0.6745
