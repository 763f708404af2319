"""Whether activations around zero make for straighter updates."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    Chart,
    Run,
    Verdict,
    all_of,
    by,
    curve,
    decide,
    differences,
    effect,
    line,
    told,
)


def zero_centred(runs: Sequence[Run]) -> Verdict:
    """Mean angle between successive updates over the training, sigmoid minus tanh, paired by seed.

    Holds if it is above 0 with each at its tuned rate, and above 0 in the mean over the rates that both were tried at:
    the angle depends on the rate as well. 90 degrees is no memory, more is zig-zag.
    """
    chosen = [run for run in runs if run.stage == "report"]
    groups = by(chosen, "model.activation")
    turn = effect(differences(groups["sigmoid"], groups["tanh"], _angle))
    means = {name: np.mean([_angle(run) for run in group]) for name, group in groups.items()}
    rates = {name: group[0]["optimizer.lr"] for name, group in groups.items()}
    tried = {name: by(group, "optimizer.lr") for name, group in by(runs, "model.activation").items()}
    angles = {
        name: {rate: np.mean([_angle(r) for r in of]) for rate, of in rates.items()} for name, rates in tried.items()
    }
    less = [f"{rate:g}" for rate, angle in angles["tanh"].items() if angle > angles["sigmoid"].get(rate, np.inf)]
    level = effect(_at_equal_rates([run for run in runs if run.stage == "grid"]))
    return Verdict(
        all_of([decide(turn), decide(level)]),
        level if decide(turn) == "holds" != decide(level) else turn,
        "degrees more between successive updates with sigmoid",
        f"Successive updates are {means['sigmoid']:.0f} degrees apart with sigmoid (lr {rates['sigmoid']:g}) and "
        f"{means['tanh']:.0f} with tanh (lr {rates['tanh']:g})."
        f" At equal rates sigmoid's turn {told(level, 'degrees more', 'degrees less')}"
        + (f"; it is tanh's that turn more at lr {', '.join(less)}." if less else "."),
        f"Updates turn by {means['sigmoid']:.0f} degrees with sigmoid, {means['tanh']:.0f} with tanh",
        (
            Chart(
                "epoch",
                "angle of updates, degrees",
                [curve(name, group, "update_angle") for name, group in groups.items()],
                level=(90, "no memory"),
            ),
            Chart(
                "learning rate",
                "mean over the training",
                [line(name, of_rate, _angle) for name, of_rate in tried.items()],
                x_log=True,
                level=(90, "no memory"),
            ),
        ),
    )


def _at_equal_rates(runs: Sequence[Run]) -> list[float]:
    """Sigmoid's angle minus tanh's for each seed, in the mean over the rates at which neither diverged."""
    by_seed: dict[int, list[float]] = {}
    for of_rate in by(runs, "optimizer.lr").values():
        found = by(of_rate, "model.activation")
        if {"sigmoid", "tanh"} <= set(found) and not any(run.diverged for run in of_rate):
            for run in found["sigmoid"]:
                by_seed.setdefault(run.seed, []).extend(differences([run], found["tanh"], _angle))
    return [float(np.mean(values)) for values in by_seed.values() if values]


def _angle(run: Run) -> float:
    angles = np.asarray(run.metrics["update_angle"], float)
    return float(np.nanmean(angles)) if np.isfinite(angles).any() else float("nan")
