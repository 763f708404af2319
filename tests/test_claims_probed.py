"""The claims about what probes measure: the three answers, from made curves."""

import numpy as np
import pytest

from conftest import judged_by
from manyfit.experiments import Run

dying_relu = judged_by("dying_relu").dying_relu
vanishing_gradient = judged_by("vanishing_gradient").vanishing_gradient
zero_centred = judged_by("zero_centred").zero_centred

SEEDS = range(8)


def jitter(seed: int) -> float:
    """Small, and another for each seed."""
    return 0.01 * (seed - 3.5)


@pytest.mark.parametrize(
    ("sigmoid", "tanh", "relu", "answer"),
    [(6, 2, 0.2, "holds"), (0.2, 0.1, 0.1, "fails"), (6, 2, None, "undecided")],
)
def test_vanishing_gradient(sigmoid: float, tanh: float, relu: float | None, answer: str) -> None:
    """Decades lost with depth: by sigmoid and tanh only, by none, and by ReLU in half of the seeds."""
    runs = []
    for seed in SEEDS:
        lost = {"sigmoid": sigmoid, "tanh": tanh, "relu": relu if relu is not None else 2.2 * (seed % 2)}
        for name, decades in lost.items():
            for depth in (2, 10):
                ratio = 10 ** -(decades * (depth == 10) + jitter(seed) * (depth == 10))
                settings = {"seed": seed, "model.activation": name, "model.hidden": [32] * depth}
                runs.append(Run(settings, {"gradient_norm/ratio": np.array([ratio, ratio])}))
    assert vanishing_gradient(runs).answer == answer


@pytest.mark.parametrize(("more", "answer"), [(20, "holds"), (-20, "fails"), (None, "undecided")])
def test_zero_centred(more: float | None, answer: str) -> None:
    """Sigmoid's updates turn more, less, or sometimes this and sometimes that."""
    runs = []
    for seed in SEEDS:
        extra = more if more is not None else 20 * (-1) ** seed
        for name, angle in (("sigmoid", 70 + extra + jitter(seed)), ("tanh", 70.0)):
            settings = {"seed": seed, "model.activation": name, "optimizer.lr": 0.1}
            metrics = {"update_angle": np.array([np.nan, angle, angle])}
            runs += [Run(settings, metrics, stage=stage) for stage in ("grid", "report")]
    assert zero_centred(runs).answer == answer


def test_zero_centred_at_equal_rates() -> None:
    """At the tuned rates sigmoid's updates turn more, at equal rates they do not: it is the rate that turns them."""
    runs = []
    for seed in SEEDS:
        for lr, of_rate in ((0.1, 60), (3.0, 90)):
            for name, angle in (("sigmoid", of_rate - 5 + jitter(seed)), ("tanh", of_rate)):
                settings = {"seed": seed, "model.activation": name, "optimizer.lr": lr}
                metrics = {"update_angle": np.array([np.nan, angle, angle])}
                runs.append(Run(settings, metrics))
                if (name, lr) in (("sigmoid", 3.0), ("tanh", 0.1)):
                    runs.append(Run(settings, metrics, stage="report"))
    assert zero_centred(runs).answer == "fails"


@pytest.mark.parametrize(("dead", "answer"), [(0.6, "holds"), (0.02, "fails"), (None, "undecided")])
def test_dying_relu(dead: float | None, answer: str) -> None:
    """ReLU units die at the largest rate, do not, or do in half of the seeds."""
    runs = []
    for seed in SEEDS:
        share = dead if dead is not None else 0.3 * (seed % 2)
        for name in ("relu", "leaky_relu", "prelu"):
            for lr in (1e-3, 1e-1):
                end = share + 0.01 * jitter(seed) if name == "relu" and lr == 1e-1 else 0.0
                settings = {"seed": seed, "model.activation": name, "optimizer.lr": lr}
                runs.append(Run(settings, {"dead_units": np.array([0.0, end])}))
    assert dying_relu(runs).answer == answer
