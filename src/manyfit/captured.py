"""An optimizer step recorded once as a CUDA graph and replayed: the kernels of an eager step, without their launches.

A small step on a GPU is all launches. Source: CUDA graphs in PyTorch (Nguyen et al. 2021).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor]
WARM_UP = 3  # eager steps before: libraries make their workspaces, the optimizer its state


class CapturedStep:
    """A step whose shapes, and the places of whose tensors, stay.

    Args:
        step: (index, row_weights, lr, masks) -> losses (members,); changes weights and optimizer state in place.
    """

    def __init__(self, step: "Step") -> None:
        self.step = step
        self.eager = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []

    def __call__(self, index: Tensor, row_weights: Tensor, lr: Tensor, masks: list[Tensor]) -> Tensor:
        """The losses are overwritten by the next step."""
        given = [index, row_weights, lr, *masks]
        if self.eager < WARM_UP:
            self.eager += 1
            return self._on_a_side_stream(given)
        if self.graph is None:
            self.inputs = [tensor.clone() for tensor in given]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and computes nothing
                self.losses = self._eagerly(self.inputs)
        for ours, theirs in zip(self.inputs, given, strict=True):
            ours.copy_(theirs)
        self.graph.replay()
        return self.losses

    def _on_a_side_stream(self, given: Sequence[Tensor]) -> Tensor:
        """What runs before a capture must not be on the default stream."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self._eagerly(given)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _eagerly(self, given: Sequence[Tensor]) -> Tensor:
        index, row_weights, lr, *masks = given
        return self.step(index, row_weights, lr, masks)
