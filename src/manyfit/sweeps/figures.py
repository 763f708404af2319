"""The pictures of a sweep, in the style of all."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.plots.style import BLUE, FONT, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, canvas, panel, scale
from manyfit.statistics import POSITIVE, interval
from manyfit.sweeps.findings import NEAR, Row, Setting, by_fold, is_number, overlap, text, tolerance, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LR = "optimizer.lr"
NAMED = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, "#56B4E9", INK)  # groups by name
ORDERED = ("#440154", "#3B528B", "#21918C", "#5EC962", "#D0B000")  # viridis, its yellow darkened: groups by size
SIZE = (7.2, 3.9)
SHOWN = 3  # settings drawn with mean and band
UNVALUED = (("pruned", "| pruned", GREY), ("diverged", "\u00d7 diverged", GREY), ("failed", "\u00d7 failed", INK))
TALLEST = 3.0  # curves are cut at so many times the loss of the untrained network
RING: dict[str, Any] = {
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "markeredgewidth": 1.8,
    "zorder": 6,
}


def lr_sensitivity(settings: Sequence[Setting], objective: str, title: str) -> "Figure | None":
    """The objective against lr, in a colour for each batch size (or optimizer); None where lr does not vary.

    A line joins mean values where nothing else varies, with its interval over seeds as a band; a rate at which a run
    diverged is a cross at the top edge; the band of rates as good as the best is shaded.
    """
    points = [s for s in settings if _rate(s) > 0 and (s.counted or not s.reliable)]
    if LR not in varying(points):
        return None
    by = _by(points)
    figure, axes = _panel(_headline(settings), title, objective, "learning rate")
    known = [s for s in points if s.reliable and math.isfinite(s.mean)]
    _value_scale(axes, [row.value for s in known for row in s.counted], objective)
    rates = [_rate(s) for s in points]
    _rate_axis(axes, min(rates), max(rates))
    near = tolerance(settings, LR)
    if near and near[1] > near[0]:
        axes.axvspan(*near, color=GREEN, alpha=0.12, linewidth=0)
    groups = _groups(points, by)
    joined = set(varying(points)) <= {LR, by}
    for members, colour in groups.values():
        _sensitivity(axes, members, colour, joined)
    if not known:
        axes.set_yticks([])
    else:
        axes.plot([_rate(known[0])], [known[0].mean], "o", clip_on=False, **RING)
    names = {name: colour for name, (_, colour) in groups.items()} if by else {}
    also = {} if all(s.reliable for s in points) else {"\u00d7 diverged": GREY}
    if any(len(s.counted) > 1 for s in known):
        also["band: 95% CI" if joined else "bar: 95% CI"] = GREY
    if near and near[1] > near[0]:
        also[f"shaded: within\n{NEAR:.0%} of the best"] = GREEN
    _key(axes, by or "", names | also)
    return figure


def curves(rows: Sequence[Row], settings: Sequence[Setting], title: str) -> "Figure | None":
    """Every validation curve, the best marked; where seeds vary, mean and band of the best few settings."""
    from matplotlib.collections import LineCollection

    known = [row for row in rows if row.loss_val is not None and np.isfinite(row.loss_val).any()]
    if not known:
        return None
    figure, axes = _panel(f"{len(known)} runs, best in colour", title, "loss/val", "epoch")
    all_curves = [_finite(row.loss_val) for row in known]
    cap = TALLEST * max((float(c[0]) for c in all_curves if np.isfinite(c[0])), default=math.inf)
    shown = [np.where(curve <= cap, curve, np.nan) for curve in all_curves]
    scale(axes, shown)
    faint = float(np.clip(6 / len(known), 0.15, 0.7))
    together = [np.column_stack((np.arange(len(curve)), curve)) for curve in all_curves]
    axes.add_collection(LineCollection(together, colors=GREY, linewidths=0.8, alpha=faint, zorder=2), autolim=False)
    leading = [s for s in settings if math.isfinite(s.mean) and any(row.loss_val is not None for row in s.counted)]
    if not leading:
        return figure
    if any(len(s.counted) > 1 for s in leading):
        leading = leading[:SHOWN]
        for setting, colour in reversed(list(zip(leading, NAMED, strict=False))):
            _mean_and_band(axes, setting, colour)
        _key(axes, "mean and 95% CI", dict(zip(_labels(leading), NAMED, strict=False)))
        return figure
    best = next(row for row in leading[0].counted if row.loss_val is not None)
    values = _finite(best.loss_val)
    axes.plot(np.arange(len(values)), values, color=VERMILLION, linewidth=2.2, zorder=4)
    if best.best_epoch is not None:
        axes.plot([best.best_epoch], [values[best.best_epoch]], "o", clip_on=False, **RING)
    _key(axes, "best", dict(zip(_labels(leading[:1]), (VERMILLION,), strict=True)))
    return figure


def history(rows: Sequence[Row], objective: str, direction: str, title: str) -> "Figure | None":
    """The objective by trial number with the best so far, each the mean of its runs; what has none is at the top."""
    trials: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        trials[row.number].append(row)
    finished = {number: its for number, its in sorted(trials.items()) if all(row.counts for row in its)}
    if not finished:
        return None
    numbers = np.array(list(finished))
    values = np.array([np.mean([row.value for row in its]) for its in finished.values()])
    record = (np.minimum if direction == "minimize" else np.maximum).accumulate(values)
    found = int(numbers[np.flatnonzero(record == record[-1])[0]])
    figure, axes = _panel(f"Best found in trial {found}", title, objective, "trial")
    _value_scale(axes, list(values), objective)
    last = max(row.number for row in rows)
    axes.set_xlim(min(0, *trials) - 0.02 * last - 0.5, last * 1.02 + 0.5)
    axes.plot(numbers, values, "o", color=GREY, markersize=4.5, alpha=0.8, markeredgewidth=0, clip_on=False)
    axes.step([*numbers, last], [*record, record[-1]], where="post", color=VERMILLION, linewidth=2)
    axes.plot([found], [record[-1]], "o", clip_on=False, **RING)
    for state, name, colour in UNVALUED:
        _at_top(axes, [row.number for row in rows if row.state == state], name[0].replace("\u00d7", "x"), colour)
    states = {"finished": GREY, "best so far": VERMILLION}
    for state, name, colour in UNVALUED:
        if any(row.state == state for row in rows):
            states[name] = colour
    _key(axes, "", states)
    return figure


def importance(shares: Mapping[str, float], title: str) -> "Figure | None":
    """A bar for each varying param: how much of the differences it explains."""
    if len(shares) < 2:
        return None
    names = sorted(shares, key=lambda name: shares[name])
    top = names[-1]
    figure = canvas(f"{top} matters most", title, size=(7.2, 1.5 + 0.36 * len(names)))
    left = min(0.08 + 0.0125 * max(map(len, names)), 0.5)
    axes = figure.subplots(
        gridspec_kw={"left": left, "right": 0.92, "bottom": 0.2 / figure.get_figheight(),
                     "top": 1 - 0.95 / figure.get_figheight()}
    )  # fmt: skip
    panel(axes, "importance", x="")
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_xlim(0, max(max(shares.values()), 1e-9))
    axes.set_xticks([])
    heights = [shares[name] for name in names]
    axes.barh(names, heights, color=[BLUE if name == top else "#9CC4DD" for name in names], height=0.62)
    for place, value in enumerate(heights):
        axes.annotate(f"{value:.0%}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9.5,
                      color=INK, **FONT)  # fmt: skip
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    return figure


def _rate(setting: Setting) -> float:
    value = setting.params.get(LR)
    return float(value) if is_number(value) else 0.0


def _panel(headline: str, title: str, name: str, x: str) -> "tuple[Figure, Axes]":
    figure = canvas(headline, title, size=SIZE)
    axes = figure.subplots(gridspec_kw={"left": 0.085, "right": 0.76, "bottom": 0.125, "top": 0.76})
    panel(axes, name, x=x)
    return figure, axes


def _headline(settings: Sequence[Setting]) -> str:
    near = tolerance(settings, LR)
    if near is None:
        return "No run has a value"
    if near[1] == near[0]:
        return f"Best at lr {near[0]:.3g}; no other comes within {NEAR:.0%}"
    return f"Within {NEAR:.0%} of the best from lr {near[0]:.2g} to {near[1]:.2g}"


def _sensitivity(axes: "Axes", settings: Sequence[Setting], colour: str, joined: bool) -> None:
    """One group: its means, joined and banded where lr alone varies in it, and crosses for what diverged."""
    known = sorted((s for s in settings if s.reliable and math.isfinite(s.mean)), key=_rate)
    x = [_rate(s) for s in known]
    y = np.array([s.mean for s in known])
    low, high = (np.array([getattr(s, end) for s in known]) for end in ("low", "high"))
    style: dict[str, Any] = {"color": colour, "markersize": 5, "linewidth": 2, "clip_on": False, "markeredgewidth": 0}
    axes.plot(x, y, "o-" if joined else "o", alpha=1 if joined else 0.75, **style)
    if joined:  # NaN where there is one seed: nothing is drawn
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(x, y, [y - low, high - y], fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
    _at_top(axes, [_rate(s) for s in settings if not s.reliable], "x", colour)


def _mean_and_band(axes: "Axes", setting: Setting, colour: str) -> None:
    """Mean of its curves with its interval, as far as the shortest goes."""
    rows = [row for row in setting.counted if row.loss_val is not None]
    found = [_finite(row.loss_val) for row in rows if row.loss_val is not None]
    stack = np.stack([curve[: min(map(len, found))] for curve in found])
    shared = overlap(rows)
    stack = by_fold(rows, stack) if shared else stack
    epochs = np.flatnonzero(np.isfinite(stack).all(axis=0))
    low, high = interval(stack[:, epochs], limits=POSITIVE, overlap=shared)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0, zorder=3)
    axes.plot(epochs, stack[:, epochs].mean(axis=0), color=colour, linewidth=2.2, zorder=4)


def _value_scale(axes: "Axes", values: Sequence[float], objective: str) -> None:
    if values:
        scale(axes, [np.array(values)], percent="accuracy" in objective)


def _rate_axis(axes: "Axes", low: float, high: float) -> None:
    """A log axis with a tick at every decade, in short ranges also at 3 or at 2 and 5."""
    room = (high / low) ** 0.05
    low, high = low / room, high * room
    decades = math.log10(high / low)
    steps = (1,) if decades > 4 else (1, 3) if decades > 1.2 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = ticks or [math.sqrt(low * high)]
    axes.set_xticks(ticks, labels=[f"{tick:.3g}".replace("e-0", "e-") for tick in ticks])
    axes.set_xticks([], minor=True)


def _at_top(axes: "Axes", x: Sequence[float], marker: str, colour: str) -> None:
    """Marks along the top edge: there is no value to place them by."""
    style: dict[str, Any] = {"color": colour, "markersize": 7, "markeredgewidth": 1.8, "linestyle": "none"}
    axes.plot(x, [1.0] * len(x), marker, clip_on=False, transform=axes.get_xaxis_transform(), **style)


def _key(axes: "Axes", heading: str, colours: Mapping[str, str]) -> None:
    """Names in their colours, to the right of the axes from the top down."""
    lines = sum(name.count("\n") + 1 for name in colours)
    step, height = min(0.085, 0.9 / max(lines, 1)), 0.97
    if heading:
        axes.text(1.03, height, heading, transform=axes.transAxes, color=GREY, fontsize=9, va="center", **FONT)
        height -= step
    style = {"fontsize": 10, "fontweight": "bold", "va": "top", "linespacing": 1.15, **FONT}
    for name, colour in colours.items():
        axes.text(1.03, height + step / 2, name, transform=axes.transAxes, color=colour, **style)
        height -= step * (name.count("\n") + 1)


def _by(settings: Sequence[Setting]) -> str | None:
    """What the colours stand for: batch_size, else the first varying param that is a name; None: nothing."""
    keys = varying(settings)
    if "batch_size" in keys:
        return "batch_size"
    named = [key for key in keys if any(isinstance(s.params.get(key), str) for s in settings)]
    fit = [key for key in named if len({str(s.params.get(key)) for s in settings}) <= len(NAMED)]
    return fit[0] if fit else None


def _groups(settings: Sequence[Setting], by: str | None) -> dict[str, tuple[list[Setting], str]]:
    """Name of the group -> its settings and colour, in order."""
    values = {text(s.params.get(by)): s.params.get(by) for s in settings} if by else {"": None}
    numeric = all(is_number(value) or value == "full" for value in values.values())
    order = sorted(values, key=lambda name: (float(name) if is_number(values[name]) else math.inf, name))
    palette = _ramp(len(order)) if numeric else list(NAMED)
    return {
        name: ([s for s in settings if not by or text(s.params.get(by)) == name], colour)
        for name, colour in zip(order, palette if by else [BLUE], strict=False)
    }


def _ramp(count: int) -> list[str]:
    """So many colours in order."""
    known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ORDERED])
    places = np.linspace(0, len(ORDERED) - 1, count)
    mixed = np.stack([np.interp(places, np.arange(len(ORDERED)), channel) for channel in known.T], axis=1)
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in mixed.round().astype(int)]


def _labels(settings: Sequence[Setting]) -> list[str]:
    """Settings in short lines: the last part of each key and its value."""
    labels = ["\n".join(f"{key.rsplit('.')[-1]} {text(value)}" for key, value in s.params.items()) for s in settings]
    return [label + "\n" if label else "all" for label in labels]


def _finite(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return np.where(np.isfinite(values), values, np.nan)
