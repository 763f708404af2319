"""What training asks of the processes that train the same population together: sums, and one decision for all.

The curve does not depend on how many there are: every rank takes its share of the rows of each global batch and of
each evaluation, and sums (not means) are added up.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist
from torch import Tensor

BUCKET = 2**20  # bytes of gradient that are sent while the rest is being computed: DDP's first bucket
P = ParamSpec("P")
T = TypeVar("T")


class PeerLostError(RuntimeError):
    """Another rank could not be reached: whatever went wrong, it went wrong there."""


def _among(communicate: Callable[P, T]) -> Callable[P, T]:
    """What the library raises when a peer is gone says nothing about why."""

    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return communicate(*args, **kwargs)
        except RuntimeError as error:  # gloo raises no more special one
            raise PeerLostError(f"another rank is gone ({str(error).splitlines()[0]})") from error

    return tried


class Ranks:
    """The processes that train a population together; alone, nothing is sent.

    Args:
        rank: This process, 0 .. world - 1.
        world: How many; a process group of torch.distributed must have been made if there are several.
        leaving: What this process calls when a signal ends it.
    """

    def __init__(self, rank: int = 0, world: int = 1, leaving: list[Callable[[], None]] | None = None) -> None:
        self.rank, self.world, self.leaving = rank, world, [] if leaving is None else leaving

    def share(self, n: int) -> slice:
        """Which of n rows are this rank's."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    @_among
    def sum(self, values: Tensor) -> None:
        """Add up over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)

    @_among
    def agree(self, decision: T) -> T:
        """Rank 0's decision, whatever this rank's was."""
        if self.world == 1:
            return decision
        decisions: list[Any] = [decision]
        dist.broadcast_object_list(decisions)
        return decisions[0]  # type: ignore[no-any-return]

    def gradient(self, gradient: Tensor) -> "Gradient | None":
        """What adds up a gradient (members, parameters) while it is being computed; None alone."""
        return Gradient(gradient) if self.world > 1 else None


class Gradient:
    """A gradient on its way to being the sum over all ranks.

    Backpropagation reaches the last parameters first. What is final is sent in buckets while it goes on, which hides
    communication behind computation. Source: Li et al. 2020 (PyTorch Distributed), section 3.2.3. Only the columns of a
    single member lie together in memory; more members are small, and sent whole.

    Args:
        values: (members, parameters), to be filled from the back.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.unsent = values.shape[1]
        self.work: list[dist.Work] = []

    @_among
    def final(self, first: int) -> None:
        """From this parameter on all is final."""
        size = (self.unsent - first) * self.values.element_size()
        if len(self.values) == 1 and size >= BUCKET:
            self._send(self.values[0, first : self.unsent])
            self.unsent = first

    @_among
    def wait(self) -> None:
        """Until the whole gradient is the sum."""
        self._send(self.values[:, : self.unsent] if len(self.values) == 1 else self.values)
        for work in self.work:
            work.wait()

    def _send(self, part: Tensor) -> None:
        if part.numel():
            work = dist.all_reduce(part, async_op=True)
            assert work is not None
            self.work.append(work)
