"""LightningModules and LightningDataModules of the user's own: tracked, judged, resumed and searched as any run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from torch.utils.data import DataLoader, TensorDataset

import lightnings
import manyfit as mf
from conftest import CONF, command
from lightnings import Automatic, Bare, Manual, Stopping, Stream, Tensors
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Curves
from manyfit.results import Run
from manyfit.training.guest import module_of
from manyfit.training.logged import curve, named
from manyfit.training.prepared import prepare

NAMES = ["model.curves.train=nll", "model.curves.val=nll_of_others"]
RUN = """import sys
from pathlib import Path
from manyfit import running
sys.exit(running.command(sys.argv[1:], [Path({!r})]))
"""
STYLES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "automatic": ([], {"model": Automatic, "data": Tensors}),
    "manual": (NAMES, {"model": Manual, "data": Stream}),
    "bare": (["optimizer=sgd", "optimizer.lr=0.1", "schedule=cosine"], {"model": Bare, "data": "iris"}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept, and what is beside the command."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(lightnings.__file__, tmp_path)
    (tmp_path / "run.py").write_text(RUN.format(str(CONF)))
    return tmp_path


def trained(style: str, *overrides: str, **settings: Any) -> Run:
    given, guests = STYLES[style]
    return mf.fit(*given, *overrides, **{"epochs": 6, "tracking": "off", **guests, **settings})


@pytest.mark.parametrize("style", STYLES)
def test_a_run_like_any_other(style: str) -> None:
    """Curves from epoch 0 on, a verdict, test scores with the best weights, which predict."""
    run = trained(style)
    losses = run.curves[["loss/train", "loss/val", "loss/gap"]]
    assert len(losses) == 7
    assert np.isfinite(losses).all(axis=None)
    assert losses["loss/train"][0] == losses["loss/val"][0]  # the untrained network has seen neither
    assert losses["loss/val"].iloc[-1] < losses["loss/val"][0]
    assert run.curves["progress/steps"].iloc[-1] == {"automatic": 18, "manual": 72, "bare": 24}[style]
    assert set(run.test) == {"automatic": {"loss/test", "accuracy/test"}, "manual": set(), "bare": {"loss/test"}}[style]
    assert run.predict(torch.zeros(2, 4)).shape == (2, 3)
    assert run.plot()[1:4] == b"PNG"
    assert run.result.engine == "lightning"


@pytest.mark.filterwarnings("ignore:::pytorch_lightning", "ignore:.*LeafSpec")  # about itself
def test_what_a_trainer_of_ones_own_would_log(folder: Path) -> None:
    """The same losses as Lightning's own CSVLogger writes of the same weights and order of examples."""

    class Kept(pl.loggers.logger.DummyLogger):
        values: list[float] = []  # noqa: RUF012

        def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:  # type: ignore[override]  # noqa: ARG002
            self.values += [metrics["val_loss"]] if "val_loss" in metrics else []

    job = prepare(trained("automatic", "model.p=0.0", epochs=1).config)
    ours = trained("automatic", "model.p=0.0", "batch_size=90").curves  # one batch: no order
    module, data = job.network, Tensors(90)
    logger = Kept()
    trainer = pl.Trainer(
        max_epochs=6,
        logger=logger,
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    np.testing.assert_allclose(ours["loss/val"][1:], logger.values, rtol=1e-6)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps() -> None:
    """Logged of every step alone; a callback's and a logger's values are curves as well."""
    curves = trained("automatic").curves
    assert "lr-AdamW" in curves
    assert curves["lr"][1:].tolist() == pytest.approx([1e-2] * 3 + [5e-3] * 3, rel=1e-6)
    assert np.isfinite(curves["weights"][1:]).all()
    steps = trained("automatic", "model.p=0.0", "model.lr=1e-9").curves
    assert steps["loss/train"][1:].std() < 1e-6  # the last step of each epoch alone would wander


@pytest.mark.parametrize("style", ["automatic", "manual"])
def test_resumed_to_the_same_bits(style: str, folder: Path) -> None:
    """Dropout, the order of examples, schedules, callbacks: as if it had not stopped."""
    whole = trained(style, epochs=9, tracking="sqlite")
    half = trained(style, epochs=4, tracking="sqlite")
    done = command(folder, f"resume={half.id}", "epochs=9", run=folder / "run.py")
    assert done.returncode == 0, done.stderr
    before, after = mf.histories([whole.id]), mf.histories([half.id])
    for name in (*whole.curves.columns,):
        if name != "time/seconds":
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    one, other = (client.get_run(run.id).data.metrics for run in (whole, half))
    assert {k: v for k, v in one.items() if k.endswith("/test")} == {k: v for k, v in other.items() if "/test" in k}


def test_what_is_stored() -> None:
    """Only what the run was made of: no rate of ours where the module has its own; model, picture, config."""
    run = trained("automatic", tracking="sqlite")
    stored = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(str(run.id))
    params = stored.data.params
    assert params["model._target_"] == "lightnings.Automatic"
    assert (params["model.width"], params["model.lr"], params["batch_size"]) == ("16", "0.01", "32")
    assert not [key for key in params if key.startswith(("optimizer", "schedule", "loss", "data.split_seed"))]
    assert stored.data.tags["model"] == "Automatic"
    assert stored.data.tags["data"] == "Tensors"
    assert "optimizer" not in stored.data.tags
    assert "not_stored" not in stored.data.tags
    assert stored.outputs.model_outputs


def test_sweeps() -> None:
    """A grid over its own arguments, one by one; a search over the rate of ours where it has none; confirmed."""
    runs = mf.grid(model=Automatic, data=Tensors, epochs=2, **{"model.width": [4, 8]}, tracking="off")
    assert [run.config.model.arguments["width"] for run in runs] == [4, 8]
    found = mf.search(
        "optimizer.lr=choice(1e-4,1e-1)",
        "sweep.confirm_seeds=2",
        "sweep.seeds=1",
        "pruner=median",
        model=Bare,
        data="iris",
        n_trials=2,
        epochs=3,
        tracking="off",
    )
    assert found.best().config.optimizer.lr == 0.1
    assert found.report is not None
    assert found.report.fresh


def test_stopped_by_patience_and_by_a_callback() -> None:
    """Ours, and the module's own; both are FINISHED early."""
    early = trained("bare", "trainer.patience=2", "optimizer.lr=1e-12", epochs=40)
    assert early.result.reason == "stopped early"
    assert len(early.curves) < 10
    own = trained("bare", model=Stopping, epochs=40)
    assert own.result.reason == "stopped early"
    assert len(own.curves) == 3


class Ending(Bare):
    """Raises StopIteration in the third epoch, where it is told to."""

    def __init__(self, in_features: int, out_features: int, where: str) -> None:
        super().__init__(in_features, out_features)
        self.where = where

    def _end(self, where: str) -> None:
        if where == self.where and self.trainer.current_epoch == 2 and not self.trainer.sanity_checking:
            next(iter([]))

    def training_step(self, batch: Any, index: int) -> Any:
        """A step."""
        self._end("training")
        return super().training_step(batch, index)

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Likewise."""
        self._end("validation")
        super().validation_step(batch, index, dataloader_idx)

    def on_train_epoch_start(self) -> None:
        """Outside of steps."""
        self._end("hook")


class Empty(TensorDataset):
    """A data set whose examples end before their number says so."""

    def __getitem__(self, index: int) -> Any:
        """An example."""
        return next(iter([])) if index == 60 else super().__getitem__(index)


class Ends(Tensors):
    """Their loader."""

    def train_dataloader(self) -> Any:
        """In another order every epoch."""
        return DataLoader(Empty(*self.train.tensors), self.batch_size)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("training", r"the model, or what it uses, raised StopIteration\(\) \(test_guest.py:\d+, next\(iter"),
        ("validation", r"the model, or what it uses, raised StopIteration\(\) \(test_guest.py"),
        ("hook", "training must go on to its end, but it ended after epoch 2"),
        ("data", r"epoch 1 must have \d batches, as its data say, but they ended after \d"),
    ],
)
def test_an_end_of_its_own_is_an_error(model: str, words: str) -> None:
    """Lightning takes StopIteration for the end of the examples, and the run for finished."""
    guests = {"model": Automatic, "data": Ends} if model == "data" else {"model": Ending, "data": "iris"}
    overrides = [] if model == "data" else [f"+model.where={model}"]
    with pytest.raises(TrainingError, match=words):
        mf.fit(*overrides, epochs=6, tracking="off", **guests)


def test_two_ranks() -> None:
    """DDP, by the strategy of the config: what is logged is the mean of the ranks."""
    lone = trained("bare", "batch_size=full").curves  # one batch: the order of examples is none
    run = trained("bare", "trainer=ddp_cpu", "trainer.devices=2", "batch_size=106")
    np.testing.assert_allclose(lone["loss/train"], run.curves["loss/train"], rtol=1e-5)
    data = prepare(run.config).data
    with torch.no_grad():
        outputs = torch.from_numpy(run.predict(data.x_test))
    loss = float(torch.nn.functional.cross_entropy(outputs, data.y_test))
    assert run.test["loss/test"] == pytest.approx(loss, rel=0.1)  # of 22 rows, which two ranks share


def test_the_best_weights_are_those_of_the_best_epoch() -> None:
    """Also where that is the last, whose smoothed loss is known at the end alone."""
    run = trained("bare", "optimizer.lr=0.01", "schedule=constant", epochs=4)
    assert run.result.summary.best_epoch == 4
    data = prepare(run.config).data
    with torch.no_grad():
        outputs = torch.from_numpy(run.predict(data.x_val))
    loss = float(torch.nn.functional.cross_entropy(outputs, data.y_val))
    assert loss == pytest.approx(run.curves["loss/val"][4], rel=1e-5)


def test_resumed_after_a_break(folder: Path) -> None:
    """What was kept before it ends in the midst goes on to the same bits."""
    given = ["model._target_=lightnings.Falling", "data=iris", "optimizer.lr=0.01"]
    (folder / "broken").touch()
    whole = mf.fit(*given, "trusted=[lightnings]", epochs=9)
    (folder / "broken").unlink()
    with pytest.raises(RuntimeError, match="the power went"):
        mf.fit(*given, "trusted=[lightnings]", epochs=9)
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (broken,) = client.search_runs(["1"], "attributes.status = 'FAILED'")
    done = command(folder, f"resume={broken.info.run_id}", run=folder / "run.py")
    assert done.returncode == 0, done.stderr
    after = mf.histories([broken.info.run_id])
    for name in ("loss/train", "loss/val", "progress/steps", "progress/examples"):
        np.testing.assert_array_equal(whole.curves[name], after[name], err_msg=name)


def test_a_scheduler_that_ends_is_not_gone_on_with(folder: Path) -> None:
    """Beyond the steps that it was made for: the run stays as it is."""
    run = mf.fit("data=iris", model=lightnings.Cycle, epochs=3)
    done = command(folder, f"resume={run.id}", "epochs=6", run=folder / "run.py")
    assert done.returncode != 0
    assert "epochs must be <= 3, for which the run's scheduler was made (12 steps), but got 6" in done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    assert client.get_run(str(run.id)).info.status == "FINISHED"


def test_data_brought_are_compared_with_a_warning() -> None:
    """Nobody knows what their arguments do to the validation examples."""
    runs = mf.grid(model=Automatic, data=Tensors, epochs=2, **{"data.workers": [0, 1]}, tracking="off")
    assert runs.report is not None
    assert runs.report.best is not None
    assert any("data.workers may change what is validated on" in warning for warning in runs.report.warnings)


def test_what_data_draw_in_setup_is_the_seeds() -> None:
    """Split by chance, and tested on the same split; another seed has another. Scores of two loaders."""
    split = {"model": Bare, "data": lightnings.Split}
    given = ["model.in_features=4", "model.out_features=3"]
    runs = [trained("bare", *given, f"seed={seed}", epochs=3, **split) for seed in (0, 0, 1)]
    assert runs[0].test == runs[1].test
    assert runs[0].curves["loss/val"][0] != runs[2].curves["loss/val"][0]
    loaders = [f"loss_dataloader_idx_{i}/test" for i in (0, 1)]
    assert set(runs[0].test) == {*loaders}
    best = runs[0].result.summary.best_loss_val
    assert runs[0].test[loaders[1]] == pytest.approx(best, rel=1e-5)  # the same rows are validated on


def test_double_precision() -> None:
    """All of it: weights, best weights, the stored model."""
    run = trained("bare", "trainer.precision=64-true", tracking="sqlite")
    stored = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(str(run.id))
    assert "not_stored" not in stored.data.tags


def test_noise_is_in_the_labels() -> None:
    """Of a data set of ours, as for any network."""
    clean, noisy = (trained("bare", f"data.label_noise={share}", epochs=4) for share in (0, 0.6))
    assert noisy.curves["loss/train"].iloc[-1] > clean.curves["loss/train"].iloc[-1]
    assert noisy.config.title().endswith("noise=0.6 s=0")


def test_a_schedule_without_end_counts_epochs() -> None:
    """Nobody knows how many batches an iterable has."""
    sizes = ["model.in_features=4", "model.out_features=3"]
    run = mf.fit("schedule=linear", *sizes, model=Bare, data=Stream, epochs=4, lr=0.1, tracking="off")
    np.testing.assert_allclose(run.curves["lr"][1:], [0.1, 0.075, 0.05, 0.025], rtol=1e-6)


def test_no_decay_is_none() -> None:
    """AdamW's own default is another."""
    config = trained("bare", "optimizer=adamw", "optimizer.weight_decay=0.0", epochs=1).config
    (optimizer,) = [module_of(prepare(config)).configure_optimizers()]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["weight_decay"] == 0


def test_names_that_are_odd() -> None:
    """MLflow takes them, and a test score is one."""
    run = trained("bare", model=lightnings.Odd, tracking="sqlite")
    assert set(run.test) == {"score/test"}
    assert "recall_5/val" in run.curves
    stored = mf.histories([str(run.id)])
    assert stored["recall_5/val"].dropna().eq(1.0).all()


def test_what_training_step_returns_is_a_loss() -> None:
    """Where none is logged: as Lightning's own progress bar takes it."""
    run = trained("bare", model=lightnings.Quiet, epochs=3)
    logged = trained("bare", epochs=3)
    np.testing.assert_allclose(run.curves["loss/train"], logged.curves["loss/train"], rtol=1e-6)


def test_a_batch_size_has_one_place(folder: Path) -> None:
    """What an option of conf/data sets is the data's; then the config's own is refused and not written down."""
    (folder / "conf" / "data").mkdir(parents=True)
    (folder / "conf" / "data" / "mine.yaml").write_text("_target_: lightnings.Tensors\nbatch_size: 45\n")
    given = ["model._target_=lightnings.Automatic", "data=mine", "epochs=2"]
    done = command(folder, *given, "--config-dir=conf", run=folder / "run.py")
    assert done.returncode == 0, done.stderr
    assert "mine: Automatic batch_size=45 s=0" in done.stdout
    assert ", 4 steps" in done.stdout
    done = command(folder, *given, "batch_size=9", "--config-dir=conf", run=folder / "run.py")
    assert "batch_size must be left out: Tensors decides batch_size itself" in done.stderr


def test_accumulated() -> None:
    """Steps of several batches; for others a larger batch is the same."""
    run = trained("bare", "trainer.accumulate=2")
    assert run.curves["progress/steps"].iloc[-1] == 12
    with pytest.raises(ConfigError, match="trainer.accumulate must be 1, since it is for a LightningModule alone"):
        mf.fit("data=iris", "trainer.accumulate=2")


REFUSED = {
    "nothing before the first step": (
        {"model._target_": "lightnings.Doubted", "data": "iris"},
        "model must log its validation loss before the first step as well, but Doubted logs nothing",
    ),
    "no loss of validation": (
        {"model._target_": "lightnings.Silent", "data": "iris"},
        "model must log val_loss, or the like, but only train/loss, val/size was logged ",
    ),
    "names nobody knows": (
        {"model._target_": "lightnings.Manual", "data._target_": "lightnings.Stream"},
        "model must log train_loss and val_loss, or the like, but only nll, nll_of_others was logged",
    ),
    "no validation_step": (
        {"model._target_": "lightnings.Blind", "data": "iris"},
        "model must have a validation_step, but Blind has none",
    ),
    "nobody of that name": (
        {"model._target_": "lightnings.Nope", "data._target_": "lightnings.Tensors"},
        "model._target_ must name something that can be imported, but got 'lightnings.Nope'",
    ),
    "no training_step": (
        {"model._target_": "lightnings.Stepless", "data": "iris"},
        "model must have a training_step, but Stepless has none",
    ),
    "another shape": (
        {"model._target_": "lightnings.Narrow", "data": "iris"},
        r"layer net, Linear\(in_features=3, out_features=3, bias=True\), which was given \(22, 4\), says: RuntimeError",
    ),
    "a rate that it has itself": (
        {"model._target_": "lightnings.Automatic", "data": "iris", "optimizer.lr": "0.1"},
        "optimizer.lr must be left out: Automatic decides optimizer itself",
    ),
    "a split that they make": (
        {"model._target_": "lightnings.Automatic", "data._target_": "lightnings.Tensors", "data.train_size": "9"},
        "data.train_size must be left out: Tensors decides data.train_size itself",
    ),
    "a network for data that split themselves": (
        {"model": "mlp", "data._target_": "lightnings.Tensors"},
        "model must be a LightningModule with data that split themselves, as Tensors does",
    ),
    "clipping": (
        {"model._target_": "lightnings.Manual", "data": "iris", "trainer.gradient_clip": "1.0"},
        "trainer.gradient_clip must be null with a module that optimizes by itself, but got 1.0",
    ),
    "names for what is not Lightning's": (
        {"model": "mlp", "model.curves.val": "x"},
        "model.curves.val must be null, since it is for a LightningModule alone, but got 'x'",
    ),
    "probes": (
        {"model._target_": "lightnings.Automatic", "data": "iris", "probes": "[gradient_norm]"},
        "probes must be left out: Automatic is a LightningModule, trained by a Trainer of its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_there_is_a_run(case: str) -> None:
    """In a sentence that says what to do; the store is not touched."""
    given, words = REFUSED[case]
    overrides = [f"{key}={value}" for key, value in given.items()]
    with pytest.raises(ConfigError, match=words):
        mf.fit(*overrides, "trusted=[lightnings]", epochs=2)
    assert not Path("mlruns/mlflow.db").exists()


def test_a_search_of_what_the_module_decides_is_refused() -> None:
    """Before a study exists."""
    with pytest.raises(ConfigError, match=r"optimizer.lr must be left out"):
        mf.search("sweep=lr", model=Automatic, data=Tensors)
    assert not Path("mlruns/optuna.db").exists()


@pytest.mark.parametrize(
    ("logged", "name"),
    [
        ("train_loss", "loss/train"),
        ("loss_val", "loss/val"),
        ("valid/acc", "accuracy/val"),
        ("validation.F1-macro", "F1_macro/val"),
        ("test-MulticlassAccuracy", "MulticlassAccuracy/test"),
        ("lr-Adam", "lr-Adam"),
        ("vals", "vals"),
    ],
)
def test_names(logged: str, name: str) -> None:
    """The split before or behind, however it is put."""
    assert curve(logged) == name


def test_a_value_of_a_step_and_an_epoch_is_one_curve() -> None:
    """Lightning logs both, and the epoch's under the name itself; a bare `loss` is that of training."""
    assert named({"train_acc": 1.0, "train_acc_step": 2.0, "train_acc_epoch": 1.0}, Curves()) == {"accuracy/train": 1.0}
    assert named({"loss": 1.0, "q": 2.0}, Curves(val="q")) == {"loss/train": 1.0, "loss/val": 2.0}
