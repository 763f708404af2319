"""Dropout masks that belong to a member: a hash of its own seed, whoever trains beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seed_of(*path: int | str) -> int:
    """A 64-bit seed that is a function of a path such as ("weights", seed); paths are independent of each other."""
    words = [int.from_bytes(p.encode(), "little") if isinstance(p, str) else p for p in path]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def _mix(x: Tensor) -> Tensor:
    """Two multiply-xorshift rounds on int32, a bijection with full avalanche. Source: Wellons 2018, lowbias32."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)


class Dropout:
    """Masks from a counter-based hash of (seed, step, layer, position): no state, no order of drawing.

    Args:
        seeds: One per member.
        rates: Probability of 0, (members, layers), each in [0, 1). Kept to 16 bits; the rescaling is exact for it.
        device: Where the masks are made.
    """

    def __init__(self, seeds: Sequence[int], rates: Sequence[Sequence[float]], device: torch.device) -> None:
        codes = torch.tensor(rates, dtype=torch.float64).mul(65536).round().clamp(max=65535).to(torch.int64)
        self.layers = codes.shape[1] if codes.ndim == 2 else 0
        self.active = bool(codes.any())
        self.thresholds = (codes - 32768).to(torch.int16).to(device)
        self.scales = (65536 / (65536 - codes)).float().to(device)
        self.streams = np.array([[seed_of("dropout", s, i) for i in range(self.layers)] for s in seeds], np.uint64)
        self.positions: dict[tuple[int, int], Tensor] = {}

    def keys(self, first: int, steps: int) -> Tensor:
        """Keys (steps, members, layers) int32 of consecutive optimizer steps. Source: Steele 2014, SplitMix64."""
        with np.errstate(over="ignore"):
            counter = np.arange(first, first + steps, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = self.streams + counter[:, None, None]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        return torch.from_numpy((z >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(self.thresholds.device)

    def masks(self, keys: Tensor, layer: int, n: int, first: int = 0) -> Tensor:
        """Multipliers (steps, members, n), 0 or 1 / (1 - p), for keys (steps, members, layers).

        They are those of positions first .. first + n - 1 in the whole batch.
        """
        if (n, first) not in self.positions:
            pairs = torch.arange(first // 2, (first + n + 1) // 2, dtype=torch.int32, device=keys.device)
            self.positions[n, first] = _mix(pairs)
        hashes = _mix(self.positions[n, first] ^ keys[:, :, layer, None])
        halves = hashes.view(torch.int16)[..., first % 2 : first % 2 + n]  # one hash for two elements
        return (halves >= self.thresholds[:, layer, None]) * self.scales[:, layer, None]

    def applied(self, keys: Tensor, calls: Sequence[tuple[int, torch.Size]], first: int = 0) -> list[Tensor]:
        """Multipliers (steps, members, rows, ...) for each application of dropout in a forward pass.

        Args:
            keys: (steps, members, layers).
            calls: The layer of each application, and the shape (rows, ...) it sees.
            first: The row of the whole batch that these rows begin with.
        """
        made = []
        for layer, shape in calls if self.active else []:
            masks = self.masks(keys, layer, shape.numel(), first * shape[1:].numel())
            made.append(masks.view(*masks.shape[:2], *shape))
        return made

    def keep(self, rows: Tensor) -> None:
        """Leave only these members."""
        self.thresholds, self.scales = self.thresholds[rows], self.scales[rows]
        self.streams = self.streams[rows.cpu().numpy()]
        self.active = bool((self.thresholds > -32768).any())
