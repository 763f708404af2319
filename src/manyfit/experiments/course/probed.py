"""What the curves alone do not show: gradients by depth, the angle of updates, dead units. See manyfit.probes."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments.runs import Run, by, curve, differences, line
from manyfit.experiments.verdict import Chart, Series, Verdict, all_of, decide, holm, told
from manyfit.statistics import POSITIVE, SHARE, effect

DECADE = 1.0  # log10
TENTH = 0.1


def vanishing_gradient(runs: Sequence[Run]) -> Verdict:
    """log10(first layer's gradient / last layer's) before training, from the shallowest to the deepest network.

    Holds if it falls by more than a decade for sigmoid and for tanh, and by less than one for ReLU (Holm over three).
    """
    depths = {name: _by_depth(group) for name, group in by(runs, "model.activation").items()}
    shallow, deep = (pick(next(iter(depths.values()))) for pick in (min, max))
    lost = {name: differences(d[shallow], d[deep], _log_ratio) for name, d in depths.items()}
    signed = {name: values - DECADE if name != "relu" else DECADE - values for name, values in lost.items()}
    answers = holm(signed)
    found = {name: effect(values) for name, values in lost.items()}
    said = ", ".join(f"{name} {round(found[name].mean, 1) + 0:.1f}" for name in ("sigmoid", "tanh", "relu"))
    trained = {name: d[deep] for name, d in depths.items()}
    weakest = min(signed, key=lambda name: float(np.mean(signed[name])))
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        found[weakest],
        f"decades that {weakest}'s first layer loses from {shallow} to {deep} hidden layers (asserted: "
        f"{'less' if weakest == 'relu' else 'more'} than {DECADE:g})",
        f"From {shallow} to {deep} hidden layers the first layer's gradient loses, in decades: {said}.",
        "Decades of gradient lost with depth: "
        + ", ".join(f"{name} {abs(round(e.mean))}" for name, e in found.items()),
        (
            Chart("z", "slope of the activation", _slopes()),
            Chart(
                "hidden layers",
                "gradient of first / last layer",
                [line(name, d, lambda run: 10 ** _log_ratio(run), limits=POSITIVE) for name, d in depths.items()],
                y_log=True,
            ),
            Chart(
                "epoch",
                f"in training, {deep} layers",
                [curve(name, group, "gradient_norm/ratio") for name, group in trained.items()],
                y_log=True,
            ),
        ),
    )


def _slopes() -> list[Series]:
    """The derivatives: relu' is 1 above 0 and 0 below, sigmoid' = g (1 - g), tanh' = 1 - g^2."""
    z = np.linspace(-5, 5, 101)
    g = 1 / (1 + np.exp(-z))
    slopes = {"relu": (z > 0).astype(float), "sigmoid": g * (1 - g), "tanh": 1 - np.tanh(z) ** 2}
    return [Series(name, list(z), list(slope)) for name, slope in slopes.items()]


def _by_depth(runs: Sequence[Run]) -> dict[int, list[Run]]:
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(len(run["model.hidden"]), []).append(run)
    return dict(sorted(groups.items()))


def _log_ratio(run: Run) -> float:
    return float(np.log10(max(run.metrics["gradient_norm/ratio"][0], 1e-30)))


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
