"""What the kernel is asked to do with members: steps on some examples, shared out among threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfit.native import tables
from manyfit.native.members import Members
from manyfit.native.tables import CALL, INTEGERS

SPEED = 1e10  # floating-point operations a second of a thread, to estimate with
STEP = 2e4  # of them, what a step costs besides its products,
ACTIVATION, UPDATE = 50, 30  # what the activation of a unit costs, and the update of a weight
SHORT = 0.15  # seconds of a call: an interrupt is heard after it
LEAST = 5e-4  # seconds of work that are worth a thread


class Task:
    """Steps of members on some examples, asked for again and again: on as many threads as this process may use.

    Args:
        members: They.
        mode: Of `tables`.
        x: Examples (n, features).
        y: Targets; class numbers as real numbers.
        batch: Examples of a step, which may be (members,).
        order: Numbers of examples (orders, longest); each member has the first until `integers` says otherwise.
        visited: How many of them in an epoch, which may be (members,); None: all.
        targets: Added to the number of an example, the place of its target in y; which may be (members,).

    Attributes:
        integers: (members, columns), see `tables`: at first all steps of an epoch.
        seconds: (members,), about how long they take on one thread.
    """

    def __init__(
        self,
        members: Members,
        mode: int,
        x: Tensor,
        y: Tensor,
        batch: int | NDArray[np.int64],
        order: Tensor,
        visited: int | NDArray[np.int64] | None = None,
        targets: int | NDArray[np.int64] = 0,
    ) -> None:
        self.members, self.x = members, x.contiguous()
        self.y, self.integers = y.to(x.dtype).contiguous(), members.integers.copy()
        i = self.integers
        i[:, INTEGERS.targets], i[:, INTEGERS.batch] = targets, batch
        i[:, INTEGERS.visited] = order.shape[1] if visited is None else visited
        i[:, INTEGERS.steps] = -(-i[:, INTEGERS.visited] // i[:, INTEGERS.batch])
        rows, weights = i[:, INTEGERS.batch], i[:, INTEGERS.weights]
        units = i[:, INTEGERS.blocks] * i[:, INTEGERS.widest]
        passes = 2 if mode == tables.EVALUATE else 6
        work = passes * rows * weights + ACTIVATION * rows * units + UPDATE * weights + STEP
        self.seconds = i[:, INTEGERS.steps] * work / SPEED
        sizes = i[:, INTEGERS.batch] * i[:, INTEGERS.widest]
        self.spaces = (3 * i[:, INTEGERS.blocks] + 3) * sizes + i[:, INTEGERS.batch]
        self.spaces += i[:, INTEGERS.largest] + 2 * i[:, INTEGERS.weights]
        self.call = np.zeros(len(CALL), np.int64)
        self._tell(CALL.integers, self.integers)
        self._tell(CALL.floats, members.floats)
        self._tell(CALL.programs, members.programs)
        self._tell(CALL.values, members.values)
        self._tell(CALL.moments, members.moments)
        self._tell(CALL.streams, members.streams)
        self._tell(CALL.dropout, members.dropout)
        self._tell(CALL.class_weights, members.class_weights)
        self._tell(CALL.x, self.x)
        self._tell(CALL.y, self.y)
        if mode == tables.TRAIN and members.updates is not None:
            self._tell(CALL.updates, members.updates)
        self.call[CALL.mode], self.call[CALL.layers] = mode, members.values.shape[1]
        self.call[CALL.parameters], self.call[CALL.kept] = members.weights.shape[1], members.moments.shape[1]
        self.call[CALL.features] = x.shape[1]
        self.call[CALL.drops], self.call[CALL.classes] = members.streams.shape[1], members.class_weights.shape[1]
        self.visit(order)

    def _tell(self, place: int, table: Tensor | NDArray[Any]) -> None:
        """Where a table is; whoever calls keeps it."""
        if isinstance(table, Tensor):
            assert table.is_contiguous()
            self.call[place] = table.data_ptr()
        else:
            assert table.flags.c_contiguous
            self.call[place] = table.ctypes.data

    def visit(self, order: Tensor) -> None:
        """From now on in this order."""
        self.order = order.contiguous()
        self._tell(CALL.order, self.order)
        self.call[CALL.longest] = order.shape[1]

    def run(
        self,
        which: NDArray[np.int64],
        *,
        rates: NDArray[np.float64] | None = None,
        weights: Tensor | None = None,
        gradients: Tensor | None = None,
    ) -> None:
        """Make the steps that `integers` asks for.

        Args:
            which: Members.
            rates: Of all steps of these, one member's after the other's.
            weights: (members, parameters); None: their own.
            gradients: Written, likewise.
        """
        if rates is not None:
            steps = self.integers[which, INTEGERS.steps]
            self.integers[which, INTEGERS.rates] = np.cumsum(steps) - steps
            self._tell(CALL.rates, rates)
        if gradients is not None:
            self._tell(CALL.gradients, gradients)
        self._tell(CALL.weights, self.members.weights if weights is None else weights)
        shares = list(_shares(which, self.seconds[which], self.members.threads))
        if len(shares) == 1:
            self._call(shares[0])
            return
        left = iter(shares)

        def work() -> None:
            for share in left:  # a list's iterator hands out each once, whichever threads ask
                self._call(share)

        self.held = rates, weights, gradients  # as long as anybody may write to them

        def stop() -> None:
            left.__setstate__(len(shares))  # type: ignore[attr-defined]  # of a list's iterator: nothing is left

        self.members.crew.do(work, min(self.members.threads, len(shares)), stop)

    def _call(self, which: NDArray[np.int64]) -> None:
        scratch = torch.empty(int(self.spaces[which].max()), dtype=self.x.dtype)
        call = self.call.copy()
        call[CALL.members], call[CALL.todo], call[CALL.scratch] = which.ctypes.data, len(which), scratch.data_ptr()
        self.members.kernel(call)


def _shares(members: NDArray[np.int64], seconds: NDArray[np.float64], threads: int) -> Iterator[NDArray[np.int64]]:
    """What a call is given, longest first: pieces that keep all threads busy to the end, none too small to pay."""
    if len(members) == 1:
        yield members
        return
    slowest = np.argsort(-seconds, kind="stable")
    members, seconds = members[slowest], seconds[slowest]
    size = max(LEAST, min(seconds.sum() / threads / 4, SHORT))
    start, total = 0, 0.0
    for k, its in enumerate(seconds):
        if total + its > size and k > start:
            yield members[start:k]
            start, total = k, 0.0
        total += its
    yield members[start:]
