"""What chance decides about data, each a function of its arguments alone: the order of examples, errors in labels."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# First words of every seed sequence, so that two uses of one seed draw independent numbers.
ORDER, NOISE, TRAIN_SIZE = 1, 2, 3

TOGETHER = 16  # seeds from which on they are hashed together, which costs as much as ten by themselves


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which epoch `epoch` visits n examples, (n,) int64: a function of the arguments alone."""
    return torch.randperm(n, generator=_generator(ORDER, seed, epoch))


def orders(seeds: Sequence[int], epoch: int, n: int) -> Tensor:
    """The `order` of every seed, (seeds, n)."""
    if len(seeds) < TOGETHER:
        return torch.stack([order(seed, epoch, n) for seed in seeds])
    generator, states = torch.Generator(), order_states(seeds, epoch).tolist()
    return torch.stack([torch.randperm(n, generator=generator.manual_seed(state)) for state in states])


def order_states(seeds: Sequence[int], epoch: int) -> NDArray[np.uint64]:
    """What the generator of every seed's `order` is seeded with, (seeds,)."""
    return _states(np.array([np.full(len(seeds), ORDER), seeds, np.full(len(seeds), epoch)], np.uint32))


def noisy(y: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Labels of the training set with errors in them; a pure function of its arguments.

    Args:
        y: (n,) class codes or real targets; never written to.
        classes: number of classes; 0 for regression.
        share: classification: `round(share * n)` labels, in [0, 1], become another class drawn uniformly.
            Regression: N(0, share * std(y)) is added, share >= 0.
        seed: >= 0.
    """
    if not share >= 0 or (classes and share > 1):
        limits = "in [0, 1]" if classes else ">= 0"
        raise ValueError(f"data.label_noise must be {limits}, but got {share}. Set it to 0 for the labels as they are.")
    if share == 0:
        return y
    generator = _generator(NOISE, seed)
    if classes == 0:
        return y + share * y.std(correction=0) * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    wrong = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator, dtype=y.dtype)
    return y.index_put((wrong,), (y[wrong] + shift) % classes)


def _states(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """`SeedSequence(words[:, k]).generate_state(1, uint64)` of each column k of 1 to 4 words, which takes 10 us a call.

    Source: O'Neill 2015, "Developing a seed_seq alternative", as NumPy's SeedSequence has it.
    """
    factor = 0x43B0D7E5

    def hashed(value: NDArray[np.uint32], multiplier: int) -> NDArray[np.uint32]:
        nonlocal factor
        value = value ^ np.uint32(factor)
        factor = factor * multiplier % 2**32
        value = value * np.uint32(factor)
        value ^= value >> np.uint32(16)
        return value

    def mixed(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.uint32]:
        value: NDArray[np.uint32] = a * np.uint32(0xCA01F9DD) - b * np.uint32(0x4973F715)
        value ^= value >> np.uint32(16)
        return value

    empty = np.zeros((4 - len(words), words.shape[1]), np.uint32)
    pool = [hashed(word, 0x931E8875) for word in np.concatenate([words, empty])]
    for source, target in itertools.permutations(range(4), 2):
        pool[target] = mixed(pool[target], hashed(pool[source], 0x931E8875))
    factor = 0x8B51F9DD
    low, high = (hashed(word, 0x58F38DED).astype(np.uint64) for word in pool[:2])
    states: NDArray[np.uint64] = low | high << np.uint64(32)
    return states


def _generator(*words: int) -> torch.Generator:
    """A generator for this sequence of words >= 0; sequences that differ give independent numbers."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
