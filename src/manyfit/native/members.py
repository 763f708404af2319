"""A population as the kernel sees it: a row of every table for each member, whatever its network and optimizer."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfit.losses import Loss
from manyfit.native import known, tables
from manyfit.native.crew import Crew
from manyfit.native.machine import Kernel, kind_of, load
from manyfit.native.tables import FLOATS, INTEGERS
from manyfit.population import dense
from manyfit.population.dropout import Dropout


def why_not(network: nn.Module, loss: Loss, optimizer: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> str:
    """Why the kernel cannot train this; empty if it can."""
    if not dense.is_dense(network):
        return "the model is no stack of dense layers with activations that it knows"
    if isinstance(network, nn.Sequential) and not _few_prelus(network):
        return "the model has two PReLUs between two dense layers"
    if type(known.plain(loss)) not in known.LOSSES:
        return f"it does not know the loss {type(loss).__name__}"
    if optimizer not in known.OPTIMIZERS:
        return f"it does not know the optimizer {optimizer.__name__}"
    if known.options_of(optimizer, options) is None:
        return f"it does not know all options of {optimizer.__name__}"
    return ""


def _few_prelus(network: nn.Sequential) -> bool:
    kinds = [type(layer) for layer in network if type(layer) in (nn.Linear, nn.PReLU)]
    return (nn.PReLU, nn.PReLU) not in itertools.pairwise(kinds)


@dataclass(frozen=True)
class Member:
    """What the kernel is told of one."""

    network: nn.Sequential
    loss: Loss
    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    weight_decay: float
    gradient_clip: float | None
    seed: int


def program_of(network: nn.Sequential) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A dense stack as rows (kind, width in, width out, place), (layers, 4), and an option of each, (layers,)."""
    rows, values = [], []
    width = next(layer.in_features for layer in network if isinstance(layer, nn.Linear))
    place, drops = 0, itertools.count()
    for layer in network:
        option = 0.0
        if isinstance(layer, nn.Linear):
            row = (tables.LAYER, width, layer.out_features, place)
            width = layer.out_features
        elif isinstance(layer, nn.Dropout):
            row = (tables.DROPOUT, width, width, next(drops))
        elif isinstance(layer, nn.PReLU):
            row = (tables.PRELU, width, width, place)
        elif isinstance(layer, nn.Identity):
            continue
        else:
            row = (tables.ACTIVATION + known.ACTIVATIONS[type(layer)], width, width, 0)
            option = getattr(layer, "negative_slope", 0.0)
        place += sum(parameter.numel() for parameter in layer.parameters())
        rows.append(row)
        values.append(option)
    return np.array(rows, np.int64), np.array(values, np.float64)


def row_of(network: nn.Module) -> Tensor:
    """Its weights as the kernel has them: each matrix as (in, out)."""
    return torch.cat([_turned(parameter.detach()).reshape(-1) for parameter in network.parameters()])


def parts_of(network: nn.Module, row: Tensor) -> list[Tensor]:
    """Views of a row (parameters,) of a network's weights, or of their gradient, as the network has them."""
    parts, start = [], 0
    for parameter in network.parameters():
        part = row[start : start + parameter.numel()]
        parts.append(_turned(part.view(_turned(parameter).shape)))
        start += parameter.numel()
    return parts


def _turned(weights: Tensor) -> Tensor:
    return weights.T if weights.ndim == 2 else weights


def filled(network: nn.Module, row: Tensor) -> nn.Module:
    """The network with these weights, in evaluation mode."""
    with torch.no_grad():
        for parameter, part in zip(network.parameters(), parts_of(network, row), strict=True):
            parameter.copy_(part)
    return network.eval()


class Members:
    """Members of any widths, batch sizes, optimizers and losses, trained by the kernel.

    Args:
        given: They.
        dtype: float32 or float64.
        angles: Whether the cosines of successive updates are added up.

    Attributes:
        weights: (members, parameters), filled up with zeros.
        moments: (members, kept, parameters), the optimizers'.
        integers: (members, columns), see `tables`; what changes is in those of a `Task`.
        floats: Likewise.
    """

    def __init__(self, given: Sequence[Member], dtype: torch.dtype, angles: bool = False) -> None:
        self.kernel: Kernel = load(kind_of(dtype))
        self.threads = torch.get_num_threads()
        networks = [member.network for member in given]
        rows = [row_of(network).to(dtype) for network in networks]
        most = max(map(len, rows))
        self.weights = torch.stack([nn.functional.pad(row, (0, most - len(row))) for row in rows])
        programs = [program_of(network) for network in networks]
        layers = max(len(program) for program, _ in programs)
        self.programs = np.zeros((len(given), layers, 4), np.int64)
        self.values = np.zeros((len(given), layers))
        self.integers = np.zeros((len(given), len(INTEGERS)), np.int64)
        self.floats = np.zeros((len(given), len(FLOATS)))
        kept = 0
        for k, (member, (program, values)) in enumerate(zip(given, programs, strict=True)):
            self.programs[k, : len(program)], self.values[k, : len(values)] = program, values
            kept = max(kept, self._describe(k, member, program, len(rows[k])))
        self.moments = torch.zeros(len(given), kept, most, dtype=dtype)
        rates = [[layer.p for layer in network if isinstance(layer, nn.Dropout)] for network in networks]
        drops = max(map(len, rates))
        self.streams = np.zeros((len(given), drops), np.uint64)
        self.dropout = np.ones((len(given), drops, 2))
        for k, (member, its) in enumerate(zip(given, rates, strict=True)):
            hashed = Dropout([member.seed], [its], torch.device("cpu"))
            self.streams[k, : len(its)] = hashed.streams[0]
            self.dropout[k, : len(its)] = torch.stack([hashed.thresholds[0].double(), hashed.scales[0].double()], 1)
        self.updates = torch.zeros_like(self.weights) if angles else None
        weights = [known.class_weights(member.loss) for member in given]
        self.class_weights = np.ones(
            (len(given), max(2, *map(len, weights), *(its[:, 2].max() for its, _ in programs)))
        )
        for k, its_weights in enumerate(weights):
            self.class_weights[k, : len(its_weights)] = its_weights

    def _describe(self, k: int, member: Member, program: NDArray[np.int64], weights: int) -> int:
        """Fill in the numbers of a member; returns how many moments its optimizer keeps."""
        dense_layers = program[program[:, 0] == tables.LAYER]
        code = known.OPTIMIZERS[member.optimizer]
        options = known.options_of(member.optimizer, member.options)
        assert options is not None
        integers, floats = self.integers[k], self.floats[k]
        loss = known.plain(member.loss)
        integers[INTEGERS.loss] = known.LOSSES[type(loss)]
        integers[INTEGERS.optimizer] = code
        integers[INTEGERS.decoupled] = known.decoupled(member.optimizer, member.options)
        integers[INTEGERS.length] = len(program)
        integers[INTEGERS.blocks] = len(dense_layers) + 1
        integers[INTEGERS.widest] = dense_layers[:, 1:3].max()
        integers[INTEGERS.largest] = dense_layers[:, 1:3].prod(1).max()
        integers[INTEGERS.weights] = weights
        floats[FLOATS.loss_option] = known.option_of(loss)
        floats[FLOATS.weight_decay] = member.weight_decay
        floats[FLOATS.clip] = member.gradient_clip or 0.0
        floats[FLOATS.options : FLOATS.options + len(options)] = options
        floats[FLOATS.momenta] = 1.0
        return known.moments(code, options)

    def __len__(self) -> int:
        """Members."""
        return len(self.weights)

    @functools.cached_property
    def crew(self) -> Crew:
        """Its threads."""
        return Crew(self.threads)
