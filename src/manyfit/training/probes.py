"""Quantities that the curves do not hold, measured beside them after every epoch: `probes=[gradient_norm,dead_units]`.

A probe looks and leaves no trace: the curves are bit-equal with and without it. All members are measured at once, and
nothing waits for the device within an epoch. Lightning calls a callback's hooks before the module's own of that name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from manyfit.config.schema import ProbeName
from manyfit.data.draws import orders
from manyfit.population import dense
from manyfit.training.evaluation import wide
from manyfit.training.loop import Training

GRADIENT_ROWS = 256  # training examples that gradient_norm is measured on
DEAD_ROWS = 768  # and dead_units
NOISE_BATCHES = 6  # mini-batches that gradient_noise is estimated from
CAN_DIE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU)  # a leaky one only with a slope of 0


class Probe(pl.Callback, ABC):
    """Measured before training and after every epoch."""

    @abstractmethod
    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:
        """Metrics (members present,) after so many epochs; what is not defined is NaN, or left out at epoch 0."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Epoch 0, unless training goes on from a later one."""
        if pl_module.epochs_done == 0:
            self._note(pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Every epoch after it."""
        self._note(pl_module, pl_module.epochs_done + 1)

    @torch.no_grad()
    def _note(self, module: Training, epoch: int) -> None:
        module.probed |= {name: v.cpu().double().numpy() for name, v in self.measure(module, epoch).items()}


class GradientNorm(Probe):
    """Norm of the gradient of the mean training loss by the first and the last weight matrix, and their ratio.

    On at most `GRADIENT_ROWS` training examples, always the same, without dropout. Weight matrices are parameters with
    two sides or more. A ratio far below 1 is a vanishing gradient. Source: Glorot & Bengio 2010, section 4.2.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. In units of the loss per unit of weight."""
        gradient = _gradient(module, spread(module, GRADIENT_ROWS).expand(len(module.population), -1))
        matrices = [part for part in module.population.unpack(gradient) if part.ndim > 2]
        first, last = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (matrices[0], matrices[-1]))
        return {"gradient_norm/first": first, "gradient_norm/last": last, "gradient_norm/ratio": first / last}


class DeadUnits(Probe):
    """Share of hidden units that are 0 for each of at most `DEAD_ROWS` training examples, with a slope of 0 there.

    Units of another activation than `CAN_DIE` count as living. Source: Maas, Hannun & Ng 2013, section 2.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. In [0, 1]."""
        population, x = module.population, module.examples.x_train[spread(module, DEAD_ROWS)]
        assert population.stack is not None
        x = x.expand(len(population), -1, -1)
        return {"dead_units": dead_share(population.stack, population.parameters, x)}


def dead_share(stack: dense.Stack, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Share (members,) of the hidden units of a stack that are dead on x (members, rows, features)."""
    tape: list[tuple[Tensor, dense.Slope | None]] = []
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


class GradientNoise(Probe):
    """Noise of a mini-batch's gradient: trace of its covariance over the squared norm of the full gradient.

    Without dropout, on at most `NOISE_BATCHES` whole mini-batches of the coming epoch's order. NaN with under two, or
    where the estimate of the squared norm is not above 0. Source: McCandlish et al. 2018, eq. 2.9 over B; appendix A.1.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:
        """See Probe. No unit, > 0; above 1 a step is more noise than gradient."""
        n, batch = len(module.examples.x_train), module.steps.batch_size
        batches = min(NOISE_BATCHES, n // batch)
        if batches < 2:
            return {"gradient_noise": torch.full((len(module.seeds),), torch.nan)}
        index = orders(module.seeds, epoch, n)[:, : batches * batch].to(module.device)
        trace, square = noise(
            (_gradient(module, rows) for rows in index.view(-1, batches, batch).unbind(1)), batches * batch / n
        )
        return {"gradient_noise": torch.where(square > 0, trace / square, torch.nan)}


def noise(gradients: Iterable[Tensor], share: float) -> tuple[Tensor, Tensor]:
    """Trace of the covariance of a mini-batch's gradient, and |full gradient|^2: (members,) each, without bias.

    Gradients g_1..g_m (members, parameters) are of disjoint batches of B; S is the covariance of those of n examples.
    `sum |g_i - mean|^2 / (m - 1)` has expectation tr(S) / B, and |mean|^2 has `|G|^2 + tr(S) / (m B) * (1 - share)`,
    share = m B / n. The last factor, for drawing without replacement, is ours.
    """
    m, mean, total = 0, torch.tensor(0.0), torch.tensor(0.0)
    for m, gradient in enumerate(gradients, 1):  # Source: Welford 1962
        apart = gradient - mean
        mean = mean + apart / m
        total = total + apart.to(wide(apart.device)).square().sum(1) * ((m - 1) / m)
    trace = total / (m - 1)
    return trace, mean.to(wide(mean.device)).square().sum(1) - trace / m * (1 - share)


class UpdateAngle(Probe):
    """Angle between successive updates of the weights: arccos of the mean cosine of an epoch's steps, in degrees.

    90: an update knows nothing of the one before; above: zig-zag across a valley; below: along it. The first step of an
    epoch is compared too; an update of 0 is not. NaN before there are two. Source: none, the definition is ours.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:
        """See Probe. In [0, 180] degrees; from epoch 0 on every step is noted."""
        if epoch == 0:
            self.weights, self.members, self.step = module.population.weights.clone(), module.history.members, 0
            self.updates = self.weights.new_zeros(len(self.weights), 2, self.weights.shape[1])  # the last two
            return {}
        p = self.products.to(wide(self.products.device))
        cosine = p[..., 0, 1] / (p[..., 0, 0].sqrt() * p[..., 1, 1].sqrt())  # 0 / 0 where an update is 0
        return {"update_angle": torch.rad2deg(torch.arccos(cosine.nanmean(0).clamp(-1, 1)))}

    def state_dict(self) -> dict[str, Any]:
        """The last updates, which the first of the next epoch is compared with."""
        return {"weights": self.weights, "updates": self.updates, "members": self.members, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self.weights, self.updates = state_dict["weights"], state_dict["updates"]
        self.members, self.step = state_dict["members"], state_dict["step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """From here on every step is noted."""
        super().on_train_start(trainer, pl_module)
        if pl_module.epochs_done:
            self.weights, self.updates = self.weights.to(pl_module.device), self.updates.to(pl_module.device)
        pl_module.steps.after.append(lambda: self.note(pl_module.population.weights))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Room for the epoch's products, and members that are gone are gone here too."""
        stay = torch.from_numpy(np.isin(self.members, pl_module.history.members)).to(self.weights.device)
        if len(pl_module.history.members) < len(self.members):
            self.weights, self.updates, self.members = self.weights[stay], self.updates[stay], pl_module.history.members
        self.step %= 2
        self.products = self.weights.new_zeros(pl_module.steps.per_epoch + self.step, len(self.weights), 2, 2)

    def note(self, weights: Tensor) -> None:
        """After a step: the products of its update with itself and the one before. Weights (members, parameters)."""
        torch.sub(weights, self.weights, out=self.updates[:, self.step % 2])
        self.weights.copy_(weights)
        torch.bmm(self.updates, self.updates.mT, out=self.products[self.step])
        self.step += 1


class HeldOut(Probe):
    """The scores on the test set, for studies of when to stop; nothing is chosen by them, searches refuse them."""

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. `test_set/loss`, `test_set/accuracy` and so on, in the units of `loss/val` and its like."""
        scores = module.evaluation.measure(module.population.weights, module.population.buffers, ["test"])
        return {f"test_set/{name.removesuffix('/test')}": torch.from_numpy(score) for name, score in scores.items()}


CLASSES: tuple[type[Probe], ...] = (GradientNorm, DeadUnits, GradientNoise, UpdateAngle, HeldOut)
PROBES = dict(zip(get_args(ProbeName), CLASSES, strict=True))


def callbacks(names: Sequence[str]) -> list[pl.Callback]:
    """What Lightning calls for these probes; one named twice is measured once."""
    return [PROBES[name]() for name in dict.fromkeys(names)]


def spread(module: Training, most: int) -> Tensor:
    """Numbers (rows,) of at most so many training examples, evenly over all, always the same."""
    n, device = len(module.examples.x_train), module.examples.x_train.device
    return torch.arange(min(n, most), device=device) * n // min(n, most)


def _gradient(module: Training, rows: Tensor) -> Tensor:
    """Gradient (members, parameters) of the mean loss on training examples (members, rows), without dropout."""
    population, x = module.population, module.examples.x_train[rows]
    y = module.examples.y_train.expand(len(rows), -1).gather(1, rows)
    weights = population.weights.new_full(rows.shape[1:], 1 / rows.shape[1])
    kept, population.buffers = population.buffers, {name: b.clone() for name, b in population.buffers.items()}
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return population.gradient(x, y, weights, [], module.steps.loss)[1]
    finally:  # what the model itself changes in training mode is put back
        population.buffers = kept
