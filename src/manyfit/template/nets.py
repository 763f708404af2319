"""Networks of your own: conf/model/mine.yaml names one, and the constructor's arguments are its keys."""

from torch import Tensor, nn, relu


class Residual(nn.Module):
    """Dense layers with a way around each: x -> x + relu(W x + b).

    Args:
        in_features: From the data.
        out_features: From the data and the loss.
        width: Of every hidden layer.
        depth: How many have a way around them.
        skip: Whether they have it.
    """

    def __init__(
        self, in_features: int, out_features: int, width: int = 32, depth: int = 10, skip: bool = True
    ) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, out_features)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        x = relu(self.first(x))
        for layer in self.layers:
            x = x + relu(layer(x)) if self.skip else relu(layer(x))
        outputs: Tensor = self.last(x)
        return outputs
