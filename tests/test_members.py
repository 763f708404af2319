"""The population: packing, members, gradients."""

import pytest
import torch
from torch import nn

from manyfit.losses import MSE, CrossEntropy
from manyfit.models import MLP
from manyfit.population.members import Population, initialised

CPU = torch.device("cpu")


def population(count: int, **arguments: object) -> tuple[Population, list[nn.Module]]:
    modules = [initialised(lambda: MLP(5, 3, **{"hidden": [7, 4], **arguments}), seed) for seed in range(count)]
    return Population(modules, range(count), CPU), modules


@pytest.mark.parametrize("activation", ["relu", "prelu", "gelu"])
def test_outputs_are_each_modules_own(activation: str) -> None:
    """A population of 3 gives what the three ordinary modules give."""
    many, modules = population(3, activation=activation)
    x = torch.randn(3, 11, 5)
    out = many(many.weights, x)
    for k, module in enumerate(modules):
        torch.testing.assert_close(out[k], module.eval()(x[k]))


def test_member_is_an_ordinary_module() -> None:
    """A member taken out has the state_dict it came with."""
    many, modules = population(3)
    for k, module in enumerate(modules):
        taken = many.member(module, many.weights[k].detach(), {})
        assert type(taken) is MLP
        for (name, a), (same, b) in zip(taken.state_dict().items(), module.state_dict().items(), strict=True):
            assert name == same
            assert torch.equal(a, b)


def test_initialisation_belongs_to_the_seed() -> None:
    """Same seed, same weights; another seed, other weights; torch's global state is left alone."""
    state = torch.random.get_rng_state()
    a, b, c = (initialised(lambda: MLP(5, 3), seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.random.get_rng_state())


def test_user_module_with_buffers_trains_plainly() -> None:
    """A module with batch statistics is called plainly, and its buffers move."""
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    one = Population([module], [0], CPU)
    x, y = torch.randn(1, 9, 5), torch.randint(0, 2, (1, 9))
    torch.testing.assert_close(one(one.weights, x)[0], module.eval()(x[0]))
    before = one.buffers["1.running_mean"].clone()
    one.gradient(x, y, torch.full((9,), 1 / 9), [], CrossEntropy())
    assert not torch.equal(before, one.buffers["1.running_mean"])


class Branches(nn.Module):
    """Not a stack: one dropout layer is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(5, 8), nn.Linear(8, 1), nn.Dropout(0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, 5) -> (rows, 1)."""
        z = self.drop(torch.nn.functional.elu(self.a(x)))
        return self.b(self.drop(z * z))


class Wide(nn.Module):
    """A user's module that goes by vmap: not a stack, no buffers."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(in_features, 9), nn.Linear(9, out_features)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        return self.b(self.drop(torch.nn.functional.elu(self.a(x))))


def test_user_modules_in_company() -> None:
    """Under vmap each member's loss and gradient are those it has alone, its own masks included."""
    modules = [initialised(Branches, seed) for seed in range(3)]
    x, y, rows = torch.randn(3, 7, 5), torch.randn(3, 7), torch.full((7,), 1 / 7)

    def run(members: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        many = Population([modules[k] for k in members], members, CPU)
        calls = many.dropout_calls(x[0])
        assert [(layer, tuple(shape)) for layer, shape in calls] == [(0, (7, 8)), (0, (7, 8))]
        masks = [m[0] for m in many.dropout.applied(many.dropout.keys(1, 1), calls)]
        return many.gradient(x[members], y[members], rows, masks, MSE())

    together = run([0, 1, 2])
    for k in range(3):
        for many, one in zip(together, run([k]), strict=True):
            torch.testing.assert_close(many[k], one[0], rtol=1e-5, atol=1e-6)


def test_gradients_against_finite_differences() -> None:
    """The gradient of the loss agrees with central differences in float64."""
    modules = [initialised(lambda: MLP(2, 1, hidden=[3], activation="sigmoid").double(), seed) for seed in range(2)]
    many = Population(modules, [0, 1], CPU)
    x, y = torch.randn(2, 4, 2, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    rows, step = torch.full((4,), 0.25, dtype=torch.float64), 1e-6
    _, gradient = many.gradient(x, y, rows, [], MSE())
    gradient = gradient.clone()
    for i in range(gradient.shape[1] - many.padding):
        sides = []
        for sign in (1, -1):
            many.weights[:, i] += sign * step
            sides.append(many.gradient(x, y, rows, [], MSE())[0].clone())
            many.weights[:, i] -= sign * step
        stored_only = bool((many.weights[:, i] == 0).all())  # fills up the single output to two
        expected = torch.zeros(2, dtype=torch.float64) if stored_only else (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(gradient[:, i], expected, rtol=1e-6, atol=1e-8)
