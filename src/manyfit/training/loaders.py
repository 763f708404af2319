"""The data of a LightningModule: a LightningDataModule of the user's own, or a data set of ours as one."""

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, TensorDataset

from manyfit.config.build import build
from manyfit.config.errors import ConfigError
from manyfit.data.splits import Dataset
from manyfit.parallel import devices
from manyfit.training.prepared import Job


class Tensors(pl.LightningDataModule):
    """A data set of ours for a LightningModule: batches (x, y), x in the shape of the examples.

    Args:
        data: The three splits.
        batch_size: Examples of a step, of this process.
    """

    def __init__(self, data: Dataset, batch_size: int) -> None:
        super().__init__()
        self.data, self.batch_size = data, batch_size

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        x, y = getattr(self.data, f"x_{split}"), getattr(self.data, f"y_{split}")
        return DataLoader(TensorDataset(x.unflatten(1, self.data.shape), y), self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        """In another order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In the order of the table."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Likewise."""
        return self._loader("test")


def data_module(job: Job) -> pl.LightningDataModule:
    """The user's own, or one of a data set of ours; a batch is split among the devices."""
    config, data = job.config, job.data
    world, asked = devices.world(config.trainer), config.batch_size
    n = len(data.x_train)
    size = n if asked == "full" and not config.guests.data else asked
    if size == "full":
        raise ConfigError("batch_size must be a number with data that split themselves, but got full.")
    assert isinstance(size, int)
    if size % world:
        raise ConfigError(f"batch_size must be a multiple of {world}, the devices that share a batch, but got {size}.")
    if not config.guests.data:
        if size > n:
            raise ConfigError(f"batch_size must be <= {n}, the training examples, but got {size}. Use batch_size=full.")
        return Tensors(replace(data, y_train=job.y_train()), size // world)
    known = config.data.model_dump(include=set(type(config.data).model_fields) - {"target"})
    known |= {"batch_size": size // world, "seed": config.seed}
    return build(config.data, "data", pl.LightningDataModule, **known)
