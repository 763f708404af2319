"""K networks of one shape as one batched model, and one torch optimizer with K learning rates.

Everything random belongs to a member: its weights and masks depend on its own seed, never on who trains beside it.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from manyfit.models import ELEMENTWISE, is_dense

LANES = 16  # a member's parameters are padded to this many, so that no vector instruction spans two members
SPLIT_ROWS = 16384  # torch splits one sum over threads from 32768 terms on, which would change its rounding

# A step of these is linear in lr and does not look at the weights (weight decay apart).
LINEAR_OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")


def seed_of(*path: int | str) -> int:
    """A 64-bit seed that is a function of a path such as ("weights", seed); paths are independent of each other."""
    words = [int.from_bytes(p.encode(), "little") if isinstance(p, str) else p for p in path]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def initialised(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module with torch's random numbers drawn from the member's seed, and nothing else disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", seed))
        return build()


def sum_rows(values: Tensor) -> Tensor:
    """Sum (members, rows) -> (members,), with the same bits for a member alone and in company."""
    total = values[:, :SPLIT_ROWS].sum(1)
    for start in range(SPLIT_ROWS, values.shape[1], SPLIT_ROWS):
        total = total + values[:, start : start + SPLIT_ROWS].sum(1)
    return total


def _mix(x: Tensor) -> Tensor:
    """Two multiply-xorshift rounds on int32, a bijection with full avalanche. Source: Wellons 2018, lowbias32."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)


class Dropout:
    """Masks from a counter-based hash of (seed, step, layer, position): no state, no order of drawing.

    Args:
        seeds: One per member.
        rates: Probability of 0, (members, layers), each in [0, 1). Kept to 16 bits; the rescaling is exact for it.
    """

    def __init__(self, seeds: Sequence[int], rates: Sequence[Sequence[float]], device: torch.device) -> None:
        codes = torch.tensor(rates, dtype=torch.float64).mul(65536).round().clamp(max=65535).to(torch.int64)
        self.layers = codes.shape[1] if codes.ndim == 2 else 0
        self.active = bool(codes.any())
        self.thresholds = (codes - 32768).to(torch.int16).to(device)
        self.scales = (65536 / (65536 - codes)).float().to(device)
        self.streams = np.array([[seed_of("dropout", s, i) for i in range(self.layers)] for s in seeds], np.uint64)
        self.positions: dict[int, Tensor] = {}

    def keys(self, first: int, steps: int) -> Tensor:
        """Keys (steps, members, layers) int32 of consecutive optimizer steps. Source: Steele 2014, SplitMix64."""
        with np.errstate(over="ignore"):
            counter = np.arange(first, first + steps, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            z = self.streams + counter[:, None, None]
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        return torch.from_numpy((z >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(self.thresholds.device)

    def mask(self, shape: torch.Size, keys: Tensor, layer: int) -> Tensor:
        """Multipliers of shape (members, rows, ...): 0 or 1 / (1 - p). keys (members, layers) of this step."""
        n = shape[1:].numel()
        if n not in self.positions:
            counter = torch.arange((n + 1) // 2, dtype=torch.int32, device=keys.device)
            self.positions[n] = _mix(counter)[None]
        halves = _mix(self.positions[n] ^ keys[:, layer, None]).view(torch.int16)[:, :n]  # one hash, two elements
        return ((halves >= self.thresholds[:, layer, None]) * self.scales[:, layer, None]).view(shape)

    def keep(self, rows: Tensor) -> None:
        """Leave only these members."""
        self.thresholds, self.scales = self.thresholds[rows], self.scales[rows]
        self.streams = self.streams[rows.cpu().numpy()]
        self.active = bool((self.thresholds > -32768).any())


class _MaskedDropout(nn.Module):
    """Stands for nn.Dropout in a user's model: multiplies by a mask it was handed before the call."""

    factor: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.factor is None else self.factor(x)


class Population:
    """K members with the same shapes: weights (members, parameters), one row a member.

    A plain stack of dense layers is evaluated by `baddbmm`, for K = 1 too. Any other module is evaluated by
    `vmap(functional_call)`, and for K = 1 called plainly.

    Args:
        modules: One per member, alike but for their weights and dropout rates.
        seeds: One per member, for the masks.
        device: Where the weights live.
    """

    def __init__(self, modules: Sequence[nn.Module], seeds: Sequence[int], device: torch.device) -> None:
        self.template = copy.deepcopy(modules[0])
        self.dense = is_dense(self.template)
        self.names = [name for name, _ in self.template.named_parameters()]
        self.shapes = [self._stored(p).shape for p in self.template.parameters()]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.padding = -sum(self.sizes) % LANES
        self.weights = torch.stack([self._row(module) for module in modules]).to(device).requires_grad_()
        names = [name for name, _ in self.template.named_buffers()]
        self.buffers = {n: torch.stack([m.get_buffer(n).detach() for m in modules]).to(device) for n in names}
        rates = [[layer.p for layer in m.modules() if isinstance(layer, nn.Dropout)] for m in modules]
        self.dropout = Dropout(seeds, rates, device)
        if not self.dense:
            self.program = copy.deepcopy(self.template).to(device)
            self.masked = _replace_dropout(self.program)

    def _stored(self, parameter: Tensor) -> Tensor:
        """How a parameter is laid out here: matrices of dense layers as (in, out), the faster way round."""
        return parameter.T if self.dense and parameter.ndim == 2 else parameter

    def _row(self, module: nn.Module) -> Tensor:
        parts = [self._stored(p.detach()).reshape(-1) for p in module.parameters()]
        return torch.cat([*parts, parts[0].new_zeros(self.padding)])

    def __len__(self) -> int:
        """Members."""
        return len(self.weights)

    def unpack(self, weights: Tensor) -> list[Tensor]:
        """Views (members, *shape) of each parameter in a (members, parameters) matrix."""
        parts = weights.split([*self.sizes, self.padding], 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return [part.view(-1, *shape) for part, shape in zip(parts[: len(self.shapes)], self.shapes, strict=True)]

    def __call__(self, weights: Tensor, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Outputs (members, rows, width) for x (members, rows, features); keys of this step switch training mode on."""
        return (self._dense if self.dense else self._stacked)(weights, x, keys)

    def _dense(self, weights: Tensor, x: Tensor, keys: Tensor | None) -> Tensor:
        parameters = iter(self.unpack(weights))
        layer_of_mask = 0
        for layer in self.template:  # type: ignore[attr-defined]  # dense: an nn.Sequential
            if isinstance(layer, nn.Linear):
                x = _linear(x, next(parameters), next(parameters))
            elif isinstance(layer, nn.PReLU):
                x = torch.where(x > 0, x, x * next(parameters)[:, None])
            elif isinstance(layer, nn.Dropout):
                if keys is not None and self.dropout.active:
                    x = x * self.dropout.mask(x.shape, keys, layer_of_mask)
                layer_of_mask += 1
            else:
                x = ELEMENTWISE[type(layer)](layer, x)
        return x

    def _stacked(self, weights: Tensor, x: Tensor, keys: Tensor | None) -> Tensor:
        parameters = dict(zip(self.names, self.unpack(weights), strict=True))
        self.program.train(keys is not None)
        training = keys is not None and self.dropout.active
        if len(weights) == 1:
            for i, layer in enumerate(self.masked):
                layer.factor = self._factor(keys, i) if training else None  # type: ignore[arg-type]
            state = {n: t[0] for n, t in (parameters | self.buffers).items()}
            outputs: Tensor = functional_call(self.program, state, (x[0],))[None]
            return outputs
        raise ValueError("this model must train alone")

    def _factor(self, keys: Tensor, layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x * self.dropout.mask(torch.Size((1, *x.shape)), keys, layer)[0]

    def member(self, row: Tensor, buffers: Mapping[str, Tensor]) -> nn.Module:
        """An ordinary module in evaluation mode with one member's weights (parameters,) and buffers."""
        module = copy.deepcopy(self.template)
        state = dict(zip(self.names, (p[0] for p in self.unpack(row[None].cpu())), strict=True))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                self._stored(parameter).copy_(state[name])
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        return module.eval()

    def keep(self, rows: Tensor) -> None:
        """Leave only these members, in this order."""
        self.weights = self.weights.detach()[rows].requires_grad_()
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self.dropout.keep(rows)


def _linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """X (K, rows, in) times w (K, in, out) plus b (K, out), with the same bits for a member at any K."""
    narrow_in, narrow_out = w.shape[1] == 1, w.shape[2] == 1
    if narrow_in or narrow_out:  # a product of width 1 takes another kernel: the second column is zero
        w = nn.functional.pad(w, (0, int(narrow_out), 0, int(narrow_in)))
        x = nn.functional.pad(x, (0, int(narrow_in)))
        b = nn.functional.pad(b, (0, int(narrow_out)))
    if len(w) == 1 and x.device.type == "cpu" and _differs_alone(x.shape[1], *w.shape[1:], x.dtype):
        out = torch.baddbmm(b[:, None].expand(2, -1, -1), x.expand(2, -1, -1), w.expand(2, -1, -1))[:1]
    else:
        out = torch.baddbmm(b[:, None], x, w)
    return out[..., :1] if narrow_out else out


@functools.cache
def _differs_alone(rows: int, width_in: int, width_out: int, dtype: torch.dtype) -> bool:
    """Whether a lone product of this shape, or its gradient, is rounded otherwise than one of a batch.

    MKL has its own kernels for a lone product with a side of about 5 to 17. Which shapes they take differs by
    processor, so it is tried: a lone run of such a shape then computes the layer twice, as a batch of two.
    """
    if dtype != torch.float32 or rows * width_in * width_out > 2**28:
        return False
    generator = torch.Generator().manual_seed(0)
    x, w, grad = (
        torch.randn(2, *shape, generator=generator)
        for shape in ((rows, width_in), (width_in, width_out), (rows, width_out))
    )

    def products(count: int) -> list[Tensor]:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            a, b = x[:count].clone().requires_grad_(), w[:count].clone().requires_grad_()
            out = torch.bmm(a, b)
            return [out.detach()[0], *(g[0] for g in torch.autograd.grad(out, (a, b), grad[:count].clone()))]

    return not all(torch.equal(p, q) for p, q in zip(products(1), products(2), strict=True))


def _replace_dropout(module: nn.Module) -> list[_MaskedDropout]:
    found = []
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                found.append(_MaskedDropout())
                setattr(parent, name, found[-1])
    return found


class UnitRate:
    """An unmodified torch optimizer, run at unit rate on a zero vector in place of the weights.

    What its step leaves there is the update at lr = 1, `delta`; then per member `w <- w (1 - lr wd) + lr delta`
    (decoupled decay; coupled decay is added to the gradient). So lr and weight decay are vectors over members.

    Args:
        weights: (members, parameters); updated in place.
        cls: A class of torch.optim named in `LINEAR_OPTIMIZERS`.
        options: Its arguments, without lr and weight_decay.
        weight_decay: (members,).
    """

    def __init__(
        self, weights: Tensor, cls: type[torch.optim.Optimizer], options: Mapping[str, Any], weight_decay: Tensor
    ) -> None:
        self.delta = torch.zeros_like(weights, requires_grad=True)
        fused = {"fused": True} if "fused" in inspect.signature(cls).parameters and weights.is_floating_point() else {}
        self.raw: torch.optim.Optimizer = cls([self.delta], **{"lr": 1.0, "weight_decay": 0.0, **fused, **options})
        self.decay = weight_decay.to(weights)[:, None]
        self.decays = bool(weight_decay.any())
        self.decoupled = cls.__name__ == "AdamW" or bool(options.get("decoupled_weight_decay"))

    def step(self, weights: Tensor, gradient: Callable[[], tuple[Tensor, Tensor]], lr: Tensor) -> Tensor:
        """One update with lr (members, 1); gradient() gives losses (members,) and their gradient. Returns losses."""
        losses, grad = gradient()
        with torch.no_grad():
            self._update(weights, grad, lr)
        return losses

    def _update(self, weights: Tensor, grad: Tensor, lr: Tensor) -> None:
        if self.decays and not self.decoupled:
            grad = grad + self.decay * weights
        self.delta.grad = grad
        self.raw.step()
        if self.decays and self.decoupled:
            weights.mul_(1 - lr * self.decay)
        weights.add_(self.delta.mul_(lr))
        self.delta.zero_()

    def keep(self, rows: Tensor) -> None:
        """Leave only these members."""
        members = len(self.delta)
        state = self.raw.state.pop(self.delta, {})
        self.delta = self.delta.detach()[rows].requires_grad_()
        self.raw.param_groups[0]["params"] = [self.delta]
        whole = {k: v for k, v in state.items() if not (torch.is_tensor(v) and v.ndim == 2 and len(v) == members)}
        self.raw.state[self.delta] = whole | {k: v[rows] for k, v in state.items() if k not in whole}
        self.decay = self.decay[rows]
        self.decays = bool(self.decay.any())


class Plain:
    """A torch optimizer used as it is, on the weights of a single member: for steps that are not linear in lr."""

    def __init__(
        self, weights: Tensor, cls: type[torch.optim.Optimizer], options: Mapping[str, Any], weight_decay: Tensor
    ) -> None:
        decay = {"weight_decay": float(weight_decay[0])} if "weight_decay" in inspect.signature(cls).parameters else {}
        self.raw: torch.optim.Optimizer = cls([weights], **{**decay, **options})

    def step(self, weights: Tensor, gradient: Callable[[], tuple[Tensor, Tensor]], lr: Tensor) -> Tensor:
        """One update; see UnitRate. The closure may be called several times (LBFGS); returns the first loss."""
        self.raw.param_groups[0]["lr"] = float(lr[0, 0])
        first: list[Tensor] = []

        def closure() -> Tensor:
            losses, weights.grad = gradient()
            first.append(losses)
            return losses.sum()

        self.raw.step(closure)  # type: ignore[arg-type]  # torch says the closure returns a float
        return first[0]

    def keep(self, rows: Tensor) -> None:
        """A single member is never compacted."""
        assert len(rows) == 1
