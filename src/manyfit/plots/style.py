"""The look of all pictures. matplotlib without pyplot: no global state, since a background thread may draw."""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Source: Okabe & Ito 2008, colours that the colour-blind tell apart.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"
FONT: dict[str, Any] = {"family": "DejaVu Sans"}  # comes with matplotlib: the same picture on every machine
LOG_DECADES = 1.0  # a log axis from here: on a linear one the lower half would be a flat line
DOTS = 12  # epochs up to which every point is marked
LONGEST = 12.5  # characters of a title to an inch that fit
MANY = 200  # epochs from which the lines are thin, so that noise does not become a band
APART = 0.085  # of an axis' height: least distance of two labels


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


def scale(axes: "Axes", curves: Sequence[np.ndarray], percent: bool = False, linear: bool = False) -> None:
    """Limits and ticks for curves (epochs + 1,) over whole epochs; a log axis where they span many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    last = max(len(curve) for curve in curves) - 1
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    positive = values[values > 0]
    decades = math.log10(positive.max() / positive.min()) if len(positive) else 0.0
    if decades > LOG_DECADES and values.min() >= 0 and not (percent or linear):
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
    digits = 3
    if len(values) and axes.get_yscale() == "linear":  # as many as tell ticks of a narrow range apart
        low, high = axes.get_ylim()
        digits += max(0, math.floor(math.log10(max(abs(low), abs(high)) / (high - low))))
    shown = functools.partial(_percent if percent else number, digits=digits)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))


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


def png(figure: "Figure") -> bytes:
    """The figure as a PNG: the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # matplotlib
    return buffer.getvalue()


def number(value: float, digits: int = 3) -> str:
    """As short as it reads well: `0.0431`, `1.2e5`."""
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


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


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}g}%"
