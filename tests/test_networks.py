"""Small networks for signals and images, against torch's own parts."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from conftest import Compose
from manyfit.networks import CNN, GRU, Transformer
from manyfit.training.fitting import fit

SHAPES = [(13,), (9, 7), (3, 8, 6)]
KINDS = [CNN, GRU, Transformer]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_shape(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    """Rows in, outputs out, and every parameter has a part in them."""
    torch.manual_seed(0)
    network = kind(shape, 4)  # type: ignore[call-arg]
    outputs = network(torch.randn(5, *shape))
    assert outputs.shape == (5, 4)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    """Under vmap, as by themselves."""
    torch.manual_seed(0)
    networks = [kind(shape, 2) for _ in range(3)]  # type: ignore[call-arg]
    weights, _ = stack_module_state(networks)
    x = torch.randn(3, 4, *shape)

    def one(own: dict[str, Tensor], rows: Tensor) -> Tensor:
        outputs: Tensor = functional_call(networks[0], own, (rows,))
        return outputs

    alone = torch.stack([network(rows) for network, rows in zip(networks, x, strict=True)])
    torch.testing.assert_close(vmap(one)(weights, x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_is_torchs(bidirectional: bool) -> None:
    """The same states from the same weights."""
    torch.manual_seed(0)
    ours = GRU((9, 5), 3, hidden=4, bidirectional=bidirectional).double()
    theirs = nn.GRU(5, 4, batch_first=True, bidirectional=bidirectional).double()
    with torch.no_grad():
        for way, end in zip(range(1 + bidirectional), ("", "_reverse"), strict=False):
            for name, weight, bias in (
                ("ih", ours.of_input, ours.of_input_bias),
                ("hh", ours.of_state, ours.of_state_bias),
            ):
                getattr(theirs, f"weight_{name}_l0{end}").copy_(weight[way].T)
                getattr(theirs, f"bias_{name}_l0{end}").copy_(bias[way, 0])
    x = torch.randn(6, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(ours.states(x), theirs(x)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x), ours.head(theirs(x)[0].flatten(1)), rtol=1e-12, atol=1e-12)


def test_attention_is_torchs() -> None:
    """A block is torch's encoder layer, with norms first."""
    torch.manual_seed(0)
    (block,) = Transformer((16,), 2, width=8, depth=1, heads=2).double().blocks
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).double()
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.project.weight)
        layer.self_attn.in_proj_bias.copy_(block.project.bias)
    layer.self_attn.out_proj.load_state_dict(block.merge.state_dict())
    layer.linear1.load_state_dict(block.dense[0].state_dict())
    layer.linear2.load_state_dict(block.dense[2].state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), layer(x), rtol=1e-10, atol=1e-10)


def test_patches_are_pieces() -> None:
    """A token holds the pixels of its square, all channels, in order; the last is filled up with 0."""
    network = Transformer((2, 3, 4), 2, patch=2)
    x = torch.arange(24.0).view(1, 2, 3, 4)
    patches = network._patches(x)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 0].tolist() == [0, 1, 4, 5, 12, 13, 16, 17]
    assert patches[0, 3].tolist() == [10, 11, 0, 0, 22, 23, 0, 0]


def test_cnn_is_the_papers() -> None:
    """On MNIST-1D: 25 channels of 20, 10, 5 samples; 1 x 25 x 5 + 2 (25 x 25 x 3) + 125 x 10 weights, and biases."""
    network = CNN((40,), 10)
    assert sum(p.numel() for p in network.parameters()) == 125 + 25 + 2 * (1875 + 25) + 1250 + 10


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (CNN, {"kernels": [4]}, r"model.kernels must be odd whole numbers > 0, but got \[4\]"),
        (CNN, {"channels": []}, r"model.channels must be whole numbers > 0, but got \[\]"),
        (CNN, {"activation": "swish"}, "model.activation must be one of identity, .*, but got swish"),
        (CNN, {"dropout": 1.0}, r"model.dropout must be in \[0, 1\), but got 1.0"),
        (GRU, {"hidden": 0}, "model.hidden must be > 0, but got 0"),
        (Transformer, {"heads": 5}, "model.width must be a multiple of heads, 5, but got 32"),
        (Transformer, {"patch": 0}, "model.patch must be > 0, but got 0"),
    ],
)
def test_refused(kind: type[nn.Module], options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind((16,), 2, **options)
    with pytest.raises(ValueError, match="model must be given examples of one to three axes"):
        kind((2, 2, 2, 2), 2)  # type: ignore[call-arg]


@pytest.mark.usefixtures("own_data")
@pytest.mark.parametrize("model", ["cnn", "gru", "transformer"])
def test_members_train_together(composed: Compose, model: str) -> None:
    """Two seeds and rates as a population: the curves of each by itself, to what the batched engine promises."""
    given = ["data=arrays", "data.path=arrays.npz", f"model={model}", "epochs=3", "batch_size=8", "model.dropout=0.2"]
    configs = [composed(*given, "seed=0"), composed(*given, "seed=1", "optimizer.lr=0.01")]
    together = fit(configs)
    for config, member in zip(configs, together, strict=True):
        (alone,) = fit([config])
        np.testing.assert_allclose(member.metrics["loss/val"], alone.metrics["loss/val"], rtol=1e-4)
