"""Orders of examples and errors in labels: functions of their arguments alone."""

import numpy as np
import pytest
import torch

from manyfit.data.draws import noisy, order, orders


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_label_noise_replaces_its_share_with_other_classes(share):
    """Exactly round(share * n) labels change, each to another valid class, all others alike."""
    y = torch.arange(10_000) % 5
    changed = noisy(y, 5, share, seed=3)
    wrong = changed != y
    assert wrong.sum() == round(share * 10_000)
    assert changed.dtype == torch.int64
    shift = torch.bincount((changed - y)[wrong] % 5, minlength=5)
    assert shift[0] == 0
    assert (shift[1:] / wrong.sum() - 0.25).abs().max() < 0.06


@pytest.mark.parametrize("classes", [0, 4])
def test_label_noise_depends_on_its_arguments_alone(classes):
    """The same seed gives the same noise whatever the global generator, another seed another; the input is kept."""
    y = torch.arange(1000) % 4 if classes else torch.linspace(-1, 1, 1000)
    original = y.clone()
    torch.manual_seed(0)
    first = noisy(y, classes, 0.3, seed=0)
    torch.manual_seed(1)
    assert torch.equal(first, noisy(y, classes, 0.3, seed=0))
    assert not torch.equal(first, noisy(y, classes, 0.3, seed=1))
    assert torch.equal(noisy(y, classes, 0.0, seed=0), original)
    assert torch.equal(y, original)


def test_label_noise_of_a_regression_is_in_units_of_the_deviation():
    """Noise on real targets has deviation share * std(y) and mean 0."""
    y = 7 * torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    noise = noisy(y, 0, 0.5, seed=0) - y
    torch.testing.assert_close(noise.std() / y.std(), torch.tensor(0.5), atol=0.01, rtol=0)
    assert abs(noise.mean()) < 0.1


@pytest.mark.parametrize(("classes", "share"), [(3, -0.1), (3, 1.1), (0, -1.0), (0, float("nan"))])
def test_label_noise_out_of_range_is_refused(classes, share):
    """A share beyond [0, 1], or below 0 in regression, raises."""
    with pytest.raises(ValueError, match=r"data.label_noise must be (in \[0, 1\]|>= 0), but got"):
        noisy(torch.zeros(5, dtype=torch.int64), classes, share, 0)


def test_an_order_visits_each_example_once():
    """An order is a permutation of 0..n-1, int64."""
    visited = order(0, 0, 1000)
    assert visited.dtype == torch.int64
    assert torch.equal(visited.sort().values, torch.arange(1000))


def test_an_order_is_a_function_of_seed_and_epoch():
    """The global generator plays no part, and all of 20 seeds x 20 epochs differ, (1, 0) from (0, 1) too."""
    torch.manual_seed(1)
    first = order(3, 5, 50)
    torch.manual_seed(2)
    assert torch.equal(first, order(3, 5, 50))
    orders = {tuple(order(seed, epoch, 50).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


@pytest.mark.parametrize("count", [1, 15, 16, 50])
@pytest.mark.parametrize("epoch", [0, 1, 2**31 + 5])
def test_orders_drawn_together_are_those_of_each_seed(count: int, epoch: int) -> None:
    """Seeds hashed together give NumPy's states, the largest too."""
    seeds = [2**32 - 1, 0, *np.random.default_rng(0).integers(0, 2**32, 48).tolist()][:count]
    assert torch.equal(orders(seeds, epoch, 37), torch.stack([order(seed, epoch, 37) for seed in seeds]))


def test_orders_are_uncorrelated():
    """Rank correlations between neighbouring seeds and epochs scatter around 0 as those of independent orders do."""
    n = 2000
    ranks = torch.stack([order(seed, epoch, n).double() for seed in range(5) for epoch in range(5)])
    correlation = torch.corrcoef(ranks).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / n**0.5
