"""What a rate costs that was not searched for: optimizers, each with the same number of trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Effect,
    Run,
    Series,
    Verdict,
    all_of,
    banded,
    by,
    differences,
    effect,
    holm,
    in_unit,
    line,
)

TOLERANCE = 1.1  # a rate is good if its loss is at most so many times that of the best rate
LR = "optimizer.lr"
OPTIONS = {  # the one that is searched with the rate
    "sgd": "weight_decay",
    "momentum": "momentum",
    "adagrad": "initial_accumulator_value",
    "adam": "eps",  # Choi et al. 2019: with it tuned, adaptive optimizers do no worse than what they contain
    "adamw": "weight_decay",
    "rmsprop": "alpha",
}
HIDDEN = ("momentum", "adamw")  # from the panel of all trials: lines too many
PLAIN = ("sgd", "momentum")  # optimizers whose rate is the same for every weight, always


def optimizers(runs: Sequence[Run]) -> Verdict:
    """What the default rate costs SGD, less what it costs an adaptive optimizer: above 0 for each of them (Holm).

    The cost is the validation loss (best epoch) of the default minus that of the best trial, on the same fresh seeds.
    Beside it, each with its interval over seeds: the band of good rates, those of the trials at the other defaults with
    at most 1.1 times the loss of the best of them, in decades; and the epochs, as tuned, to 1.1 times the loss of the
    worst optimizer as tuned.
    """
    with_default = {optimizer(run) for run in runs if _is_default(run)}
    names = sorted(with_default, key=lambda name: (name not in PLAIN, name))
    groups = {name: [run for run in runs if optimizer(run) == name] for name in names}
    default = {name: [run for run in of if _is_default(run)] for name, of in groups.items()}
    tuned = {name: [run for run in of if run.stage == "report"] for name, of in groups.items()}
    rates = {name: _rates(of, default[name]) for name, of in groups.items()}
    bands = {name: effect([_band(by(of, LR)) for of in by(rates[name], "seed").values()]) for name in groups}
    costs = {name: _by_seed(default[name], tuned[name]) for name in groups}
    less = {
        name: [costs["sgd"][seed] - cost for seed, cost in costs[name].items() if seed in costs["sgd"]]
        for name in groups
        if name not in PLAIN
    }
    answers = holm(less)
    shown = "adam" if "adam" in answers else next(iter(answers))
    target = TOLERANCE * max(_mean(of) for of in tuned.values())
    waits = {name: effect([run.reaches("loss/val", target) for run in of]) for name, of in tuned.items()}
    cost = {name: effect(list(of.values())) for name, of in costs.items()}
    rows = [
        [name, _setting(tuned[name]), *map(str, (_losses(tuned[name]), _losses(default[name]), cost[name])),
         str(bands[name]), _told(waits[name])]
        for name in groups
    ]  # fmt: skip
    return Verdict(
        all_of([answer for answer, _ in answers.values()]),
        answers[shown][1],
        f"of {in_unit('validation loss', runs)} that the default rate costs SGD more than {shown}",
        f"Cost of the default rate: {_said(cost, '.3f')}. Band of good rates in decades: {_said(bands, '.1f')}. "
        f"Epochs to a validation loss of {target:.2f} as tuned: {_said(waits, '.0f')}.",
        f"The default rate costs {shown} {cost[shown].mean:.2f} of loss, SGD {cost['sgd'].mean:.2f}",
        (
            Chart(
                "learning rate",
                in_unit("validation loss, best epoch", runs),
                [_trials(name, by(of, LR)) for name, of in rates.items() if name not in HIDDEN],
                x_log=True,
            ),
            Chart("", "band of good rates, decades", [banded("band", bands)]),
            Chart(
                "",
                in_unit("validation loss, best epoch", runs),
                [line(name, of, _best, limits=POSITIVE) for name, of in (("tuned", tuned), ("default", default))],
            ),
        ),
        [["optimizer", "tuned", "its loss", "loss of the default", "cost of the default", "band, decades",
          f"epochs to {target:.2f}"], *rows],
    )  # fmt: skip


def optimizer(run: Run) -> str:
    """Its name in conf/optimizer, as far as the figure needs it: torch's class, and momentum apart from plain SGD."""
    name = str(run["optimizer"]).lower()
    return "momentum" if name == "sgd" and run.settings.get("optimizer.momentum") else name


def _is_default(run: Run) -> bool:
    return run.stage == "beside"


def _best(run: Run) -> float:
    return run.best("loss/val")


def _mean(runs: Sequence[Run]) -> float:
    return float(np.mean([_best(run) for run in runs])) if runs else math.nan


def _by_seed(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[int, float]:
    """`differences` of the best loss, with the seed."""
    return {run.seed: float(d) for run in ours for d in differences([run], theirs, _best)}


def _losses(runs: Sequence[Run]) -> Effect:
    return effect([_best(run) for run in runs], limits=POSITIVE)


def _said(values: Mapping[str, Effect], form: str) -> str:
    return ", ".join(f"{name} {value.mean:{form}}" for name, value in values.items())


def _told(waits: Effect) -> str:
    return f"{waits}" + (f", {waits.lost} never" if waits.lost else "")


def _setting(runs: Sequence[Run]) -> str:
    """What was chosen: the rate, and the option that was searched with it."""
    settings = runs[0].settings
    keys = [key for key in (LR, f"optimizer.{OPTIONS.get(optimizer(runs[0]))}") if key in settings]
    return ", ".join(f"{key.removeprefix('optimizer.')} {settings[key]:.3g}" for key in keys)


def _rates(runs: Sequence[Run], default: Sequence[Run]) -> list[Run]:
    """The trials at the optimizer's defaults but for its rate."""
    return [run for run in runs if run.stage == "grid" and _fixed(run) == _fixed(default[0])]


def _fixed(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in (LR, "seed")}


def _trials(name: str, rates: Mapping[float, Sequence[Run]]) -> Series:
    return Series(name, list(rates), [_mean(of) for of in rates.values()])


def _band(rates: Mapping[float, Sequence[Run]]) -> float:
    """Decades around the best rate in which the loss stays within `TOLERANCE`; straight between rates tried."""
    tried = np.log10(list(rates))
    losses = np.array([_mean(of) for of in rates.values()])
    x = np.linspace(tried[0], tried[-1], 2001)
    good = np.interp(x, tried, losses) <= TOLERANCE * losses.min()
    middle = int(np.argmin(np.abs(x - tried[int(losses.argmin())])))
    bad = np.flatnonzero(~good)
    left, right = bad[bad < middle], bad[bad > middle]
    return float(x[right[0] - 1 if len(right) else -1] - x[left[-1] + 1 if len(left) else 0])
