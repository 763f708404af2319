"""What a network is made of: the perceptron, the activation, the loss."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from manyfit.experiments.runs import Run, by, curve, differences, in_unit, line
from manyfit.experiments.verdict import Chart, Region, Series, Verdict, about, all_of, decide, holm, with_networks
from manyfit.statistics import POSITIVE, SHARE, Effect, effect

if TYPE_CHECKING:
    from torch import nn

    from manyfit.data.splits import Dataset
    from manyfit.training.prepared import Job

SEPARATES = 0.3  # accuracy above guessing
LINEAR = 0.01  # accuracy, either way
BEYOND = 0.2  # accuracy above a line
CONVERGED = 0.1  # training loss
ACCURATE = 0.95  # on the training set
AS_GOOD = -0.01  # accuracy lost
EXPLAINED = 0.9  # of the variance
GRID = 121  # points a side of a map


@with_networks
@about("classification")
def perceptron(runs: Sequence[Run]) -> Verdict:
    """Test accuracy minus the share of the most frequent class: holds if above 30 points, in the mean over seeds."""
    known = [run for run in runs if run.job is not None]
    gain = effect([run.test() - _most_frequent(run.job.data) for run in known if run.job is not None])
    before = effect([run.metrics["accuracy/val"][0] for run in runs])
    after = effect([run.test() for run in runs])
    moved = effect([run.final("accuracy/val") for run in runs])
    return Verdict(
        decide(gain, SEPARATES),
        gain,
        "of accuracy above the most frequent class",
        f"The line of a perceptron has {after.mean:.1%} of the test set on the right side, before training "
        f"{before.mean:.0%} of the validation set.",
        f"Training moves the line: {before.mean:.0%} of the validation set right before, {moved.mean:.0%} after",
        (*_before_and_after(known), Chart("epoch", "validation accuracy", [curve("accuracy", runs, "accuracy/val")])),
    )


def _most_frequent(data: "Dataset") -> float:
    """The test accuracy of the constant that is best on the training set."""
    return float((data.y_test == data.y_train.bincount().argmax()).double().mean())


def _before_and_after(runs: Sequence[Run]) -> list[Region]:
    """Of the run that had the longest way to go."""
    whole = [run for run in runs if run.result is not None]
    if not whole or not _is_plane(runs):
        return []
    run = min(whole, key=lambda run: float(run.metrics["accuracy/val"][0]))
    assert run.job is not None
    seed = f"seed {run.seed}"
    return [
        _region(f"before, {seed}", run.job.data, _untrained(run.job)),
        _region(f"after, {seed}", run.job.data, run.predictor),
    ]


def _untrained(job: "Job") -> "nn.Module":
    from manyfit.models import Predictor

    d = job.data
    return Predictor(job.network, d.x_mean, d.x_std, d.y_mean, d.y_std, len(d.classes)).eval()


def _is_plane(runs: Sequence[Run]) -> bool:
    """Whether the data have two features and two classes, so that there is a map of them."""
    data = [run.job.data for run in runs if run.job is not None]
    return all(one.x_train.shape[1] == 2 and len(one.classes) == 2 for one in data)


def _region(title: str, data: "Dataset", predictor: "nn.Module") -> Region:
    """What a predictor, on raw features, decides over the plane of the training examples."""
    import torch

    points = (data.x_train * data.x_std + data.x_mean).numpy()
    low, high = points.min(0), points.max(0)
    margin = 0.05 * (high - low)
    x, y = np.linspace(low - margin, high + margin, GRID).T
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    with torch.no_grad():
        p = predictor(torch.from_numpy(grid.astype(np.float32)))[:, 1].numpy()
    names = (data.features[0], data.features[1])
    return Region(title, names, x, y, p.reshape(len(y), len(x)), points, data.y_train.numpy())


@with_networks
@about("classification")
def nonlinearity(runs: Sequence[Run]) -> Verdict:
    """Test accuracy against scikit-learn's logistic regression on the same split.

    Holds if identity networks of every depth and width are less than 1 point away from it, in the mean over seeds of
    the distance, and every other activation is more than 20 points above it (Holm over all).
    """
    names = by(runs, "model.activation")
    sizes = by(names["identity"], "model.hidden")
    others = {name: group for name, group in names.items() if name != "identity"}
    straight = _line_accuracy(runs)
    bars = {str(size): [LINEAR - abs(run.test() - straight) for run in group] for size, group in sizes.items()}
    bars |= {name: [run.test() - straight - BEYOND for run in group] for name, group in others.items()}
    answers = holm(bars)
    away = max((effect([abs(run.test() - straight) for run in group]).mean for group in sizes.values()), default=0)
    above = {name: effect([run.test() - straight for run in group]) for name, group in others.items()}
    least = min(above.values(), key=lambda e: e.mean)
    said = ", ".join(f"{name} {found.mean:.0%}" for name, found in above.items())
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        least,
        "of accuracy that the least of the non-linear activations is above a line",
        f"Identity networks stay within {away:.1%} of logistic regression's {straight:.1%} at every depth and width; "
        f"above it are {said}.",
        f"Without an activation any depth is a line ({straight:.0%}); with one, {straight + least.mean:.0%} and more",
        (
            *_maps({"identity": sizes[max(sizes, key=len)], "relu": others.get("relu", [])}),
            Chart(
                "network",
                "test accuracy",
                [
                    line("identity", sizes, Run.test, lambda size: "x".join(map(str, size)), limits=SHARE),
                    line("non-linear", others, Run.test, limits=SHARE),
                ],
                level=(straight, "logistic regression"),
            ),
        ),
    )


def _line_accuracy(runs: Sequence[Run]) -> float:
    """Of scikit-learn's logistic regression on the split of these runs; NaN without one."""
    from sklearn.linear_model import LogisticRegression

    data = next((run.job.data for run in runs if run.job is not None), None)
    if data is None:
        return float("nan")
    found = LogisticRegression(max_iter=1000).fit(data.x_train.numpy(), data.y_train.numpy())
    return float(found.score(data.x_test.numpy(), data.y_test.numpy()))


def _maps(groups: Mapping[str, Sequence[Run]]) -> list[Region]:
    """What the first run of each group decides."""
    regions = []
    for name, group in groups.items():
        for run in group[:1] if _is_plane(group) else ():
            if run.job is not None and run.result is not None:
                size = "x".join(map(str, run["model.hidden"]))
                regions.append(_region(f"{name}, {size}", run.job.data, run.predictor))
    return regions


def relu_convergence(runs: Sequence[Run]) -> Verdict:
    """log2 of the epochs to a training loss of 0.1, sigmoid's and tanh's over ReLU's, each at its best lr, fresh seeds.

    Holds if ReLU needs fewer than both (Holm). Who does not get there counts as one epoch more than there were.
    """
    names = by([run for run in runs if run.stage == "report"], "model.activation")
    epochs = {name: effect([_epochs(run) for run in group]) for name, group in names.items()}
    ratios = {
        name: differences(group, names["relu"], lambda run: np.log2(_epochs(run)))
        for name, group in names.items()
        if name != "relu"
    }
    answers = holm(ratios)
    least = min(ratios, key=lambda name: float(np.mean(ratios[name])))
    said = ", ".join(
        f"{name} {e.mean:.1f} (lr {names[name][0]['optimizer.lr']:g}{_never(names[name])})"
        for name, e in epochs.items()
    )
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        answers[least][1],
        f"doublings of the epochs, {least} over relu",
        f"Epochs to a training loss of {CONVERGED}: {said}.",
        f"{least} needs {2 ** answers[least][1].mean:.1f} times the epochs of ReLU",
        (
            Chart(
                "epoch",
                in_unit("training loss", runs),
                [curve(name, group, "loss/train") for name, group in names.items()],
                y_log=True,
                level=(CONVERGED, "target"),
            ),
            Chart(
                "activation",
                f"epochs to a training loss of {CONVERGED}",
                [line("epochs", names, _epochs, limits=POSITIVE)],
            ),
        ),
    )


def _never(runs: Sequence[Run]) -> str:
    """How many did not get to the target loss, if any."""
    count = sum(math.isinf(run.reaches("loss/train", CONVERGED)) for run in runs)
    return f", {count} of {len(runs)} never" if count else ""


def _epochs(run: Run) -> float:
    """To the target loss."""
    return float(min(run.reaches("loss/train", CONVERGED), run["epochs"] + 1))


def losses(runs: Sequence[Run]) -> Verdict:
    """One classifier under cross-entropy and under the squared error of its probability, each at its best lr.

    Holds if squared error needs more epochs to 95% training accuracy (log2 of the ratio above 0; who does not get there
    counts as one epoch more than there were), cross-entropy is less than 1 point less accurate on the test set, and in
    regression squared error explains more than 90% of the variance.
    """
    report = [run for run in runs if run.stage == "report"]
    groups = by(report, "loss")
    entropy, squared = (groups.get(name, []) for name in ("BCE", "SquaredProbability"))
    real = [run for run in report if "rmse/val" in run.metrics]
    longer = effect(differences(squared, entropy, lambda run: np.log2(_epochs_right(run))))
    better = effect(differences(entropy, squared, Run.test))
    explained = effect([run.test("r2") for run in real])
    both = {"cross-entropy": entropy, "squared error": squared}
    right: dict[str, Effect] = {name: effect([_epochs_right(run) for run in group]) for name, group in both.items()}
    said = ", ".join(f"{name} {e.mean:.1f}" for name, e in right.items())
    return Verdict(
        all_of([decide(longer), decide(better, AS_GOOD), decide(explained, EXPLAINED)]),
        longer,
        "doublings of the epochs, squared error over cross-entropy",
        f"Epochs to {ACCURATE:.0%} training accuracy: {said}; test accuracy differs by {better.mean:+.1%}."
        f"{_explains(real)}",
        f"Squared error takes {2**longer.mean:.1f} times the epochs",
        (
            Chart(
                "epoch",
                "training accuracy",
                [curve(name, group, "accuracy/train") for name, group in both.items() if group],
                level=(ACCURATE, "target"),
            ),
            _grades(real),
        ),
    )


def _explains(runs: Sequence[Run]) -> str:
    """What squared error comes to on numbers."""
    if not runs:
        return " These data have no numbers to predict, which the assertion speaks of as well."
    rmse, r2 = (effect([run.test(name) for run in runs]).mean for name in ("rmse", "r2"))
    return f" On the grade squared error comes to an RMSE of {rmse:.1f} points, R2 {r2:.2f}."


def _epochs_right(run: Run) -> float:
    """To the target accuracy on the training set."""
    right = np.asarray(run.metrics["accuracy/train"], float)
    there = np.flatnonzero(right >= ACCURATE)
    return float(max(there[0], 1) if len(there) else run["epochs"] + 1)


def _grades(runs: Sequence[Run]) -> Chart:
    """RMSE by epoch in the target's own units."""
    return Chart(
        "epoch",
        "RMSE of the grade, points",
        [curve("train", runs, "rmse/train"), curve("validation", runs, "rmse/val")] if runs else [Series("", [], [])],
    )
