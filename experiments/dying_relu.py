"""Whether units of ReLU die at a large rate, where those of its leaky relatives live."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    SHARE,
    Chart,
    Run,
    Verdict,
    all_of,
    by,
    curve,
    differences,
    effect,
    holm,
    line,
)

TENTH = 0.1


def dying_relu(runs: Sequence[Run]) -> Verdict:
    """Share of dead units at the end, at the largest rate, ReLU's.

    Holds if it is more than a tenth above its share before training, and more than a tenth above leaky and parametric
    ReLU's share (Holm over three).
    """
    groups = {name: by(group, "optimizer.lr") for name, group in by(runs, "model.activation").items()}
    largest = max(groups["relu"])
    relu = groups["relu"][largest]
    compared = {"before": np.array([_dead(run) - run.metrics["dead_units"][0] for run in relu])}
    for name in groups:
        if name != "relu":
            compared[name] = differences(relu, groups[name][largest], _dead)
    answers = holm(compared, TENTH)
    shares = {name: np.mean([_dead(run) for run in rates[largest]]) for name, rates in groups.items()}
    died = effect([_dead(run) for run in relu], limits=SHARE)
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        died,
        f"of ReLU units dead at the end, lr {largest:g}",
        f"At lr {largest:g} the share of units that never fire again is: {said}.",
        f"At lr {largest:g}, {died.mean:.0%} of the ReLU units are dead",
        (
            Chart(
                "learning rate",
                "share of dead units at the end",
                [line(name, rates, _dead, limits=SHARE) for name, rates in groups.items()],
                x_log=True,
            ),
            Chart(
                "epoch",
                f"share of dead units, lr {largest:g}",
                [curve(name, rates[largest], "dead_units") for name, rates in groups.items()],
            ),
        ),
    )


def _dead(run: Run) -> float:
    known = np.asarray(run.metrics["dead_units"], float)
    known = known[np.isfinite(known)]
    return float(known[-1]) if len(known) else float("nan")
