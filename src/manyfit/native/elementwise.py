"""exp, tanh and erf as polynomials that vectorise: libm's are calls, one element at a time.

The polynomials are Taylor's, on an interval so short that what is cut off is below the rounding. Errors stand with each
function, and are tested.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from manyfit.native.compiled import OPTIONS, Real, compiled, intrinsic, real

# Adding 1.5 * 2^23 (or 2^52) rounds to an integer, which then stands in the lowest bits of the sum.
ROUNDER32, ROUNDER64 = np.float32(1.5 * 2**23), 1.5 * 2.0**52
LOG2E32, LOG2E64 = np.float32(math.log2(math.e)), math.log2(math.e)
# ln 2 in two parts, the first of so few bits that its product with an exponent is exact.
HIGH32, LOW32 = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
HIGH64, LOW64 = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
TAYLOR32 = tuple(np.float32(1 / math.factorial(i)) for i in range(8))
ARTANH32 = tuple(np.float32(2 / (2 * i + 1)) for i in range(9))  # in powers of x^2, times 2
ARTANH64 = tuple(2 / (2 * i + 1) for i in range(18))
TAYLOR64 = tuple(1 / math.factorial(i) for i in range(14))


@intrinsic
def _bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float as an integer of its width."""
    kind: Any = {types.float32: types.int32, types.float64: types.int64}[value]
    return kind(value), _bitcast


@intrinsic
def _number(typingctx: Any, value: Any) -> Any:
    """The float that has these bits."""
    kind: Any = {types.int32: types.float32, types.int64: types.float64}[value]
    return kind(value), _bitcast


def _bitcast(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
    return builder.bitcast(args[0], context.get_value_type(signature.return_type))


def _parts(x: Real) -> Real:
    """`(2^n, e^r - 1)` where `x = n ln 2 + r` and |r| <= ln(2) / 2. x is held to where 2^n is a normal number."""
    n = round(x * LOG2E64)
    return 2.0**n, math.expm1(x - n * math.log(2))


@overload(_parts, jit_options=OPTIONS)
def _parts_of(x: Any) -> Any:
    def single(x: Any) -> Any:
        x = np.float32(88.0) if x > np.float32(88.0) else x  # so a NaN stays one
        x = np.float32(-87.0) if x < np.float32(-87.0) else x
        shifted = x * LOG2E32 + ROUNDER32
        n = shifted - ROUNDER32
        r = (x - n * HIGH32) - n * LOW32
        p = TAYLOR32[7]
        for i in (6, 5, 4, 3, 2):
            p = p * r + TAYLOR32[i]
        return _number(np.int32((_bits(shifted) << np.int32(23)) + np.int32(127 << 23))), p * r * r + r

    def double(x: Any) -> Any:
        x = 709.0 if x > 709.0 else x
        x = -708.0 if x < -708.0 else x
        shifted = x * LOG2E64 + ROUNDER64
        n = shifted - ROUNDER64
        r = (x - n * HIGH64) - n * LOW64
        p = TAYLOR64[13]
        for i in (12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2):
            p = p * r + TAYLOR64[i]
        return _number((_bits(shifted) << 52) + (1023 << 52)), p * r * r + r

    return single if x == types.float32 else double


@compiled
def exp(x: Real) -> Real:
    """e^x, within 1 unit in the last place for x from -87 to 88 (float32), -708 to 709 (float64); beyond, the ends'."""
    scale, p = _parts(x)
    return scale * p + scale


@compiled
def tanh(x: Real) -> Real:
    """`(e^2x - 1) / (e^2x + 1)`, within 4 units in the last place, of a small x too."""
    most = real(20, x)  # where it is 1
    x = most if x > most else x
    x = -most if x < -most else x
    scale, p = _parts(x + x)
    above = scale * p + (scale - real(1, x))
    return above / (above + real(2, x))


@compiled
def sigmoid(x: Real) -> Real:
    """`1 / (1 + e^-x)`, within 3 units in the last place."""
    return real(1, x) / (real(1, x) + exp(-x))


def log1p(x: Real) -> Real:
    """log(1 + x) for x from 0 to 1, within 2 units in the last place: `2 artanh(x / (2 + x))` by its series."""
    return math.log1p(x)


@overload(log1p, jit_options=OPTIONS)
def _log1p_of(x: Any) -> Any:
    def single(x: Any) -> Any:
        s = x / (np.float32(2) + x)
        square, p = s * s, ARTANH32[8]
        for i in (7, 6, 5, 4, 3, 2, 1, 0):
            p = p * square + ARTANH32[i]
        return s * p

    def double(x: Any) -> Any:
        s = x / (2 + x)
        square, p = s * s, ARTANH64[17]
        for i in (16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0):
            p = p * square + ARTANH64[i]
        return s * p

    return single if x == types.float32 else double


def erf(x: Real) -> Real:
    """The error function: float64's by libm; float32's within 5e-7. Source: Abramowitz & Stegun 1964, eq. 7.1.26."""
    return math.erf(x)


@overload(erf, jit_options=OPTIONS)
def _erf_of(x: Any) -> Any:
    a, b, c, d, e, f = (
        np.float32(v) for v in (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    )

    def single(x: Any) -> Any:
        size = abs(x)
        t = np.float32(1) / (np.float32(1) + a * size)
        p = np.float32(1) - ((((f * t + e) * t + d) * t + c) * t + b) * t * exp(-size * size)
        return -p if x < np.float32(0) else p

    def double(x: Any) -> Any:
        return math.erf(x)

    return single if x == types.float32 else double
