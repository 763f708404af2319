"""Losses and scores of a mini-batch's outputs, and the gradient; which loss it is, is `manyfit.losses`'."""

import math

from manyfit.native.compiled import Real, Reals, compiled, part, real
from manyfit.native.elementwise import exp, log1p, sigmoid
from manyfit.native.tables import BCE, CROSS_ENTROPY, MSE, SQUARED_PROBABILITY


@compiled
def loss_and_gradient(code: int, option: float, weights: Reals, z: Reals, y: Reals) -> tuple[float, float]:
    """Sums over examples: of the loss; and of those classified right, or of squared errors.

    Args:
        code: Of `tables`.
        option: Huber's delta; of classes the share of a target that is spread over all of them.
        weights: What the loss of an example is multiplied by, for each class (classes,).
        z: Outputs (rows, width); becomes the gradient of the summed loss by them.
        y: Targets (rows,): class numbers, or values; may be overwritten.
    """
    if code == CROSS_ENTROPY:
        return _cross_entropy(option, weights, z, y)
    column = part(z, 0, len(y))
    if code == BCE:
        return _bce(real(option, z), real(weights[0], z), real(weights[1], z), column, y)
    if code == SQUARED_PROBABILITY:
        return _squared_probability(column, y)
    return _regression(code, real(option, z), column, y)


@compiled
def _cross_entropy(spread: float, weights: Reals, z: Reals, y: Reals) -> tuple[float, float]:
    """`-sum_j t_j log softmax(z)_j`, `t = (1 - spread) onehot(y) + spread / classes`; by z `softmax(z) - t`."""
    rows, width = z.shape
    total = right = 0.0
    for r in range(rows):
        guess, top, target = 0, z[r, 0], int(y[r])
        for j in range(1, width):
            larger = z[r, j] > top or z[r, j] != z[r, j]
            guess, top = (j, z[r, j]) if larger else (guess, top)
        right += guess == target
        total += weights[target] * (top - z[r, target])
        for j in range(width):
            z[r, j] -= top
        if spread > 0:
            beside = 0.0
            for j in range(width):
                beside += z[r, target] - z[r, j]
            total += weights[target] * spread * beside / width
    flat = part(z, 0, rows * width)
    for e in range(rows * width):
        flat[e] = exp(flat[e])
    for r in range(rows):
        whole = real(0, z)
        for j in range(width):
            whole += z[r, j]
        target = int(y[r])
        weight = weights[target]
        total += weight * math.log(whole)
        for j in range(width):
            z[r, j] /= whole
        z[r, target] -= real(1 - spread, z)
        if spread > 0 or weight != 1:
            for j in range(width):
                z[r, j] = (z[r, j] - real(spread / width, z)) * real(weight, z)
    return total, right


@compiled
def _bce(spread: Real, first: Real, second: Real, z: Reals, y: Reals) -> tuple[float, float]:
    """`max(z, 0) - z t + log(1 + e^-|z|)`, `t = (1 - spread) y + spread / 2`; by the logit `sigmoid(z) - t`.

    Times `first` or `second`, as the class is.
    """
    zero, one, rest, half, more = real(0, z), real(1, z), real(1, z) - spread, spread * real(0.5, z), second - first
    total = right = 0.0
    for r in range(len(z)):
        right += (z[r] > zero) == (y[r] > zero)
    for r in range(len(z)):
        small = exp(-abs(z[r]))
        soft, weight = rest * y[r] + half, first + more * y[r]
        loss = (z[r] if z[r] > zero else zero) - z[r] * soft + log1p(small)
        z[r] = ((one if z[r] > zero else small) / (one + small) - soft) * weight
        y[r] = loss * weight
    for r in range(len(z)):
        total += y[r]
    return total, right


@compiled
def _squared_probability(z: Reals, y: Reals) -> tuple[float, float]:
    """`(p - y)^2` with `p = sigmoid(z)`; by the logit `2 (p - y) p (1 - p)`."""
    total = right = 0.0
    for r in range(len(z)):
        right += (z[r] > real(0, z)) == (y[r] > real(0, z))
        p = sigmoid(z[r])
        error = p - y[r]
        total += error * error
        z[r] = real(2, z) * error * p * (real(1, z) - p)
    return total, right


@compiled
def _regression(code: int, delta: Real, z: Reals, y: Reals) -> tuple[float, float]:
    """`e^2` or Huber's of `e = z - y`; by the output `2 e`, or `e` held to delta."""
    total = squares = 0.0
    for r in range(len(z)):
        error = z[r] - y[r]
        squares += float(error) * float(error)
        if code == MSE:
            total += error * error
            z[r] = error + error
        elif abs(error) <= delta:
            total += real(0.5, z) * error * error
            z[r] = error
        else:
            total += delta * (abs(error) - real(0.5, z) * delta)
            z[r] = delta if error > real(0, z) else -delta if error < real(0, z) else error  # of a NaN
    return total, squares
