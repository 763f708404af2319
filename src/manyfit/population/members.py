"""K networks of one shape as one batched model."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from manyfit.losses import Loss
from manyfit.parallel.ranks import Ranks
from manyfit.population import dense
from manyfit.population.dropout import Dropout, seed_of


def initialised(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module with random numbers drawn from the member's seed, and nothing else disturbed.

    Python's and NumPy's as well: a module is built more than once, and has to be the same.
    """
    before, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("weights", seed))  # torch.manual_seed asks every other device too
        random.seed(seed_of("weights", seed))
        np.random.seed(seed_of("weights", seed) % 2**32)
        try:
            return build()
        finally:
            random.setstate(before)
            np.random.set_state(legacy)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Its parameters but the frozen ones, in order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class _MaskedDropout(nn.Module):
    """Stands for the n-th nn.Dropout of a user's model: multiplies by the mask it was handed, or notes the shape."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.masks: Iterator[Tensor] = iter(())
        self.noted: list[tuple[int, torch.Size]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(rows, ...) -> the same."""
        if self.noted is not None:
            self.noted.append((self.layer, x.shape))
        mask = next(self.masks, None)
        return x if mask is None else x * mask[: len(x)]


class Population:
    """K members with the same shapes: weights (members, parameters), one row a member.

    A stack of dense layers is evaluated and differentiated in `dense`, for K = 1 too. Any other module is evaluated by
    `functional_call`, for K > 1 under `vmap`, and differentiated by autograd.

    Args:
        modules: One per member, alike but for their weights and dropout rates.
        seeds: One per member, for the masks.
        device: Where the weights live.
    """

    def __init__(self, modules: Sequence[nn.Module], seeds: Sequence[int], device: torch.device) -> None:
        self.template = copy.deepcopy(modules[0])
        self.stack = dense.Stack(list(self.template)) if dense.is_dense(self.template) else None  # type: ignore[call-overload]  # an nn.Sequential
        self.names = [name for name, p in self.template.named_parameters() if p.requires_grad]
        self.shapes = [self._stored(p).shape for p in trainable(self.template)]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.padding = -sum(self.sizes) % dense.LANES
        self.starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        rows = [torch.cat([self._stored(p.detach()).reshape(-1) for p in trainable(m)]) for m in modules]
        self.weights = nn.functional.pad(torch.stack(rows), (0, self.padding)).to(device)
        constants = [{**dict(m.named_buffers()), **_frozen(m)} for m in modules]
        self.buffers = {n: torch.stack([c[n].detach() for c in constants]).to(device) for n in constants[0]}
        rates = [[layer.p for layer in m.modules() if isinstance(layer, nn.Dropout)] for m in modules]
        self.dropout = Dropout(seeds, rates, device)
        self.program = copy.deepcopy(self.template).to(device)
        self.masked = _replace_dropout(self.program)
        self._widest = 0  # not known yet
        self._own()

    def _own(self) -> None:
        """Views that a step needs and that stay, since weights and gradient are only ever written in place."""
        self.parameters = self.unpack(self.weights)
        self.gradients = torch.zeros_like(self.weights)
        self.gradient_parts = self.unpack(self.gradients)

    def _stored(self, parameter: Tensor) -> Tensor:
        return parameter if self.stack is None else dense.stored(parameter)

    def __len__(self) -> int:
        """Members."""
        return len(self.weights)

    def unpack(self, matrix: Tensor) -> list[Tensor]:
        """Views (members, *shape) of each parameter in a (members, parameters) matrix."""
        parts = matrix.split([*self.sizes, self.padding], 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return [part.view(-1, *shape) for part, shape in zip(parts[: len(self.shapes)], self.shapes, strict=True)]

    def dropout_calls(self, x: Tensor) -> list[tuple[int, torch.Size]]:
        """The applications of dropout in a forward pass of x (rows, ...): layer, and the shape it sees."""
        noted: list[tuple[int, torch.Size]] = []
        for layer in self.masked:
            layer.noted = noted
        with torch.no_grad():
            self.program.eval()(x)
        for layer in self.masked:
            layer.noted = None
        return noted

    def widest(self, x: Tensor) -> int:
        """How many numbers the largest activation of an example holds, the example included, for x (rows, ...)."""
        if self._widest:
            return self._widest
        largest = [x[0].numel()]

        def note(module: nn.Module, given: Any, outputs: Any) -> None:  # noqa: ARG001  # torch's signature
            if isinstance(outputs, Tensor):
                largest.append(outputs[0].numel())

        hooks = [module.register_forward_hook(note) for module in self.program.modules()]
        with torch.no_grad():
            self.program.eval()(x[:2])
        for hook in hooks:
            hook.remove()
        self._widest = max(largest)
        return self._widest

    def __call__(self, weights: Tensor, x: Tensor) -> Tensor:
        """Outputs (members, rows, width) in evaluation mode for x (members, rows, ...)."""
        if self.stack is not None:
            return self.stack.forward(self.unpack(weights), x)
        return self._functional(weights, x, None)

    def gradient(
        self,
        x: Tensor,
        y: Tensor,
        row_weights: Tensor,
        masks: Sequence[Tensor],
        loss: Loss,
        ranks: Ranks | None = None,
        scale: Tensor | None = None,
        rows: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Each member's loss (members,) on its mini-batch, and its gradient (members, parameters), in training mode.

        Args:
            x: (members, rows, ...).
            y: (members, rows).
            row_weights: (rows,): 1 / examples, and 0 for rows that only fill up the batch.
            masks: Multipliers (members, rows, ...) for each application of dropout; none: without dropout.
            loss: One number per example.
            ranks: Each with its rows of the batch: the gradient is the sum over all, the loss is of these rows.
            scale: (members, 1), what the gradient is multiplied by so that it does not vanish in half precision.
            rows: How many count, the first ones; None: all. A device must not be asked.
        """
        if self.stack is None:
            count = x.shape[1] if rows is None else rows
            losses, gradient = self._gradient_by_autograd(x, y, row_weights, masks, loss, scale, count)
            if ranks:
                ranks.sum(gradient)
            return losses, gradient
        tape: list[tuple[Tensor, dense.Slope | None]] = []
        outputs = self.stack.forward(self.parameters, x, masks, tape).to(self.weights.dtype)
        per_example, g = loss.with_gradient(outputs, y)
        g.mul_(row_weights[:, None] if scale is None else row_weights[:, None] * scale[..., None])
        sent = ranks.gradient(self.gradients) if ranks else None
        self.stack.backward(
            self.parameters,
            self.gradient_parts,
            g,
            tape,
            (lambda i: sent.final(self.starts[i])) if sent else None,
        )
        if sent:
            sent.wait()
        return dense.sum_rows(per_example.mul_(row_weights)), self.gradients

    def _gradient_by_autograd(
        self,
        x: Tensor,
        y: Tensor,
        row_weights: Tensor,
        masks: Sequence[Tensor],
        loss: Loss,
        scale: Tensor | None,
        rows: int,  # no filled-up ones: they would enter statistics over the batch
    ) -> tuple[Tensor, Tensor]:
        if rows == 0:  # of several ranks
            return self.weights.new_zeros(len(self)), torch.zeros_like(self.weights)
        with torch.enable_grad():
            weights = self.weights.detach().requires_grad_()
            outputs = self._functional(weights, x[:, :rows], masks).to(weights.dtype)
            losses = dense.sum_rows(loss.per_example(outputs, y[:, :rows]) * row_weights[:rows])
            scaled = losses if scale is None else losses * scale[:, 0]
            (gradient,) = torch.autograd.grad(scaled.sum(), weights)  # the sum: a mean would divide every lr by K
        return losses.detach(), gradient

    def _functional(self, weights: Tensor, x: Tensor, masks: Sequence[Tensor] | None) -> Tensor:
        self.program.train(masks is not None)
        state = dict(zip(self.names, self.unpack(weights), strict=True)) | self.buffers
        if len(weights) > 1:
            return vmap(self._one)(state, x, list(masks or ()))
        return self._one({n: t[0] for n, t in state.items()}, x[0], [m[0] for m in masks or ()])[None]

    def _one(self, state: dict[str, Tensor], x: Tensor, masks: list[Tensor]) -> Tensor:
        handed = iter(masks)
        for layer in self.masked:
            layer.masks = handed
        outputs: Tensor = functional_call(self.program, state, (x,))
        return outputs

    def ordinary(self, row: Tensor) -> list[Tensor]:
        """Views of one member's row (1, parameters), each in the shape that its parameter has in an ordinary module."""
        views = []
        for parameter, kept in zip(trainable(self.template), self.unpack(row), strict=True):
            part = kept[0].T if self.stack is not None and parameter.ndim == 2 else kept[0]
            views.append(part[tuple(slice(size) for size in parameter.shape)])
        return views

    def member(self, module: nn.Module, row: Tensor, buffers: Mapping[str, Tensor]) -> nn.Module:
        """The module that a member came from, in evaluation mode, with weights (parameters,) and buffers put in."""
        with torch.no_grad():
            for parameter, part in zip(trainable(module), self.ordinary(row[None].cpu()), strict=True):
                parameter.copy_(part)
            for name, buffer in {**dict(module.named_buffers()), **_frozen(module)}.items():
                buffer.copy_(buffers[name])
        return module.eval()

    def keep(self, rows: Tensor) -> None:
        """Leave only these members, in this order."""
        self.weights = self.weights[rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self.dropout.keep(rows)
        self._own()


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if not p.requires_grad}


def _replace_dropout(module: nn.Module) -> list[_MaskedDropout]:
    found: list[_MaskedDropout] = []
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                found.append(_MaskedDropout(len(found)))
                setattr(parent, name, found[-1])
    return found
