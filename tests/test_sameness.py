"""The promise of the design: a run's curve is the same, to the last bit, alone and in any company."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from conftest import CONF, Compose, assert_same_bits, options
from manyfit.config.schema import Config
from manyfit.data.draws import order
from manyfit.models import ACTIVATIONS, INITS
from manyfit.population.dropout import Dropout
from manyfit.population.unit_rate import LINEAR_OPTIMIZERS
from manyfit.training import native, process
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare
from manyfit.training.probes import PROBES

SCHEDULES = options("schedule")
LINEAR = {f"torch.optim.{name}" for name in LINEAR_OPTIMIZERS}  # may share a population
OPTIMIZERS = {name: OmegaConf.load(CONF / "optimizer" / f"{name}.yaml")["_target_"] for name in options("optimizer")}
SHARING = [name for name, target in OPTIMIZERS.items() if target in LINEAR]
DATA = {"many classes": "data=wine", "one output": "data=moons"}


def sixteen(composed: Compose, *common: str) -> list[Config]:
    """Members that differ in all they may: lr (a third at the chaotic 0.03), decay, dropout, seed and schedule."""
    return [
        composed(
            *common,
            f"optimizer.lr={(3e-2, 1e-3, 3e-3)[k % 3]}",
            f"optimizer.weight_decay={(0.0, 1e-3)[k % 2]}",
            f"model.dropout={(0.3, 0.0, 0.5)[k % 3]}",
            f"schedule={SCHEDULES[k % len(SCHEDULES)]}",
            f"seed={k // 2}",
        )
        for k in range(16)
    ]


def check(configs: Sequence[Config], companies: Sequence[Sequence[int]], alone: Sequence[int]) -> None:
    """Members of every company equal their run alone, or where there is none their run among all."""
    everyone = fit(configs)
    for k in alone:
        assert_same_bits(everyone[k], fit([configs[k]])[0])
    for company in companies:
        for k, result in zip(company, fit([configs[k] for k in company]), strict=True):
            assert_same_bits(everyone[k], result)


BATCHES: dict[int | str, int | None] = {1: 24, 7: 100, 32: None, "full": None}  # with so many training examples
EACH_WITH_EACH = [  # in pairs: an optimizer has every batch size and both data, and so has a batch size
    (optimizer, batch, list(DATA.values())[(i + j) % 2])
    for (i, optimizer), (j, batch) in itertools.product(enumerate(SHARING), enumerate(BATCHES))
]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "batch", "data"), EACH_WITH_EACH)
def test_alone_or_in_company(composed: Compose, optimizer: str, batch: int | str, data: str) -> None:
    """Alone, among 2, 7 and 16, in another order: dropout, label noise, decay, a short last batch, compaction."""
    configs = sixteen(
        composed, data, "epochs=10", f"optimizer={optimizer}", f"batch_size={batch}", "model.hidden=[16,5]",
        "data.label_noise=0.1", "trainer.patience=4", f"data.train_size={BATCHES[batch] or 'null'}",
    )  # fmt: skip
    check(configs, companies=[[3, 0], [9, 2, 15, 4, 11, 1, 6]], alone=[0, 1, 14])


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_glance(composed: Compose, optimizer: str, data: str) -> None:
    """The same, small, in every test run."""
    configs = sixteen(
        composed, data, "epochs=4", f"optimizer={optimizer}", "batch_size=7", "model.hidden=[16,5]",
        "data.label_noise=0.1", "trainer.patience=2",
    )  # fmt: skip
    check(configs, companies=[[3, 0]], alone=[0, 1])


def test_every_linear_optimizer_is_an_option() -> None:
    """The slow test goes through conf/; here, that it leaves out none that may share a population but Adamax."""
    assert LINEAR - set(OPTIMIZERS.values()) <= {"torch.optim.Adamax"}


def anything(composed: Compose, data: str, *common: str) -> list[Config]:
    """Members that have nothing but their data in common, a third of them at chaotic rates."""
    hidden = ("[]", "[16,5]", "[64,64]", "[7,3,9]", "[100]")
    return [
        composed(
            data,
            "epochs=6",
            f"optimizer={optimizer}",
            f"batch_size={(7, 32, 64, 'full')[k % 4]}",
            f"model.hidden={hidden[k % 5]}",
            f"model.activation={list(ACTIVATIONS)[k % len(ACTIVATIONS)]}",
            f"model.init={INITS[k % len(INITS)]}",
            f"model.dropout={(0.3, 0.0)[k % 2]}",
            f"schedule={SCHEDULES[k % len(SCHEDULES)]}",
            f"optimizer.weight_decay={(0.0, 1e-2, 1e-3)[k % 3]}",
            f"data.label_noise={(0.0, 0.1)[k % 2]}",
            f"trainer.gradient_clip={('null', 0.5)[k % 2]}",
            f"trainer.patience={('null', 2)[k % 2]}",
            *([f"optimizer.lr={(0.3, 0.03)[k % 2]}"] if k % 3 == 0 else []),
            f"seed={k // 3}",
            f"probes=[{','.join(name for name in PROBES if name != 'dead_units')}]",  # one has no hidden units
            *common,
        )
        for k, optimizer in enumerate([*SHARING, *SHARING])
    ]


@pytest.mark.parametrize("data", ["data=wine", "data=moons", "data=diabetes"])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_members_that_share_nothing_but_data(composed: Compose, data: str, precision: str) -> None:
    """Other networks, batch sizes, optimizers, schedules beside it, on one thread and two: a member's bits stay its."""
    configs = anything(composed, data, f"trainer.precision={precision}")
    threads = torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            alone = range(len(configs)) if (precision, count) == ("32-true", 2) else [0, 11]
            check(configs, companies=[[3, 0], [9, 2, 15, 4, 11, 1, 6]], alone=list(alone))
    finally:
        torch.set_num_threads(threads)


def test_an_epoch_in_parts(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often training pauses for an interrupt, which its company decides, changes no bit."""
    configs = [composed("data=wine", "epochs=3", "batch_size=5", f"schedule={name}") for name in SCHEDULES]
    whole = fit(configs)
    monkeypatch.setattr(native, "SHORT", 1e-5)
    for a, b in zip(whole, fit(configs), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "silu", "prelu", "tanh", "leaky_relu"])
def test_activations(composed: Compose, activation: str) -> None:
    """Odd widths and rows, where the last elements of a tensor fall anywhere."""
    common = ("data=iris", "epochs=3", "batch_size=5", "model.hidden=[7,3]", f"model.activation={activation}")
    configs = [composed(*common, f"seed={k}", "optimizer.lr=0.03", "model.dropout=0.3") for k in range(5)]
    check(configs, companies=[[4, 2]], alone=[0, 3])


def test_one_thread_or_two(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads does not change a bit."""
    configs = [
        composed("data=digits", "epochs=2", "batch_size=256", "optimizer.lr=0.03", "model.dropout=0.3", f"seed={k}")
        for k in range(4)
    ]
    monkeypatch.setattr(process, "SMALL_STEP", 0)  # no step is small: take all threads
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = fit(configs)
        torch.set_num_threads(1)
        one = fit(configs)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two, strict=True):
        assert_same_bits(a, b)


def test_a_large_full_batch(composed: Compose) -> None:
    """Beyond 32768 rows torch splits the sum of a lone run over threads: its bits must not change."""
    configs = [
        composed("data=moons", "data.n=60000", "epochs=2", "batch_size=full", "model.hidden=[4]", f"seed={k}")
        for k in range(2)
    ]  # fmt: skip
    check(configs, companies=[], alone=[0, 1])


def test_clipping(composed: Compose) -> None:
    """Gradients are clipped per member."""
    common = ("data=wine", "epochs=3", "trainer.gradient_clip=0.1", "batch_size=7")
    check([composed(*common, f"seed={k}", "optimizer.lr=0.03") for k in range(3)], companies=[[2, 0]], alone=[0, 1])


def test_members_differ(composed: Compose) -> None:
    """Different seeds give different curves: sameness is not of everything with everything."""
    a, b = fit([composed("data=wine", "epochs=2", f"seed={k}") for k in range(2)])
    assert not np.array_equal(a.metrics["loss/val"], b.metrics["loss/val"])


def test_negative_control(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks keyed by the position in the population are caught."""
    honest = Dropout.__init__

    places = itertools.count()

    def by_position(self: Dropout, seeds: Sequence[int], *rest: object) -> None:
        honest(self, [next(places) for _ in seeds], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Dropout, "__init__", by_position)
    configs = [composed("data=wine", "epochs=2", "model.dropout=0.5", f"seed={k}") for k in range(5, 8)]
    with pytest.raises(AssertionError):
        check(configs, companies=[[2, 0]], alone=[1])


def test_negative_control_order(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples in an order keyed by the position in the population are caught."""
    honest = native.orders
    monkeypatch.setattr(native, "orders", lambda seeds, *rest: honest(range(len(seeds)), *rest))
    configs = [composed("data=wine", "epochs=2", f"seed={k}") for k in range(5, 8)]
    with pytest.raises(AssertionError):
        check(configs, companies=[[2, 0]], alone=[1])


def test_user_models_in_company(composed: Compose) -> None:
    """Models that go by vmap: 1e-5 over 5 epochs at a stable rate."""
    common = ("data=iris", "epochs=5", "model._target_=test_members.Wide", "~model.hidden", "~model.activation",
              "~model.dropout", "~model.init", "~model.sigma")  # fmt: skip
    configs = [composed(*common, f"seed={k}", "optimizer.lr=1e-3") for k in range(3)]
    for a, config in zip(fit(configs), configs, strict=True):
        (b,) = fit([config])
        for name in ("loss/train", "loss/val", "accuracy/val"):
            np.testing.assert_allclose(a.metrics[name], b.metrics[name], rtol=1e-5)


@pytest.mark.parametrize("optimizer", SHARING)
def test_against_torch(composed: Compose, optimizer: str) -> None:
    """Ten epochs of three members are those of plain torch, with the same weights and order: 1e-5 at stable rates."""
    common = ("data=wine", "epochs=10", "batch_size=32", "model.hidden=[16,5]", f"optimizer={optimizer}")
    usual = composed(*common).optimizer.lr
    members = ((0.1, 0.0), (0.3, 1e-2), (1.0, 0.1))  # share of the usual rate, weight decay
    configs = [
        composed(*common, f"optimizer.lr={share * usual}", f"optimizer.weight_decay={decay}", f"seed={k}")
        for k, (share, decay) in enumerate(members)
    ]
    for config, result in zip(configs, fit(configs), strict=True):
        np.testing.assert_allclose(result.metrics["loss/val"], by_torch(config), rtol=1e-5)


def by_torch(config: Config) -> list[float]:
    """The validation losses (epochs + 1,) of a loop as in torch's tutorials."""
    job = prepare(config)
    data, sizes = job.data, [job.data.x_train.shape[1], 16, 5, len(job.data.classes)]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    for ours, theirs in zip(network.parameters(), job.network.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    chosen = config.optimizer
    optimizer = getattr(torch.optim, chosen.target.removeprefix("torch.optim."))(
        network.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay, **chosen.arguments
    )
    losses = []
    for epoch in range(config.epochs + 1):
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(network(data.x_val), data.y_val).item())
        for index in order(config.seed, epoch, len(data.x_train)).split(32):
            loss = nn.functional.cross_entropy(network(data.x_train[index]), data.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses
