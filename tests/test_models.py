"""Models: the lecture's perceptron, initialisations, and predictions in the user's units."""

import math
from types import SimpleNamespace

import pytest
import torch

from manyfit import models
from manyfit.models import MLP, Predictor


def test_worked_perceptron() -> None:
    """COURSE A: w0 = 1, W = (3, -2) at x = (-1, 2): z = -6, sigmoid about 0.002."""
    perceptron = MLP(2, 1, hidden=[])
    with torch.no_grad():
        perceptron[0].weight.copy_(torch.tensor([[3.0, -2.0]]))
        perceptron[0].bias.copy_(torch.tensor([1.0]))
        z = perceptron(torch.tensor([[-1.0, 2.0]]))
    assert z.item() == -6
    assert torch.sigmoid(z).item() == pytest.approx(0.0025, abs=5e-5)


@pytest.mark.parametrize("init", models.INITS)
def test_init(init: str) -> None:
    """Spread of the first weights is what the named initialisation says; biases are 0 but for torch's default."""
    torch.manual_seed(0)
    layer = MLP(400, 10, hidden=[300], init=init, sigma=0.3)[0]
    bound = 1 / math.sqrt(400)
    std = {"default": bound / math.sqrt(3), "kaiming": math.sqrt(2 / 400), "xavier": math.sqrt(2 / 700), "normal": 0.3}
    assert layer.weight.std().item() == pytest.approx(std[init], rel=0.02)
    assert (layer.bias == 0).all() == (init != "default")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": 1.2}, r"model.dropout must be in \[0, 1\), but got 1.2"),
        ({"activation": "rely"}, "model.activation must be one of identity, sigmoid"),
        ({"hidden": [0]}, "model.hidden must be a list of integers > 0"),
        ({"init": "magic"}, "model.init must be one of default"),
        ({"sigma": 0.0}, "model.sigma must be > 0"),
    ],
)
def test_refused(arguments: dict, words: str) -> None:
    """A wrong argument is named with its key."""
    with pytest.raises(ValueError, match=words):
        MLP(2, 2, **arguments)


def test_predictor_speaks_the_users_units() -> None:
    """Raw features in; probabilities that sum to 1, or values in the target's own units, out."""
    x, mean, std = torch.randn(5, 3) * 7 + 2, torch.full((3,), 2.0), torch.full((3,), 7.0)
    net = MLP(3, 1).eval()
    of = SimpleNamespace(x_mean=mean, x_std=std, y_mean=100.0, y_std=10.0, classes=(), y_scale=None, y_knots=None)
    value = Predictor(net, of)(x)
    torch.testing.assert_close(value, net((x - 2) / 7) * 10 + 100)
    for classes, width in ((2, 1), (2, 2), (4, 4)):
        of.classes, of.y_mean, of.y_std = ["one"] * classes, 0.0, 1.0
        p = Predictor(MLP(3, width).eval(), of)(x)
        assert p.shape == (5, classes)
        torch.testing.assert_close(p.sum(1), torch.ones(5))
