"""What a batch size costs and what it brings."""

import math
from collections.abc import Mapping, Sequence

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
    batch_of,
    by,
    by_batch_size,
    curve,
    decide,
    differences,
    effect,
    in_unit,
    line,
    nearest,
    told,
)

MINI = 32  # a mini-batch
CLOCKS = {  # what a descent may be plotted against, and the metric that counts it
    "epoch": None,
    "steps": "progress/steps",
    "seconds, all seeds side by side": "time/seconds",
}


def batch_size(runs: Sequence[Run]) -> Verdict:
    """All three, in the mean over seeds, so that none needs a correction for the others.

    The best rate grows with the batch: the slope of log10 best rate against log10 batch size, fitted for each seed of
    the grid at fixed epochs, is above 0. One example is noisy: in more than half of the epochs the noise of its steps
    over their gradient (`probes`) is above that of the mini-batch (32, or the nearest), each at its tuned rate. The
    full batch is costly: after as many epochs, each at its tuned rate, its training loss is above the mini-batch's. The
    comparison at a fixed number of steps is drawn and told, and decides nothing.

    The rule for noise is the third. How much of the path of the training loss goes up was 0 for every batch at the ends
    of epochs, and steps with more noise than gradient were all there was with 1 and with 32: neither could decide.
    """
    epochs = min(runs, key=lambda run: (batch_of(run), run["epochs"]))["epochs"]
    fixed = [run for run in runs if run["epochs"] == epochs]
    grid = by_batch_size([run for run in fixed if run.stage == "grid"])
    tuned = by_batch_size([run for run in fixed if run.stage == "report"])
    one, full = min(grid), max(grid)
    mini = nearest(list(tuned), MINI)
    slope = effect(_slopes(grid))
    noise = effect(_noisier(tuned[one], tuned[mini]))
    cost = effect(differences(tuned[full], tuned[mini], lambda run: run.best("loss/train")))
    steps = _at_steps(runs, mini, epochs)
    rates = {size: {_rate(run) for run in of} for size, of in tuned.items()}
    parts = [
        (slope, "decades of best rate per decade of batch size"),
        (noise, f"of the epochs in which steps of {one} are noisier than of {mini} (asserted: more than half)"),
        (cost, f"of {in_unit('training loss', runs)} more with {full} than with {mini}"),
    ]
    answers = [decide(found, 0.5 if found is noise else 0.0) for found, _ in parts]
    open_part = next((part for part, answer in zip(parts, answers, strict=True) if answer != "holds"), parts[0])
    return Verdict(
        all_of(answers),
        *open_part,
        f"The best rate goes from {min(rates[one]):g} at {one} to {min(rates[full]):g} at {full}. Steps of {one} are "
        f"noisier than steps of {mini} in {noise.mean:.0%} of the epochs. After {epochs:g} epochs training loss with "
        f"{full} is {told(cost, 'above', 'below')} that with {mini}.{_after_as_many_steps(steps, full)}",
        f"Ten times the batch, {10**slope.mean:.1f} times the best rate",
        (
            Chart("batch size, examples", "best learning rate", [_best_rates(grid)], x_log=True, y_log=True),
            Chart(
                "batch size, examples",
                "noise of a step over its gradient",
                [_noise_by_size(tuned)],
                x_log=True,
                y_log=True,
            ),
            Chart(
                "batch size, examples",
                in_unit("validation loss, best epoch", runs),
                [
                    line(f"at fixed {what}", of, _best, limits=POSITIVE)
                    for what, of in (("epochs", tuned), ("steps", steps))
                ],
                x_log=True,
            ),
            *(
                _descent(x, over, {size: tuned[size] for size in sorted({one, mini, full})})
                for x, over in CLOCKS.items()
            ),
        ),
    )


def _after_as_many_steps(steps: Mapping[int, Sequence[Run]], full: int) -> str:
    """What the full batch has lost or won by then, if it was tried beside others."""
    if full not in steps or len(steps) < 2:
        return ""
    more = effect(differences(steps[full], steps[min(steps)], _best)).mean
    loss = in_unit("validation loss", steps[full])
    return (
        f" At a fixed number of steps {full} has {abs(more):.3f} of {loss} {'more' if more > 0 else 'less'} than "
        f"{min(steps)}."
    )


def _descent(x: str, over: str | None, tuned: Mapping[int, Sequence[Run]]) -> Chart:
    """Training loss, each size at its tuned rate; what a step costs and brings shows in how the three differ."""
    lines = [curve(f"{size}", of, "loss/train", over) for size, of in tuned.items()]
    return Chart(
        x,
        in_unit("training loss as tuned", (run for of in tuned.values() for run in of)),
        lines,
        x_log=over is not None,
        y_log=True,
    )


def _best(run: Run) -> float:
    return run.best("loss/val")


def noise_of(run: Run) -> np.ndarray:
    """Of a step over its gradient, by epoch; infinite where so little gradient is left that none is made out."""
    noise = np.asarray(run.metrics["gradient_noise"], float)
    return np.where(np.isnan(noise), np.inf, noise)


def _noisier(ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """Share of the epochs in which ours are noisier, by seed; epochs in which no one's can be measured count half."""
    others = {run.seed: noise_of(run) for run in theirs}
    pairs = [(noise_of(run), others[run.seed]) for run in ours if run.seed in others]
    return [float(np.mean((a > b) + 0.5 * (a == b))) for a, b in pairs]


def _noise_by_size(sizes: Mapping[int, Sequence[Run]]) -> Series:
    """The median over epochs and seeds; a full batch has none."""
    middle = {size: float(np.median(np.concatenate([noise_of(run) for run in of]))) for size, of in sizes.items()}
    known = {size: value for size, value in middle.items() if math.isfinite(value)}
    return Series("noise", list(known), list(known.values()))


def _rate(run: Run) -> float:
    return float(run["optimizer.lr"])


def _best_per_seed(runs: Sequence[Run]) -> dict[int, float]:
    """The rate with the lowest validation loss, by seed."""
    return {int(seed): _rate(min(of, key=_best)) for seed, of in by(runs, "seed").items()}


def _slopes(grid: Mapping[int, Sequence[Run]]) -> list[float]:
    """For each seed that every size has: of log10 best rate against log10 size."""
    found = {size: _best_per_seed(of) for size, of in grid.items()}
    shared = sorted(set.intersection(*(set(of) for of in found.values())))
    x = np.log10(list(found))
    if len(x) < 2:
        return []
    return [float(np.polyfit(x, np.log10([of[seed] for of in found.values()]), 1)[0]) for seed in shared]


def _best_rates(grid: Mapping[int, Sequence[Run]]) -> Series:
    found = {size: effect(np.log10(list(_best_per_seed(of).values()))) for size, of in grid.items()}
    return banded(
        "best rate", {size: Effect(10**e.mean, 10**e.low, 10**e.high, e.n, e.lost) for size, e in found.items()}
    )


def _at_steps(runs: Sequence[Run], mini: int, epochs: float) -> dict[int, list[Run]]:
    """Tuned runs with as many steps as the mini-batch has in so many epochs."""
    report = [run for run in runs if run.stage == "report"]
    return by_batch_size([run for run in report if math.isclose(run["epochs"] / batch_of(run), epochs / mini)])
