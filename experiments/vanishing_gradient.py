"""How the gradient shrinks with the depth of a network of sigmoids, and of ReLUs."""

from collections.abc import Sequence

import numpy as np

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Run,
    Series,
    Verdict,
    all_of,
    by,
    curve,
    differences,
    effect,
    holm,
    line,
)

DECADE = 1.0  # log10


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
