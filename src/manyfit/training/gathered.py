"""The examples of members that have several data sets, as one table for the kernel: a row of it is a number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfit.training.examples import Examples
from manyfit.training.prepared import Job


@dataclass(frozen=True)
class Gathered:
    """The examples of one split.

    Attributes:
        x: (rows, features), one data set after the other.
        y: All targets, one after the other; those of row r of member k are `y[targets[k] + r]`.
        targets: (members,).
        counts: How many examples each member has, (members,).
        firsts: The first row of each, (members,).
    """

    x: Tensor
    y: Tensor
    targets: NDArray[np.int64]
    counts: NDArray[np.int64]
    firsts: NDArray[np.int64]

    def all(self) -> tuple[Tensor, NDArray[np.int64]]:
        """An order that visits all of each data set: (data sets, most rows), and which is whose (members,)."""
        firsts, which = np.unique(self.firsts, return_inverse=True)
        most = int(self.counts.max())
        order = torch.from_numpy(firsts)[:, None] + torch.arange(most)
        return order.clamp_(max=len(self.x) - 1), which


class Sets:
    """The data sets of members, and who has which.

    Args:
        jobs: The members.
        dtype: Of the examples.
    """

    def __init__(self, jobs: Sequence[Job], dtype: torch.dtype) -> None:
        digests = [job.data.digest for job in jobs]
        numbers = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
        self.which = np.array([numbers[digest] for digest in digests])
        mine = [
            [job for job, has in zip(jobs, self.which, strict=True) if has == number] for number in numbers.values()
        ]
        self.sets = [Examples.of(its, torch.device("cpu"), dtype) for its in mine]
        self.rows = np.zeros(len(jobs), int)  # of its set's training targets, where each member has its own
        for number, one in enumerate(self.sets):
            has = self.which == number
            self.rows[has] = np.arange(has.sum()) if len(one.y_train) > 1 else 0

    def of(self, member: int) -> Examples:
        """A member's."""
        return self.sets[int(self.which[member])]

    def split(self, name: str) -> Gathered:
        """What train, val or test is measured on."""
        return self._gathered([one.split(name) for one in self.sets])

    def training(self) -> Gathered:
        """What they are trained on."""
        return self._gathered([(one.x_train, one.y_train) for one in self.sets])

    def _gathered(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Gathered:
        firsts = np.cumsum([0, *(len(x) for x, _ in parts)])[self.which]
        places = np.cumsum([0, *(y.numel() for _, y in parts)])[self.which]
        counts = np.array([len(x) for x, _ in parts])[self.which]
        own = self.rows * np.array([len(y) > 1 for _, y in parts])[self.which]
        x, y = parts[0][0], parts[0][1].reshape(-1)
        if len(parts) > 1:
            x, y = torch.cat([x for x, _ in parts]), torch.cat([y.reshape(-1) for _, y in parts])
        return Gathered(x, y, places + own * counts - firsts, counts, firsts)
