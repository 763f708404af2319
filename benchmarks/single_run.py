"""A single run: manyfit against the plain PyTorch loop, stock Lightning with MLFlowLogger, and scikit-learn.

    python benchmarks/single_run.py [--repeats 7]

Arms alternate in one process on the same data, model, order length and evaluation work (train and validation loss and
accuracy after every epoch); the first epoch of each arm is its warm-up and not counted. Ratios are of one repeat's
arms, and their median is reported.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir

from manyfit.config import schema
from manyfit.config.schema import Config

warnings.filterwarnings("ignore")
import mlflow  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning.loggers import MLFlowLogger  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from manyfit.data.splits import Dataset  # noqa: E402
from manyfit.tracking.tracker import Tracker  # noqa: E402
from manyfit.training.fitting import fit  # noqa: E402
from manyfit.training.prepared import prepare  # noqa: E402
from manyfit.training.recording import Recorder  # noqa: E402

CONF = str(Path(__file__).parent.parent / "conf")
WORKLOADS = {  # overrides, epochs: (counted, of stock Lightning)
    "2-16-1, batch 32": (["data=moons", "data.n=1500", "model.hidden=[16]"], 20, 4),
    "digits 64-64-10, batch 32, dropout 0.5": (["data=digits", "model.hidden=[64]", "model.dropout=0.5"], 15, 4),
    "MNIST 784-256-128-10, batch 128, dropout 0.5": (
        ["data=mnist", "model.hidden=[256,128]", "model.dropout=0.5", "batch_size=128"],
        6,
        3,
    ),
}


def config_of(*overrides: str) -> Config:
    """The command's config for these overrides."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    return schema.parse(cfg, cfg.hydra.runtime.choices)


def network(data: Dataset, hidden: list[int], dropout: float) -> nn.Sequential:
    """The model a good user writes."""
    layers: list[nn.Module] = []
    width = data.x_train.shape[1]
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        width = units
    outputs = 1 if len(data.classes) == 2 else len(data.classes)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def loss_of(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Binary or softmax cross-entropy."""
    return F.binary_cross_entropy_with_logits(z[:, 0], y.float()) if z.shape[1] == 1 else F.cross_entropy(z, y)


def hits(z: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy."""
    guess = z[:, 0] > 0 if z.shape[1] == 1 else z.argmax(1)
    return (guess == y).float().mean().item()


def plain(config: Config, data: Dataset, epochs: int) -> float:
    """Microseconds a step of the hand-written loop."""
    model = network(data, config.model.arguments["hidden"], config.model.arguments["dropout"])
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)
    batch, history, steps, start = config.batch_size, [], 0, 0.0
    for epoch in range(epochs + 1):
        if epoch == 1:
            start, steps = time.perf_counter(), 0
        model.train()
        order = torch.randperm(len(data.x_train))
        for i in range(0, len(order), batch):
            index = order[i : i + batch]
            loss = loss_of(model(data.x_train[index]), data.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        model.eval()
        with torch.no_grad():
            for x, y in ((data.x_train, data.y_train), (data.x_val, data.y_val)):
                z = model(x)
                history.append((loss_of(z, y).item(), hits(z, y)))
    return (time.perf_counter() - start) / steps * 1e6


class Stock(pl.LightningModule):
    """Lightning as its documentation shows it."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr, self.marks = model, lr, []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        loss = loss_of(self.model(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int, dataloader_idx: int = 0) -> None:
        z = self.model(batch[0])
        self.log(f"loss_{dataloader_idx}", loss_of(z, batch[1]), add_dataloader_idx=False)
        self.log(f"accuracy_{dataloader_idx}", hits(z, batch[1]), add_dataloader_idx=False)

    def on_train_epoch_end(self) -> None:
        self.marks.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def stock(config: Config, data: Dataset, epochs: int) -> float:
    """Microseconds a step of stock Lightning with DataLoader, self.log and MLFlowLogger on SQLite."""
    module = Stock(
        network(data, config.model.arguments["hidden"], config.model.arguments["dropout"]), config.optimizer.lr
    )
    with tempfile.TemporaryDirectory() as folder:
        logger = MLFlowLogger("stock", tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=folder)
        trainer = pl.Trainer(
            max_epochs=epochs + 1,
            accelerator="cpu",
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            module,
            DataLoader(TensorDataset(data.x_train, data.y_train), config.batch_size, shuffle=True),
            [
                DataLoader(TensorDataset(data.x_train, data.y_train), 512),
                DataLoader(TensorDataset(data.x_val, data.y_val), 512),
            ],
        )
    return (module.marks[-1] - module.marks[0]) / epochs / -(-len(data.x_train) // config.batch_size) * 1e6


def sklearn(config: Config, data: Dataset, epochs: int) -> float:
    """Microseconds a step of MLPClassifier (it has no dropout)."""
    model = MLPClassifier(
        config.model.arguments["hidden"], batch_size=config.batch_size, learning_rate_init=config.optimizer.lr
    )
    x, y = data.x_train.numpy(), data.y_train.numpy()
    steps, start, history = -(-len(x) // config.batch_size), 0.0, []
    for epoch in range(epochs + 1):
        if epoch == 1:
            start = time.perf_counter()
        model.partial_fit(x, y, classes=range(len(data.classes)))
        for a, b in ((x, y), (data.x_val.numpy(), data.y_val.numpy())):
            p = model.predict_proba(a)
            history.append((-(p[range(len(b)), b] + 1e-12), (p.argmax(1) == b).mean()))
    return (time.perf_counter() - start) / epochs / steps * 1e6


def manyfit(config: Config, _: Dataset, epochs: int) -> float:
    """Microseconds a step of manyfit."""
    (result,) = fit([config.model_copy(update={"epochs": epochs + 1})])
    clock, steps = result.metrics["time/seconds"], result.metrics["progress/steps"]
    return float((clock[-1] - clock[1]) / (steps[-1] - steps[1]) * 1e6)


def steps_table(repeats: int) -> None:
    """Time per step of the four arms."""
    arms: dict[str, Callable[[Config, Dataset, int], float]] = {
        "plain PyTorch": plain,
        "stock Lightning": stock,
        "scikit-learn": sklearn,
        "manyfit": manyfit,
    }
    print("| workload | " + " | ".join(f"{arm}, us/step" for arm in arms) + " | manyfit / plain | stock / manyfit |")
    print("|---|" + "---|" * (len(arms) + 2))
    for name, (overrides, epochs, few) in WORKLOADS.items():
        config = config_of(*overrides)
        data = prepare(config).data
        rows = [
            {arm: run(config, data, few if arm == "stock Lightning" else epochs) for arm, run in arms.items()}
            for _ in range(repeats)
        ]
        cells = [f"{statistics.median(row[arm] for row in rows):.0f}" for arm in arms]
        ratio = statistics.median(row["manyfit"] / row["plain PyTorch"] for row in rows)
        speed = statistics.median(row["stock Lightning"] / row["manyfit"] for row in rows)
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {speed:.1f} |", flush=True)


def tracking_table(repeats: int) -> None:
    """Training time of 100 epochs of digits with tracking on against off."""
    config = config_of("epochs=100")
    ratios = []
    with tempfile.TemporaryDirectory() as folder, Tracker(None, Path(folder)) as tracker:
        for _ in range(repeats):
            (off,) = fit([config])
            start = time.perf_counter()
            (on,) = fit([config], Recorder(tracker, [config]), artifacts=False)
            ratios.append((on.seconds / off.seconds, time.perf_counter() - start))
    print(f"\ntracking on / off, 100 epochs of digits: {statistics.median(r for r, _ in ratios):.3f}")


STARTUP = "import torch, pytorch_lightning, mlflow"
FIRST_STEP = """
import sys, time
from manyfit.training.loop import Training
step = Training.training_step
def first(self, *args):
    step(self, *args)
    import os
    os._exit(0)
Training.training_step = first
sys.argv = ["run.py"]
import runpy
runpy.run_path({run!r}, run_name="__main__")
"""


def startup_table(repeats: int) -> None:
    """Whole processes: three imports, the command up to its first block of steps, and a bad override."""
    run = str(Path(__file__).parent.parent / "run.py")
    first = FIRST_STEP.format(run=run).replace("from manyfit.training.loop", "import os\nfrom manyfit.training.loop")
    commands = {"imports": ["-c", STARTUP], "first": ["-c", first], "bad": [run, "optimizer.lr=abc"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, check=False)
                seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(seconds["first"][1:], seconds["imports"][1:], strict=True))
    print(f"start-up to the first steps / the three imports: {ratio:.2f}")
    print(f"a bad override answers in {statistics.median(seconds['bad'][1:]):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for noisy in ("pytorch_lightning", "lightning_fabric", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri("sqlite:///:memory:")
    steps_table(repeats)
    tracking_table(repeats)
    startup_table(repeats)
