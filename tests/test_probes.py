"""Probes: right by independent truths, the same alone and in company, and without a trace in the curves."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Compose
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config, ProbeName
from manyfit.models import MLP
from manyfit.population import dense
from manyfit.population.members import initialised
from manyfit.training import probes
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare
from manyfit.training.probes import PROBES, noise
from manyfit.training.trained import Result

ALL = f"probes=[{','.join(PROBES)}]"
METRICS = {"gradient_norm/first", "gradient_norm/last", "gradient_norm/ratio", "dead_units", "gradient_noise"}
METRICS |= {"update_angle", "test_set/loss", "test_set/accuracy"}


def three(composed: Compose, *common: str) -> list[Config]:
    """Members that differ in lr, dropout and seed."""
    shared = ("data=wine", "epochs=4", "batch_size=8", "model.hidden=[16,5]")
    rates = [(1e-3, 0.3), (3e-2, 0.0), (1e-2, 0.5)]
    return [
        composed(*shared, f"optimizer.lr={lr}", f"model.dropout={p}", f"seed={seed}", *common)
        for seed, (lr, p) in enumerate(rates)
    ]


class Residual(nn.Module):
    """A user's module that is no stack, and has no batch statistics: several share a population."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(in_features, in_features), nn.Linear(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        out: torch.Tensor = self.head(x + torch.relu(self.body(x)))
        return out


def users(config: Config, target: str, *names: str) -> Config:
    """The same with a user's module that is no stack, and these probes."""
    model = type(config.model).model_validate({"_target_": target})
    return config.model_copy(update={"model": model, "probes": names})


def assert_same_curves(a: Result, b: Result) -> None:
    for name in set(a.metrics) - METRICS - {"time/seconds"}:
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name], err_msg=name)
    assert torch.equal(a.weights, b.weights)


def test_names_are_those_of_the_schema(composed: Compose) -> None:
    """Every name of the schema has a probe; a misspelt one is refused with the choices."""
    assert get_args(ProbeName) == tuple(PROBES)
    with pytest.raises(
        ConfigError, match="probes.*gradient_norm.*dead_units.*gradient_noise.*update_angle.*got 'dead'"
    ):
        composed("probes=[dead]")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_curves_are_bit_equal_with_and_without(composed: Compose, optimizer: str) -> None:
    """Probes leave no trace in a run; without them no metric is theirs."""
    on, off = (fit(three(composed, f"optimizer={optimizer}", p)) for p in (ALL, "probes=[]"))
    for a, b in zip(on, off, strict=True):
        assert set(a.metrics) - set(b.metrics) == METRICS
        assert_same_curves(a, b)


@pytest.mark.parametrize(("target", "members"), [("conftest.Normed", 1), ("test_probes.Residual", 3)])
def test_a_users_module_is_left_alone(composed: Compose, target: str, members: int) -> None:
    """Batch statistics are those of training alone, for modules that are no stack; and so are all curves."""
    configs = three(composed)[:members]
    names = ("gradient_norm", "gradient_noise", "update_angle")
    on, off = (fit([users(config, target, *n) for config in configs]) for n in (names, ()))
    for a, b in zip(on, off, strict=True):
        assert_same_curves(a, b)
        assert np.isfinite(a.metrics["gradient_norm/ratio"]).all()


def test_lbfgs_is_left_alone(composed: Compose) -> None:
    """An optimizer that is used as it is takes the same steps."""
    common = ("data=wine", "epochs=4", "batch_size=full", "optimizer=lbfgs", "model.hidden=[8]")
    (on,), (off,) = (fit([composed(*common, p)]) for p in (ALL, "probes=[]"))
    assert_same_curves(on, off)
    assert np.isnan(on.metrics["gradient_noise"]).all()


def test_alone_or_in_company(composed: Compose) -> None:
    """A member's values are its own, from epoch 0 on where defined."""
    configs = three(composed, ALL)
    for config, among in zip(configs, fit(configs), strict=True):
        (alone,) = fit([config])
        for name in METRICS:
            np.testing.assert_allclose(among.metrics[name], alone.metrics[name], rtol=1e-5, err_msg=name)
        for name in METRICS - {"update_angle", "gradient_noise"}:
            assert np.isfinite(among.metrics[name]).all(), name
        assert np.isnan(among.metrics["update_angle"]).tolist() == [True] + [False] * 4


def test_a_member_that_diverges_leaves_the_others(composed: Compose) -> None:
    """After compaction the values go on as those of the member alone."""
    configs = three(composed, "optimizer=sgd", ALL)
    wild = configs[1].optimizer.model_copy(update={"lr": 1e30})
    configs[1] = configs[1].model_copy(update={"optimizer": wild})
    results = fit(configs)
    assert [result.reason for result in results] == ["finished", "diverged", "finished"]
    for k in (0, 2):
        (alone,) = fit([configs[k]])
        for name in METRICS:
            np.testing.assert_allclose(results[k].metrics[name], alone.metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("user", [False, True])
def test_gradient_norm_is_autograds(composed: Compose, user: bool) -> None:
    """At epoch 0: the norms that autograd finds on the ordinary module, dropout off."""
    config = three(composed, "probes=[gradient_norm]")[0]
    config = users(config, "conftest.Normed", "gradient_norm") if user else config
    (result,) = fit([config])
    job = prepare(config)
    network = job.network.train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    nn.functional.cross_entropy(network(job.data.x_train), job.data.y_train).backward()  # 124 examples: all
    norms = [p.grad.norm().item() for p in network.parameters() if p.grad is not None and p.ndim > 1]
    network.zero_grad(set_to_none=True)
    got = [result.metrics[f"gradient_norm/{name}"][0] for name in ("first", "last", "ratio")]
    np.testing.assert_allclose(got, [norms[0], norms[-1], norms[0] / norms[-1]], rtol=1e-4)


def stacked(network: nn.Sequential) -> tuple[dense.Stack, list[torch.Tensor]]:
    """A stack of one member, and its parameters as stored."""
    return dense.Stack(list(network)), [dense.stored(p.detach())[None] for p in network.parameters()]


@pytest.mark.parametrize(
    ("activation", "share"),
    [("relu", 0.25), ("gelu", 0.25), ("leaky_relu", 0), ("prelu", 0), ("tanh", 0), ("sigmoid", 0), ("identity", 0)],
)
def test_dead_units(activation: str, share: float) -> None:
    """A bias of -1e6 kills 1 unit of 4 that can die."""
    network = initialised(lambda: MLP(3, 2, [4], activation, init="kaiming"), 0)
    with torch.no_grad():
        network[0].bias[2] = -1e6
    assert dense.dead_share(*stacked(network), torch.randn(1, 200, 3)).item() == share


def test_dead_units_of_width_one() -> None:
    """What a side of 1 is filled up with is no unit."""
    network = initialised(lambda: MLP(1, 1, [1, 3], init="kaiming"), 0)
    with torch.no_grad():
        network[0].bias[0] = -1e6
        network[3].bias[:] = torch.tensor([1.0, 1.0, -1.0])
    assert dense.dead_share(*stacked(network), torch.randn(1, 50, 1)).item() == 2 / 4


@pytest.mark.parametrize("perceptron", [True, False])
def test_dead_units_needs_hidden_dense_layers(composed: Compose, perceptron: bool) -> None:
    """Refused with the key and what to do."""
    config = composed("data=wine", "model=perceptron", "probes=[dead_units]")
    with pytest.raises(ConfigError, match="probes must hold dead_units only .* Use model=mlp"):
        fit([config if perceptron else users(config, "conftest.Normed", "dead_units")])


@pytest.mark.parametrize("data", ["wine", "diabetes"])
def test_the_test_set_at_every_epoch(composed: Compose, data: str) -> None:
    """At the best epoch it is the score that every run ends with."""
    result, _ = fit([composed(f"data={data}", "epochs=5", "probes=[test_set]", f"seed={seed}") for seed in (0, 1)])
    epoch = result.summary.best_epoch
    for name, score in result.test.items():
        curve = result.metrics[f"test_set/{name.removesuffix('/test')}"]
        assert len(curve) == 6
        assert curve[epoch] == score


@pytest.mark.parametrize("batches", [4, 10])
def test_gradient_noise_is_unbiased(batches: int) -> None:
    """Over many orders both estimates have the closed form of a finite set of gradients as their mean."""
    n, batch, orders = 40, 4, 4000
    gradients = 0.5 + torch.randn(n, 16, dtype=torch.float64)
    drawn = torch.stack([gradients[torch.randperm(n)[: batches * batch]] for _ in range(orders)])
    means = drawn.view(orders, batches, batch, 16).mean(2).transpose(0, 1)  # an order stands where a member does
    trace, square = noise(iter(means), batches * batch / n)
    assert trace.mean().item() == pytest.approx(gradients.var(0).sum().item() / batch, rel=0.02)
    assert square.mean().item() == pytest.approx(gradients.mean(0).square().sum().item(), rel=0.02)


def test_update_angle_has_known_answers(composed: Compose) -> None:
    """A linear model, squared loss, full batch: a tiny lr steps ever the same way, one too large jumps to and fro."""
    common = ("data=diabetes", "model=perceptron", "batch_size=full", "epochs=60", "optimizer=sgd", ALL_BUT_DEAD)
    configs = [composed(*common, f"optimizer.lr={lr}") for lr in (1e-3, 0.26)]
    small, large = (result.metrics["update_angle"] for result in fit(configs))
    assert np.isnan(small[:2]).all()  # two updates make an angle
    assert small[3] < 3
    assert large[-1] == pytest.approx(180, abs=3)


ALL_BUT_DEAD = "probes=[gradient_norm,gradient_noise,update_angle]"


def test_without_probes_there_are_no_hooks(composed: Compose) -> None:
    """Off is off."""
    assert composed().probes == ()
    assert probes.callbacks(composed()) == []


def norms(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """A user's: of weights, and the gradient's, which need autograd; it draws, too."""
    torch.rand(3)
    torch.nn.functional.cross_entropy(network(x), y.long()).backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    return {"weights": weights.norm(), "gradient": gradient.norm()}


def wrong(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """A user's that makes no number."""
    return x


@pytest.mark.parametrize("engine", ["native", "batched"])
def test_a_probe_of_ones_own(composed: Compose, engine: str) -> None:
    """Of each member, on the same examples, by both engines; the training does not notice."""
    one = ["data=wine", "epochs=3", f"trainer.engine={engine}", "trusted=[test_probes]", "model.dropout=0.5"]
    with_it = [composed(*one, f"seed={seed}", "probes=[test_probes.norms]") for seed in range(3)]
    results = fit(with_it)
    for config, result in zip(with_it, results, strict=True):
        bare = fit([config.model_copy(update={"probes": ()})])[0]
        (alone,) = fit([config])
        compare = np.testing.assert_array_equal if engine == "native" else np.testing.assert_allclose
        for name in ("norms/weights", "norms/gradient"):
            assert np.isfinite(result.metrics[name]).all()
            compare(result.metrics[name], alone.metrics[name], **({} if engine == "native" else {"rtol": 1e-4}))
        np.testing.assert_array_equal(alone.metrics["loss/train"], bare.metrics["loss/train"])
        network = prepare(config).network
        first = torch.cat([p.detach().flatten() for p in network.parameters()]).norm()
        assert alone.metrics["norms/weights"][0] == pytest.approx(float(first), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_probes.wrong", "probes: test_probes.wrong must make a number, or numbers by name, of a network"),
        ("test_probes.nothing", "probes must hold functions that can be imported, but got 'test_probes.nothing'"),
        ("sharpness", "probes.0 must be one of gradient_norm, .* or a function of yours by its dotted name"),
    ],
)
def test_a_probe_that_is_none_is_refused(composed: Compose, name: str, words: str) -> None:
    """Before there is a run."""
    with pytest.raises(ConfigError, match=words):
        prepare(composed("data=wine", f"probes=[{name}]", "trusted=[test_probes]"))


def each(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG001
    """A user's: parts that a deeper network has more of."""
    if not all(p.isfinite().all() for p in network.parameters()):
        raise ValueError("a function that cannot do with NaN")
    return {name: p.detach().norm() for name, p in network.named_parameters() if p.ndim > 1}


def test_a_probe_of_unlike_networks(composed: Compose) -> None:
    """Each has its own parts; one that diverges has none any more, and does not disturb the others."""
    given = ("data=wine", "epochs=3", "trusted=[test_probes]", "probes=[test_probes.each]", "optimizer=sgd")
    own = (("model.hidden=[8]",), ("model.hidden=[8,8]",), ("model.hidden=[8,8]", "optimizer.lr=1e30"))
    small, deep, lost = fit([composed(*given, *its) for its in own])
    assert np.isfinite(small.metrics["each/0.weight"]).all()
    assert np.isfinite(deep.metrics["each/6.weight"]).all()
    assert np.isnan(small.metrics["each/6.weight"]).all()
    assert lost.reason == "diverged"


@pytest.mark.parametrize("taken", ["metrics=[test_probes.each]", "probes=[test_probes.each,conftest.each]"])
def test_two_of_one_name_are_refused(composed: Compose, taken: str) -> None:
    """Metrics and probes are curves of one run."""
    more = [] if taken.startswith("probes") else ["probes=[test_probes.each]"]
    with pytest.raises(ConfigError, match="metrics and probes must have names of their own, but got 'each' besides"):
        prepare(composed("data=wine", taken, *more, "trusted=[test_probes,conftest]"))
