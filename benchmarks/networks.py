"""Networks of the course's later lectures, small, as anybody would bring them: rows of 40 numbers, classes out."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CNN(nn.Module):
    """Three convolutions over the 40 positions of mnist1d. Source: Greydanus & Kobak 2024."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        widths = ((1, 25, 5), (25, 25, 3), (25, 25, 3))
        self.layers = nn.ModuleList(nn.Conv1d(a, b, k, stride=2, padding=1) for a, b, k in widths)
        self.output = nn.Linear(25 * 5, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for layer in self.layers:
            x = layer(x).relu()
        return self.output(x.flatten(1))


class GRU(nn.Module):
    """A gated recurrent unit of width 32 over 40 positions, written out: vmap knows no torch.nn.GRU."""

    def __init__(self, out_features: int, width: int = 32) -> None:
        super().__init__()
        self.inputs, self.state = nn.Linear(1, 3 * width), nn.Linear(width, 3 * width)
        self.output, self.width = nn.Linear(width, out_features), width

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.inputs(x[..., None])
        h = torch.zeros_like(inputs[:, 0, : self.width])
        for i in range(x.shape[1]):
            (r, z, n), (hr, hz, hn) = inputs[:, i].chunk(3, -1), self.state(h).chunk(3, -1)
            z = torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
        return self.output(h)


class Transformer(nn.Module):
    """Two blocks of width 32, four heads, over 40 positions."""

    def __init__(self, out_features: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.heads = nn.Linear(1, width), heads
        self.place = nn.Parameter(torch.randn(40, width) / 10)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "mix": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width), "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(2)
        )  # fmt: skip
        self.output = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[..., None]) + self.place
        for block in self.blocks:
            q, k, v = (
                t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in block["qkv"](block["norm1"](x)).chunk(3, -1)
            )
            attention = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
            x = x + block["mix"]((attention @ v).transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.output(x.mean(1))
