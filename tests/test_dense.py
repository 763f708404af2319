"""Dense stacks: the lecture's activations, backpropagation against autograd, and bits that do not depend on company."""

import math

import pytest
import torch
from torch import nn

from manyfit.models import ACTIVATIONS, MLP
from manyfit.population import dense
from manyfit.population.dense import ELEMENTWISE, Stack, is_dense
from manyfit.population.members import Population

CLOSED = {
    "identity": lambda z: (z, 1.0),
    "sigmoid": lambda z: (1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-z)) * (1 - 1 / (1 + math.exp(-z)))),
    "tanh": lambda z: (2 / (1 + math.exp(-2 * z)) - 1, 1 - (2 / (1 + math.exp(-2 * z)) - 1) ** 2),
    "relu": lambda z: (max(0.0, z), float(z > 0)),
    "leaky_relu": lambda z: (z if z > 0 else 0.1 * z, 1.0 if z > 0 else 0.1),
}
LAYERS = [make() for make in ACTIVATIONS.values() if make is not nn.PReLU]


def value_and_slope(layer: nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, slope = ELEMENTWISE[type(layer)](layer, z)
    return out, slope(torch.ones_like(z))


@pytest.mark.parametrize("name", CLOSED)
def test_activation_and_derivative(name: str) -> None:
    """Value and derivative of each activation are the lecture's."""
    z = torch.tensor([-30.0, -2.0, -0.3, 0.4, 1.7, 30.0], dtype=torch.float64)
    out, slope = value_and_slope(ACTIVATIONS[name](), z)
    expected = [CLOSED[name](value) for value in z.tolist()]
    assert out.tolist() == pytest.approx([v for v, _ in expected], rel=1e-12)
    assert slope.tolist() == pytest.approx([d for _, d in expected], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_activation_equals_the_layer(layer: nn.Module) -> None:
    """What a population computes is what the ordinary layer and autograd compute, saturated or not."""
    z = torch.linspace(-100, 100, 4001, dtype=torch.float64).requires_grad_()
    theirs = layer(z)
    out, slope = value_and_slope(layer, z.detach())
    torch.testing.assert_close(out, theirs.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(theirs.sum(), z)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, [7, 4], 3), (1, [1, 3], 1), (2, [], 2), (3, [6], 1)], ids=str)
def test_backpropagation_is_autograd(activation: str, shape: tuple[int, list[int], int]) -> None:
    """Gradients of every parameter, dropout masks included, are autograd's on the ordinary module."""
    width_in, hidden, width_out = shape
    module = MLP(width_in, width_out, hidden, activation=activation).double()
    many = Population([module, module], [0, 1], torch.device("cpu"))
    assert many.stack is not None
    x = torch.randn(2, 6, width_in, dtype=torch.float64)
    masks = [(torch.rand(2, 6, max(h, 2)) > 0.3) * 1.7 for h in hidden]
    tape: list = []
    out = many.stack.forward(many.parameters, x, masks, tape)
    g = torch.randn_like(out)
    many.stack.backward(many.parameters, many.gradient_parts, g.clone(), tape)
    for k in range(2):
        z, drop = x[k], iter(masks)
        for layer in module:
            z = z * next(drop)[k][:, : z.shape[1]] if isinstance(layer, nn.Dropout) else layer(z)
        torch.testing.assert_close(out[k], z.detach())
        expected = torch.autograd.grad(z, list(module.parameters()), g[k])
        for part, gradient in zip(many.gradient_parts, expected, strict=True):
            wanted = dense.stored(gradient)
            torch.testing.assert_close(part[k], wanted)


def test_which_modules_are_dense() -> None:
    """Only stacks of known layers are differentiated by hand, or trained by the kernel."""
    assert is_dense(MLP(2, 1))
    assert is_dense(nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 1)))
    others = (nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 3), nn.ELU()), nn.Sequential(nn.Linear(2, 3, bias=False)))
    assert not any(is_dense(module) for module in others)


def test_stack_knows_its_width() -> None:
    """The number of outputs is that of the last dense layer."""
    assert Stack(list(MLP(4, 1))).width == 1
