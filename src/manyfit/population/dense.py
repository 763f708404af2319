"""K stacks of dense layers at once: the forward pass, and backpropagation written out.

Autograd costs a small network more time than its arithmetic does. Here the chain rule is a loop over the layers, each
with its own derivative; the test suite compares every one with autograd. On a GPU every operation gives a member the
same bits at any K (NOTES.md, bit-equality): a lone product is computed as one of two.
"""

import functools
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_ON_GPU = 128  # a longer sum may be split by how many members there are
LANES = 16  # a member's parameters are padded to this many: their squares are summed so, then the sums
Slope = Callable[[Tensor], Tensor]


def sum_rows(values: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over the rows of (members, rows, ...), on a GPU with the same bits for a member alone and in company."""
    if values.is_cuda and not values.requires_grad and (kernels := gpu_kernels()):
        flat = values.reshape(*values.shape[:2], -1)
        return kernels.sum_rows(flat, out).view(len(values), *values.shape[2:])  # type: ignore[no-any-return]
    return torch.sum(values, 1, out=out)


def norms(gradient: Tensor) -> Tensor:
    """Of each row of (members, parameters), (members, 1)."""
    squares = gradient.square().view(len(gradient), -1, LANES)
    if gradient.is_cuda:
        return sum_rows(sum_rows(squares)[..., None]).sqrt()
    return squares.sum(1).sum(1, keepdim=True).sqrt()


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """Ours; None where there is no Triton that works: torch's sums are rounded by the number of members."""
    try:
        kernels = importlib.import_module("manyfit.population.kernels")
        kernels.sum_rows(torch.ones(1, 2, 2, device="cuda"))
        kernels.permutations(torch.ones(1, dtype=torch.int64, device="cuda"), 2)
    except Exception as error:  # no Triton, no compiler, ...
        print(f"sums on the GPU are torch's, and depend on who trains beside: {error!r}"[:300], file=sys.stderr)
        return None
    return kernels


def _relu(layer: nn.Module, z: Tensor) -> tuple[Tensor, Slope]:  # noqa: ARG001  # one signature for all
    out = F.relu(z)
    return out, lambda g: torch.ops.aten.threshold_backward(g, out, 0)


def _leaky_relu(layer: nn.LeakyReLU, z: Tensor) -> tuple[Tensor, Slope]:
    slope = layer.negative_slope
    return F.leaky_relu(z, slope), lambda g: torch.ops.aten.leaky_relu_backward(g, z, slope, False)


def _tanh(layer: nn.Module, z: Tensor) -> tuple[Tensor, Slope]:  # noqa: ARG001
    out = torch.tanh(z)
    return out, lambda g: g * (1 - out * out)


def _sigmoid(layer: nn.Module, z: Tensor) -> tuple[Tensor, Slope]:  # noqa: ARG001
    out = torch.sigmoid(z)
    return out, lambda g: g * out * (1 - out)


def _silu(layer: nn.Module, z: Tensor) -> tuple[Tensor, Slope]:  # noqa: ARG001
    s = torch.sigmoid(z)
    return z * s, lambda g: g * s * (1 + z * (1 - s))


def _gelu(layer: nn.Module, z: Tensor) -> tuple[Tensor, Slope]:  # noqa: ARG001
    below = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    return z * below, lambda g: g * (below + z * torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi)))


ELEMENTWISE: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Slope]]] = {
    nn.Identity: lambda layer, z: (z, lambda g: g),  # noqa: ARG005
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.GELU: _gelu,
}
"""z -> (g(z), what maps the loss's gradient by g(z) to that by z)."""


def is_dense(module: nn.Module) -> bool:
    """Whether a module is a stack of dense layers, activations of `ELEMENTWISE` (or PReLU) and dropout, and no more.

    A subclass of nn.Sequential with a forward or hooks of its own is none, nor one that uses a layer or a weight twice,
    has a weight besides those of its layers or a frozen one, or whose first weights are not those of a dense layer.
    """
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    layers = list(module)
    weighted = [layer for layer in layers if next(layer.parameters(), None) is not None]
    return (
        all(_is_dense_layer(layer) for layer in layers)
        and bool(weighted)
        and isinstance(weighted[0], nn.Linear)
        and all(parameter.requires_grad for parameter in module.parameters())
        and list(map(id, module.parameters())) == [id(p) for layer in layers for p in layer.parameters()]
        and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    )


def _is_dense_layer(layer: nn.Module) -> bool:
    if type(layer) is nn.GELU:
        return layer.approximate == "none"
    if type(layer) is nn.Linear:
        return layer.bias is not None
    if type(layer) is nn.PReLU:
        return layer.num_parameters == 1
    return type(layer) in ELEMENTWISE or type(layer) is nn.Dropout


def stored(parameter: Tensor) -> Tensor:
    """A weight or bias as it is kept here: weights as (in, out), and no side of 1: it is filled up to 2 with zeros.

    A product of width 1 takes another kernel at K = 1 than beyond. What was filled up stays zero.
    """
    turned = parameter.T if parameter.ndim == 2 else parameter
    if parameter.ndim == 1 and len(parameter) > 1:
        return turned
    return F.pad(turned, [pad for size in reversed(turned.shape) for pad in (0, int(size == 1))])


CAN_DIE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU)  # a leaky one only with a slope of 0


class Stack:
    """A stack of dense layers for any number of members.

    Args:
        layers: The stack, as one ordinary module has it.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        self.width = self.linear[-1].out_features

    def forward(
        self,
        parameters: Sequence[Tensor],
        x: Tensor,
        masks: Sequence[Tensor] = (),
        tape: list[tuple[Tensor, Slope | None]] | None = None,
    ) -> Tensor:
        """Outputs (members, rows, width) of x (members, rows, features).

        Args:
            parameters: (members, ...) each, in the order of the stack, as `stored`.
            x: The mini-batch of each member.
            masks: Multipliers (members, rows, width) of each dropout layer; none: evaluation mode.
            tape: Filled for `backward`: each layer's input, and its derivative.
        """
        own, drops, doubled = iter(parameters), iter(masks), _doubled(x)
        x = F.pad(x, (0, 1)) if x.shape[-1] == 1 else x
        for layer in self.layers:
            before, slope = x, None
            if isinstance(layer, nn.Linear):
                x = _product(x, next(own), doubled, bias=next(own))
            elif isinstance(layer, nn.PReLU):
                x = torch.where(x > 0, x, x * next(own)[:, None, :1])
            elif not isinstance(layer, nn.Dropout):
                x, slope = ELEMENTWISE[type(layer)](layer, x)
            elif masks:
                slope = next(drops).mul
                x = slope(x)
            if tape is not None:
                tape.append((before, slope))
        return x[..., :1] if self.width == 1 else x

    def backward(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        g: Tensor,
        tape: Sequence[tuple[Tensor, Slope | None]],
        final: Callable[[int], None] | None = None,
    ) -> None:
        """Backpropagation: from the gradient g by the outputs to those by the parameters, written into `gradients`.

        `final` is told which of the parameters, and all after it, are done.
        """
        doubled = _doubled(g)
        g = F.pad(g, (0, 1)) if self.width == 1 else g
        i, n = len(parameters), len(self.linear)
        for layer, (x, slope) in zip(reversed(self.layers), reversed(tape), strict=True):
            if isinstance(layer, nn.Linear):
                i, n = i - 2, n - 1
                _weights_gradient(x, g, doubled, gradients[i])
                if layer.in_features == 1:
                    gradients[i][:, 1:] = 0
                sum_rows(g, out=gradients[i + 1])
                if final:
                    final(i)
                if n == 0:
                    return
                g = _product(g, parameters[i].mT, doubled)
            elif isinstance(layer, nn.PReLU):
                i, below = i - 1, x <= 0
                gradients[i][:, :1] = sum_rows((g * x * below).sum(2))[:, None]
                gradients[i][:, 1:] = 0
                g = torch.where(below, g * parameters[i][:, None, :1], g)
            elif slope is not None:
                g = slope(g)


def _doubled(x: Tensor) -> bool:
    """Whether a lone member's products are computed as two: on a GPU one may be split along its sum."""
    return len(x) == 1 and x.device.type != "cpu"


def _weights_gradient(x: Tensor, g: Tensor, doubled: bool, out: Tensor) -> None:
    """The product of x' (K, n, rows) and g (K, rows, p), into out."""
    if not x.is_cuda:  # whose batched kernels know no out=
        out.copy_(_product(x.mT, g, doubled))
        return
    for start in range(0, x.shape[1], ROWS_ON_GPU):
        a, b = x[:, start : start + ROWS_ON_GPU].mT, g[:, start : start + ROWS_ON_GPU]
        if start:
            out.add_(_product(a, b, doubled))
        elif doubled or torch.is_autocast_enabled("cuda"):
            out.copy_(_product(a, b, doubled))
        else:
            torch.bmm(a, b, out=out)


def _product(a: Tensor, b: Tensor, doubled: bool, bias: Tensor | None = None) -> Tensor:
    """A (K, n, m) times b (K, m, p), plus bias (K, p); a lone product as one of two where that rounds otherwise."""
    if doubled:
        return _product(a.expand(2, -1, -1), b.expand(2, -1, -1), False, bias)[:1]
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)


def dead_share(stack: Stack, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Share (members,) of the hidden units of a stack that are dead on x (members, rows, features)."""
    tape: list[tuple[Tensor, Slope | None]] = []
    stack.forward(parameters, x, tape=tape)
    dead, units, width = torch.zeros(len(x), device=x.device), 0, 0
    last = stack.layers.index(stack.linear[-1])
    for i, layer in enumerate(stack.layers[:last]):
        if isinstance(layer, nn.Linear):
            width = layer.out_features  # a width of 1 is kept as 2
            units += width
        elif type(layer) in CAN_DIE:
            out, slope = tape[i + 1][0], tape[i][1]
            assert slope is not None
            zero = out.abs().amax(1) == 0
            steep = slope(zero[:, None].to(out).expand_as(out))  # the slope where the output is 0 throughout, else 0
            dead += (zero & (steep.abs().amax(1) == 0))[:, :width].sum(1)
    return dead / units
