"""training.fit: reproducible, alone and in company, and honest about how a run ended."""

import copy
import gc
import signal
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import Compose, assert_same_bits
from manyfit import curves
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.data.sources import moons, xor
from manyfit.data.table import Table
from manyfit.parallel import devices
from manyfit.sweeps import confirmation
from manyfit.training import evaluation, fitting, probes
from manyfit.training.batched import Batched
from manyfit.training.evaluation import Evaluation
from manyfit.training.fitting import fit
from manyfit.training.grouping import grouped, kept, signature, why_alone
from manyfit.training.loop import Training
from manyfit.training.native import Native
from manyfit.training.prepared import prepare
from manyfit.training.trained import Result


def alone(configs: Sequence) -> list[Result]:
    return [fit([config])[0] for config in configs]


def test_twice_is_bit_equal(composed: Compose) -> None:
    """The same config twice gives the same bits."""
    config = composed("data=moons", "epochs=3", "model.dropout=0.3", "model.hidden=[16]")
    assert_same_bits(*alone([config, config]))


def test_seeds_differ(composed: Compose) -> None:
    """Another seed gives another curve on the same split."""
    a, b = alone([composed("data=moons", "epochs=2", "model.hidden=[16]", f"seed={s}") for s in (0, 1)])
    assert a.metrics["loss/val"][0] != b.metrics["loss/val"][0]


@pytest.mark.parametrize("batch", [1, 7, 32, "full"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_alone_or_in_company(composed: Compose, batch: int | str, optimizer: str) -> None:
    """A member's bits do not depend on who trains beside it, at a stable and at a chaotic rate."""
    common = ("data=wine", "epochs=4", "model.hidden=[16,5]", f"optimizer={optimizer}", f"batch_size={batch}")
    configs = [
        composed(*common, f"optimizer.lr={lr}", f"model.dropout={p}", f"seed={seed}", "data.label_noise=0.1")
        for seed, (lr, p) in enumerate([(1e-3, 0.3), (3e-2, 0.3), (1e-3, 0.0)])
    ]
    for a, b in zip(fit(configs), alone(configs), strict=True):
        assert_same_bits(a, b)


def houses(target: str) -> Table:
    """A source with an argument of the name of what it predicts, as conf/data/csv.yaml has."""
    return moons() if target else xor()


def cars(target: str) -> Table:
    """Another one."""
    return xor() if target else moons()


def test_sources_that_differ_in_target_alone_share_nothing(composed: Compose) -> None:
    """Their argument `target` does not hide `_target_` from the grouping, from fit or from a confirmation."""
    a, b = (
        composed(f"data._target_=test_fitting.{name}", "+data.target=price", "epochs=1", "trainer.engine=batched")
        for name in ("houses", "cars")
    )
    assert signature(prepare(a)) != signature(prepare(b))
    assert [group.numbers for group in grouped({0: prepare(a), 1: prepare(b)})] == [[0], [1]]
    assert not confirmation.same(a, b)
    with pytest.raises(ConfigError, match="data._target_ must be the same in all members .* test_fitting.cars"):
        fit([a, b])


def test_fit_trusts_no_caller(composed: Compose) -> None:
    """Configs that cannot share a population are refused by key, before a run exists; also where none can."""
    common = ("data=iris", "epochs=1", "trainer.engine=batched")
    a, b = composed(*common), composed(*common, "model.hidden=[8]", "batch_size=16")
    with pytest.raises(ConfigError) as caught:
        fit([a, a, b])
    assert str(caught.value).splitlines() == [
        "batch_size must be the same in all members of a population, but got 32, 16. Train them apart.",
        "model.hidden must be the same in all members of a population, but got [64, 64], [8]. Train them apart.",
    ]
    with pytest.raises(ConfigError, match="configs must be one, but got 2 .* not linear in lr"):
        fit([composed("data=iris", "optimizer=lbfgs", "batch_size=full", f"seed={seed}") for seed in range(2)])


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_metrics_and_shapes(composed: Compose, precision: str) -> None:
    """Every metric has a value for every epoch, epoch 0 first; the gap is the difference of the two losses."""
    (result,) = alone([composed("data=iris", "epochs=3", f"trainer.precision={precision}")])
    metrics = result.metrics
    assert {len(values) for values in metrics.values()} == {4}
    np.testing.assert_allclose(metrics["loss/gap"], metrics["loss/val"] - metrics["loss/train"])
    assert np.isnan(metrics["loss/train_running"][0])
    assert (metrics["loss/train_running"][1:] > metrics["loss/train"][-1]).all()
    assert metrics["progress/steps"].tolist() == [0, 4, 8, 12]  # 106 examples in batches of 32
    assert metrics["progress/examples"].tolist() == [0, 106, 212, 318]
    assert set(result.test) == {"loss/test", "accuracy/test"}


def test_regression_metrics(composed: Compose) -> None:
    """RMSE is in the target's own units and R2 agrees with it."""
    (result,) = alone([composed("data=diabetes", "epochs=3")])
    target = prepare(composed("data=diabetes")).data
    raw = target.y_test.double() * target.y_std
    rmse = result.test["rmse/test"]
    assert 40 < rmse < 120
    assert result.test["r2/test"] == pytest.approx(1 - rmse**2 / raw.var(correction=0).item(), rel=1e-5)
    x = torch.from_numpy(result.example)
    assert result.predictor(x).item() == pytest.approx(target.y_mean, abs=4 * target.y_std)


def test_best_weights_are_the_best_epochs(composed: Compose) -> None:
    """The epoch found while training is the one the curves say, and its weights give its validation loss."""
    config = composed("data=moons", "data.noise=0.4", "epochs=12", "optimizer.lr=0.1", "batch_size=8")
    (result,) = alone([config])
    assert result.summary.best_epoch == curves.best_epoch(result.metrics["loss/val"])
    data = prepare(config).data
    logits = result.predictor.network(data.x_val)[:, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, data.y_val.float()).item()
    assert loss == pytest.approx(result.metrics["loss/val"][result.summary.best_epoch], rel=1e-5)


def test_divergence_is_a_failure(composed: Compose) -> None:
    """A loss that turns NaN ends the run as FAILED and diverged, with finite best weights."""
    config = composed("data=diabetes", "optimizer=sgd", "optimizer.lr=1e6", "epochs=5", "model.activation=identity")
    (result,) = alone([config])
    assert (result.status, result.reason, result.summary.verdict) == ("FAILED", "diverged", "diverged")
    assert torch.isfinite(result.weights).all()
    assert len(result.metrics["loss/val"]) < 6


def test_two_infinite_losses_have_no_gap(composed: Compose) -> None:
    """And nothing is said about it: the verdict says that the run diverged."""
    slow = ("data=diabetes", "model=perceptron", "optimizer=sgd", "optimizer.lr=1", "epochs=10")
    (result,) = fit([composed(*slow)])
    both = np.isinf(result.metrics["loss/train"]) & np.isinf(result.metrics["loss/val"])
    assert both.any()
    assert np.isnan(result.metrics["loss/gap"][both]).all()
    assert result.reason == "diverged"


def test_divergence_leaves_the_neighbours_alone(composed: Compose) -> None:
    """A member that turns NaN is let go; the others keep their bits."""
    base = ("data=diabetes", "optimizer=sgd", "epochs=4", "model.activation=identity", "optimizer.weight_decay=1e-3")
    configs = [composed(*base, f"optimizer.lr={lr}") for lr in ("0.01", "1e6", "0.02")]
    together = fit(configs)
    assert [result.reason for result in together] == ["finished", "diverged", "finished"]
    for a, b in zip(together, alone(configs), strict=True):
        assert_same_bits(a, b)


def test_early_stopping(composed: Compose) -> None:
    """Training stops once validation loss has not improved for `patience` epochs, each member for itself."""
    base = ("data=moons", "data.noise=0.5", "data.train_size=20", "epochs=60", "trainer.patience=4", "batch_size=4")
    configs = [composed(*base, f"optimizer.lr={lr}") for lr in (0.1, 1e-4)]
    fast, slow = together = fit(configs)
    assert fast.reason == "stopped early"
    assert len(fast.metrics["loss/val"]) - 1 - fast.summary.best_epoch in (4, 5)
    assert len(slow.metrics["loss/val"]) > len(fast.metrics["loss/val"])
    for a, b in zip(together, alone(configs), strict=True):
        assert_same_bits(a, b)


def test_gradient_clip_is_per_member(composed: Compose) -> None:
    """A clipped step of SGD moves the weights by at most lr times the limit."""
    base = ("data=moons", "optimizer=sgd", "optimizer.lr=1", "batch_size=full", "epochs=1")
    clipped, free = alone([composed(*base, "trainer.gradient_clip=1e-3"), composed(*base)])
    start, start_free = (abs(np.diff(r.metrics["loss/train"])[0]) for r in (clipped, free))
    assert start < 1e-3 < start_free  # the gradient is shorter than 1, and clipped to 1e-3


def test_lbfgs(composed: Compose) -> None:
    """LBFGS on the full batch gets a perceptron near its optimum within a few epochs."""
    config = composed("data=breast_cancer", "model=perceptron", "optimizer=lbfgs", "batch_size=full", "epochs=5")
    (result,) = alone([config])
    assert result.metrics["loss/train"][-1] < 0.05


def test_user_module(composed: Compose) -> None:
    """Any nn.Module by _target_ trains, batch statistics included."""
    (result,) = alone([composed("data=iris", "epochs=5", "model._target_=conftest.Normed", "~model.hidden",
                                "~model.activation", "~model.dropout", "~model.init", "~model.sigma")])  # fmt: skip
    assert result.metrics["loss/train"][-1] < result.metrics["loss/train"][0]


class Holder(nn.Linear):
    """A network with a LightningModule in it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.inner = LightningModule()


class OtherGuest(nn.Linear):
    """As from the package `lightning`, which is not installed here."""


OtherGuest.__name__, OtherGuest.__module__ = "LightningModule", "lightning.pytorch.core.module"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Holder", "model must hold no LightningModule, .* but got one within Holder"),
        ("OtherGuest", "model must be of the package pytorch_lightning"),
    ],
)
def test_a_lightning_module_that_nobody_would_ask_is_refused(composed: Compose, name: str, words: str) -> None:
    """Within another network, or of the other package: its training_step would not be called."""
    gone = (f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma"))
    with pytest.raises(ConfigError, match=words):
        prepare(composed("data=iris", f"model._target_=test_fitting.{name}", *gone))


def test_double_precision(composed: Compose) -> None:
    """precision=64-true trains in float64."""
    (result,) = alone([composed("data=moons", "epochs=2", "trainer.precision=64-true")])
    assert result.weights.dtype == torch.float64


def test_eval_train_size_is_a_fixed_subset(composed: Compose) -> None:
    """loss/train on a subset differs from that on all, and training itself does not notice."""
    few, every = alone([composed("data=moons", "epochs=2", f"eval_train_size={n}") for n in (50, 10000)])
    assert few.metrics["loss/train"][0] != every.metrics["loss/train"][0]
    np.testing.assert_array_equal(few.metrics["loss/val"], every.metrics["loss/val"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=iris", "batch_size=1000"], "batch_size must be <= 106, the training examples, but got 1000"),
        (["data=iris", "loss=mse"], "loss must suit the data: MSE is for regression, but got a classification task"),
        (["data=diabetes", "loss=bce"], "loss must suit the data|bce needs 2 classes"),
        (["data=iris", "+optimizer.momentun=0.9"], "optimizer.momentun must be an argument of torch.optim.Adam"),
        (["data=iris", "optimizer.betas=[2,2]"], "optimizer must|betas|beta"),
        (["data=iris", "model.activation=rely"], "model.activation must be one of"),
        (["data=iris", "model._target_=torch.optim.Adam"], "model._target_ must name a subclass of"),
        (["data=csv", "data.path=nowhere.csv", "data.target=y"], "data.path must .* but got '?nowhere.csv"),
        (["schedule=cosine", "schedule.final=-1"], "schedule.final must be"),
        (["optimizer=lbfgs", "batch_size=full", "+optimizer.weight_decay=0.1"], "optimizer.weight_decay must be 0"),
    ],
)
def test_refused_before_a_run(composed: Compose, overrides: list[str], words: str) -> None:
    """What cannot be used is refused when everything is built on dummies."""
    with pytest.raises(ValueError, match=words):
        prepare(composed(*overrides))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(composed: Compose) -> None:
    """A GPU that is not there is named before anything runs."""
    with pytest.raises(ConfigError, match="trainer.accelerator must be available, but got 'gpu'"):
        prepare(composed("trainer=gpu"))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this is a Mac")
def test_no_mps(composed: Compose) -> None:
    """Nor is a Mac's."""
    with pytest.raises(ConfigError, match="trainer.accelerator must be available, but got 'mps'"):
        prepare(composed("trainer=mps"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.precision=64-true", "trainer.precision must be another than '64-true' on mps, which has no float64"),
        ("trainer.precision=16-mixed", "trainer.precision must be another than '16-mixed'"),
        ("trainer.devices=2", "trainer.devices must be 1 on mps, but got 2"),
        ("trainer.cuda_graph=true", "trainer.cuda_graph must be auto or false here"),
    ],
)
def test_what_mps_cannot(composed: Compose, monkeypatch: pytest.MonkeyPatch, override: str, words: str) -> None:
    """It is named; that torch has mps is all that is made up here."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.kind(prepare(composed("trainer=mps", "trainer.devices=auto")).config.trainer) == "mps"
    with pytest.raises(ConfigError, match=words):
        prepare(composed("trainer=mps", override))


class NoFloat64(TorchDispatchMode):
    """As a device that has none: of what an epoch computes nothing may be float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it and look at what came out."""
        out = func(*args, **(kwargs or {}))
        assert not any(torch.is_tensor(x) and x.dtype == torch.float64 for x in tree_leaves(out)), func
        return out


@pytest.mark.parametrize("data", ["iris", "diabetes"])
def test_sums_without_float64(composed: Compose, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """Where `wide` says float32, as on mps, evaluations compute no float64, and give nearly the same."""
    probed = "probes=[gradient_noise,update_angle]"
    overrides = [f"data={data}", "epochs=2", "trainer.engine=batched", probed, "model.dropout=0.1"]
    seen: list[bool] = []
    (usual,) = fit([composed(*overrides)])
    for module in (evaluation, probes):
        monkeypatch.setattr(module, "wide", lambda _: torch.float32)
    measure = Evaluation.measure

    def watched(self: Evaluation, *arguments: Any) -> Any:
        seen.append(True)
        with NoFloat64():
            return measure(self, *arguments)

    monkeypatch.setattr(Evaluation, "measure", watched)
    (narrow,) = fit([composed(*overrides)])
    assert seen
    for name in set(usual.metrics) - {"time/seconds", "examples_per_second"}:
        np.testing.assert_allclose(narrow.metrics[name], usual.metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)


class Scaled(nn.Sequential):
    """A user's Sequential whose forward is its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        out: torch.Tensor = super().forward(x) * 0.1
        return out


class Drawing(nn.Module):
    """A user's module that draws random numbers of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        out: torch.Tensor = self.layer(nn.functional.dropout(x, 0.3, self.training))
        return out


class Frozen(Drawing):
    """A user's module that is not all trainable, or not at all."""

    def __init__(self, in_features: int, out_features: int, all_of_it: bool = True) -> None:
        super().__init__(in_features, out_features)
        self.layer.bias.requires_grad_(False)
        self.layer.weight.requires_grad_(not all_of_it)


class Broken(Drawing):
    """A user's module with a mistake."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Raises."""
        raise IndexError("a mistake of the user's")


def users(composed: Compose, name: str, *overrides: str):  # a Config
    gone = [f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma")]
    return composed("data=iris", "epochs=3", f"model._target_={name}", *gone, *overrides)


@pytest.mark.parametrize("name", ["Scaled", "Drawing"])
def test_users_forward_is_what_trains(composed: Compose, name: str) -> None:
    """What is measured is what the user's own forward gives, twice the same."""
    config = users(composed, f"test_fitting.{name}")
    one, two = alone([config, config])
    assert_same_bits(one, two)
    data = prepare(config).data
    with torch.no_grad():
        guess = one.predictor(data.x_test * data.x_std + data.x_mean).argmax(1)
    assert (guess == data.y_test).double().mean().item() == pytest.approx(one.test["accuracy/test"])


def test_frozen_parameters_stay(composed: Compose) -> None:
    """The others learn; two members are trained one by one, since each has its own."""
    jobs = [prepare(users(composed, "test_fitting.Frozen", "+model.all_of_it=false", f"seed={s}")) for s in (0, 1)]
    for job in jobs:
        (result,) = fit([job])
        before, after = job.network.layer, result.predictor.network.layer  # type: ignore[union-attr]
        assert torch.equal(before.bias, after.bias)
        assert not torch.equal(before.weight, after.weight)
        assert result.metrics["loss/train"][-1] < result.metrics["loss/train"][0]
    assert why_alone(jobs[0]) == "the model has buffers (batch statistics and the like) or frozen parameters"


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_network_begins_with_stored_weights(composed: Compose, tmp_path: Path, model: str) -> None:
    """All of them and no others, by name."""
    given = ("data=iris", f"model={model}", "epochs=1")
    other = prepare(composed(*given, "seed=7")).network
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    stored = f"model.weights={tmp_path}/w.safetensors"
    for name, value in prepare(composed(*given, stored)).network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    (result,) = fit([composed(*given, stored)])
    assert result.metrics["loss/val"][0] == fit([composed(*given, "seed=7")])[0].metrics["loss/val"][0]
    for file in (tmp_path / "w.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(ConfigError, match=r"model.weights must be a .safetensors file with all weights of MLP"):
            prepare(composed("data=wine", "model=mlp", f"model.weights={file}"))


def test_models_that_cannot_train_are_refused(composed: Compose) -> None:
    """Nothing to train, and batch statistics over a last batch of one row, are found before a run."""
    with pytest.raises(ConfigError, match="model must have parameters to train, but all have requires_grad=False"):
        prepare(users(composed, "test_fitting.Frozen"))
    place = r"\(test_fitting.py:\d+, raise IndexError\("
    with pytest.raises(ConfigError, match=rf"model must map \(rows, 4\), .* says: a mistake of the user's {place}"):
        prepare(users(composed, "test_fitting.Broken"))
    with pytest.raises(ConfigError, match="also 1 rows, an epoch's last batch"):
        prepare(users(composed, "conftest.Normed", "batch_size=105"))


def test_other_optimizers_see_ordinary_parameters(composed: Compose) -> None:
    """An optimizer that looks at the shape of a weight gets it as an ordinary module has it."""
    gone = ["~optimizer.betas", "~optimizer.eps", "~optimizer.amsgrad"]
    config = composed("data=iris", "epochs=4", "batch_size=full", "optimizer._target_=torch.optim.Adafactor", *gone)
    job = prepare(config)
    network = copy.deepcopy(job.network).train()
    optimizer = torch.optim.Adafactor(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(job.data.x_train), job.data.y_train)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (result,) = alone([config])
    np.testing.assert_allclose(result.metrics["loss/train"], losses, rtol=1e-5)


def test_an_explosion_is_a_failure(composed: Compose) -> None:
    """A loss that stays finite beyond all bounds ends the run as a NaN does."""
    config = composed("data=iris", "optimizer=sgd", "optimizer.lr=1000", "model.activation=tanh", "epochs=6")
    (result,) = alone([config])
    assert (result.status, result.summary.verdict) == ("FAILED", "diverged")


@pytest.mark.parametrize("override", ["trainer.precision=bf16-mixed", "trainer.gradient_clip=0.01", "schedule=cosine"])
def test_an_option_changes_something(composed: Compose, override: str) -> None:
    """No option is accepted and ignored."""
    a, b = alone([composed("data=iris", "epochs=2", *more) for more in ([], [override])])
    assert not np.array_equal(a.metrics["loss/train"], b.metrics["loss/train"])


def test_each_member_keeps_its_own_dropout(composed: Compose) -> None:
    """The networks of a population have the rates of their own configs, for whoever trains them on or masks them."""
    given = [composed("data=iris", "epochs=1", "model.hidden=[4,4]", f"model.dropout={p}") for p in (0.1, 0.4)]
    rates = [
        [layer.p for layer in result.predictor.modules() if isinstance(layer, torch.nn.Dropout)]
        for result in fit(given)
    ]
    assert rates == [[0.1, 0.1], [0.4, 0.4]]


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_of_a_training_stays(composed: Compose, monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """Once garbage was collected, Trainer, module and population are gone; what the caller asked of gc is as it was."""
    left: list[weakref.ref] = []
    run = fitting._run

    def watched(trainer: pl.Trainer, module: Training) -> None:
        left.extend(map(weakref.ref, (trainer, module, module.engine)))
        run(trainer, module)

    monkeypatch.setattr(fitting, "_run", watched)
    frozen = gc.get_freeze_count()
    (gc.enable if enabled else gc.disable)()
    try:
        for seeds in ([1], [2, 3], [4]):
            fit([composed("data=iris", "epochs=2", f"seed={seed}") for seed in seeds])
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    gc.collect()
    assert gc.get_freeze_count() == frozen
    assert len(left) == 9
    assert not [ref() for ref in left if ref() is not None]


class Quitting(Drawing):
    """A user's module that gives up in the middle of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 9:
            sys.exit(3)
        return self.layer(x)


class Interrupted(Drawing):
    """A user's module in whose training Ctrl-C or another signal arrives."""

    def __init__(self, in_features: int, out_features: int, signal: int = 2) -> None:
        super().__init__(in_features, out_features)
        self.signal = signal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps == 9 and self.training:
            signal.raise_signal(self.signal)
        return self.layer(x)


def test_a_models_own_exit_is_an_error(composed: Compose) -> None:
    """What calls sys.exit has failed, and is named; nobody stopped the run."""
    with pytest.raises(TrainingError, match=r"the model, or what it uses, called sys.exit\(3\)"):
        fit([users(composed, "test_fitting.Quitting")])


class Ending(Drawing):
    """A user's module that raises StopIteration in the middle of an epoch, as `next` on something empty does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        self.steps = getattr(self, "steps", 0) + self.training
        return self.layer(next(iter([])) if self.steps > 9 else x)


def test_an_end_of_the_models_own_is_an_error(composed: Compose) -> None:
    """Lightning takes StopIteration for the end of the examples: all epochs seemed to be done after a few steps."""
    words = r"the model, or what it uses, raised StopIteration\(\) \(test_fitting.py:\d+, return self.layer\(next"
    with pytest.raises(TrainingError, match=words):
        fit([users(composed, "test_fitting.Ending")])


@pytest.mark.parametrize("engine", ["native", "batched"])
def test_every_epoch_takes_its_steps(composed: Compose, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Whatever computes them, and whatever becomes of a part of them."""
    train = {"native": Native, "batched": Batched}[engine].train
    monkeypatch.setattr(f"manyfit.training.{engine}.{engine.title()}.train", lambda self, part: part or train(self, 0))
    config = composed("data=iris", "epochs=3", f"trainer.engine={engine}")
    fit([config])
    monkeypatch.setattr(f"manyfit.training.{engine}.{engine.title()}.train", lambda *_: None)
    with pytest.raises(TrainingError, match="epoch 1 must end with step 4, but 0 were taken"):
        fit([config])


def end(*_: Any) -> None:
    """In a place that Lightning calls outside of steps."""
    raise StopIteration


def test_training_goes_on_to_its_end(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Lightning's own loop over epochs ends early."""
    monkeypatch.setattr(Training, "_let_go", end)
    with pytest.raises(TrainingError, match="training must go on to its end, but it ended after epoch 1"):
        fit([composed("data=iris", "epochs=3")])


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143))])
def test_a_wish_to_stop_is_what_python_makes_of_it(
    composed: Compose, number: signal.Signals, stop: BaseException
) -> None:
    """Ctrl-C is a KeyboardInterrupt; SIGTERM an exit with the code that a shell expects."""
    with pytest.raises(type(stop)) as stopped:
        fit([users(composed, "test_fitting.Interrupted", f"+model.signal={number:d}")])
    assert stopped.value.args == stop.args


def test_what_backpropagation_keeps_of_an_example() -> None:
    """Inputs of dense layers and what activations give, in numbers; no weights, and no random number is drawn."""
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 9)
    )
    before = torch.get_rng_state()
    assert 64 + 32 + 32 <= kept(network, torch.zeros(2, 64)) <= 2 * 64 + 4 * 32
    assert torch.equal(torch.get_rng_state(), before)


def test_unlike_sizes_are_apart(composed: Compose) -> None:
    """A population's rows are as long as the longest: networks of over eight times the weights make another."""
    hidden = ("[4]", "[1024,1024]", "[8]", "[512]", "[600]")
    jobs = {k: prepare(composed("data=iris", f"model.hidden={widths}")) for k, widths in enumerate(hidden)}
    assert [group.numbers for group in grouped(jobs)] == [[1], [3, 4], [0, 2]]
