"""A verdict's panels -> a picture: one message, few colours, readable from the last row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from manyfit.experiments.verdict import Chart, Region, Series, Verdict
from manyfit.plots.style import BLUE, FONT, GREEN, GREY, INK, ORANGE, PALE, PURPLE, VERMILLION, canvas
from manyfit.sweeps.findings import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, INK, GREY, "#56B4E9", "#8C510A", "#F0E442"]
ROW = 3  # panels
FEW = 9  # places on a logarithmic axis that are all named
ANSWER = {"holds": GREEN, "fails": VERMILLION, "undecided": "#B07700"}


def draw(verdict: Verdict, title: str) -> "Figure":
    """Panels side by side, at most three in a row, under the message."""
    rows = -(-max(1, len(verdict.panels)) // ROW)
    count = -(-max(1, len(verdict.panels)) // rows)
    tilted = _tilted(verdict)
    height = 0.9 + rows * (2.8 if not tilted else 3.0)
    figure = canvas(verdict.headline, title, INK, (4.6 + 3.4 * (count - 1) + (1.2 if count == 1 else 0), height))
    width = figure.get_figwidth()
    grid = {
        "left": 0.75 / width,
        "right": 1 - 0.15 / width,
        "bottom": (0.75 if not tilted else 1.0) / height,
        "top": 1 - 0.95 / height,
        "wspace": 0.34,
        "hspace": 0.45,
    }
    places = figure.subplots(rows, count, squeeze=False, gridspec_kw=grid).flat
    figure.text(1 - 0.15 / width, 1 - 0.42 / height, verdict.answer, color=ANSWER[verdict.answer], ha="right", va="top",
                fontsize=12, fontweight="bold", **FONT)  # fmt: skip
    for axes in list(places)[len(verdict.panels) :]:
        axes.remove()
    for axes, panel in zip(figure.axes, verdict.panels, strict=True):
        if isinstance(panel, Region):
            _region(axes, panel)
        else:
            _chart(axes, panel)
    return figure


def _tilted(verdict: Verdict) -> bool:
    """Whether there are so many words on an axis that they are tilted."""
    charts = [panel for panel in verdict.panels if isinstance(panel, Chart)]
    return any(len({x for s in c.series for x in s.x if isinstance(x, str)}) > 4 for c in charts)


def _chart(axes: "Axes", chart: Chart) -> None:
    _plain(axes)
    words = any(isinstance(x, str) for series in chart.series for x in series.x)
    places = list(dict.fromkeys(x for series in chart.series for x in series.x)) if words else []
    for i, (series, colour) in enumerate(zip(chart.series, COLOURS * 2, strict=False)):
        x = np.array([places.index(x) for x in series.x] if words else series.x, float)
        if words:
            shift = (i - (len(chart.series) - 1) / 2) * 0.7 / max(1, len(chart.series))
            _points(axes, x + shift, series, colour)
        else:
            _line(axes, x, series, colour)
    if words:
        axes.set_xticks(range(len(places)), [str(place) for place in places])
        if len(places) > 4:
            for label in axes.get_xticklabels():
                label.set(rotation=35, ha="right", rotation_mode="anchor", fontsize=7)
    if chart.x == "epoch":
        axes.locator_params(axis="x", integer=True)
    if chart.x_log:
        few = sorted({float(x) for series in chart.series for x in series.x})
        if few and few[0] <= 0:  # as that of a penalty left out
            axes.set_xscale("symlog", linthresh=min((x for x in few if x > 0), default=1.0))
        else:
            axes.set_xscale("log")
        if len(few) <= FEW:
            axes.set_xticks(few, [f"{x:g}" for x in few], fontsize=8)
            axes.set_xticks([], minor=True)
    if chart.y_log:
        axes.set_yscale("log")
        seen = [y for series in chart.series for y in series.y if y > 0]
        bottom = min(seen, default=1) / 3
        axes.set_ylim(bottom, min(max(seen, default=1) * 3, 1e4 * float(np.median(seen or [1]))))  # one may explode
    if chart.level is not None:
        value, name = chart.level
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        height, right = (axes.transData + axes.transAxes.inverted()).transform, axes.get_xlim()[1]
        ends = [height((right, series.y[-1]))[1] for series in chart.series if len(series.y)]
        crowded = any(0 <= end - height((right, value))[1] < 0.1 for end in ends)  # where the name would stand
        place = (0.02 if crowded else 1, value)
        axes.annotate(name, place, xycoords=("axes fraction", "data"), va="bottom", fontsize=8,
                      ha="left" if crowded else "right", color=GREY, **FONT)  # fmt: skip
    axes.set_xlabel(chart.x, fontsize=9, **FONT)
    axes.set_title(chart.y, fontsize=10, fontweight="bold", loc="left", **FONT)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best", labelcolor="linecolor", handlelength=1.2)


def _line(axes: "Axes", x: np.ndarray, series: Series, colour: str) -> None:
    marker = "o" if len(x) <= 20 else ""
    axes.plot(x, series.y, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=series.name, zorder=3)
    if series.low is not None and series.high is not None:
        axes.fill_between(
            x,
            np.array(series.low, float),
            np.array(series.high, float),
            color=colour,
            alpha=0.18,
            linewidth=0,
            zorder=2,
        )


def _points(axes: "Axes", x: np.ndarray, series: Series, colour: str) -> None:
    y = np.array(series.y)
    low, high = np.array(series.low if series.low is not None else y), np.array(series.high or y)
    axes.errorbar(x, y, yerr=np.abs([y - low, high - y]), fmt="o", color=colour, markersize=5, linewidth=1.6,
                  capsize=3, label=series.name, zorder=3)  # fmt: skip


def _region(axes: "Axes", region: Region) -> None:
    _plain(axes)
    axes.grid(visible=False)
    axes.contourf(region.x, region.y, region.probability, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.55)
    axes.contour(region.x, region.y, region.probability, levels=[0.5], colors=INK, linewidths=1.4)
    for label, colour in enumerate((BLUE, VERMILLION)):
        here = region.points[region.classes == label]
        axes.scatter(here[:, 0], here[:, 1], s=7, color=colour, linewidths=0, alpha=0.8)
    axes.set_xlim(region.x[0], region.x[-1])
    axes.set_ylim(region.y[0], region.y[-1])
    axes.set_xlabel(region.names[0], fontsize=9, **FONT)
    axes.set_ylabel(region.names[1], fontsize=9, **FONT)
    axes.set_title(region.title, fontsize=10, fontweight="bold", loc="left", **FONT)


def _plain(axes: "Axes") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.7, zorder=0)
    axes.tick_params(labelsize=8)


def verdicts(found: Sequence[tuple[str, Verdict]]) -> str:
    """The table of several experiments' verdicts."""
    rows = [(name, v.answer, v.measured, v.sentence) for name, v in found]
    return markdown([("experiment", "verdict", "effect, 95% interval", "what came out"), *rows])
