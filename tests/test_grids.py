"""From children to rows."""

import math
from typing import Any

from conftest import Compose
from manyfit.sweeps import grids
from manyfit.sweeps.findings import ranked
from manyfit.sweeps.parent import Child
from swept import LR, FakeRun, FakeSweep, child


def test_rows_of_a_grid_say_what_varies(swept: FakeSweep) -> None:
    """The chosen optimizer and the rate: neither the seed nor what follows from the optimizer."""
    rows = grids.rows_of(swept.children)
    assert len(rows) == 24
    assert rows[0].params == {"optimizer": "adam", LR: 1e-3}
    assert {row.seed for row in rows} == {0, 1, 2, 3}
    assert len(ranked(rows)) == 6


def test_rows_of_failed_and_diverged_children(composed: Compose) -> None:
    """A child without a result failed; lists become text."""
    configs = [composed("data=iris", f"model.hidden=[{width}]") for width in (4, 8)]
    run: Any = FakeRun()
    children = {0: Child(0, configs[0], run, error=ValueError("no")), 1: child(1, configs[1], math.nan)}
    rows = grids.rows_of(children)
    assert [row.state for row in rows] == ["failed", "diverged"]
    assert rows[1].params == {"model.hidden": "[8]"}
