"""LightningModules and LightningDataModules of three styles, as people write them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from sklearn.datasets import load_iris
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

Batch = tuple[Tensor, Tensor]


class Automatic(pl.LightningModule):
    """Automatic optimization, torchmetrics, dropout, a schedule by epoch, callbacks, a logger."""

    def __init__(self, width: int = 16, lr: float = 1e-2, p: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.logger.log_metrics({"weights": float(self.net[0].weight.detach().norm())})
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._held_out(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        self._held_out(batch, "test")

    def _held_out(self, batch: Batch, split: str) -> None:
        x, y = batch
        outputs = self(x)
        self.accuracy(outputs, y)
        self.log(f"{split}_loss", F.cross_entropy(outputs, y))
        self.log(f"{split}_acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)]

    def configure_callbacks(self) -> Any:
        return [pl.callbacks.ModelCheckpoint(monitor="val_loss"), pl.callbacks.LearningRateMonitor()]


class Manual(pl.LightningModule):
    """Two optimizers, stepped by itself; names that nobody can guess."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = nn.Sequential(nn.Linear(4, width), nn.Tanh()), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out

    def training_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("nll", loss, on_epoch=True)

    def validation_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        self.log("nll_of_others", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.Adam(self.head.parameters(), lr=1e-2)


class Bare(pl.LightningModule):
    """No optimizer, no test_step; asks for the sizes of the data."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.net = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val/loss", F.cross_entropy(self(x), y))


class Silent(Bare):
    """Logs no loss of validation."""

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("val/size", float(len(batch[0])))


class Stepless(pl.LightningModule):
    """Cannot train."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)


class Narrow(Bare):
    """Wants three columns, where there are four."""

    def __init__(self, out_features: int) -> None:
        super().__init__(3, out_features)


class Stopping(Bare):
    """Is stopped by a callback of its own."""

    def configure_callbacks(self) -> Any:
        return [pl.callbacks.EarlyStopping("val/loss", patience=1, min_delta=10.0)]


class Quiet(Bare):
    """Returns its loss, and logs that of validation alone."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class Blind(pl.LightningModule):
    """Is not validated."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Cycle(Bare):
    """A schedule by step that knows its end."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Falling(Bare):
    """Breaks off in the sixth epoch, the first time."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 5 and not Path("broken").exists():
            Path("broken").touch()
            raise RuntimeError("the power went")


class Doubted(Bare):
    """Logs nothing in Lightning's sanity check."""

    def validation_step(self, batch: Batch, index: int) -> None:
        if not self.trainer.sanity_checking:
            super().validation_step(batch, index)


class Odd(Bare):
    """Names that MLflow would not take, and a test score of no split."""

    def validation_step(self, batch: Batch, index: int) -> None:
        super().validation_step(batch, index)
        self.log("val/recall@5", 1.0)

    def test_step(self, batch: Batch, index: int) -> None:
        x, y = batch
        self.log("score", (self(x).argmax(1) == y).float().mean())


def iris() -> TensorDataset:
    """Standardised and shuffled, always the same."""
    table = load_iris()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(table.data, dtype=torch.float32)[order]
    return TensorDataset((x - x.mean(0)) / x.std(0), torch.tensor(table.target)[order])


class Tensors(pl.LightningDataModule):
    """Tensors, made in setup."""

    def __init__(self, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers = batch_size, workers

    def setup(self, stage: str) -> None:
        x, y = iris().tensors
        if stage == "fit":
            self.train, self.val = TensorDataset(x[:90], y[:90]), TensorDataset(x[90:120], y[90:120])
        else:
            self.test = TensorDataset(x[120:], y[120:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 30)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, 30)


class Split(Tensors):
    """Drawn by chance, every time that it is set up; tested on two loaders."""

    def setup(self, stage: str) -> None:
        x, y = iris().tensors
        order = np.random.permutation(150)
        parts = [TensorDataset(x[rows], y[rows]) for rows in np.split(order, [90, 120])]
        self.train, self.val, self.test = parts

    def test_dataloader(self) -> Any:
        return [DataLoader(self.test, 30), DataLoader(self.val, 30)]


class Stream(pl.LightningDataModule):
    """Iterables that do not say how long they are; nothing to test on."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Rows(0, 90), 16)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Rows(90, 150), 16)


class _Rows(IterableDataset[Batch]):
    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[Batch]:
        x, y = iris().tensors
        yield from zip(x[self.first : self.last], y[self.first : self.last], strict=True)
