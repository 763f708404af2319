"""Which activation trains in fewer epochs."""

import math
from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Run,
    Verdict,
    all_of,
    by,
    curve,
    differences,
    effect,
    holm,
    in_unit,
    line,
)

CONVERGED = 0.1  # training loss


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
