"""The compiled kernel against torch, closed forms and finite differences; every part of it by being listed."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyfit import losses as all_losses
from manyfit.losses import Loss
from manyfit.native import known, tables
from manyfit.native.members import Member, Members, filled, parts_of, row_of
from manyfit.native.tables import FLOATS, INTEGERS
from manyfit.native.task import Task
from manyfit.population.dropout import Dropout

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in known.ACTIVATIONS},
    "PReLU": nn.PReLU,
    "Identity": nn.Identity,
    "LeakyReLU(0.3)": lambda: nn.LeakyReLU(0.3),
}
LOSSES: dict[str, Loss] = {kind.__name__: kind() for kind in known.LOSSES} | {
    "Huber(0.3)": all_losses.Huber(0.3),
    "CrossEntropy(0.2)": all_losses.CrossEntropy(0.2),
    "BCE(0.2)": all_losses.BCE(0.2),
    "balanced CrossEntropy": all_losses.Balanced(all_losses.CrossEntropy(0.1), [9, 5, 1, 4]),
    "balanced BCE": all_losses.Balanced(all_losses.BCE(0.1), [15, 4]),
}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    **{kind.__name__: (kind, {}) for kind in known.OPTIMIZERS},
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "dampened": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": [0.8, 0.9], "eps": 1e-6}),
    "amsgrad, decoupled": (torch.optim.AdamW, {"amsgrad": True}),
    "NAdam, decoupled": (torch.optim.NAdam, {"decoupled_weight_decay": True, "momentum_decay": 1e-2}),
    "RAdam, decoupled": (torch.optim.RAdam, {"decoupled_weight_decay": True, "betas": [0.9, 0.99]}),
    "Adagrad, started": (torch.optim.Adagrad, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "centred": (torch.optim.RMSprop, {"centered": True}),
    "centred, momentum": (torch.optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "RMSprop, momentum": (torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.9}),
    "Adadelta, rho": (torch.optim.Adadelta, {"rho": 0.7, "eps": 1e-4}),
}


ONE = np.zeros(1, np.int64)  # the only member


def network(widths: list[int], activation: Callable[[], nn.Module] = nn.Tanh, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def members_of(net: nn.Sequential, loss: Loss, dtype: torch.dtype, **more: Any) -> Members:
    given = {"optimizer": torch.optim.SGD, "options": {}, "weight_decay": 0.0, "gradient_clip": None, "seed": 5}
    return Members([Member(net, loss, **{**given, **more})], dtype)


def examples(n: int, features: int, loss: Loss, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(n, features, generator=draw, dtype=dtype)
    if loss.task == all_losses.REGRESSION:
        return x, torch.randn(n, generator=draw, dtype=dtype)
    return x, torch.randint(0, 2 if isinstance(known.plain(loss), all_losses.BCE) else 4, (n,), generator=draw)


def width_of(loss: Loss) -> int:
    return 4 if isinstance(known.plain(loss), all_losses.CrossEntropy) else 1


def gradient_of(members: Members, x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(members.weights)
    Task(members, tables.GRADIENT, x, y, len(x), torch.arange(len(x))[None]).run(ONE, gradients=out)
    return out[0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_are_autograds(activation: Callable[[], nn.Module], loss: Loss) -> None:
    for dtype, near in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        net = network([5, 7, 33, width_of(loss)], activation).to(dtype)
        x, y = examples(19, 5, loss, dtype)
        found = parts_of(net, gradient_of(members_of(net, loss, dtype), x, y))
        outputs = net(x)
        _, by_outputs = loss.with_gradient(outputs[None], y[None])
        want = torch.autograd.grad(outputs, list(net.parameters()), by_outputs[0] / len(x))
        for got, wanted in zip(found, want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=near)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_are_finite_differences(loss: Loss) -> None:
    net = network([3, 6, width_of(loss)]).double()
    x, y = examples(8, 3, loss, torch.float64)
    members = members_of(net, loss, torch.float64)
    gradient = gradient_of(members, x, y)
    task = Task(members, tables.EVALUATE, x, y, 8, torch.arange(8)[None])

    def value(row: Tensor) -> float:
        members.floats[:, FLOATS.loss] = 0
        task.run(ONE, weights=row[None].clone())
        return float(members.floats[0, FLOATS.loss]) / 8

    row, step = row_of(net), 1e-6
    for i in range(len(row)):
        e = torch.zeros_like(row).index_fill_(0, torch.tensor(i), step)
        assert (value(row + e) - value(row - e)) / (2 * step) == pytest.approx(float(gradient[i]), abs=1e-8)


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("decay", "clip"), [(0.0, None), (0.01, 0.5)])
def test_steps_are_torchs(
    cls: type[torch.optim.Optimizer], options: dict[str, Any], decay: float, clip: float | None
) -> None:
    """300 steps in float64 to 1e-12; 10 epochs in float32 to 1e-5."""
    loss, n, batch = all_losses.CrossEntropy(), 50, 16
    for dtype, epochs, near in ((torch.float64, 75, 1e-12), (torch.float32, 10, 1e-5)):
        torch.set_default_dtype(dtype)  # NAdam keeps a number of its own in it
        try:
            x, y = examples(n, 5, loss, dtype)
            net = network([5, 9, 4]).to(dtype)
            rates = np.linspace(1, 0.5, epochs * 4) * (1.0 if cls is torch.optim.Adadelta else 1e-2)
            more = {"optimizer": cls, "options": options, "weight_decay": decay, "gradient_clip": clip}
            members = members_of(net, loss, dtype, **more)
            task = Task(members, tables.TRAIN, x, y, batch, torch.arange(n)[None])
            raw = cls(net.parameters(), lr=1.0, weight_decay=decay, **options)
            for epoch in range(epochs):
                order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch))
                its = rates[4 * epoch : 4 * epoch + 4].copy()
                task.visit(order[None])
                task.run(ONE, rates=its)
                for s in range(4):
                    index = order[16 * s : 16 * s + 16]
                    raw.zero_grad()
                    loss.per_example(net(x[index])[None], y[index][None]).mean().backward()
                    if clip:
                        nn.utils.clip_grad_norm_(net.parameters(), clip)
                    raw.param_groups[0]["lr"] = its[s]
                    raw.step()
            torch.testing.assert_close(members.weights[0], row_of(net), rtol=0, atol=near)
            assert task.integers[0, INTEGERS.done] == 4 * epochs
        finally:
            torch.set_default_dtype(torch.float32)


def test_dropout_has_the_masks_of_the_batched_engine() -> None:
    x, loss = torch.randn(11, 7), all_losses.MSE()
    net = nn.Sequential(nn.Dropout(0.4), nn.Linear(7, 1))
    members = members_of(net, loss, torch.float32)
    task = Task(members, tables.TRAIN, x, torch.zeros(11), 11, torch.arange(11)[None])
    task.integers[0, INTEGERS.done] = 8
    task.run(ONE, rates=np.ones(1))
    dropout = Dropout([5], [[0.4]], torch.device("cpu"))
    mask = dropout.masks(dropout.keys(9, 1), 0, 77)[0, 0].view(11, 7)
    weight, bias = net[1].weight, net[1].bias
    (of_weight, of_bias) = torch.autograd.grad((x * mask @ weight.T + bias).square().mean(), (weight, bias))
    want = torch.cat([(weight - of_weight).flatten(), bias - of_bias])
    torch.testing.assert_close(members.weights[0], want.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.ReLU])
def test_activations_over_their_whole_range(activation: type[nn.Module], dtype: torch.dtype) -> None:
    """A network of one unit that passes its input through: within some last places; infinity and NaN too."""
    net = nn.Sequential(nn.Linear(1, 1), activation(), nn.Linear(1, 1)).to(dtype)
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.fill_(1)
            layer.bias.fill_(0)
    x = torch.cat(
        [torch.linspace(-80, 80, 4001), torch.linspace(-1, 1, 999) ** 7 / 3, torch.tensor([torch.inf, torch.nan])]
    )
    x = x.to(dtype)
    members = members_of(net, all_losses.MSE(), dtype)
    got = []
    for value in x:
        members.floats[:, FLOATS.score] = 0
        zero = torch.zeros(1, 1, dtype=torch.int64)
        Task(members, tables.EVALUATE, value.view(1, 1), zero, 1, zero).run(ONE)
        got.append(math.sqrt(members.floats[0, FLOATS.score]))
    want, eps = activation()(x.double()).abs(), torch.finfo(dtype).eps
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64),
        want,
        rtol=8 * eps,
        atol=5 * eps if activation is nn.GELU else eps / 2,
        equal_nan=True,
    )


def test_a_member_is_the_same_in_any_company_on_any_threads() -> None:
    """Other widths, depths, batch sizes, optimizers, losses and activations beside it; rates at which it is chaotic."""
    n = 120
    x, y = examples(n, 6, all_losses.CrossEntropy(), torch.float32)
    y = torch.stack([y, (y + 1) % 4]).float()
    kinds = list(known.OPTIMIZERS)

    def member(k: int) -> Member:
        widths = [6, *[(17, 3, 40, 64)[(k + i) % 4] for i in range(k % 3)], 4]
        activation = list(ACTIVATIONS.values())[k % len(ACTIVATIONS)]
        return Member(
            network(widths, activation, 0.3 * (k % 2)), all_losses.CrossEntropy(), kinds[k % len(kinds)], {},
            0.01 * (k % 2), None, k,
        )  # fmt: skip

    def trained(numbers: list[int], threads: int) -> list[Tensor]:
        members, which = Members([member(k) for k in numbers], torch.float32), np.arange(len(numbers))
        members.threads = threads
        batches = np.array([(1, 7, 16, 120)[k % 4] for k in numbers])
        own = np.array(numbers)  # some have their own targets, some see fewer examples
        task = Task(members, tables.TRAIN, x, y.view(-1), batches, torch.arange(n)[None], n - own % 3, own % 2 * n)
        i = task.integers
        i[:, INTEGERS.order] = which
        rates = np.full(i[:, INTEGERS.steps].sum(), 0.3)
        for epoch in range(12):
            draws = [torch.Generator().manual_seed(epoch + k) for k in numbers]
            task.visit(torch.stack([torch.randperm(n, generator=draw) for draw in draws]))
            task.run(which, rates=rates)
        assert (i[:, INTEGERS.done] == 12 * i[:, INTEGERS.steps]).all()  # also of those that diverge
        return [row[:count] for row, count in zip(members.weights, i[:, INTEGERS.weights], strict=True)]

    everyone = trained(list(range(36)), 2)
    assert sum(bool(row.isfinite().all()) for row in everyone) > 20
    for company in ([5], [30], [7, 8], list(range(35, -1, -1)), list(range(0, 36, 3))):
        for threads in (1, 2, 3):
            for k, row in zip(company, trained(company, threads), strict=True):
                torch.testing.assert_close(row, everyone[k], rtol=0, atol=0, equal_nan=True)


def test_a_network_comes_back_as_it_was() -> None:
    net, other = network([5, 3, 2], nn.PReLU), network([5, 3, 2], nn.PReLU)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert all(map(torch.equal, net.parameters(), filled(other, row_of(net)).parameters()))
