"""The networks of this project."""

import torch
from nets import Residual


def test_shape() -> None:
    """Rows of features in, rows of outputs out."""
    network = Residual(in_features=4, out_features=3, width=8, depth=2)
    assert network(torch.zeros(5, 4)).shape == (5, 3)


def test_skip() -> None:
    """What layers of zeros leave is what goes around them; without a way around nothing is left but a bias."""
    x = torch.randn(5, 4)
    around, through = (Residual(4, 3, depth=2, skip=skip) for skip in (True, False))
    for network in (around, through):
        for parameter in network.layers.parameters():
            torch.nn.init.zeros_(parameter)
    assert torch.equal(around(x), around.last(torch.relu(around.first(x))))
    assert torch.equal(through(x), through.last.bias.expand(5, 3))
