"""What is done again and again, recorded once as a CUDA graph and replayed: its kernels, without their launches.

A small optimizer step on a GPU is all launches. Source: CUDA graphs in PyTorch (Nguyen et al. 2021).
"""

import contextlib
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

STEPS = 8  # in one graph: a replay, and what goes to it, cost the host as much as a dozen launches


class Captured:
    """Calls that read what they are given, and change tensors that stay where they are.

    Args:
        must: Whether a call that cannot be recorded is an error; else such calls are made as they are.
    """

    def __init__(self, must: bool) -> None:
        self.must = must
        self.warm = self.refused = False
        self.forget()

    def forget(self) -> None:
        """What was recorded, since tensors have moved."""
        self.graphs: dict[Hashable, _Graph] = {}
        self.pool = torch.cuda.graph_pool_handle()  # of memory, for all: they leave nothing in it for each other

    def run(self, key: Hashable, call: Callable[..., None], *given: Tensor) -> None:
        """`call(*given)`, or the recording of the call of this key with these tensors in place of those it had."""
        if self.refused:
            call(*given)
        elif not self.warm:  # libraries make their workspaces, the optimizer its state
            self.warm = True
            _on_a_side_stream(call, given)
        elif key in self.graphs:
            self.graphs[key].replay(given)
        else:
            stream = torch.cuda.current_stream()
            try:
                self.graphs[key] = _Graph(call, given, self.pool)
            except RuntimeError:
                torch.cuda.set_stream(stream)
                with contextlib.suppress(RuntimeError):  # torch leaves it open where a wait broke the capture off
                    torch._C._cuda_endAllocateToPool(stream.device_index, self.pool)
                if self.must:
                    raise
                print("steps are not recorded: the model asks the device for a number", file=sys.stderr)
                self.refused = True  # nothing was computed
                call(*given)
            else:
                self.graphs[key].replay(given)


class _Graph:
    """What a call did; what it is given is copied to where that was when it was recorded."""

    def __init__(self, call: Callable[..., None], given: Sequence[Tensor], pool: Any) -> None:
        self.given = [tensor.clone() for tensor in given]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):  # computes nothing
            call(*self.given)

    def replay(self, given: Sequence[Tensor]) -> None:
        for ours, theirs in zip(self.given, given, strict=True):
            ours.copy_(theirs)
        self.graph.replay()


def _on_a_side_stream(call: Callable[..., None], given: Sequence[Tensor]) -> None:
    """What runs before a capture must not be on the default stream."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(*given)
    torch.cuda.current_stream().wait_stream(stream)
