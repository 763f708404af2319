"""One unmodified torch optimizer with a learning rate and a weight decay for every member."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# A step of these is linear in lr and does not look at the weights (weight decay apart).
LINEAR_OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")


def is_linear(cls: type[torch.optim.Optimizer]) -> bool:
    """Whether a class is torch's own of `LINEAR_OPTIMIZERS`; one of the same name from elsewhere is not."""
    return cls.__name__ in LINEAR_OPTIMIZERS and getattr(torch.optim, cls.__name__) is cls


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
        plain = weights.device.type == "mps" or not weights.is_floating_point()  # on mps not every optimizer is fused
        fused = {} if plain or "fused" not in inspect.signature(cls).parameters else {"fused": True}
        self.raw: torch.optim.Optimizer = cls([self.delta], **{"lr": 1.0, "weight_decay": 0.0, **fused, **options})
        self.decay = weight_decay.to(weights)[:, None]
        self.decays = bool(weight_decay.any())
        self.decoupled = cls.__name__ == "AdamW" or bool(options.get("decoupled_weight_decay"))

    def step(self, weights: Tensor, gradient: Callable[[], tuple[Tensor, Tensor]], lr: Tensor) -> Tensor:
        """One update with lr (members, 1); gradient() gives losses (members,) and their gradient. Returns losses."""
        losses, grad = gradient()
        self._update(weights, grad, lr)
        return losses

    @torch.no_grad()
    def _update(self, weights: Tensor, grad: Tensor, lr: Tensor) -> None:
        if self.decays and not self.decoupled:
            grad.add_(self.decay * weights)
        self.delta.grad = grad
        self.raw.step()
        if self.decays and self.decoupled:
            weights.mul_(1 - lr * self.decay)
        if weights.is_cuda:  # memory is what a step waits for: once over it, not twice
            weights.addcmul_(self.delta, lr)
        else:
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


class Scaling:
    """Each member's factor that keeps its gradient within float16: halved at an overflow, doubled long after the last.

    A step whose gradient overflowed is one of gradient 0. Source: Micikevicius et al. 2018, section 3.2; the constants
    are those of torch.amp.GradScaler.

    Args:
        members: How many.
        device: Where the gradient is.
    """

    START, PATIENCE = 65536.0, 2000

    def __init__(self, members: int, device: torch.device) -> None:
        self.scale = torch.full((members, 1), self.START, device=device)
        self.good = torch.zeros(members, 1, dtype=torch.int64, device=device)  # steps since the last overflow

    def undo(self, gradient: Tensor) -> None:
        """Divide a gradient (members, parameters) by the factor, in place, and adapt the factor; no host sync."""
        gradient.div_(self.scale)
        overflow = ~gradient.isfinite().all(1, keepdim=True)
        gradient.masked_fill_(overflow, 0.0)
        self.good.add_(1).masked_fill_(overflow, 0)
        grow = self.good >= self.PATIENCE
        self.good.masked_fill_(grow, 0)
        self.scale.mul_(1.0 + grow.to(self.scale) - 0.5 * overflow.to(self.scale))

    def keep(self, rows: Tensor) -> None:
        """Leave only these members."""
        self.scale, self.good = self.scale[rows], self.good[rows]

    def load(self, scale: Tensor, good: Tensor) -> None:
        """Go on from an earlier state."""
        self.scale.copy_(scale)
        self.good.copy_(good)


class Plain:
    """A torch optimizer used as it is, on a single member: for steps that are not linear in lr.

    Args:
        parts: The member's parameters in their ordinary shapes, as views of the population's weights.
        cls: Any optimizer class.
        options: Its arguments, without lr and weight_decay.
        weight_decay: (1,).
        views: From a gradient (1, parameters) to views of it like `parts`.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        cls: type[torch.optim.Optimizer],
        options: Mapping[str, Any],
        weight_decay: Tensor,
        views: Callable[[Tensor], Sequence[Tensor]],
    ) -> None:
        decay = {"weight_decay": float(weight_decay[0])} if "weight_decay" in inspect.signature(cls).parameters else {}
        self.parts, self.views = list(parts), views
        self.raw: torch.optim.Optimizer = cls(self.parts, **{**decay, **options})

    def step(self, weights: Tensor, gradient: Callable[[], tuple[Tensor, Tensor]], lr: Tensor) -> Tensor:
        """One update; see UnitRate. The closure may be called several times (LBFGS); returns the first loss."""
        del weights  # the parts are views of them
        self.raw.param_groups[0]["lr"] = float(lr[0, 0])
        first: list[Tensor] = []

        def closure() -> Tensor:
            losses, whole = gradient()
            for part, grad in zip(self.parts, self.views(whole), strict=True):
                part.grad = grad.contiguous()  # LBFGS flattens gradients by view
            first.append(losses)
            return losses.sum()

        self.raw.step(closure)  # type: ignore[arg-type]  # torch says the closure returns a float
        return first[0]

    def keep(self, rows: Tensor) -> None:
        """A single member is never compacted."""
        assert len(rows) == 1
