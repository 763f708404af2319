"""What one dense layer separates, and what it does not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from manyfit.experiments import (
    Chart,
    Region,
    Run,
    Verdict,
    about,
    curve,
    decide,
    effect,
    is_plane,
    region,
    with_networks,
)

if TYPE_CHECKING:
    from torch import nn

    from manyfit.data.splits import Dataset
    from manyfit.training.prepared import Job

SEPARATES = 0.3  # accuracy above guessing


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
    if not whole or not is_plane(runs):
        return []
    run = min(whole, key=lambda run: float(run.metrics["accuracy/val"][0]))
    assert run.job is not None
    seed = f"seed {run.seed}"
    return [
        region(f"before, {seed}", run.job.data, _untrained(run.job)),
        region(f"after, {seed}", run.job.data, run.predictor),
    ]


def _untrained(job: "Job") -> "nn.Module":
    from manyfit.models import Predictor

    return Predictor(job.network, job.data).eval()
