"""Quantities that the curves do not hold, measured beside them after every epoch: `probes=[gradient_norm,dead_units]`.

A probe looks and leaves no trace: the curves are bit-equal with and without it. All members are measured at once, and
nothing waits for the device within an epoch. Lightning calls a callback's hooks before the module's own of that name.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from manyfit.config.schema import Config, ProbeName
from manyfit.data.draws import orders
from manyfit.measures import called, function_of, numbers
from manyfit.training.evaluation import wide
from manyfit.training.loop import Training
from manyfit.training.scoring import scores

GRADIENT_ROWS = 256  # training examples that gradient_norm is measured on
DEAD_ROWS = 768  # and dead_units
OWN_ROWS = 768  # that a function of the user's is given
NOISE_BATCHES = 6  # mini-batches that gradient_noise is estimated from


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
        engine, members = module.engine, np.arange(len(module.history.members))
        rows = spread(int(engine.examples_per_epoch[0]), GRADIENT_ROWS).expand(len(members), -1)
        first, last = engine.ends(engine.gradients(rows, members))
        return {"gradient_norm/first": first, "gradient_norm/last": last, "gradient_norm/ratio": first / last}


class DeadUnits(Probe):
    """Share of hidden units that are 0 for each of at most `DEAD_ROWS` training examples, with a slope of 0 there.

    Units of another activation than `dense.CAN_DIE` count as living. Source: Maas, Hannun & Ng 2013, section 2.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. In [0, 1]."""
        return {"dead_units": module.engine.dead_share(spread(int(module.engine.examples_per_epoch[0]), DEAD_ROWS))}


class GradientNoise(Probe):
    """Noise of a mini-batch's gradient: trace of its covariance over the squared norm of the full gradient.

    Without dropout, on at most `NOISE_BATCHES` whole mini-batches of the coming epoch's order. NaN with under two, or
    where the estimate of the squared norm is not above 0. Source: McCandlish et al. 2018, eq. 2.9 over B; appendix A.1.
    """

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:
        """See Probe. No unit, > 0; above 1 a step is more noise than gradient."""
        engine = module.engine
        n, found = int(engine.examples_per_epoch[0]), torch.full((len(engine.seeds),), torch.nan, dtype=torch.float64)
        kinds = np.stack([engine.batch_sizes, engine.parameters], 1)
        for kind in np.unique(kinds, axis=0):  # a sum's bits depend on how long the rows are
            members, batch = np.flatnonzero((kinds == kind).all(1)), int(kind[0])
            batches = min(NOISE_BATCHES, n // batch)
            if batches < 2:
                continue
            index = orders([engine.seeds[k] for k in members], epoch, n)[:, : batches * batch]
            trace, square = noise(
                (engine.gradients(rows, members) for rows in index.view(-1, batches, batch).unbind(1)),
                batches * batch / n,
            )
            found[torch.from_numpy(members)] = torch.where(square > 0, trace / square, torch.nan).cpu().double()
        return {"gradient_noise": found}


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
        """See Probe. In [0, 180] degrees."""
        return {} if epoch == 0 else {"update_angle": torch.rad2deg(torch.arccos(module.engine.cosines().clamp(-1, 1)))}


class HeldOut(Probe):
    """The scores on the test set, for studies of when to stop; nothing is chosen by them, searches refuse them."""

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. `test_set/loss`, `test_set/accuracy` and so on, in the units of `loss/val` and its like."""
        scores = module.engine.measure(["test"])
        return {f"test_set/{name.removesuffix('/test')}": torch.from_numpy(score) for name, score in scores.items()}


class Metrics(Probe):
    """What a config's `metrics` name, on the training and validation examples.

    Args:
        names: They.
        trusted: Modules that the user vouches for.
    """

    def __init__(self, names: Sequence[str], trusted: Sequence[str]) -> None:
        self.names, self.trusted = names, trusted

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. `auc/train`, `auc/val` and so on."""
        found = scores(module.engine, self.names, ("train", "val"), self.trusted)
        return {name: torch.from_numpy(values) for name, values in found.items()}


class Own(Probe):
    """A function of the user's: `(network, x, y) -> number`, or numbers by name, of each member.

    It is given a copy of the network, with the epoch's weights, in evaluation mode, and at most `OWN_ROWS` training
    examples, always the same: x (rows, features), y (rows,). Random numbers that it draws are none of the training's.

    Args:
        name: Its dotted name, whose last part is the metric's.
        trusted: Modules that the user vouches for.
    """

    def __init__(self, name: str, trusted: Sequence[str]) -> None:
        self.name, self.function = called(name), function_of(name, "probes", trusted)

    def measure(self, module: Training, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
        """See Probe. `name`, or `name/part` where it returns several."""
        engine, made = module.engine, dict[str, list[float]]()
        members, finite = len(module.history.members), engine.weights.isfinite().all(1).tolist()
        for k in (k for k in range(members) if finite[k]):  # of who has just diverged there is nothing to say
            x, y = engine.examples_of(k)
            rows = spread(len(x), OWN_ROWS)
            with engine.faults.of(k):
                for part, value in numbers(self.name, self.function, engine.network(k), x[rows], y[rows]).items():
                    made.setdefault(part, [math.nan] * members)[k] = value  # unlike networks may have unlike parts
        return {part: torch.tensor(values, dtype=torch.float64) for part, values in made.items()}


CLASSES: tuple[type[Probe], ...] = (GradientNorm, DeadUnits, GradientNoise, UpdateAngle, HeldOut)
PROBES: dict[str, type[Probe]] = dict(zip(get_args(ProbeName), CLASSES, strict=True))


def callbacks(config: Config) -> list[pl.Callback]:
    """What Lightning calls for the probes and metrics of a config; one named twice is measured once."""
    asked = dict.fromkeys(config.probes)
    found: list[pl.Callback] = [PROBES[n]() if n in PROBES else Own(n, config.trusted) for n in asked]
    if config.metrics and config.metrics_at == "epochs":
        found.append(Metrics(config.metrics, config.trusted))
    return found


def spread(n: int, most: int) -> Tensor:
    """Numbers (rows,) of at most so many of n training examples, evenly over all, always the same."""
    return torch.arange(min(n, most)) * n // min(n, most)
