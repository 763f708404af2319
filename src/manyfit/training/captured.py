"""What is done again and again, recorded once as a CUDA graph and replayed: its kernels, without their launches.

A small optimizer step on a GPU is all launches. Source: CUDA graphs in PyTorch (Nguyen et al. 2021).
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config
from manyfit.parallel import devices
from manyfit.population.unit_rate import is_linear

STEPS = 8  # in one graph: a replay, and what goes to it, cost the host as much as a dozen launches


def captures(config: Config, optimizer: type[torch.optim.Optimizer]) -> bool | Literal["auto"]:
    """Whether steps are to be recorded as a CUDA graph; "auto": if the model lets them.

    Raises:
        ConfigError: They are to be, and cannot.
    """
    capturable = is_linear(optimizer) and (
        optimizer is torch.optim.SGD or "capturable" in inspect.signature(optimizer).parameters
    )
    obstacles = {
        "there is no CUDA device": not (devices.on_gpu(config.trainer) and torch.cuda.is_available()),
        f"the step of {optimizer.__name__} cannot be captured": not capturable,
        f"trainer.devices={config.trainer.devices}": devices.world(config.trainer) > 1,
        "probe update_angle looks at every step": "update_angle" in config.probes,  # which a replay would not call
    }
    if not any(obstacles.values()):
        return config.trainer.cuda_graph
    if config.trainer.cuda_graph is True:
        reasons = "; ".join(reason for reason, holds in obstacles.items() if holds)
        raise ConfigError(f"trainer.cuda_graph must be auto or false here, but got true: {reasons}.")
    return False


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
