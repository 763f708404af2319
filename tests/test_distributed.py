"""The same curve on any number of devices, and the truth when one of them fails."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Compose
from manyfit import distributed
from manyfit.config import Config
from manyfit.jobs import Trained
from manyfit.training import train

COMMON = ("data=wine", "epochs=10", "model.hidden=[24,8]", "data.train_size=103", "optimizer.lr=0.003")
MLP = ("hidden", "activation", "init", "sigma")  # arguments of model=mlp
CASES: dict[str, list[tuple[str, ...]]] = {  # each a population
    "alone": [("batch_size=32",)],
    "dropout": [("batch_size=25", "model.dropout=0.3")],
    "odd widths and dropout": [("batch_size=7", "model.hidden=[5,3]", "model.dropout=0.4")],
    "last batch of one": [("batch_size=6", "optimizer=sgd", "optimizer.lr=0.03")],
    "full": [("batch_size=full", "optimizer=sgd", "optimizer._target_=torch.optim.ASGD", "optimizer.lr=0.03")],
    "plateau": [("schedule=plateau", "schedule.patience=0", "schedule.threshold=0.2", "optimizer=sgd")],
    "clipped": [("trainer.gradient_clip=0.5", "optimizer=rmsprop")],
    "noise": [("data.label_noise=0.2", "optimizer=adamw", "optimizer.weight_decay=0.1")],
    "regression": [("data=diabetes", "data.train_size=null", "model.dropout=0.2")],
    "one output": [("data=breast_cancer", "data.train_size=null", "batch_size=50")],
    "early stop": [("trainer.patience=1", "optimizer.lr=0.1", "data.label_noise=0.3")],
    "population": [("model.dropout=0.3", "seed=1"), ("seed=2", "optimizer.lr=0.01"), ("model.dropout=0.1", "seed=3")],
    "a user's model": [
        ("model._target_=test_distributed.Users", "~model.hidden", "~model.activation", "~model.init", "~model.sigma")
    ],
}


class Users(nn.Module):
    """Differentiated by autograd, with a dropout of its own."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.25) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(in_features, 9), nn.Linear(9, out_features)
        self.drop = nn.Dropout(dropout or 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.b(self.drop(torch.sin(self.a(x))))


def populations(composed: Compose, *more: str) -> list[list[Config]]:
    return [[composed(*COMMON, *member, *more) for member in members] for members in CASES.values()]


def each(tasks: Sequence[Sequence[Config]], **kwargs: Any) -> list[Trained]:
    """Several trainings on one set of ranks: starting them takes seconds."""
    return [train(configs, **kwargs) for configs in tasks[0]]  # type: ignore[arg-type]


def on(ranks: int, tasks: list[list[Config]]) -> list[Trained]:
    tasks = [
        [c.model_copy(update={"trainer": c.trainer.model_copy(update={"devices": ranks})}) for c in t] for t in tasks
    ]
    if ranks == 1:
        return each([tasks])
    with distributed.own_ranks(each, [tasks], ranks) as launched:
        return launched.serve(None, None)  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", 1e-5)])
def test_the_curve_does_not_depend_on_the_number_of_ranks(composed: Compose, precision: str, tolerance: float) -> None:
    """Every metric of every epoch on one, two and three ranks, and the best weights."""
    tasks = populations(composed, f"trainer.precision={precision}", "trainer.accelerator=cpu")
    one, *others = (on(ranks, tasks) for ranks in (1, 2, 3))
    for several in others:
        for case, a, b in zip(CASES, one, several, strict=True):
            assert a.ended == b.ended, case
            for name in set(a.history) - {"time/seconds"}:
                np.testing.assert_allclose(
                    b.history[name], a.history[name], tolerance, tolerance, err_msg=f"{case}: {name}"
                )
            torch.testing.assert_close(b.weights, a.weights, rtol=100 * tolerance, atol=100 * tolerance)
            assert len(b.devices) > 1
