"""The claims about units, losses, the learning rate and early stopping: the three answers, from made runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from conftest import judged_by
from manyfit.experiments import Run, Verdict

early_stopping = judged_by("early_stopping").early_stopping
learning_rate = judged_by("learning_rate").learning_rate
architectures = judged_by("architectures").architectures
losses = judged_by("losses").losses
nonlinearity = judged_by("nonlinearity").nonlinearity
perceptron = judged_by("perceptron").perceptron
relu_convergence = judged_by("relu_convergence").relu_convergence

Made = Callable[[float | None], list[Run]]
TRUE, FALSE = 1.0, 0.0


def truth(claimed: float | None, seed: int) -> float:
    """1 where the assertion is true, 0 where it is false; unclear: true of every other seed."""
    return float(seed % 2) if claimed is None else claimed


def jitter(seed: int) -> float:
    """Small, and another for each seed."""
    return 0.001 * (seed - 3.5)


def half_and_half() -> Any:
    """A job whose data hold two classes in equal shares, which no line tells apart."""
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat(10, 1)
    y = torch.tensor([0, 0, 1, 1]).repeat(10)
    return cast("Any", SimpleNamespace(data=SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, classes="ab")))


def perceptrons(claimed: float | None) -> list[Run]:
    """97% against the half that guessing gives; or 55%."""
    return [
        Run(
            {"seed": s},
            {"accuracy/val": np.array([0.5, 0.9])},
            {"accuracy/test": 0.55 + 0.42 * truth(claimed, s) + jitter(s)},
            job=half_and_half(),
        )
        for s in range(8)
    ]


def activations(claimed: float | None) -> list[Run]:
    """Identity at logistic regression's 50%, and ReLU at 98%; or ReLU at 55%."""
    runs = []
    for s in range(8):
        for name, score in (("identity", 0.5), ("relu", 0.55 + 0.43 * truth(claimed, s) + jitter(s))):
            settings = {"seed": s, "model.activation": name, "model.hidden": [4]}
            runs.append(Run(settings, {}, {"accuracy/test": score}, job=half_and_half()))
    return runs


def converging(claimed: float | None) -> list[Run]:
    """Halving the training loss at every epoch; sigmoid and tanh half as fast as ReLU, or twice."""
    runs = []
    for s in range(8):
        slow = 0.5 if truth(claimed, s) else 2.0
        for name, speed in (("relu", 1.0), ("sigmoid", slow), ("tanh", slow)):
            curve = 2.3 * 0.5 ** (np.arange(40) * speed * (1 + jitter(s)))
            settings = {"seed": s, "model.activation": name, "optimizer.lr": 0.1, "epochs": 39}
            runs.append(Run(settings, {"loss/train": curve, "progress/steps": np.arange(40)}, stage="report"))
    return runs


def lossy(claimed: float | None) -> list[Run]:
    """Squared error gets to 95% half as fast as cross-entropy, or twice; and explains the grade in any case."""
    runs = []
    for s in range(8):
        for name, speed in (("BCE", 1.0), ("SquaredProbability", 0.5 if truth(claimed, s) else 2.0)):
            curve = 1 - 0.5 * 0.7 ** (np.arange(40) * speed * (1 + jitter(s)))
            metrics = {"accuracy/train": curve, "progress/steps": np.arange(40), "loss/train": 1 - curve}
            settings = {"seed": s, "loss._target_": f"x.{name}", "optimizer.lr": 0.1}
            runs.append(Run(settings, metrics, {"accuracy/test": 0.97 + jitter(s)}, stage="report"))
        grade = {"rmse/train": np.array([20.0, 5.0]), "rmse/val": np.array([20.0, 5.0])}
        settings = {"seed": s, "loss._target_": "manyfit.losses.auto", "optimizer.lr": 0.1}
        runs.append(Run(settings, grade, {"r2/test": 0.95 + jitter(s), "rmse/test": 5.0}, stage="report"))
    return runs


def rates(claimed: float | None) -> list[Run]:
    """Nothing learnt at both ends of the range; or as much as in its middle."""
    runs = []
    for s in range(8):
        for lr, left in ((1e-4, 0.99), (1e-1, 0.05), (1e2, 0.97)):
            share = left if truth(claimed, s) or lr == 1e-1 else 0.1
            metrics = {name: np.array([2.3, 2.3 * (share + jitter(s))]) for name in ("loss/train", "loss/val")}
            runs.append(Run({"seed": s, "schedule._target_": "x.constant", "optimizer.lr": lr}, metrics))
    return runs


def stopping(claimed: float | None) -> list[Run]:
    """Test loss ends 10% above that of the best epoch; or at it."""
    runs = []
    for s in range(12):
        end = 1 + 0.1 * truth(claimed, s) + jitter(s)
        metrics = {"loss/val": np.array([2.0, 1.0, 1.2]), "loss/train": np.array([2.0, 1.0, 0.5])}
        metrics |= {"test_set/loss": np.array([2.0, 1.0, end]), "test_set/accuracy": np.array([0.5, 0.8, 0.7])}
        once = {"loss/test": 1.0, "accuracy/test": 0.8, "best/epoch": 1.0}
        runs.append(Run({"seed": 0, "data.split_seed": s}, metrics, once))
    return runs


def networks(claimed: float | None) -> list[Run]:
    """The paper's accuracies, and convolution at half of its own in another order; or ahead there, too."""
    runs = []
    for s in range(8):
        scores = {("MLP", ()): 0.32, ("MLP", (100, 100)): 0.68, ("GRU", None): 0.91, ("CNN", None): 0.94}
        for (name, hidden), score in scores.items():
            for shuffled in (False, True):
                end = 0.57 if shuffled and name == "CNN" and truth(claimed, s) else score
                settings = {"seed": s, "model._target_": f"x.{name}", "model.hidden": hidden, "data.shuffled": shuffled}
                runs.append(Run(settings, {"test_set/accuracy": np.array([0.1, end + jitter(s)])}))
    return runs


@pytest.mark.parametrize(
    ("claim", "made"),
    [
        (perceptron, perceptrons),
        (nonlinearity, activations),
        (relu_convergence, converging),
        (losses, lossy),
        (learning_rate, rates),
        (early_stopping, stopping),
        (architectures, networks),
    ],
)
@pytest.mark.parametrize(("claimed", "answer"), [(TRUE, "holds"), (FALSE, "fails"), (None, "undecided")])
def test_three_answers(
    claim: Callable[[Sequence[Run]], Verdict],
    made: Callable[[float | None], list[Run]],
    claimed: float | None,
    answer: str,
) -> None:
    """True, false, and true of every other seed; with two seeds nothing is decided."""
    assert claim(made(claimed)).answer == answer
    few = [run for run in made(claimed) if run.seed < 2 and run.settings.get("data.split_seed", 0) < 2]
    assert claim(few).answer == "undecided"


def test_what_the_data_do_not_have_is_not_spoken_of() -> None:
    """Test accuracy of a regression, the grade of data without numbers, a band of rates where none is stable."""
    numbers = [
        replace(
            run, metrics={k: v for k, v in run.metrics.items() if k != "test_set/accuracy"}, once={"loss/test": 1.0}
        )
        for run in stopping(TRUE)
    ]
    assert early_stopping(numbers).answer == "holds"
    assert "accuracy" not in early_stopping(numbers).sentence
    found = losses([run for run in lossy(TRUE) if "rmse/val" not in run.metrics])
    assert found.answer == "undecided"
    assert "These data have no numbers to predict" in found.sentence
    bad = learning_rate([run for run in rates(TRUE) if run["optimizer.lr"] != 0.1])
    assert bad.sentence.startswith("No rate leaves less than half of the loss: best is 100.")
