"""Honest warnings about a sweep's best."""

import math
from dataclasses import replace
from typing import Any

import pytest

from conftest import Compose
from manyfit.sweeps import cautions
from manyfit.sweeps.findings import ranked
from swept import row


@pytest.mark.parametrize(
    ("best", "given", "side"),
    [
        (1e-3, [1e-3, 1e-2, 1e-1], "lowest"),
        (1e-1, [1e-3, 1e-2, 1e-1], "highest"),
        (1e-2, [1e-3, 1e-2, 1e-1], None),
        (1.1e-5, (1e-5, 1e-1), "lowest"),
        (9.9e-2, (1e-5, 1e-1), "highest"),
        (2e-2, (1e-5, 1e-1), None),
        (0.0, [0.0, 0.5], None),
        (0.5, [0.0, 0.5], "highest"),
        (32, [32], None),
        (128, [16, "full", 128], "highest"),
    ],
)
def test_edges(best: float, given: Any, side: str | None) -> None:
    """The rim of a range in decades, the ends of a list; 0 is a natural end."""
    assert cautions._side(best, given) == side


def test_edge_warning_names_the_key() -> None:
    """And what to try."""
    settings = ranked([row(i, float(i), optimizer__lr=lr) for i, lr in enumerate((0.1, 0.01))])
    assert any("optimizer.lr, 0.1, is the highest tried: higher" in line for line in cautions.sentences([], settings))


def test_seed_warnings() -> None:
    """One seed cannot tell; overlapping intervals do not; clear differences pass."""
    one = ranked([row(i, float(i), lr=i) for i in range(3)])
    near = ranked([row(2 * i + s, i + 3.0 * s, seed=s, lr=i) for i in range(2) for s in range(2)])
    clear = ranked([row(3 * i + s, 10 * i + 0.1 * s, seed=s, lr=i) for i in range(2) for s in range(3)])
    assert "one seed" in cautions._seeds(one)[0]
    assert "overlap" in cautions._seeds(near)[0]
    assert cautions._seeds(clear) == []


def test_share_of_bad_runs_and_unequal_budgets(composed: Compose) -> None:
    """Both are said; a good sweep hears neither."""
    configs = [composed("data=iris", f"epochs={epochs}") for epochs in (2, 5)]
    rows = [replace(row(i, 1.0, lr=i), config=config) for i, config in enumerate(configs)]
    rows += [row(2, math.nan, "failed", lr=2), row(3, math.nan, "diverged", lr=3)]
    found = " ".join(cautions.sentences(rows, ranked(rows)))
    assert "1 diverged and 1 failed of 4 runs" in found
    assert "epochs from 2 to 5" in found
    good = " ".join(cautions.sentences(rows[:1], ranked(rows[:1])))
    assert good == ""
