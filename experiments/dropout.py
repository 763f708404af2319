"""What masks do to a network in training, and what it is as an average of masked networks."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Run,
    Series,
    Verdict,
    all_of,
    banded,
    by,
    decide,
    differences,
    effect,
    in_unit,
    line,
    told,
    with_networks,
)

if TYPE_CHECKING:
    from manyfit.training.prepared import Job

PASSES = 100  # masked passes in an average
TYPICAL = 0.5  # probability that a unit is left out
TINY = 1e-15  # no probability is nearer to 0
SHOWN = (1, 2, 5, 10, 20, 50, PASSES)  # passes, in the figure


@with_networks
def dropout(runs: Sequence[Run]) -> Verdict:
    """With p=0.5 (or the nearest tried) instead of none, all three in the mean over seeds, paired by seed.

    The gap at the last epoch is smaller; validation loss at its best epoch is lower; and of the trained network the
    average of 100 masked passes has no more validation loss than the mean masked pass. (The last follows from Jensen's
    inequality; what is measured is how much, and how near the average comes to the one full pass with scaled weights.)
    All three must hold, so none needs a correction for the others.
    """
    rates = by(runs, "model.dropout")
    none, p = min(rates), min((p for p in rates if p > 0), key=lambda p: abs(p - TYPICAL))
    gap = effect(differences(rates[none], rates[p], lambda run: run.final("loss/gap")))
    gain = effect(differences(rates[none], rates[p], lambda run: run.best("loss/val")))
    passes = [masked(run) for run in rates[p] if run.result is not None and not run.diverged]
    averaging = effect([one[1] - one[PASSES] for one in passes])
    full = effect([one[0] for one in passes])
    distance = effect([one[PASSES] - one[0] for one in passes])
    best = min(rates, key=lambda rate: effect([run.best("loss/val") for run in rates[rate]]).mean)
    return Verdict(
        all_of([decide(gap), decide(gain), decide(averaging)]),
        gain,
        f"of validation loss saved by p={p:g}, best epoch",
        f"With p={p:g} the gap is {told(gap, 'smaller', 'larger')}, validation loss at its best "
        f"{told(gain, 'lower', 'higher')} (lowest of all: p={best:g}). {PASSES} masked passes averaged lose "
        f"{told(averaging, 'less', 'more')} than a single one, and {told(distance, 'more', 'less')} than the full "
        "pass.",
        f"p={p:g} takes {gain.mean:.2f} off the validation loss and {gap.mean:.2f} off the gap",
        (
            Chart(
                "p, probability of leaving a unit out",
                in_unit("gap at the last epoch", runs),
                [line("gap", rates, lambda run: run.final("loss/gap"))],
            ),
            Chart(
                "p, probability of leaving a unit out",
                in_unit("validation loss", runs),
                [
                    line("last epoch", rates, lambda run: run.final("loss/val"), limits=POSITIVE),
                    line("best epoch", rates, lambda run: run.best("loss/val"), limits=POSITIVE),
                ],
            ),
            Chart(
                "masked passes averaged",
                in_unit(f"validation loss, p={p:g}", runs),
                [_averages(passes)],
                x_log=True,
                level=(full.mean, "one full pass") if math.isfinite(full.mean) else None,
            ),
        ),
    )


def masked(run: Run) -> dict[int, float]:
    """Validation loss of the best epoch's network: of the average of so many masked passes; at 0 the full one.

    At 1 it is the mean over all `PASSES` single passes.
    """
    assert run.job is not None
    data, predictor = run.job.data, copy.deepcopy(run.predictor).eval()
    raw = data.x_val * data.x_std + data.x_mean
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        whole = predictor(raw)
        for layer in predictor.modules():
            if isinstance(layer, nn.Dropout):
                layer.train()
        each = torch.stack([predictor(raw) for _ in range(PASSES)])  # (passes, rows, classes or 1)
    found = {count: _loss(each[:count].mean(0), run.job) for count in SHOWN}
    single = float(np.mean([_loss(one, run.job) for one in each]))
    return found | {0: _loss(whole, run.job), 1: single}


def _loss(prediction: Tensor, job: "Job") -> float:
    """Validation loss of probabilities (rows, classes) or values (rows, 1): of the outputs that would give them."""
    data, p = job.data, prediction.double()
    if not data.classes:
        outputs = (p - data.y_mean) / data.y_std
    elif job.loss.width(len(data.classes)) == 1:
        outputs = p[:, 1:].logit(eps=TINY)
    else:
        outputs = p.clamp(min=TINY).log()
    return float(job.loss.per_example(outputs[None], data.y_val[None]).mean())


def _averages(passes: Sequence[Mapping[int, float]]) -> Series:
    return banded(
        "average of masked passes",
        {count: effect([one[count] for one in passes], limits=POSITIVE) for count in SHOWN if passes},
    )
