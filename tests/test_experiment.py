"""How an experiment chooses what it trains again."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import CONF, Compose
from manyfit.config.errors import ConfigError
from manyfit.experiments import Chart, Run, Verdict, by, claims, effect, line
from manyfit.experiments.experiment import Experiment, reached
from manyfit.sweeps.parent import Sweep
from manyfit.training.prepared import Preparation


def result(**curves: list[float]) -> Any:
    metrics = {name.replace("__", "/"): np.array(values) for name, values in curves.items()}
    return SimpleNamespace(metrics=metrics, status="FINISHED", summary=SimpleNamespace(best_loss_val=0.25))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("loss/val", 0.25),  # of the weights that are kept
        ("loss/train", 0.1),
        ("loss/train <= 0.5", 1.5),
        ("loss/train<=2", 0.0),
        ("accuracy/train >= 0.75", 1.5),
        ("accuracy/train >= 0.95", np.inf),
        ("nothing/there <= 1", np.inf),
    ],
)
def test_what_a_setting_is_chosen_by(what: str, expected: float) -> None:
    """The lowest of a curve, or the epochs to a target with those between interpolated; infinite if never."""
    curves = {"loss__train": [1.0, 0.6, 0.4, 0.1], "loss__val": [1.0, 0.2], "accuracy__train": [0.1, 0.6, 0.9, 0.9]}
    found = reached(result(**curves), what)
    assert found == pytest.approx(expected)
    assert reached(None, what) == np.inf


@pytest.mark.usefixtures("forked_uploader")
@pytest.mark.parametrize(("tuned", "fresh"), [((0, 1), [1000, 1001, 1002]), ((1000, 1002), [1001, 1003, 1004])])
def test_the_best_rate_is_trained_again_on_fresh_seeds(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: tuple[int, int], fresh: list[int]
) -> None:
    """By the quantity that is named, whatever the seeds; and beside it what is compared with it, on the same seeds.

    The largest of three rates is told as an edge.
    """
    monkeypatch.chdir(tmp_path)
    common = ("data=iris", "epochs=4", "optimizer=sgd", "tracking=off")
    rates = (1e-4, 1e-3, 1e-1)
    configs = {
        len(rates) * seed + i: composed(*common, f"optimizer.lr={rate}", f"seed={tuned[seed]}")
        for seed in range(2)
        for i, rate in enumerate(rates)
    }
    usual = composed(*common, "optimizer.lr=1e-2")
    with Sweep("tuned", configs[0]) as sweep:
        sweep.train(configs)
        claim = claims.find("perceptron", [CONF])
        experiment = Experiment("mine", claim, ("optimizer.lr",), "loss/train", seeds=3, beside=(usual,))
        told = experiment._retrain(sweep)
        again = [child for number, child in sweep.children.items() if number not in configs]
    assert [child.config.optimizer.lr for child in again] == [1e-1] * 3 + [1e-2] * 3
    assert [child.config.seed for child in again] == fresh * 2
    never = Experiment("mine", claim, ("optimizer.lr",), "loss/train <= 0")
    assert never._chosen([sweep.children[number] for number in configs])[1][0].startswith(
        "Whatever its optimizer.lr, sgd lr=0.0001 b=32 did not come to loss/train <= 0."
    )
    assert told == ["On the edge of what was tried: optimizer.lr=0.1 of sgd lr=0.1 b=32."]
    stages = [sweep.tags[child.number] for child in again]
    assert stages == [{"manyfit.stage": "report"}] * 3 + [{"manyfit.stage": "beside"}] * 3


def test_a_claim_about_classes_refuses_numbers(composed: Compose) -> None:
    """Before anything is run; and a claim needs two runs."""
    experiment = Experiment("perceptron", claims.find("perceptron", [CONF]))
    classes, numbers = (
        [composed("model=perceptron", f"data={data}", f"seed={s}") for s in range(2)] for data in ("iris", "diabetes")
    )
    experiment.accept(classes, Preparation())
    with pytest.raises(ConfigError, match="data must be a classification for the claim perceptron, but got a regress"):
        experiment.accept(numbers, Preparation())
    with pytest.raises(ConfigError, match="grids must hold two runs or more"):
        experiment.accept(classes[:1], Preparation())


def test_a_claim_needs_no_store(composed: Compose) -> None:
    """Runs are judged as they were trained: the numbers of a run are those of its result."""
    judged: list[Run] = []

    def claim(runs: Sequence[Run]) -> Verdict:
        judged.extend(runs)
        figure = [Chart("rate", "loss", [line("all", by(runs, "optimizer.lr"), lambda run: run.best("loss/val"))])]
        return Verdict("holds", effect([1.0, 2.0]), "of nothing", "It is so.", "So", figure)

    configs = [composed("data=iris", "epochs=2", "tracking=off", "model.hidden=[8]", f"seed={s}") for s in range(2)]
    with Sweep("judged", configs[0]) as sweep:
        sweep.train(dict(enumerate(configs)))
        assert Experiment("mine", claim).conclude(sweep).answer == "holds"
    for run, (_, child) in zip(judged, sorted(sweep.children.items()), strict=True):
        assert run["optimizer.lr"] == child.config.optimizer.lr
        assert run["model.hidden"] == [8]
        assert run.seed == child.config.seed
        assert run.test() == child.result.test["accuracy/test"]
        assert run.once["best/epoch"] == child.result.summary.best_epoch
        assert run.metrics is child.result.metrics
