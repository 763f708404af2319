"""exp and its kin against NumPy's in higher precision: within the errors that their docstrings state."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from manyfit.native import elementwise
from manyfit.native.compiled import OPTIONS

WRAPPED = {key: OPTIONS[key] for key in ("nogil", "error_model", "fastmath")}
FUNCTIONS: list[tuple[Callable[..., Any], Callable[..., Any], float, float]] = [  # with the interval, and the units
    (elementwise.exp, np.exp, 87.0, 1),
    (elementwise.tanh, np.tanh, 30.0, 4),
    (elementwise.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 80.0, 3),
    (elementwise.log1p, np.log1p, 1.0, 2),
]


def applied(function: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    @numba.njit(**WRAPPED)
    def every(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    out = np.empty_like(x)
    every(x, out)
    return out


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "reference", "most", "units"), FUNCTIONS, ids=lambda v: getattr(v, "__name__", "")
)
def test_errors_are_those_that_are_stated(
    function: Callable[..., Any], reference: Callable[..., Any], most: float, units: float, kind: type
) -> None:
    least = 0.0 if function is elementwise.log1p else -most
    x = np.concatenate([np.linspace(least, most, 20001), np.linspace(0, 1, 2001) ** 9]).astype(kind)
    want = reference(x.astype(np.longdouble))
    apart = np.abs(applied(function, x) - want)
    assert (apart <= units * np.finfo(kind).eps * np.abs(want)).all()
    assert np.isnan(applied(function, np.array([np.nan], kind))).all()


def test_erf() -> None:
    x = np.linspace(-6, 6, 20001)
    want = np.array([math.erf(value) for value in x])
    assert np.abs(applied(elementwise.erf, x.astype(np.float32)) - want).max() < 5e-7
    assert np.array_equal(applied(elementwise.erf, x), want)


def test_beyond_the_ends() -> None:
    """What is held there is what it is said to be: neither infinite nor 0."""
    for kind, low, high in ((np.float32, -87, 88), (np.float64, -708, 709)):
        ends = applied(elementwise.exp, np.array([-np.inf, low, high, np.inf], kind))
        assert ends[0] == ends[1] > 0
        assert ends[2] == ends[3] < np.inf
