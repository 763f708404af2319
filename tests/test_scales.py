"""Targets with outliers: learnt by logarithm or rank, said in their own units."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from conftest import Compose
from manyfit.data.scales import fitted_knots, scaled, unscaled
from manyfit.data.table import Table
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare


def test_there_and_back() -> None:
    """Of training targets to their last digits, of others within what was seen; ranks are Blom's normal scores."""
    y = np.random.default_rng(0).lognormal(0, 3, 400)
    for scale in (None, "log", "rank"):
        knots = fitted_knots(scale, y)
        learnt = scaled(scale, knots, y)
        back = unscaled(scale, knots, torch.from_numpy(learnt)).numpy()
        np.testing.assert_allclose(back, y, rtol=1e-9)
    np.testing.assert_allclose(learnt, norm.ppf((rankdata(y) - 0.375) / 400.25), atol=1e-12)
    assert unscaled("rank", knots, torch.tensor([-9.0, 9.0])).tolist() == pytest.approx([y.min(), y.max()])


def test_equal_targets_share_a_rank() -> None:
    """Their middle one; and many values are remembered by a thousand."""
    y = np.repeat([1.0, 2.0, 5.0], [3, 1, 4])
    np.testing.assert_allclose(scaled("rank", fitted_knots("rank", y), y), norm.ppf((rankdata(y) - 0.375) / 8.25))
    knots = fitted_knots("rank", np.arange(5000.0))
    assert knots is not None
    assert knots.shape == (2, 1000)


@pytest.mark.parametrize("scale", ["log", "rank"])
def test_trained_on_a_scale(composed: Compose, scale: str) -> None:
    """Outliers of a thousand times: predictions and metrics are in the target's units, and better than without."""
    given = ["data=diabetes", "epochs=30", "metrics=[mae]", "trusted=[test_scales]", "data._target_=test_scales.skewed"]
    config = composed(*given, f"data.target_scale={scale}")
    (result,) = fit([config])
    (plain,) = fit([composed(*given)])
    assert result.test["mae/test"] < plain.test["mae/test"]
    data, raw = prepare(config).data, prepare(composed(*given, "data.standardise=false")).data
    assert result.predictor is not None
    with torch.no_grad():
        said = result.predictor(data.x_test * data.x_std + data.x_mean)[:, 0]
    assert float((said - raw.y_test).abs().mean()) == pytest.approx(result.test["mae/test"], rel=1e-4)


def skewed() -> Table:
    """A thousandfold between targets, by two inputs."""
    x = np.random.default_rng(0).normal(size=(400, 2))
    return Table("skewed", x, np.exp(2 * x[:, 0] + x[:, 1]), "regression", (), ("a", "b"))


def negative() -> Table:
    """The same with some below 0."""
    table = skewed()
    return replace(table, target=table.target - 1)


def test_refused(composed: Compose) -> None:
    """Classes have no scale; what is not above 0 no logarithm."""
    with pytest.raises(ValueError, match="data.target_scale must be null with classes, but got rank"):
        prepare(composed("data=iris", "data.target_scale=rank"))
    given = ["data=diabetes", "data._target_=test_scales.negative", "trusted=[test_scales]", "data.target_scale=log"]
    with pytest.raises(ValueError, match="data.target_scale must be rank or null with targets that are not > 0"):
        prepare(composed(*given))
