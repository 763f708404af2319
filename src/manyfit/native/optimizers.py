"""The update of a member's weights, as torch.optim's classes make it: each a loop over the weights.

Every function has the weights w (n,), their gradient g (n,), which it may overwrite, moments m (moments, n), the number
t of this step from 1, the rate, and the options in the order of `known.OPTIONS`. Scalars are worked out in float64, as
torch works them out.
"""

import math

import numpy as np

from manyfit.native.compiled import Reals, compiled, real
from manyfit.native.tables import ADADELTA, ADAGRAD, ADAM, ADAMAX, NADAM, RADAM, RMSPROP, SGD


@compiled
def update(
    code: int,
    options: Reals,
    w: Reals,
    g: Reals,
    m: Reals,
    products: Reals,
    t: int,
    lr: float,
    decay: float,
    decoupled: bool,
) -> None:
    """One step.

    Args:
        code: Of `tables`.
        options: Of this code.
        w: Weights (n,), changed in place.
        g: Gradient (n,).
        m: Moments (moments, n), 0 before the first step.
        products: (1,), NAdam's product of its momenta, 1 before the first step.
        t: Number of the step, from 1.
        lr: Its rate.
        decay: Weight decay.
        decoupled: Whether it shrinks the weights, instead of being added to the gradient. Source: Loshchilov & Hutter
            2019, algorithm 2.
    """
    if decay != 0 and decoupled:
        shrink = real(1 - lr * decay, w)
        for i in range(len(w)):
            w[i] *= shrink
    elif decay != 0:
        factor = real(decay, w)
        for i in range(len(w)):
            g[i] += factor * w[i]
    if code == SGD:
        _sgd(options, w, g, m, t, lr)
    elif code == ADAM:
        _adam(options, w, g, m, t, lr)
    elif code == NADAM:
        _nadam(options, w, g, m, products, t, lr)
    elif code == RADAM:
        _radam(options, w, g, m, t, lr)
    elif code == ADAMAX:
        _adamax(options, w, g, m, t, lr)
    elif code == ADAGRAD:
        _adagrad(options, w, g, m, t, lr)
    elif code == ADADELTA:
        _adadelta(options, w, g, m, lr)
    elif code == RMSPROP:
        _rmsprop(options, w, g, m, lr)


@compiled
def _sgd(options: Reals, w: Reals, g: Reals, m: Reals, t: int, lr: float) -> None:
    """`v <- momentum v + (1 - dampening) g`, v = g at first; `w -= lr v`. Source: Sutskever et al. 2013, eq. 1 to 4."""
    rate, momentum = real(lr, w), real(options[0], w)
    fresh = real(1.0 if t == 1 else 1 - options[1], w)
    if options[0] == 0:
        for i in range(len(w)):
            w[i] -= rate * g[i]
    elif options[2] != 0:
        for i in range(len(w)):
            v = momentum * m[0, i] + fresh * g[i]
            m[0, i] = v
            w[i] -= rate * (g[i] + momentum * v)
    else:
        for i in range(len(w)):
            v = momentum * m[0, i] + fresh * g[i]
            m[0, i] = v
            w[i] -= rate * v


@compiled
def _moments(beta1: float, beta2: float, g: Reals, m: Reals) -> None:
    """`m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g^2`."""
    b1, b2, a1, a2 = real(beta1, g), real(beta2, g), real(1 - beta1, g), real(1 - beta2, g)
    for i in range(len(g)):
        m[0, i] = b1 * m[0, i] + a1 * g[i]
        m[1, i] = b2 * m[1, i] + a2 * g[i] * g[i]


@compiled
def _adam(options: Reals, w: Reals, g: Reals, m: Reals, t: int, lr: float) -> None:
    """`w -= lr m' / (sqrt(v') + eps)`. Source: Kingma & Ba 2015, algorithm 1; amsgrad: Reddi et al. 2018."""
    beta1, beta2 = options[0], options[1]
    rate = real(lr / (1 - beta1**t), w)
    root, eps = real(1 / math.sqrt(1 - beta2**t), w), real(options[2], w)
    b1, b2, a1, a2 = real(beta1, g), real(beta2, g), real(1 - beta1, g), real(1 - beta2, g)
    if options[3] != 0:
        _moments(beta1, beta2, g, m)
        for i in range(len(w)):
            m[2, i] = m[1, i] if m[1, i] > m[2, i] else m[2, i]
            w[i] -= rate * m[0, i] / (np.sqrt(m[2, i]) * root + eps)
    else:
        for i in range(len(w)):
            first = b1 * m[0, i] + a1 * g[i]
            second = b2 * m[1, i] + a2 * g[i] * g[i]
            m[0, i] = first
            m[1, i] = second
            w[i] -= rate * first / (np.sqrt(second) * root + eps)


@compiled
def _nadam(options: Reals, w: Reals, g: Reals, m: Reals, products: Reals, t: int, lr: float) -> None:
    """Adam with Nesterov's momentum. Source: Dozat 2016, algorithm 8."""
    beta1, beta2 = options[0], options[1]
    now = beta1 * (1 - 0.5 * 0.96 ** (t * options[3]))
    then = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * options[3]))
    products[0] *= now
    of_gradient = real(lr * (1 - now) / (1 - products[0]), w)
    of_moment = real(lr * then / (1 - products[0] * then), w)
    correction, eps = real(1 / (1 - beta2**t), w), real(options[2], w)
    _moments(beta1, beta2, g, m)
    for i in range(len(w)):
        w[i] -= (of_gradient * g[i] + of_moment * m[0, i]) / (np.sqrt(m[1, i] * correction) + eps)


@compiled
def _radam(options: Reals, w: Reals, g: Reals, m: Reals, t: int, lr: float) -> None:
    """Adam whose rate is rectified while the variance of `v` is unknown. Source: Liu et al. 2020, algorithm 2."""
    beta1, beta2 = options[0], options[1]
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    rate = lr / (1 - beta1**t)
    eps = real(options[2], w)
    _moments(beta1, beta2, g, m)
    if length > 5:
        rectified = math.sqrt(
            (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        ) * math.sqrt(1 - beta2**t)
        factor = real(rate * rectified, w)
        for i in range(len(w)):
            w[i] -= factor * m[0, i] / (np.sqrt(m[1, i]) + eps)
    else:
        factor = real(rate, w)
        for i in range(len(w)):
            w[i] -= factor * m[0, i]


@compiled
def _adamax(options: Reals, w: Reals, g: Reals, m: Reals, t: int, lr: float) -> None:
    """`u <- max(beta2 u, |g| + eps)`, `w -= lr m' / u`. Source: Kingma & Ba 2015, algorithm 2."""
    b1, b2, a1 = real(options[0], w), real(options[1], w), real(1 - options[0], w)
    rate, eps = real(lr / (1 - options[0] ** t), w), real(options[2], w)
    for i in range(len(w)):
        m[0, i] = b1 * m[0, i] + a1 * g[i]
        before, here = b2 * m[1, i], abs(g[i]) + eps
        m[1, i] = before if before > here else here
        w[i] -= rate * m[0, i] / m[1, i]


@compiled
def _adagrad(options: Reals, w: Reals, g: Reals, m: Reals, t: int, lr: float) -> None:
    """`s <- s + g^2`, `w -= lr g / (sqrt(s) + eps)`. Source: Duchi, Hazan & Singer 2011, figure 1."""
    rate, eps = real(lr / (1 + (t - 1) * options[0]), w), real(options[1], w)
    if t == 1:
        for i in range(len(w)):
            m[0, i] = real(options[2], w)
    for i in range(len(w)):
        m[0, i] += g[i] * g[i]
        w[i] -= rate * g[i] / (np.sqrt(m[0, i]) + eps)


@compiled
def _adadelta(options: Reals, w: Reals, g: Reals, m: Reals, lr: float) -> None:
    """`d = sqrt(u + eps) / sqrt(s + eps) g`, means s of `g^2`, u of `d^2`. Source: Zeiler 2012, algorithm 1."""
    rate, rho, rest, eps = real(lr, w), real(options[0], w), real(1 - options[0], w), real(options[1], w)
    for i in range(len(w)):
        m[0, i] = rho * m[0, i] + rest * g[i] * g[i]
        d = np.sqrt(m[1, i] + eps) / np.sqrt(m[0, i] + eps) * g[i]
        m[1, i] = rho * m[1, i] + rest * d * d
        w[i] -= rate * d


@compiled
def _rmsprop(options: Reals, w: Reals, g: Reals, m: Reals, lr: float) -> None:
    """`s <- alpha s + (1 - alpha) g^2`, `w -= lr g / (sqrt(s) + eps)`. Source: Tieleman & Hinton 2012, slide 29.

    Centred, s is less the square of the running mean of g (Graves 2013, eq. 38 to 45); with momentum, the quotients are
    gathered.
    """
    rate, alpha, rest, eps = real(lr, w), real(options[0], w), real(1 - options[0], w), real(options[1], w)
    momentum, centred = real(options[2], w), options[3] != 0
    last = len(m) - 1
    for i in range(len(w)):
        m[0, i] = alpha * m[0, i] + rest * g[i] * g[i]
    if centred:
        for i in range(len(w)):
            m[1, i] = alpha * m[1, i] + rest * g[i]
            g[i] /= np.sqrt(m[0, i] - m[1, i] * m[1, i]) + eps
    else:
        for i in range(len(w)):
            g[i] /= np.sqrt(m[0, i]) + eps
    if options[2] > 0:
        for i in range(len(w)):
            m[last, i] = momentum * m[last, i] + g[i]
            w[i] -= rate * m[last, i]
    else:
        for i in range(len(w)):
            w[i] -= rate * g[i]
