"""A population as the kernel sees it: a row of every table for each member, whatever its network and optimizer."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfit.losses import Huber, Loss
from manyfit.native import known, tables
from manyfit.native.machine import Kernel, kind_of, load
from manyfit.native.tables import CALL, FLOATS, INTEGERS
from manyfit.population import dense
from manyfit.population.dropout import Dropout

SPEED = 1e10  # floating-point operations a second of a thread, to estimate with
STEP = 2e4  # of them, what a step costs besides its products,
ACTIVATION, UPDATE = 50, 30  # what the activation of a unit costs, and the update of a weight
SHORT = 0.15  # seconds of a call: an interrupt is heard after it
LEAST = 5e-4  # seconds of work that are worth a thread


def why_not(network: nn.Module, loss: Loss, optimizer: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> str:
    """Why the kernel cannot train this; empty if it can."""
    if not dense.is_dense(network):
        return "the model is no stack of dense layers with activations that it knows"
    if isinstance(network, nn.Sequential) and not _few_prelus(network):
        return "the model has two PReLUs between two dense layers"
    if type(loss) not in known.LOSSES:
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

    def _describe(self, k: int, member: Member, program: NDArray[np.int64], weights: int) -> int:
        """Fill in the numbers of a member; returns how many moments its optimizer keeps."""
        dense_layers = program[program[:, 0] == tables.LAYER]
        code = known.OPTIMIZERS[member.optimizer]
        options = known.options_of(member.optimizer, member.options)
        assert options is not None
        integers, floats = self.integers[k], self.floats[k]
        integers[INTEGERS.loss] = known.LOSSES[type(member.loss)]
        integers[INTEGERS.optimizer] = code
        integers[INTEGERS.decoupled] = known.decoupled(member.optimizer, member.options)
        integers[INTEGERS.length] = len(program)
        integers[INTEGERS.blocks] = len(dense_layers) + 1
        integers[INTEGERS.widest] = dense_layers[:, 1:3].max()
        integers[INTEGERS.largest] = dense_layers[:, 1:3].prod(1).max()
        integers[INTEGERS.weights] = weights
        floats[FLOATS.loss_option] = member.loss.delta if isinstance(member.loss, Huber) else 0.0
        floats[FLOATS.weight_decay] = member.weight_decay
        floats[FLOATS.clip] = member.gradient_clip or 0.0
        floats[FLOATS.options : FLOATS.options + len(options)] = options
        floats[FLOATS.momenta] = 1.0
        return known.moments(code, options)

    def __len__(self) -> int:
        """Members."""
        return len(self.weights)

    @functools.cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Its threads end when nobody has it any more."""
        return ThreadPoolExecutor(self.threads)


class Task:
    """Steps of members on some examples, asked for again and again: on as many threads as this process may use.

    Args:
        members: They.
        mode: Of `tables`.
        x: Examples (n, features).
        y: Targets (n,), or (members, n) where each has its own; class numbers as real numbers.
        batch: Examples of a step, which may be (members,).
        order: Numbers of examples (orders, visited); each member has the first until `integers` says otherwise.

    Attributes:
        integers: (members, columns), see `tables`: at first all steps of an epoch.
        seconds: (members,), about how long they take on one thread.
    """

    def __init__(
        self, members: Members, mode: int, x: Tensor, y: Tensor, batch: int | NDArray[np.int64], order: Tensor
    ) -> None:
        self.members, self.x = members, x.contiguous()
        self.y, self.integers = y.to(x.dtype).contiguous(), members.integers.copy()
        i, visited = self.integers, order.shape[1]
        i[:, INTEGERS.targets] = np.arange(len(i)) if y.ndim > 1 and len(y) > 1 else 0
        i[:, INTEGERS.batch] = batch
        i[:, INTEGERS.steps] = -(-visited // i[:, INTEGERS.batch])
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
        self._tell(CALL.x, self.x)
        self._tell(CALL.y, self.y)
        if mode == tables.TRAIN and members.updates is not None:
            self._tell(CALL.updates, members.updates)
        self.call[CALL.mode], self.call[CALL.layers] = mode, members.values.shape[1]
        self.call[CALL.parameters], self.call[CALL.kept] = members.weights.shape[1], members.moments.shape[1]
        self.call[CALL.features], self.call[CALL.examples] = x.shape[1], x.shape[0]
        self.call[CALL.drops] = members.streams.shape[1]
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
        self.call[CALL.visited] = order.shape[1]

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
        waiting: list[Future[None]] = []
        try:
            waiting += (self.members.pool.submit(work) for _ in range(min(self.members.threads, len(shares))))
            for one in waiting:
                one.result()
        except BaseException:
            left.__setstate__(len(shares))  # type: ignore[attr-defined]  # of a list's iterator: nothing is left
            wait(waiting)
            raise

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
