"""The claims about steps and masks, from made curves: true, false and unclear give holds, fails and undecided."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from conftest import judged_by
from manyfit.experiments import Run, Verdict, charts
from manyfit.experiments.runs import in_unit
from manyfit.losses import BCE, MSE, CrossEntropy, Huber, Loss
from manyfit.models import MLP, Predictor
from manyfit.plots.style import png

batch_size = judged_by("batch_size").batch_size
dropout = judged_by("dropout").dropout
minibatch_parallel = judged_by("minibatch_parallel").minibatch_parallel
optimizers = judged_by("optimizers").optimizers
PASSES = judged_by("dropout").PASSES
masked = judged_by("dropout").masked
noise_of = judged_by("batch_size").noise_of
speed = judged_by("minibatch_parallel").speed

TRUE, FALSE, UNCLEAR = 1.0, -1.0, 0.0
ANSWERS = [(TRUE, "holds"), (FALSE, "fails"), (UNCLEAR, "undecided")]
Maker = Callable[[float, Sequence[int]], list[Run]]


def sign(truth: float, seed: int) -> float:
    """What this seed says: the truth, or where that is unclear either, one seed after the other."""
    return truth or (1.0 if seed % 2 else -1.0)


def made(seed: int, train: Sequence[float], val: Sequence[float], stage: str = "grid", **settings: Any) -> Run:
    """A run with these curves."""
    curves = {"loss/train": np.array(train), "loss/val": np.array(val), "loss/gap": np.array(val) - np.array(train)}
    return Run({"seed": seed, "data.train_size": 512, **settings}, curves, stage=stage)


def tried(truth: float, seeds: Sequence[int] = range(8)) -> list[Run]:
    """Two optimizers over three rates: tuned they are alike; the default costs SGD 0.5, and Adam 0.5 less or more."""
    runs = []
    for name, gain in (("SGD", 0.0), ("Adam", 0.4)):
        of: dict[str, Any] = {"optimizer._target_": f"torch.optim.{name}", "optimizer.lr": 0.1}
        for rate, loss in ((0.01, 1.5), (0.1, 1.0), (1.0, 1.6)):
            runs += [made(s, [2, loss], [2, loss + 0.01 * s], **{**of, "optimizer.lr": rate}) for s in (0, 1)]
        for seed in (1000 + s for s in seeds):
            cost = 0.5 - gain * (sign(truth, seed) + 0.01 * (seed % 8))
            runs.append(made(seed, [3, 1], [3, 1.0 + cost], "beside", **of))
            runs.append(made(seed, [3, 1], [3, 1.0], "report", **of))
    return runs


def sized(truth: float, seeds: Sequence[int] = range(8)) -> list[Run]:
    """Three batch sizes: the best rate grows or falls with them; one example is noise, the full batch slow."""
    runs = []
    for size, place in ((1, -1), (32, 0), (512, 1)):
        for seed in seeds:
            for step in (-1, 0, 1):
                loss = 1.0 + 0.1 * abs(step - place * sign(truth, seed)) + 0.001 * seed
                of: dict[str, Any] = {"batch_size": size, "epochs": 20, "optimizer.lr": 10.0**step}
                runs.append(made(seed, [2, loss], [2, loss], **of))
            end = 0.5 + 0.2 * (size == 512) + 0.001 * seed
            settings: dict[str, Any] = {"batch_size": size, "epochs": 20, "optimizer.lr": 10.0**place}
            runs.append(made(1000 + seed, [2, end], [2, end], "report", **settings))
            clocks = {"progress/steps": np.arange(2) * 512 / size, "time/seconds": np.arange(2) / size}
            noise = {"gradient_noise": np.array([0.5, 2 / size, np.nan, 40 / size]) if size < 512 else [np.nan] * 4}
            cast("dict[str, Any]", runs[-1].metrics).update(clocks | noise)
            long = settings | {"epochs": 20 * size / 32}
            runs += [made(1000 + seed, [2, end], [2, end], "report", **long)] if size == 512 else []
    return runs


def timed(truth: float, seeds: Sequence[int] = range(8)) -> list[Run]:
    """Batches of one and of 32, these about 8 times as fast, or twice."""
    runs = []
    for seed in seeds:
        for size, pace in ((1, 1.0), (32, 5.0 + 3 * sign(truth, seed) - 1 * (truth == 0) + 0.01 * seed)):
            run = made(seed, [2, 1, 1], [2, 1, 1], batch_size=size)
            clock = {"progress/examples": 100.0 * np.arange(3), "time/seconds": np.array([0.0, 9.0, 9.0 + 1 / pace])}
            runs.append(replace(run, metrics=clock))
    return runs


def thinned(truth: float, seeds: Sequence[int] = range(8)) -> list[Run]:
    """Without dropout and with p=0.5: less gap and less validation loss by it, or more."""
    runs = []
    for seed in seeds:
        for p in (0.0, 0.5):
            end = 1.0 + 0.001 * seed - ((0.3 + 0.01 * seed) * sign(truth, seed) if p else 0)
            settings: dict[str, Any] = {"model.dropout": p}
            runs.append(trained(made(seed, [2, 0.2], [2, end], **settings)))
    return runs


def trained(run: Run, loss: Loss | None = None) -> Run:
    """With a network and data to validate it on; of two classes, or numbers around 5."""
    torch.manual_seed(run.seed)
    loss = loss or CrossEntropy()
    classes, scale = ((), (5.0, 2.0)) if loss.task == "regression" else (("no", "yes"), (0.0, 1.0))
    network = MLP(3, loss.width(len(classes)), [16], dropout=float(run["model.dropout"]))
    x, zero, one = torch.randn(20, 3), torch.zeros(3), torch.ones(3)
    y = (x[:, 0] > 0).long() if classes else x[:, 0]
    units = {"classes": classes, "y_mean": scale[0], "y_std": scale[1], "y_scale": None, "y_knots": None}
    data = SimpleNamespace(x_val=x, y_val=y, x_mean=zero, x_std=one, **units)
    result = SimpleNamespace(predictor=Predictor(network, data).eval())
    return replace(run, job=cast("Any", SimpleNamespace(data=data, loss=loss)), result=cast("Any", result))


CLAIMS: list[tuple[Callable[[Sequence[Run]], Verdict], Maker]] = [
    (optimizers, tried),
    (batch_size, sized),
    (minibatch_parallel, timed),
    (dropout, thinned),
]
NAMES = [claim.__name__ for claim, _ in CLAIMS]


@pytest.mark.parametrize(("claim", "maker"), CLAIMS, ids=NAMES)
@pytest.mark.parametrize(("truth", "answer"), ANSWERS, ids=[answer for _, answer in ANSWERS])
def test_three_answers(claim: Callable[[Sequence[Run]], Verdict], maker: Maker, truth: float, answer: str) -> None:
    """What is so holds, what is not so fails, what differs from seed to seed is undecided."""
    assert claim(maker(truth, range(8))).answer == answer


@pytest.mark.parametrize(("claim", "maker"), CLAIMS, ids=NAMES)
def test_two_seeds_decide_nothing(claim: Callable[[Sequence[Run]], Verdict], maker: Maker) -> None:
    """However clear they are; and there is a figure."""
    found = claim(maker(TRUE, range(2)))
    assert found.answer == "undecided"
    assert png(charts.draw(found, "title")).startswith(b"\x89PNG")


@pytest.mark.parametrize(("claim", "maker"), CLAIMS, ids=NAMES)
def test_diverged_runs_are_survived(claim: Callable[[Sequence[Run]], Verdict], maker: Maker) -> None:
    """A seed that ends in NaN, everywhere, is no obstacle to a figure."""
    runs = [
        replace(r, diverged=True, metrics={k: np.r_[v[:-1], np.nan] for k, v in r.metrics.items()}, result=None)
        if r.seed in {0, 1000}
        else r
        for r in maker(TRUE, range(8))
    ]
    assert png(charts.draw(claim(runs), "title")).startswith(b"\x89PNG")


def test_the_table_of_optimizers() -> None:
    """What was chosen, and intervals beside every number; trials of another option are none of the band's."""
    runs = tried(TRUE)
    more = [replace(runs[0], settings={**runs[-1].settings, "seed": seed, "optimizer.eps": 0.5}) for seed in (0, 1)]
    head, sgd, adam = optimizers([*runs, *more]).table
    assert head[1] == "tuned"
    assert sgd[0:2] == ["sgd", "lr 0.1"]
    assert adam[2].startswith("1 [1, 1]")
    assert [row[5] for row in optimizers(runs).table[1:]] == [sgd[5], adam[5]]


def test_the_band_is_in_decades() -> None:
    """Loss 1.5, 1, 1.6 at 0.01, 0.1, 1: within 10% of the best are 0.2 decades below it and 1/6 above."""
    assert f"sgd {0.2 + 1 / 6:.1f}" in optimizers(tried(TRUE)).sentence


def test_noise_and_speed() -> None:
    """Noise that drowns the gradient is infinite; examples/s are without the first epoch."""
    run = made(0, [1], [1])
    assert list(noise_of(replace(run, metrics={"gradient_noise": np.array([0.5, np.nan])}))) == [0.5, np.inf]
    assert speed(timed(TRUE)[0]) == pytest.approx(100)


def test_masked_passes() -> None:
    """With p=0 every pass is the full one; with p=0.5 single passes lose more than their average."""
    none, half = thinned(TRUE)[:2]
    assert half.result is not None
    full, rough = masked(none), masked(half)
    assert full[1] == pytest.approx(full[0]) == pytest.approx(full[PASSES])
    assert rough[1] > rough[PASSES]
    assert math.isclose(rough[0], masked(half)[0])
    assert not half.result.predictor.training


@pytest.mark.parametrize("loss", [CrossEntropy(), BCE(), MSE(), Huber(0.3)], ids=lambda loss: type(loss).__name__)
def test_masked_passes_lose_by_the_runs_own_loss(loss: Loss) -> None:
    """The full pass has the loss that evaluation measures, and the figure its unit."""
    run = trained(made(0, [1], [1], **{"model.dropout": 0.5}), loss)
    assert run.job is not None
    assert run.result is not None
    data, network = run.job.data, run.result.predictor.network
    with torch.no_grad():
        expected = loss.per_example(network(data.x_val)[None], data.y_val[None]).mean().item()
    assert masked(run)[0] == pytest.approx(expected, rel=1e-5)
    assert in_unit("validation loss", [run]) == f"validation loss ({loss.unit})"
