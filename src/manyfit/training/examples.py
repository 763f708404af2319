"""What members are trained on and measured on."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from manyfit.data.splits import Dataset
from manyfit.population.dropout import seed_of
from manyfit.training.prepared import Job


class Examples:
    """The examples of a population, on its device, where they stay.

    Args:
        data: On the device.
        y_train: Training targets (members, n), or (1, n) where they are the same for all.
        eval_rows: Numbers (m,) of the training examples that loss/train is measured on.
    """

    def __init__(self, data: Dataset, y_train: Tensor, eval_rows: Tensor) -> None:
        self.data, self.x_train, self.y_train, self.eval_rows = data, data.x_train, y_train, eval_rows
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, jobs: Sequence[Job], device: torch.device, dtype: torch.dtype) -> Self:
        """Those of jobs that train together."""
        first = jobs[0]
        tensors = {f.name: getattr(first.data, f.name) for f in dataclasses.fields(first.data)}
        tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
        moved = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in tensors.items()}
        data = dataclasses.replace(first.data, **moved)
        y_train = data.y_train[None]
        if any(job.config.data.label_noise for job in jobs):  # each member's own
            y_train = torch.stack([job.y_train() for job in jobs]).to(data.y_train)
        rows = _eval_rows(len(data.x_train), first.config.eval_train_size, first.config.data.split_seed)
        return cls(data, y_train, rows.to(device))

    def __len__(self) -> int:
        """To train on."""
        return len(self.x_train)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Examples (members, batch, ...) and targets (members, batch) of these numbers (members, batch)."""
        x = self.x_train.index_select(0, index.view(-1)).view(*index.shape, *self.x_train.shape[1:])
        if len(self.y_train) > 1:
            return x, self.y_train.gather(1, index)
        return x, self.y_train[0].index_select(0, index.view(-1)).view(index.shape)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Examples, and targets (members, m) or (1, m), that train, val or test is measured on."""
        if name not in self._splits:
            x, y = getattr(self.data, f"x_{name}"), getattr(self.data, f"y_{name}")[None]
            self._splits[name] = (x[self.eval_rows], self.y_train[:, self.eval_rows]) if name == "train" else (x, y)
        return self._splits[name]

    def keep(self, rows: Tensor) -> None:
        """Leave only these members'."""
        self._splits.clear()
        if len(self.y_train) > 1:
            self.y_train = self.y_train[rows]


def _eval_rows(n: int, most: int, seed: int) -> Tensor:
    """Of n examples at most so many, always the same for one split."""
    if n <= most:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed_of("eval_train", seed))
    return torch.randperm(n, generator=generator)[:most].sort().values
