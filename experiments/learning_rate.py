"""How the rate decides whether a network descends, and how fast."""

from collections.abc import Mapping, Sequence

import numpy as np

from manyfit.experiments import (
    SHARE,
    Chart,
    Run,
    Series,
    Verdict,
    by,
    curve,
    decide,
    differences,
    effect,
    in_unit,
    line,
    told,
)

HALF = 0.5  # of the starting loss


def learning_rate(runs: Sequence[Run]) -> Verdict:
    """Share of the starting training loss that is left at the end, a diverged run's being all: constant schedule.

    Holds if both the smallest and the largest lr leave more than 0.5 more of it than the best lr, in the mean over
    seeds. The regimes are named from the curves, not judged: an lr is too small or too large, by its side of the best,
    where on average more than half of the loss is left.
    """
    schedules = by(runs, "schedule")
    rates = by(schedules["constant"], "optimizer.lr")
    left = {rate: float(np.mean([_left(run) for run in group])) for rate, group in rates.items()}
    best = min(left, key=lambda rate: left[rate])
    worse = [differences(rates[rate], rates[best], _left) for rate in (min(rates), max(rates))]
    found = effect(np.minimum(*worse))
    stable = [rate for rate in rates if left[rate] <= HALF]
    band = f"{min(stable):g} to {max(stable):g}" if stable else "none"
    regimes = f"Too small, stable ({band}), too large" if stable else "No rate leaves less than half of the loss"
    cosine = by(schedules.get("cosine", []), "optimizer.lr")
    gain = effect(differences(rates[best], cosine.get(best, []), lambda run: run.final("loss/val")))
    return Verdict(
        decide(found, HALF),
        found,
        "of the starting loss left more at the ends of the range than at the best lr",
        f"{regimes}: best is {best:g}. With a cosine schedule at {best:g} the validation "
        f"loss at the end is {told(gain, 'lower', 'higher')}.",
        f"The loss falls by half and more for lr {band}" if stable else "At no lr does the loss fall by half",
        (
            Chart(
                "lr",
                "training loss: end / start (1: not lower)",
                [line(name, by(group, "optimizer.lr"), _left, limits=SHARE) for name, group in schedules.items()],
                x_log=True,
                level=(HALF, "half"),
            ),
            Chart("epoch", in_unit("training loss", runs), _regimes(rates, left, best), y_log=True),
        ),
    )


def _left(run: Run) -> float:
    """Of the starting training loss, in [0, 1]."""
    return min(run.final("loss/train") / float(run.metrics["loss/train"][0]), 1.0)


def _regimes(rates: Mapping[float, Sequence[Run]], left: Mapping[float, float], best: float) -> list[Series]:
    """Curves at the smallest lr, at the best, and at the first too large one, as far as they are finite."""
    large = [rate for rate in rates if rate > best and left[rate] > HALF]
    named = ({"too small": min(rates)} if min(rates) < best else {}) | {"stable": best}
    named |= {"too large": min(large)} if large else {}
    return [curve(f"{name}: {rate:g}", rates[rate], "loss/train") for name, rate in named.items()]
