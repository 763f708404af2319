"""Small networks for signals and images: convolutions, recurrence, attention.

Each takes rows in the shape of the data: `(length,)` is a signal, `(height, width)` an image of one channel,
`(channels, height, width)` one of several. All are made of parts that `torch.vmap` takes, so that many train together.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyfit.models import ACTIVATIONS


class CNN(nn.Sequential):
    """Convolutions that halve every axis, an activation and dropout after each, then one dense layer.

    Source: LeCun et al. 1998; the default is that of Greydanus & Kobak 2020 for MNIST-1D.

    Args:
        in_shape: Of an example.
        out_features: Width of the output.
        channels: Of each convolution.
        kernels: Their widths, odd; the last stands for all that follow.
        activation: One of `ACTIVATIONS`.
        dropout: Probability, in [0, 1), that an activation is set to 0 in training.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (25, 25, 25),
        kernels: Sequence[int] = (5, 3, 3),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        _require(activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}", activation)
        _require(len(channels) > 0 and min(channels) > 0, "channels must be whole numbers > 0", list(channels))
        odd = len(kernels) > 0 and all(width > 0 and width % 2 for width in kernels)
        _require(odd, "kernels must be odd whole numbers > 0", list(kernels))
        _require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        depth, *sides = _with_channels(in_shape)
        kind: Any = nn.Conv1d if len(sides) == 1 else nn.Conv2d
        layers: list[nn.Module] = [nn.Unflatten(1, (1, sides[0]))] if len(in_shape) < 3 else []
        for i, width in enumerate(channels):
            kernel = kernels[min(i, len(kernels) - 1)]
            layers += [kind(depth, width, kernel, stride=2, padding=kernel // 2)]
            layers += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
            depth, sides = width, [-(-side // 2) for side in sides]
        super().__init__(*layers, nn.Flatten(), nn.Linear(depth * math.prod(sides), out_features))


class GRU(nn.Module):
    """A gated recurrent unit over a signal's samples or an image's lines, then one dense layer over all its states.

    Source: Cho et al. 2014, eq. 5 to 8, with torch's reset gate; the default is that of Greydanus & Kobak 2020.

    Args:
        in_shape: Of an example; of an image each line, with all its channels, is a step.
        out_features: Width of the output.
        hidden: Width of the state.
        bidirectional: Whether a second unit reads it backwards.
        dropout: Probability, in [0, 1), that a number of a state is set to 0, for the dense layer, in training.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        hidden: int = 6,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _require(hidden > 0, "hidden must be > 0", hidden)
        _require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        channels, *sides = _with_channels(in_shape)
        self.images, ways, width = len(sides) > 1, 1 + bidirectional, channels * math.prod(sides[1:])
        bound = hidden**-0.5
        sizes = [(ways, width, 3 * hidden), (ways, 1, 3 * hidden), (ways, hidden, 3 * hidden), (ways, 1, 3 * hidden)]
        self.of_input, self.of_input_bias, self.of_state, self.of_state_bias = (
            nn.Parameter(torch.empty(size).uniform_(-bound, bound)) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(ways * hidden * sides[0], out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, *in_shape) -> (rows, out_features)."""
        steps = x.unsqueeze(-1)
        if self.images:
            steps = (x.unsqueeze(1) if x.ndim == 3 else x).transpose(1, 2).flatten(2)
        states = self.states(steps)
        out: Tensor = self.head(self.dropout(states.flatten(1)))
        return out

    def states(self, steps: Tensor) -> Tensor:
        """`r, z = s(W x + U h)`, `n = tanh(W x + r U h)`, `h <- (1 - z) n + z h`, both ways at once.

        (rows, steps, width) -> (rows, steps, ways * hidden).
        """
        ways, hidden = len(self.of_state), self.of_state.shape[1]
        both = torch.stack([steps, steps.flip(1)][:ways])
        given = torch.baddbmm(self.of_input_bias, both.flatten(1, 2), self.of_input)
        given = given.reshape(*both.shape[:3], -1)
        state, found = torch.zeros_like(given[:, :, 0, :hidden]), []
        for now in given.unbind(2):
            kept = torch.baddbmm(self.of_state_bias, state, self.of_state)
            reset, update = torch.sigmoid(now[..., : 2 * hidden] + kept[..., : 2 * hidden]).chunk(2, -1)
            new = torch.tanh(torch.addcmul(now[..., 2 * hidden :], reset, kept[..., 2 * hidden :]))
            state = torch.lerp(new, state, update)
            found.append(state)
        there, *back = torch.stack(found, 2).unbind(0)
        return torch.cat([there, *(states.flip(1) for states in back)], -1)


class Transformer(nn.Module):
    """Patches as tokens, a learnt position each, blocks of attention and dense layers, the mean, one dense layer.

    Source: Vaswani et al. 2017, eq. 1; patches: Dosovitskiy et al. 2021; norms before each part: Xiong et al. 2020.

    Args:
        in_shape: Of an example.
        out_features: Width of the output.
        width: Of a token; a multiple of heads.
        depth: Blocks.
        heads: Of attention.
        patch: Samples of a token, along every axis; the last is filled up with 0.
        dropout: Probability, in [0, 1), that a number that a block adds is set to 0 in training.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        patch: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number in (("width", width), ("depth", depth), ("heads", heads), ("patch", patch)):
            _require(number > 0, f"{name} must be > 0", number)
        _require(width % heads == 0, f"width must be a multiple of heads, {heads}", width)
        _require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        channels, *sides = _with_channels(in_shape)
        self.shape, self.patch = (channels, *sides), patch
        tokens = [-(-side // patch) for side in sides]
        self.embed = nn.Linear(channels * patch ** len(sides), width)
        self.positions = nn.Parameter(torch.randn(math.prod(tokens), width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, *in_shape) -> (rows, out_features)."""
        tokens: Tensor = self.embed(self._patches(x.reshape(-1, *self.shape))) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return out

    def _patches(self, x: Tensor) -> Tensor:
        """(rows, channels, *sides) -> (rows, tokens, numbers of a patch)."""
        missing = [-side % self.patch for side in reversed(self.shape[1:])]
        x = nn.functional.pad(x, [n for one in missing for n in (0, one)])
        for axis in range(x.ndim - 1, 1, -1):
            x = x.unflatten(axis, (-1, self.patch))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if x.ndim == 4:  # (rows, channels, tokens, patch)
            return x.transpose(1, 2).flatten(2)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class _Block(nn.Module):
    """Attention, then two dense layers, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, width) -> the same."""
        q, k, v = self.project(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        x = x + self.dropouts[0](self.merge(attended))
        out: Tensor = x + self.dropouts[1](self.dense(self.norms[1](x)))
        return out


def _with_channels(in_shape: Sequence[int]) -> tuple[int, ...]:
    """(channels, length), or (channels, height, width)."""
    _require(1 <= len(in_shape) <= 3, "model must be given examples of one to three axes", tuple(in_shape))
    return tuple(in_shape) if len(in_shape) == 3 else (1, *in_shape)


def _require(holds: bool, must: str, got: object) -> None:
    if not holds:
        raise ValueError(f"model.{must}, but got {got}.".replace("model.model", "model"))
