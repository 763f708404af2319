"""Curves -> pictures. matplotlib without pyplot (no global state: pictures are drawn from a background thread)."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.curves import Fit, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Source: Okabe & Ito 2008, colours that the colour-blind tell apart.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"
TRAIN, VAL = BLUE, VERMILLION
COLOUR = {
    Fit.GOOD: GREEN,
    Fit.OVERFIT: VERMILLION,
    Fit.UNDERFIT: BLUE,
    Fit.UNFINISHED: "#B07700",  # orange, dark enough for text
    Fit.DIVERGED: INK,
}
FONT: dict[str, Any] = {"family": "DejaVu Sans"}  # comes with matplotlib: the same picture on every machine
LOG_DECADES = 1.0  # a log axis from here: on a linear one the lower half would be a flat line
RING = "\u25cb"  # stands in the remarks for the ring at the best epoch
DOTS = 12  # epochs up to which every point is marked
LARGEST = 1e100  # beyond it matplotlib's arithmetic overflows; such a loss is drawn as if infinite
LONGEST = 12.5  # characters of a title to an inch that fit
MANY = 200  # epochs from which the lines are thin, so that noise does not become a band
APART = 0.085  # of an axis' height: least distance of two labels


def overfitting(metrics: Mapping[str, np.ndarray], summary: Summary, title: str) -> "Figure":
    """Two panels: the losses with their gap, and accuracy or RMSE; best epoch, onset and verdict marked.

    Args:
        metrics: `loss/train loss/val` and `accuracy/train accuracy/val` or `rmse/train rmse/val r2/val`, each
            (epochs + 1,); may hold NaN.
        summary: Of these curves.
        title: Which run it is.
    """
    figure = canvas(_headline(summary), title, COLOUR[summary.verdict])
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.075, "right": 0.92, "bottom": 0.14, "top": 0.72, "wspace": 0.42}
    )
    score = "accuracy" if "accuracy/val" in metrics else "rmse"
    panel(left, "loss", _best_loss(summary))
    panel(right, {"accuracy": "accuracy", "rmse": "RMSE"}[score], _best_score(metrics, score, summary))
    for axes, name in ((left, "loss"), (right, score)):
        train, val = _finite(metrics[f"{name}/train"]), _finite(metrics[f"{name}/val"])
        underfit = name == "loss" and summary.verdict is Fit.UNDERFIT  # then the baseline must be seen
        scale(axes, [train, val, *([np.array([summary.baseline])] if underfit else [])], percent=name == "accuracy")
        lines(axes, {"train": (train, TRAIN), "val": (val, VAL)})
        _mark(axes, val, summary)
    _shade(left, _finite(metrics["loss/train"]), _finite(metrics["loss/val"]), summary)
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG: the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # matplotlib
    return buffer.getvalue()


def canvas(headline: str, title: str, colour: str = INK, size: tuple[float, float] = (7.2, 3.3)) -> "Figure":
    """An empty figure, 150 dots to the inch, under a headline that can be read at a third of its size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, facecolor="white")
    top = 1 - 0.09 / size[1]
    figure.text(0.018, top, headline, color=colour, fontsize=15, fontweight="bold", va="top", **FONT)
    room = int(LONGEST * size[0])
    title = title if len(title) <= room else title[: room - 1] + "\u2026"
    figure.text(0.018, top - 0.31 / size[1], title, color=GREY, fontsize=8.5, va="top", **FONT)
    return figure


def panel(axes: "Axes", name: str, remark: str = "", x: str = "epoch") -> None:
    """The house's axes: two spines, a faint grid, the name of y above instead of beside, a remark to its right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8.5, length=3, which="major", labelcolor=INK)
    axes.tick_params(length=0, which="minor")
    axes.set_xlabel(x, color=INK, fontsize=9, labelpad=2, **FONT)
    axes.text(0, 1.05, name, transform=axes.transAxes, color=INK, fontsize=10.5, fontweight="bold", **FONT)
    axes.text(1, 1.05, remark, transform=axes.transAxes, color=INK, fontsize=8.5, ha="right", **FONT)


def scale(axes: "Axes", curves: Sequence[np.ndarray], percent: bool = False) -> None:
    """Limits and ticks for curves (epochs + 1,) over whole epochs; a log axis where they span many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    last = max(len(curve) for curve in curves) - 1
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    positive = values[values > 0]
    decades = math.log10(positive.max() / positive.min()) if len(positive) else 0.0
    if decades > LOG_DECADES and values.min() >= 0 and not percent:
        axes.set_yscale("log", nonpositive="clip")
        room = 10 ** (0.05 * decades)
        axes.set_ylim(positive.min() / room, positive.max() * room)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < 3 else (1,), numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
    elif len(values):
        room = 0.06 * (values.max() - values.min()) or 0.1 * abs(values.max()) or 0.1
        axes.set_ylim(values.min() - room, min(values.max() + room, 1.02) if percent else values.max() + room)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_yticks([])
    axes.yaxis.set_major_formatter(FuncFormatter(_percent if percent else _number))


def lines(axes: "Axes", curves: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Curves, each with its name in its colour beside its end, kept apart. After `scale`."""
    heights, ends = {}, {}
    for name, (given, colour) in curves.items():
        values = np.maximum(given, axes.get_ylim()[0])  # a 0 on a log axis
        known = np.flatnonzero(np.isfinite(values))
        dots, width = "o" if len(known) <= DOTS else None, 2.0 if len(known) <= MANY else 1.2
        style: dict[str, Any] = {"color": colour, "linewidth": width, "marker": dots, "markersize": 4}
        axes.plot(np.arange(len(values)), values, clip_on=False, **style)
        if len(known):
            heights[name] = _height(axes, float(values[known[-1]]))
            ends[name] = known[-1] / axes.get_xlim()[1] + 0.04
    bold: dict[str, Any] = {"fontsize": 9.5, "fontweight": "bold", "va": "center", **FONT}
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for name, height in _apart(heights).items():
        x, colour = ends[name], curves[name][1]
        axes.text(x, height, name, transform=axes.transAxes, color=colour, zorder=4, bbox=paper, **bold)


def _height(axes: "Axes", y: float) -> float:
    """Where a value lies on the y axis, as a share of its height."""
    pixel = axes.transData.transform((0, y))[1]
    return float(np.clip(axes.transAxes.inverted().transform((0, pixel))[1], 0, 1))


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """The heights in order, pushed apart evenly where they would overlap."""
    names = sorted(heights, key=lambda name: heights[name])
    placed = [heights[name] for name in names]
    for _ in range(len(names)):
        for i in range(len(names) - 1):
            short = APART - (placed[i + 1] - placed[i])
            if short > 0:
                placed[i], placed[i + 1] = placed[i] - short / 2, placed[i + 1] + short / 2
    return dict(zip(names, placed, strict=True))


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
    best = f"{RING} val {_number(summary.best_loss_val)}"
    if summary.verdict is Fit.UNDERFIT:
        return f"{best}   \u00b7\u00b7\u00b7\u00b7 baseline {_number(summary.baseline)}"
    return f"{best} at epoch {summary.best_epoch}"


def _best_score(metrics: Mapping[str, np.ndarray], score: str, summary: Summary) -> str:
    if summary.best_epoch is None:
        return ""
    value = float(metrics[f"{score}/val"][summary.best_epoch])
    if score == "accuracy":
        return f"{RING} val {value:.1%}"
    r2 = f", R\u00b2 {float(metrics['r2/val'][summary.best_epoch]):.2f}" if "r2/val" in metrics else ""
    return f"{RING} val {_number(value)}{r2}"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < LARGEST, values, np.nan)


def _number(value: float, _position: int | None = None) -> str:
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _percent(share: float, _position: int | None = None) -> str:
    return f"{100 * share:.3g}%"
