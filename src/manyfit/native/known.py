"""What the kernel knows: activations, losses and optimizers, by their classes. Nothing here needs Numba."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from manyfit import losses
from manyfit.native import tables

ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.ReLU: tables.RELU,
    nn.LeakyReLU: tables.LEAKY_RELU,
    nn.Tanh: tables.TANH,
    nn.Sigmoid: tables.SIGMOID,
    nn.SiLU: tables.SILU,
    nn.GELU: tables.GELU,
}


def plain(loss: losses.Loss) -> losses.Loss:
    """What a loss is of an example, apart from the weight of its class."""
    return loss.loss if type(loss) is losses.Balanced else loss


def class_weights(loss: losses.Loss) -> list[float]:
    """What the loss of an example of each class is multiplied by; empty: by nothing."""
    return list(loss.weights.tolist()) if type(loss) is losses.Balanced else []


def option_of(loss: losses.Loss) -> float:
    """The number that the kernel is told of a loss."""
    if isinstance(loss, losses.Huber):
        return loss.delta
    return loss.label_smoothing if isinstance(loss, losses.Smoothed) else 0.0


LOSSES: dict[type[losses.Loss], int] = {
    losses.CrossEntropy: tables.CROSS_ENTROPY,
    losses.BCE: tables.BCE,
    losses.SquaredProbability: tables.SQUARED_PROBABILITY,
    losses.MSE: tables.MSE,
    losses.Huber: tables.HUBER,
}
OPTIMIZERS: dict[type[torch.optim.Optimizer], int] = {
    torch.optim.SGD: tables.SGD,
    torch.optim.Adam: tables.ADAM,
    torch.optim.AdamW: tables.ADAM,
    torch.optim.NAdam: tables.NADAM,
    torch.optim.RAdam: tables.RADAM,
    torch.optim.Adamax: tables.ADAMAX,
    torch.optim.Adagrad: tables.ADAGRAD,
    torch.optim.Adadelta: tables.ADADELTA,
    torch.optim.RMSprop: tables.RMSPROP,
}
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("momentum", "dampening", "nesterov"),
    ("beta1", "beta2", "eps", "amsgrad"),
    ("beta1", "beta2", "eps", "momentum_decay"),
    ("beta1", "beta2", "eps"),
    ("beta1", "beta2", "eps"),
    ("lr_decay", "eps", "initial_accumulator_value"),
    ("rho", "eps"),
    ("alpha", "eps", "momentum", "centered"),
)
"""By code: what an optimizer is told besides its rate and its decay."""
HOW = {"foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
"""Arguments of torch's classes that are no numbers of theirs: the last is asked for by `decoupled`."""


def options_of(cls: type[torch.optim.Optimizer], given: Mapping[str, Any]) -> list[float] | None:
    """What these arguments say, in the order of `OPTIONS`; None: one of them is not among them."""
    instance = cls([torch.zeros(1)], **{"lr": 1.0, **given})
    known = dict(instance.defaults)
    for name, value in zip(("beta1", "beta2"), known.pop("betas", ()), strict=False):
        known[name] = value
    names = OPTIONS[OPTIMIZERS[cls]]
    if {*given} - {*names, *HOW, "betas"} or any(known.get(name) for name in HOW - {"decoupled_weight_decay"}):
        return None
    return [float(known[name]) for name in names]


def moments(code: int, options: list[float]) -> int:
    """How many numbers it keeps of every weight."""
    named = dict(zip(OPTIONS[code], options, strict=True))
    if code == tables.SGD:
        return int(named["momentum"] != 0)
    if code == tables.RMSPROP:
        return 1 + int(named["centered"]) + int(named["momentum"] > 0)
    return {tables.ADAM: 2 + int(named.get("amsgrad", 0)), tables.ADAGRAD: 1}.get(code, 2)


def decoupled(cls: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> bool:
    """Whether its weight decay shrinks the weights, instead of being added to the gradient."""
    return cls is torch.optim.AdamW or bool(options.get("decoupled_weight_decay"))
