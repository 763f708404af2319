"""Models and activations: the lecture's numbers, closed forms, and bits that do not depend on position."""

import math

import pytest
import torch
from torch import nn

from manyfit import models
from manyfit.models import ACTIVATIONS, ELEMENTWISE, MLP, Predictor, bce_with_logits, is_dense


def test_worked_perceptron() -> None:
    """COURSE A: w0 = 1, W = (3, -2) at x = (-1, 2): z = -6, sigmoid about 0.002."""
    perceptron = MLP(2, 1, hidden=[])
    with torch.no_grad():
        perceptron[0].weight.copy_(torch.tensor([[3.0, -2.0]]))
        perceptron[0].bias.copy_(torch.tensor([1.0]))
        z = perceptron(torch.tensor([[-1.0, 2.0]]))
    assert z.item() == -6
    assert models.sigmoid(z).item() == pytest.approx(0.0025, abs=5e-5)


CLOSED = {
    "identity": lambda z: (z, 1.0),
    "sigmoid": lambda z: (1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-z)) * (1 - 1 / (1 + math.exp(-z)))),
    "tanh": lambda z: (2 / (1 + math.exp(-2 * z)) - 1, 1 - (2 / (1 + math.exp(-2 * z)) - 1) ** 2),
    "relu": lambda z: (max(0.0, z), float(z > 0)),
    "leaky_relu": lambda z: (z if z > 0 else 0.1 * z, 1.0 if z > 0 else 0.1),
}


@pytest.mark.parametrize("name", CLOSED)
def test_activation_and_derivative(name: str) -> None:
    """Value and derivative of each activation are the lecture's."""
    layer = ACTIVATIONS[name]()
    z = torch.tensor([-30.0, -2.0, -0.3, 0.4, 1.7, 30.0], dtype=torch.float64, requires_grad=True)
    out = ELEMENTWISE[type(layer)](layer, z)
    (slope,) = torch.autograd.grad(out.sum(), z)
    expected = [CLOSED[name](value) for value in z.tolist()]
    assert out.tolist() == pytest.approx([v for v, _ in expected], rel=1e-12)
    assert slope.tolist() == pytest.approx([d for _, d in expected], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("layer", [make() for make in ACTIVATIONS.values() if make is not nn.PReLU], ids=str)
def test_stacked_activation_equals_the_layer(layer: nn.Module) -> None:
    """What a population computes is what the ordinary layer computes, up to rounding."""
    z = torch.linspace(-100, 100, 4001).requires_grad_()
    ours, theirs = ELEMENTWISE[type(layer)](layer, z), layer(z)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), z)[0], torch.autograd.grad(theirs.sum(), z)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("layer", [make() for make in ACTIVATIONS.values() if make is not nn.PReLU], ids=str)
def test_bits_do_not_depend_on_position(layer: nn.Module) -> None:
    """An element has the same bits wherever it stands, value and derivative; torch's own sigmoid fails this."""
    whole = torch.randn(70001, generator=torch.Generator().manual_seed(0)) * 3
    for size in (1, 3, 7, 35, 161, 3001, 40001):
        for start in (0, 1, 16, 77):
            _, part = _value_and_slope(layer, whole), _value_and_slope(layer, whole[start : start + size].clone())
            for a, b in zip(_, part, strict=True):
                assert torch.equal(a[start : start + size], b)


def _value_and_slope(layer: nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_()
    out = ELEMENTWISE[type(layer)](layer, z)
    return out.detach(), torch.autograd.grad(out.sum(), z)[0]


def test_bce_is_torchs() -> None:
    """Binary cross-entropy and its gradient, also at 0 and where it saturates."""
    z = torch.tensor([-200.0, -3, 0, 0.5, 200], dtype=torch.float64, requires_grad=True)
    for y in (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)):
        ours = bce_with_logits(z, y)
        theirs = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        torch.testing.assert_close(ours, theirs)
        for a, b in zip(torch.autograd.grad(ours.sum(), z), torch.autograd.grad(theirs.sum(), z), strict=True):
            torch.testing.assert_close(a, b)


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


def test_which_modules_are_dense() -> None:
    """Only stacks whose layers keep the bits take the batched products."""
    assert is_dense(MLP(2, 1))
    assert is_dense(nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 1)))
    for module in (
        nn.Linear(2, 1),
        nn.Sequential(nn.Linear(2, 3), nn.ELU()),
        nn.Sequential(nn.Linear(2, 3, bias=False)),
    ):
        assert not is_dense(module)


def test_predictor_speaks_the_users_units() -> None:
    """Raw features in; probabilities that sum to 1, or values in the target's own units, out."""
    x, mean, std = torch.randn(5, 3) * 7 + 2, torch.full((3,), 2.0), torch.full((3,), 7.0)
    net = MLP(3, 1).eval()
    value = Predictor(net, mean, std, 100.0, 10.0, 0)(x)
    torch.testing.assert_close(value, net((x - 2) / 7) * 10 + 100)
    for classes, width in ((2, 1), (2, 2), (4, 4)):
        p = Predictor(MLP(3, width).eval(), mean, std, 0.0, 1.0, classes)(x)
        assert p.shape == (5, classes)
        torch.testing.assert_close(p.sum(1), torch.ones(5))
