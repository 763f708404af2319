"""The pictures of a sweep: drawn for any mixture of runs, and none where there is nothing to show."""

import math

import numpy as np
import pytest

from manyfit.plots.style import png
from manyfit.sweeps import figures as sweep_figures
from manyfit.sweeps.findings import Row, ranked

LR = "optimizer.lr"


def row(number: int, value: float, state: str = "finished", seed: int = 0, **params: object) -> Row:
    """A run whose curve falls to its value."""
    curve = value + np.exp(-np.arange(6.0))
    named = {key.replace("__", "."): item for key, item in params.items()}
    return Row(number, named, value, state, seed, curve, None, None, None, None)  # type: ignore[arg-type]


GRID = [
    row(i, abs(math.log10(lr) + 2) + 0.1 * seed, seed=seed, optimizer__lr=lr, batch_size=batch)
    for i, (lr, batch, seed) in enumerate((lr, b, s) for lr in (1e-3, 1e-2, 1e-1) for b in (16, 32) for s in (0, 1))
]
MIXTURES = {
    "grid": GRID,
    "one": GRID[:1],
    "all failed": [row(i, math.nan, "failed", optimizer__lr=10.0**-i) for i in range(3)],
    "all diverged": [row(i, math.nan, "diverged", optimizer__lr=10.0**-i) for i in range(3)],
    "some diverged": [*GRID, row(12, math.nan, "diverged", optimizer__lr=1.0, batch_size=16)],
    "pruned": [*GRID, row(12, math.nan, "pruned", optimizer__lr=0.05, batch_size=16)],
    "names": [row(i, float(i), optimizer=name, optimizer__lr=lr) for i, (name, lr) in enumerate(
        (n, r) for n in ("adam", "sgd") for r in (1e-3, 1e-2))],
    "mixed batch": [row(i, float(i), batch_size=b, optimizer__lr=10.0**-i) for i, b in enumerate((16, "full", 32))],
    "no lr": [row(i, float(i), batch_size=2**i) for i in range(3)],
    "equal values": [row(i, 0.0, optimizer__lr=10.0**-i) for i in range(3)],
    "none": [],
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_any_mixture_of_runs_is_drawn(name: str) -> None:
    """No mixture of states, params and seeds breaks a picture."""
    rows = MIXTURES[name]
    settings = ranked(rows)
    figures = [
        sweep_figures.lr_sensitivity(settings, "best loss/val", "title"),
        sweep_figures.curves(rows, settings, "title"),
        sweep_figures.history(rows, "best loss/val", "minimize", "title"),
    ]
    for figure in figures:
        assert figure is None or png(figure).startswith(b"\x89PNG")


def test_a_rate_at_which_a_seed_diverged_has_no_mean() -> None:
    """That of the seeds that are left would flatter it: a cross, and the line ends before it."""
    rows = [row(i, 1.0, seed=i % 2, optimizer__lr=lr) for i, lr in enumerate((1e-3, 1e-3, 1e-2, 1e-2, 1e-1))]
    rows.append(row(5, math.nan, "diverged", seed=1, optimizer__lr=1e-1))
    figure = sweep_figures.lr_sensitivity(ranked(rows), "best loss/val", "title")
    assert figure is not None
    line, crosses, _ = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1e-3, 1e-2])
    np.testing.assert_allclose(crosses.get_xdata(), [1e-1])
    none = sweep_figures.lr_sensitivity(ranked(MIXTURES["all diverged"]), "best loss/val", "title")
    assert none is not None
    assert list(none.axes[0].get_yticks()) == []


def test_no_picture_where_there_is_nothing_to_show() -> None:
    """Rates that do not vary, runs without a value, a single importance."""
    assert sweep_figures.lr_sensitivity(ranked(MIXTURES["no lr"]), "best loss/val", "") is None
    assert sweep_figures.lr_sensitivity(ranked(GRID[:1]), "best loss/val", "") is None
    assert sweep_figures.history(MIXTURES["all failed"], "best loss/val", "minimize", "") is None
    assert sweep_figures.curves([], [], "") is None
    assert sweep_figures.importance({LR: 1.0}, "") is None


def test_sensitivity_has_a_line_for_each_batch_size_and_crosses_for_diverged_runs() -> None:
    """Two batch sizes: two joined lines of mean values at the rates; what diverged stands at the top edge."""
    figure = sweep_figures.lr_sensitivity(ranked(MIXTURES["some diverged"]), "best loss/val", "")
    assert figure is not None
    (axes,) = figure.axes
    joined = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert len(joined) == 2
    assert list(np.asarray(joined[0].get_xdata())) == [1e-3, 1e-2, 1e-1]
    assert np.allclose(np.asarray(joined[0].get_ydata()), [1.05, 0.05, 1.05])
    crosses = [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]  # type: ignore[arg-type]
    assert [list(np.asarray(line.get_ydata())) for line in crosses] == [[1.0]]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(("direction", "found"), [("minimize", 2), ("maximize", 0)])
def test_history_says_which_trial_was_best(direction: str, found: int) -> None:
    """The headline follows the direction."""
    rows = [row(i, value, optimizer__lr=value) for i, value in enumerate((3.0, 2.0, 1.0))]
    figure = sweep_figures.history(rows, "best loss/val", direction, "")
    assert figure is not None
    assert figure.texts[0].get_text() == f"Best found in trial {found}"


def test_more_batch_sizes_than_colours_still_differ() -> None:
    """Groups by size take colours from a continuous scale."""
    settings = ranked([row(i, 1.0, optimizer__lr=10.0**-i, batch_size=2**i) for i in range(8)])
    colours = [colour for _, colour in sweep_figures._groups(settings, "batch_size").values()]
    assert len(set(colours)) == 8
