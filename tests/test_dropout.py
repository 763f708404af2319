"""Masks: their rate, their independence, and whose they are."""

import itertools

import numpy as np
import pytest
import torch

from manyfit.population.dropout import Dropout, seed_of

CPU = torch.device("cpu")


def mask(seed: int, step: int, p: float = 0.3, n: int = 100_000, layer: int = 0) -> torch.Tensor:
    drop = Dropout([seed], [[p, p]], CPU)
    return drop.masks(drop.keys(step, 1), layer, n)[0, 0] > 0


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.5, 0.9, 0.999])
def test_dropout_rate(p: float) -> None:
    """The share of zeros is p within five standard errors, and the mean is kept at 1."""
    drop = Dropout([7], [[p]], CPU)
    values = drop.masks(drop.keys(0, 20), 0, 100_000)
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
    counts = (drop.masks(drop.keys(1, 4000), 0, 256) > 0).double().sum(0).flatten()
    chi = ((counts - 2000) ** 2 / 1000).sum().item()
    assert abs(chi - 256) < 6 * np.sqrt(2 * 256)


def test_masks_belong_to_the_member() -> None:
    """A member's mask is the same whoever stands beside it, in any order, after compaction."""
    together = Dropout([4, 5, 6], [[0.5], [0.2], [0.7]], CPU)
    alone = Dropout([5], [[0.2]], CPU)
    expected = alone.masks(alone.keys(3, 1), 0, 45)[0, 0]
    assert torch.equal(together.masks(together.keys(3, 1), 0, 45)[0, 1], expected)
    together.keep(torch.tensor([2, 1]))
    assert torch.equal(together.masks(together.keys(3, 1), 0, 45)[0, 1], expected)


def test_keys_do_not_depend_on_blocks() -> None:
    """Keys of a step are the same in any block."""
    drop = Dropout([4, 5], [[0.5, 0.5], [0.2, 0.1]], CPU)
    assert torch.equal(drop.keys(1, 10)[6:], drop.keys(7, 4))


def test_masks_do_not_depend_on_how_many_are_made_at_once() -> None:
    """Masks made for one step or for many at once are the same."""
    drop = Dropout([4, 5], [[0.5, 0.5], [0.2, 0.1]], CPU)
    calls = [(0, torch.Size((9, 5))), (1, torch.Size((9, 3)))]
    expected = drop.applied(drop.keys(1, 10), calls)
    for step in range(10):
        for a, b in zip(drop.applied(drop.keys(1 + step, 1), calls), expected, strict=True):
            assert torch.equal(a[0], b[step])


def test_seed_of_separates_paths() -> None:
    """Seeds of different purposes and numbers do not meet."""
    paths = [(tag, *numbers) for tag in ("weights", "dropout") for numbers in itertools.product(range(20), range(20))]
    assert len({seed_of(*path) for path in paths}) == len(paths)
