"""Models as ordinary modules, and a trained one as its users call it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manyfit.data.scales import unscaled
from manyfit.data.splits import Dataset

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
INITS = ("default", "kaiming", "xavier", "normal")


class MLP(nn.Sequential):
    """Dense layers with an activation and dropout after each hidden one: `z = w0 + x.W`, `x = g(z)`.

    Args:
        in_features: Width of a row of the data.
        out_features: Width of the output (logits, or the predicted value).
        hidden: Widths of the hidden layers; empty for a perceptron.
        activation: One of `ACTIVATIONS`.
        dropout: Probability, in [0, 1), that a hidden activation is set to 0 in training.
        init: `default` is torch's own for `nn.Linear`; `kaiming` (He et al. 2015, eq. 14) and `xavier`
            (Glorot & Bengio 2010, eq. 16) draw the weights so and set biases to 0; `normal` draws weights from
            N(0, sigma^2) and sets biases to 0.
        sigma: Standard deviation for `init=normal`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        init: str = "default",
        sigma: float = 0.1,
    ) -> None:
        _one_of("model.activation", activation, ACTIVATIONS)
        _one_of("model.init", init, INITS)
        if not all(isinstance(width, int) and width > 0 for width in hidden):
            raise ValueError(f"model.hidden must be a list of integers > 0, but got {list(hidden)}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), but got {dropout}.")
        if sigma <= 0:
            raise ValueError(f"model.sigma must be > 0, but got {sigma}.")
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))
        for layer in self:
            if isinstance(layer, nn.Linear) and init != "default":
                _initialise(layer, init, sigma)


def _initialise(layer: nn.Linear, init: str, sigma: float) -> None:
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=sigma)
    nn.init.zeros_(layer.bias)


def _one_of(key: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, but got {value!r}.")


class Predictor(nn.Module):
    """A trained member as users call it: raw features in; class probabilities, or values in their own units, out.

    Args:
        network: The trained module, on standardised features.
        data: What it was trained on: how its features and targets were scaled.
    """

    def __init__(self, network: nn.Module, data: Dataset) -> None:
        super().__init__()
        self.network, self.classes = network, data.classes
        self.y_mean, self.y_std, self.y_scale = data.y_mean, data.y_std, data.y_scale
        self.x_mean: Tensor
        self.x_std: Tensor
        self.y_knots: Tensor | None
        self.register_buffer("x_mean", data.x_mean)
        self.register_buffer("x_std", data.x_std)
        self.register_buffer("y_knots", data.y_knots)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, features), or in the shape of an example, -> (rows, classes) probabilities, or (rows, 1) values."""
        z: Tensor = self.network((x.flatten(1) - self.x_mean) / self.x_std)
        return answers(z, self)


def answers(z: Tensor, of: Dataset | Predictor) -> Tensor:
    """A network's outputs (..., width) as people read them: probabilities (..., classes), or values (..., 1)."""
    if not of.classes:
        return own_units(z, of)
    if z.shape[-1] == 1:
        p = torch.sigmoid(z)
        return torch.cat([1 - p, p], -1)
    return torch.softmax(z, -1)


def own_units(y: Tensor, of: Dataset | Predictor) -> Tensor:
    """Numbers that a network learns, or says, in the units of the target."""
    return unscaled(of.y_scale, of.y_knots, y * of.y_std + of.y_mean)


@contextlib.contextmanager
def inside(network: nn.Module) -> Iterator[Callable[[], str]]:
    """Which layer a network was in when it raised, and what came to it."""
    entered: list[tuple[str, nn.Module, str]] = []

    def enter(name: str, layer: nn.Module, inputs: Any) -> None:
        shapes = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
        entered.append((name, layer, ", ".join(map(str, shapes))))

    def leave(*_: Any) -> None:
        entered.pop()

    hooks = []
    for name, layer in network.named_modules():
        if name:
            hooks += [layer.register_forward_pre_hook(partial(enter, name)), layer.register_forward_hook(leave)]

    def where() -> str:
        if not entered:
            return ""
        name, layer, shapes = entered[-1]
        about = str(layer).partition("\n")[0] if not list(layer.children()) else type(layer).__name__
        return f" layer {name}, {about}, which was given {shapes},"

    try:
        yield where
    finally:
        for hook in hooks:
            hook.remove()
