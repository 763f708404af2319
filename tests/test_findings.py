"""What the runs of a sweep say: numbers against scipy."""

import math

import numpy as np
import pytest

from conftest import Compose, made
from manyfit.statistics import POSITIVE, effect
from manyfit.sweeps import findings
from manyfit.sweeps.findings import ranked
from swept import LR, row


def test_settings_are_means_over_seeds_with_the_interval_of_all() -> None:
    """That of `statistics.effect`, which knows that a loss is positive."""
    values = [0.3, 0.5, 0.34, 0.01]
    (setting,) = ranked([row(i, value, seed=i, optimizer__lr=0.1) for i, value in enumerate(values)], limits=POSITIVE)
    expected = effect(values, limits=POSITIVE)
    assert setting.mean == pytest.approx(np.mean(values))
    assert setting.low > 0
    assert (setting.low, setting.high) == pytest.approx((expected.low, expected.high))


def test_what_has_no_value_does_not_count() -> None:
    """Pruned and NaN runs stay out of the mean; settings without any value come last."""
    rows = [row(0, math.nan, lr=1), row(1, 0.1, "pruned", lr=2), row(2, 0.5, lr=3), row(3, math.nan, seed=1, lr=3)]
    settings = ranked(rows)
    assert settings[0].params == {"lr": 3}
    assert (settings[0].mean, len(settings[0].counted)) == (0.5, 1)
    assert all(math.isnan(setting.mean) for setting in settings[1:])


def test_a_setting_that_diverged_for_a_seed_does_not_win() -> None:
    """However good its other seeds are."""
    rows = [row(0, 0.1, lr=1), row(1, math.nan, "diverged", seed=1, lr=1), row(2, 0.5, lr=2)]
    assert ranked(rows)[0].params == {"lr": 2}


def test_direction_turns_the_ranking() -> None:
    """Accuracy is to be large."""
    rows = [row(i, value, lr=i) for i, value in enumerate((0.2, 0.9, 0.5))]
    assert [s.mean for s in ranked(rows, "maximize")] == [0.9, 0.5, 0.2]


def test_importance_finds_what_matters() -> None:
    """Shares add up to one, and noise has little."""
    rng = np.random.default_rng(0)
    rows = [row(i, abs(math.log10(lr) + 2), optimizer__lr=lr, noise=float(rng.uniform()))
            for i, lr in enumerate(10.0 ** rng.uniform(-4, 0, 40))]  # fmt: skip
    shares = findings.importances(ranked(rows))
    assert list(shares) == [LR, "noise"]
    assert shares[LR] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("keys", "objective", "classification", "apart"),
    [
        (["data", "optimizer"], "best loss/val", True, ["data"]),
        (["data.path", "data.label_noise"], "best accuracy/val", True, ["data.path"]),
        (["loss", "loss.delta"], "best loss/val", False, ["loss", "loss.delta"]),
        (["loss"], "best accuracy/val", True, []),
        (["data.train_size"], "best loss/val", True, []),
        (["data.train_size"], "best loss/val", False, ["data.train_size"]),
        (["data.train_size"], "best rmse/val", False, []),
    ],
)
def test_what_cannot_be_compared(keys: list[str], objective: str, classification: bool, apart: list[str]) -> None:
    """Other validation examples, another scale of the loss, another unit of it."""
    assert findings.incomparable(keys, objective, classification) == apart


def test_value_of(composed: Compose) -> None:
    """The objective by its name."""
    result = made(composed("data=iris"), 0.4)
    assert findings.value_of(result, "best loss/val") == 0.4
    assert findings.value_of(result, "best accuracy/val", "maximize") == pytest.approx(0.9)
    assert findings.value_of(result, "last accuracy/val", "maximize") == pytest.approx(0.9)
