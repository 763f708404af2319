"""The activations of a layer: `z <- g(z)`, with g'(z) beside it."""

import math

from manyfit.native.compiled import Reals, compiled, real
from manyfit.native.elementwise import erf, exp, sigmoid, tanh
from manyfit.native.tables import GELU, LEAKY_RELU, RELU, SIGMOID, SILU, TANH


@compiled
def activate(code: int, option: float, z: Reals, slope: Reals) -> None:
    """Apply one to z (n,) in place, and write its derivative there to slope (n,).

    Args:
        code: Of `tables`.
        option: The slope below 0, of a leaky ReLU.
        z: Preactivations.
        slope: Written.
    """
    if code == RELU:  # Nair & Hinton 2010
        _relu(z, slope)
    elif code == LEAKY_RELU:  # Maas, Hannun & Ng 2013
        _leaky_relu(option, z, slope)
    elif code == TANH:
        _tanh(z, slope)
    elif code == SIGMOID:
        _sigmoid(z, slope)
    elif code == SILU:
        _silu(z, slope)
    elif code == GELU:
        _gelu(z, slope)


@compiled
def _relu(z: Reals, slope: Reals) -> None:
    """`max(z, 0)`; a NaN stays one, so that a run that diverged is seen."""
    zero, one = real(0, z), real(1, z)
    for i in range(len(z)):
        below = z[i] <= zero
        slope[i] = zero if below else one
        z[i] = zero if below else z[i]


@compiled
def _leaky_relu(option: float, z: Reals, slope: Reals) -> None:
    """`z` above 0, else `option z`."""
    zero, one, below = real(0, z), real(1, z), real(option, z)
    for i in range(len(z)):
        slope[i] = one if z[i] > zero else below
        z[i] *= slope[i]


@compiled
def _tanh(z: Reals, slope: Reals) -> None:
    """Slope `1 - tanh^2`."""
    one = real(1, z)
    for i in range(len(z)):
        t = tanh(z[i])
        z[i] = t
        slope[i] = one - t * t


@compiled
def _sigmoid(z: Reals, slope: Reals) -> None:
    """Slope `s (1 - s)`."""
    one = real(1, z)
    for i in range(len(z)):
        s = sigmoid(z[i])
        z[i] = s
        slope[i] = s * (one - s)


@compiled
def _silu(z: Reals, slope: Reals) -> None:
    """`z s` with `s = sigmoid(z)`, slope `s (1 + z (1 - s))`. Source: Elfwing, Uchibe & Doya 2018, eq. 5."""
    one = real(1, z)
    for i in range(len(z)):
        s = sigmoid(z[i])
        slope[i] = s * (one + z[i] * (one - s))
        z[i] *= s


@compiled
def _gelu(z: Reals, slope: Reals) -> None:
    """`z P` with the normal distribution P, slope `P + z p`. Source: Hendrycks & Gimpel 2016, eq. 1."""
    half, one, root = real(0.5, z), real(1, z), real(math.sqrt(0.5), z)
    density = real(1 / math.sqrt(2 * math.pi), z)
    for i in range(len(z)):
        below = half * (one + erf(z[i] * root))
        slope[i] = below + z[i] * exp(-half * z[i] * z[i]) * density
        z[i] *= below
