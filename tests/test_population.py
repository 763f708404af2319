"""The population: packing, masks, products, optimizers at unit rate."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from manyfit.models import MLP
from manyfit.population import LINEAR_OPTIMIZERS, Dropout, Plain, Population, UnitRate, initialised, seed_of, sum_rows

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
        taken = many.member(many.weights[k].detach(), {})
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
    x = torch.randn(1, 9, 5)
    torch.testing.assert_close(one(one.weights, x)[0], module.eval()(x[0]))
    before = one.buffers["1.running_mean"].clone()
    one(one.weights, x, one.dropout.keys(1, 1)[0])
    assert not torch.equal(before, one.buffers["1.running_mean"])


def test_gradients_against_finite_differences() -> None:
    """Autograd through the batched products agrees with central differences in float64."""
    modules = [initialised(lambda: MLP(2, 1, hidden=[3], activation="sigmoid").double(), seed) for seed in range(2)]
    many = Population(modules, [0, 1], CPU)
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: many(w, x), (many.weights.detach().clone().requires_grad_(),))


def mask(seed: int, step: int, p: float = 0.3, size: tuple[int, ...] = (1, 400, 250), layer: int = 0) -> torch.Tensor:
    drop = Dropout([seed], [[p, p]], CPU)
    return drop.mask(torch.Size(size), drop.keys(step, 1)[0], layer)[0] > 0


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.5, 0.9, 0.999])
def test_dropout_rate(p: float) -> None:
    """The share of zeros is p within five standard errors, and the mean is kept at 1."""
    drop = Dropout([7], [[p]], CPU)
    values = torch.stack([drop.mask(torch.Size((1, 400, 250)), drop.keys(step, 1)[0], 0) for step in range(20)])
    n = values.numel()
    assert abs((values == 0).double().mean().item() - p) <= 5 * np.sqrt(p * (1 - p) / n) + 2**-17
    assert values.double().mean().item() == pytest.approx(1, abs=5 * np.sqrt(p / (1 - p) / n) + 1e-3 * p)


def test_dropout_streams_are_independent() -> None:
    """Masks of neighbouring seeds, steps and layers, and of shifted positions, agree no more than chance."""
    chance, n = 0.7**2 + 0.3**2, 100_000
    variants = [
        mask(seed, step, layer=layer) for seed, step, layer in itertools.product(range(4), range(1, 5), range(2))
    ]
    for a, b in itertools.combinations(variants, 2):
        assert abs((a == b).double().mean().item() - chance) < 6 * np.sqrt(chance * (1 - chance) / n)
    flat = variants[0].flatten()
    for shift in (1, 2, 3, 64, 250, 256, 1024):
        same = (flat == flat.roll(shift)).double().mean().item()
        assert abs(same - chance) < 6 * np.sqrt(chance * (1 - chance) / n)


def test_dropout_units_are_even() -> None:
    """Over many steps every position is dropped as often as any other (chi-square within six sigma)."""
    drop = Dropout([3], [[0.5]], CPU)
    keys = drop.keys(1, 4000)
    counts = sum((drop.mask(torch.Size((1, 8, 32)), keys[s], 0) > 0).double() for s in range(4000)).flatten()
    chi = ((counts - 2000) ** 2 / 1000).sum().item()
    assert abs(chi - 256) < 6 * np.sqrt(2 * 256)


def test_masks_belong_to_the_member() -> None:
    """A member's mask is the same whoever stands beside it, in any order, after compaction."""
    size = torch.Size((3, 9, 5))
    together = Dropout([4, 5, 6], [[0.5], [0.2], [0.7]], CPU)
    alone = Dropout([5], [[0.2]], CPU)
    expected = alone.mask(torch.Size((1, 9, 5)), alone.keys(3, 1)[0], 0)[0]
    assert torch.equal(together.mask(size, together.keys(3, 1)[0], 0)[1], expected)
    together.keep(torch.tensor([2, 1]))
    assert torch.equal(together.mask(torch.Size((2, 9, 5)), together.keys(3, 1)[0], 0)[1], expected)


def test_keys_do_not_depend_on_blocks() -> None:
    """Keys of a step are the same in any block."""
    drop = Dropout([4, 5], [[0.5, 0.5], [0.2, 0.1]], CPU)
    assert torch.equal(drop.keys(1, 10)[6:], drop.keys(7, 4))


def test_sum_rows_keeps_its_bits() -> None:
    """A member's sum is the same alone and in company, also beyond the size where torch splits a lone sum."""
    values = torch.randn(5, 100_003, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(sum_rows(values[k : k + 1])[0], sum_rows(values)[k]) for k in range(5))


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
    optimizer = Plain(weights, torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"}, torch.zeros(1))

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


def test_seed_of_separates_paths() -> None:
    """Seeds of different purposes and numbers do not meet."""
    paths = [(tag, *numbers) for tag in ("weights", "dropout") for numbers in itertools.product(range(20), range(20))]
    assert len({seed_of(*path) for path in paths}) == len(paths)
