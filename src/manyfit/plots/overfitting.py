"""A run's curves -> its picture: losses and score by epoch, with best epoch, onset and verdict."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.curves import Fit, Summary
from manyfit.measures import better
from manyfit.plots.style import BLUE, FONT, GREEN, GREY, INK, PALE, VERMILLION, canvas, lines, number, panel, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VAL = BLUE, VERMILLION
COLOUR = {
    Fit.GOOD: GREEN,
    Fit.OVERFIT: VERMILLION,
    Fit.UNDERFIT: BLUE,
    Fit.UNFINISHED: "#B07700",  # orange, dark enough for text
    Fit.DIVERGED: INK,
}
RING = "\u25cb"  # stands in the remarks for the ring at the best epoch
SCORES = {"accuracy": "accuracy", "rmse": "RMSE"}  # the first of them that was measured stands beside the loss
HEIGHT, ROW = 3.3, 2.3  # inches, and what a further row of panels adds
LARGEST = 1e100  # beyond it matplotlib's arithmetic overflows; such a loss is drawn as if infinite


def overfitting(metrics: Mapping[str, np.ndarray], summary: Summary, title: str, more: Sequence[str] = ()) -> "Figure":
    """Two panels: the losses with their gap, and accuracy or RMSE; best epoch, onset and verdict marked.

    Then one for each of more metrics.

    Args:
        metrics: `loss/train loss/val` and `accuracy/train accuracy/val` or `rmse/train rmse/val r2/val`, each
            (epochs + 1,); may hold NaN.
        summary: Of these curves.
        title: Which run it is.
        more: Names of metrics that have a curve of val, and perhaps of train.
    """
    score = next((name for name in SCORES if f"{name}/val" in metrics), None)
    more = [name for name in (score, *more) if name]
    rows = -(-(1 + len(more)) // 2)
    height = HEIGHT + (rows - 1) * ROW
    figure = canvas(_headline(summary), title, COLOUR[summary.verdict], (7.2, height))
    place = {"left": 0.075, "right": 0.92, "bottom": 0.462 / height, "top": 1 - 0.924 / height, "wspace": 0.42}
    left, *others = figure.subplots(rows, 2, squeeze=False, gridspec_kw=place | {"hspace": 0.55}).flat
    panel(left, "loss", _best_loss(summary))
    baseline = [np.array([summary.baseline])] if summary.verdict is Fit.UNDERFIT else []  # then it must be seen
    _draw(left, "loss", metrics, summary, baseline)
    for axes, name in zip_longest(others, more):
        if name is None:
            axes.set_axis_off()
            continue
        panel(axes, SCORES.get(name, name), _best_score(metrics, name, summary))
        _draw(axes, name, metrics, summary)
    _shade(left, _finite(metrics["loss/train"]), _finite(metrics["loss/val"]), summary)
    return figure


def _draw(
    axes: "Axes", name: str, metrics: Mapping[str, np.ndarray], summary: Summary, beside: Sequence[np.ndarray] = ()
) -> None:
    """A metric's curves of train, if there is one, and val; `beside` is in the picture as well."""
    colours = {"train": TRAIN, "val": VAL}
    drawn = {split: _finite(metrics[f"{name}/{split}"]) for split in colours if f"{name}/{split}" in metrics}
    linear = name not in SCORES and better(name) == "maximize"
    scale(axes, [*drawn.values(), *beside], percent=name == "accuracy", linear=linear)
    lines(axes, {split: (values, colours[split]) for split, values in drawn.items()})
    _mark(axes, drawn["val"], summary)


def _mark(axes: "Axes", val: np.ndarray, summary: Summary) -> None:
    """The best epoch as a ring on the validation curve over a thin line; where the run became infinite, hatching."""
    if summary.best_epoch is not None and np.isfinite(val[summary.best_epoch]):
        x, y = summary.best_epoch, max(val[summary.best_epoch], axes.get_ylim()[0])
        axes.axvline(x, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1.5)
        ring: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.6}
        axes.plot([x], [y], "o", label="best", markersize=8.5, clip_on=False, zorder=5, **ring)
    if summary.last_epoch is None or summary.last_epoch < summary.epochs:
        last, end = summary.last_epoch or 0, max(summary.epochs, 1)
        axes.axvspan(last, end, facecolor="none", edgecolor=PALE, hatch="////", linewidth=0)
        if end - last > 0.3 * end:  # room for the words beside the names of the curves
            style: dict[str, Any] = {
                "color": GREY,
                "fontsize": 8.5,
                "rotation": 90,
                "ha": "center",
                "va": "center",
                **FONT,
            }
            x_middle = last + 0.75 * (end - last)
            axes.text(x_middle, 0.5, "not finite", transform=axes.get_xaxis_transform(), **style)


def _shade(axes: "Axes", train: np.ndarray, val: np.ndarray, summary: Summary) -> None:
    """The gap where validation lies above training, darker from the onset; the baseline of a run that underfits."""
    epochs = np.arange(len(val))
    onset = len(val) if summary.onset is None else summary.onset
    for where, alpha in ((epochs <= onset, 0.12), (epochs >= onset, 0.3)):
        visible = where & (val > train)
        axes.fill_between(epochs, train, val, where=visible.tolist(), color=VAL, alpha=alpha, linewidth=0)
    if summary.verdict is Fit.UNDERFIT:
        axes.axhline(summary.baseline, color=INK, linewidth=1, linestyle=":", zorder=1.5)


def _headline(summary: Summary) -> str:
    match summary.verdict:
        case Fit.OVERFIT:
            return f"Overfit from epoch {summary.onset}"
        case Fit.UNDERFIT:
            return "Underfit"
        case Fit.UNFINISHED:
            return "Unfinished: still improving"
        case Fit.DIVERGED:
            nonfinite = summary.last_epoch is not None and summary.last_epoch < summary.epochs
            return f"Diverged after epoch {summary.last_epoch}" if nonfinite else "Diverged"
        case Fit.GOOD:
            return "Good fit"


def _best_loss(summary: Summary) -> str:
    if summary.best_epoch is None:
        return ""
    best = f"{RING} val {number(summary.best_loss_val)}"
    if summary.verdict is Fit.UNDERFIT:
        return f"{best}   \u00b7\u00b7\u00b7\u00b7 baseline {number(summary.baseline)}"
    return f"{best} at epoch {summary.best_epoch}"


def _best_score(metrics: Mapping[str, np.ndarray], score: str, summary: Summary) -> str:
    value = math.nan if summary.best_epoch is None else float(metrics[f"{score}/val"][summary.best_epoch])
    if summary.best_epoch is None or not math.isfinite(value):
        return ""
    if score == "accuracy":
        return f"{RING} val {value:.1%}"
    if score != "rmse":
        return f"{RING} val {number(value)}"
    r2 = f", R\u00b2 {float(metrics['r2/val'][summary.best_epoch]):.2f}" if "r2/val" in metrics else ""
    return f"{RING} val {number(value)}{r2}"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < LARGEST, values, np.nan)
