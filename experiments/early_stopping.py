"""What is saved by stopping early, and what it costs."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    Chart,
    Run,
    Series,
    Verdict,
    by,
    curve,
    decide,
    effect,
    in_unit,
)

WORTH = 0.05  # of the loss


def early_stopping(runs: Sequence[Run]) -> Verdict:
    """Test loss at the last epoch over test loss at the best epoch, which validation chose, minus 1; one value a split.

    Holds if more than 5%, in the mean over splits.
    """
    splits = by(runs, "data.split_seed")
    added = sorted(float(np.mean([_saved(run) for run in group])) for group in splits.values())
    saved = effect(added)
    stop = effect([run.once.get("best/epoch", np.nan) for run in runs]).mean
    last = max(len(run.metrics["loss/val"]) for run in runs) - 1
    return Verdict(
        decide(saved, WORTH),
        saved,
        "times the best epoch's test loss that the last epoch adds to it",
        f"Validation loss turns at epoch {stop:.0f} of {last}; at the last epoch test loss is {saved.mean:.0%} above "
        f"that at the best.{_accuracy(list(splits.values()))}",
        f"Going on from epoch {stop:.0f} to {last} costs {saved.mean:.0%} of loss",
        (
            Chart(
                "epoch",
                in_unit("loss", runs),
                [
                    curve("train", runs, "loss/train"),
                    curve("validation", runs, "loss/val"),
                    curve("test", runs, "test_set/loss"),
                ],
            ),
            Chart(
                "splits, sorted",
                "test loss added by the last epoch",
                [Series("added", list(range(len(added))), added)],
                level=(WORTH, "asserted"),
            ),
        ),
    )


def _saved(run: Run) -> float:
    return run.final("test_set/loss") / run.test("loss") - 1


def _accuracy(splits: Sequence[Sequence[Run]]) -> str:
    """What stopping does to it, where there is one."""
    if "test_set/accuracy" not in splits[0][0].metrics:
        return ""
    more = effect([float(np.mean([_more_right(run) for run in group])) for group in splits])
    return f" Test accuracy is {abs(more.mean):.1%} {'higher' if more.mean > 0 else 'lower'} at the best epoch."


def _more_right(run: Run) -> float:
    return run.test() - run.final("test_set/accuracy")
