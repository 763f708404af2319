"""Which loss suits probabilities, and which numbers."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import Chart, Effect, Run, Series, Verdict, all_of, by, curve, decide, differences, effect

ACCURATE = 0.95  # on the training set
AS_GOOD = -0.01  # accuracy lost
EXPLAINED = 0.9  # of the variance


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
