"""Optimizers at unit rate against torch's own."""

import numpy as np
import pytest
import torch
from torch import nn

from manyfit.losses import MSE
from manyfit.population.members import Population
from manyfit.population.unit_rate import LINEAR_OPTIMIZERS, Plain, Scaling, UnitRate

OPTIONS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.3}],
    "Adam": [{}, {"amsgrad": True}, {"decoupled_weight_decay": True}],
    "AdamW": [{}, {"amsgrad": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True}],
    "RAdam": [{}, {"decoupled_weight_decay": True}],
    "Adagrad": [{}, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}],
}
CASES = [(name, options) for name in LINEAR_OPTIMIZERS for options in OPTIONS.get(name, [{}])]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_unit_rate_is_the_optimizer(name: str, options: dict) -> None:
    """300 steps at unit rate with a schedule and weight decay are torch's own steps, to 1e-9 in float64."""
    cls = getattr(torch.optim, name)
    rates, decays = [1e-3, 3e-2], [0.0, 0.1]
    start = torch.randn(2, 16, dtype=torch.float64)
    goal = torch.randn(2, 16, dtype=torch.float64)
    together = start.clone().requires_grad_()
    ours = UnitRate(together, cls, options, torch.tensor(decays, dtype=torch.float64))
    alone = [start[k].clone().requires_grad_() for k in range(2)]
    theirs = [cls([w], lr=rates[k], weight_decay=decays[k], **options) for k, w in enumerate(alone)]

    def gradient(weights: torch.Tensor, k: int | slice) -> torch.Tensor:
        return torch.sin(weights.detach() - goal[k]) + 0.1 * weights.detach() ** 3

    for step in range(300):
        factor = 0.5 + 0.5 * np.cos(step / 100)
        lr = torch.tensor(rates, dtype=torch.float64)[:, None] * factor
        ours.step(together, lambda: (torch.zeros(2), gradient(together, slice(None))), lr)
        for k, (optimizer, weights) in enumerate(zip(theirs, alone, strict=True)):
            optimizer.param_groups[0]["lr"] = rates[k] * factor
            weights.grad = gradient(weights, k)
            optimizer.step()
    for k in range(2):
        torch.testing.assert_close(together[k].detach(), alone[k].detach(), rtol=1e-9, atol=1e-9)


def test_lbfgs_is_used_plainly() -> None:
    """LBFGS gets a closure and finds the minimum of a quadratic in a step."""
    weights = torch.randn(1, 16).requires_grad_()
    parts = weights.detach()[0]
    optimizer = Plain([parts], torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"}, torch.zeros(1), lambda g: [g[0]])

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        loss = (weights - 3).square().sum(1)
        return loss.detach(), torch.autograd.grad(loss.sum(), weights)[0]

    optimizer.step(weights, gradient, torch.ones(1, 1))
    torch.testing.assert_close(weights.detach(), torch.full((1, 16), 3.0))


def test_compaction_keeps_state() -> None:
    """After leaving out a member, the others go on as if nothing had happened."""
    start, goal = torch.randn(3, 16), torch.randn(3, 16)
    paths = []
    for leave in (False, True):
        weights = start.clone().requires_grad_()
        optimizer = UnitRate(weights, torch.optim.Adam, {"amsgrad": True}, torch.tensor([0.0, 0.1, 0.2]))
        rows = torch.arange(3)
        for step in range(10):
            if leave and step == 5:
                rows = torch.tensor([2, 0])
                optimizer.keep(rows)
                weights = weights.detach()[rows].requires_grad_()
            grad = torch.sin(weights.detach() - goal[rows])
            optimizer.step(weights, lambda g=grad: (g[:, 0], g), torch.full((len(rows), 1), 0.1))
        paths.append(weights.detach())
    assert torch.equal(paths[0][[2, 0]], paths[1])


def test_scaling_follows_overflows_by_member() -> None:
    """Halved for the member that overflowed, whose gradient becomes 0; doubled after long without; others untouched."""
    scaling = Scaling(3, torch.device("cpu"))
    start = scaling.scale.clone()
    gradient = torch.full((3, 4), 8.0)
    gradient[1, 2] = torch.inf
    scaling.undo(gradient)
    assert torch.equal(gradient[0], torch.full((4,), 8.0) / Scaling.START)
    assert not gradient[1].any()
    assert torch.equal(scaling.scale, start * torch.tensor([[1.0], [0.5], [1.0]]))
    for _ in range(Scaling.PATIENCE - 1):
        scaling.undo(torch.ones(3, 4))
    assert torch.equal(scaling.scale, start * torch.tensor([[2.0], [0.5], [2.0]]))
    scaling.keep(torch.tensor([1, 2]))
    assert torch.equal(scaling.scale, start[:2] * torch.tensor([[0.5], [2.0]]))


def test_small_gradients_survive_half_precision() -> None:
    """A gradient below float16's smallest number comes out right when it is scaled, and as 0 when it is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    population = Population([network], [0], torch.device("cpu"))
    x, loss = torch.randn(1, 6, 4), MSE()
    with torch.no_grad():
        y = population(population.weights, x).squeeze(-1) + 1e-6
        weights = torch.full((6,), 1 / 6)
        exact = population.gradient(x, y, weights, [], loss)[1].clone()
        scaling = Scaling(1, torch.device("cpu"))
        with torch.autocast("cpu", torch.float16):
            y16 = population(population.weights, x).float().squeeze(-1) + 1e-6
            lost = population.gradient(x, y16, weights, [], loss)[1].clone()
            found = population.gradient(x, y16, weights, [], loss, scale=scaling.scale)[1]
        scaling.undo(found)
    error = (found - exact).norm() / exact.norm()
    assert error < 0.02 < (lost - exact).norm() / exact.norm()
