"""A table becomes tensors: three splits of its rows, standardised.

What is learnt from data (means, deviations, medians, categories) is learnt from the training rows alone.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfit.data.columns import MISSING
from manyfit.data.encoding import RARE, Encoding, fitted
from manyfit.data.rows import rows_of, subset
from manyfit.data.scales import TargetScale, fitted_knots
from manyfit.data.scales import scaled as rescaled
from manyfit.data.table import Input, Reals, Table, name_of


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits as tensors on the CPU, ready to train on. Made by `split`."""

    name: str
    task: str
    classes: tuple[str, ...]
    encoding: Encoding
    """How columns became the d inputs."""
    x_train: Tensor
    """(n, d) float32, as are x_val and x_test."""
    x_val: Tensor
    x_test: Tensor
    y_train: Tensor
    """(n,) int64 class codes, or float32 in units of `y_std` around `y_mean`; likewise y_val and y_test."""
    y_val: Tensor
    y_test: Tensor
    x_mean: Tensor
    """(d,) float32: x = (raw - x_mean) / x_std. 0 for flags and categories, and when not standardised."""
    x_std: Tensor
    """(d,) float32. 1 for constant columns, flags and categories, and when not standardised."""
    y_mean: float
    y_std: float
    y_scale: TargetScale | None
    """Of a regression: y is `(scaled - y_mean) / y_std`, see `scales`."""
    y_knots: Tensor | None
    """Likewise."""
    shape: tuple[int, ...]
    """Of an example: its d numbers are a row, (d,), or stand for more."""
    digest: str
    """32 hex digits over the table's content and the options of `split`."""
    note: str = ""
    """The table's."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The d inputs: numbers, flags, categories."""
        return self.encoding.inputs

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(map(name_of, self.inputs))

    @property
    def summary(self) -> str:
        """How many rows and columns there are, and what they became, in words."""
        rows = [len(y) for y in (self.y_train, self.y_val, self.y_test)]
        parts = f"{'/'.join(map(str, rows))} to train, validate, test"
        if len(self.shape) > 1:
            classes = f", {len(self.classes)} classes ({', '.join(self.classes[:12])})" if self.classes else ""
            return f"{sum(rows)} examples of {' x '.join(map(str, self.shape))}{classes}; {parts}"
        count = Counter(self.encoding.columns.values())
        said = [f"{n} column{'s' * (n > 1)} of {kind if kind == 'words' else kind + 's'}" for kind, n in count.items()]
        return f"{sum(rows)} rows, {' and '.join(said)}: {len(self.inputs)} inputs; {parts}"


def split(
    table: Table,
    *,
    split_seed: int,
    val_fraction: float,
    test_fraction: float,
    train_size: int | None,
    standardise: bool | Literal["channels"],
    target_scale: TargetScale | None = None,
    folds: int | None = None,
    fold: int | None = None,
) -> Dataset:
    """Split a table and turn it into tensors.

    Classification splits are stratified. Numeric columns and a regression target are standardised when asked, gaps
    filled, words encoded one-hot, all from the final training rows: a category not seen there is all zeros.

    Args:
        table: n examples.
        split_seed: 0..2**32-1; which rows go where depends on it and on the fractions.
        val_fraction: share of rows for validation, in (0, 1).
        test_fraction: share of rows for testing, in (0, 1).
        train_size: keep this many training rows; None keeps all. A smaller set is contained in every larger one, and
            the validation and test rows stay the same.
        standardise: whether x (and a regression target) get mean 0 and deviation 1 over the training rows; "channels":
            all numbers of a channel (the first of three axes) alike, of fewer axes all numbers.
        target_scale: on which a number is learnt: log, or rank, which is learnt from the final training rows.
        folds: into so many parts of equal size the table is cut; the test rows are one of them. None: `test_fraction`.
        fold: which, 0..folds-1.

    Raises:
        ValueError: an option is out of range or leaves a split empty or without one of the classes.
    """
    rows, val, test = rows_of(table, split_seed, val_fraction, test_fraction, folds, fold)
    train = subset(table, rows, train_size, split_seed)

    encoding = fitted(table, train)
    x = encoding.of(table.numeric, table.categorical)
    numbers = x[:, : len(table.features)] if len(encoding.inputs) > len(table.features) else x
    others = (0, x.shape[1] - numbers.shape[1])  # flags and categories stay 0 and 1
    x_mean, x_std = _moments(numbers[train], standardise, table.shape)
    x_mean, x_std = np.pad(x_mean, others), np.pad(x_std, others, constant_values=1.0)
    scaled = _float32(table, x, x_mean, x_std)

    knots = None
    if table.task == "classification":
        if target_scale:
            raise ValueError(f"data.target_scale must be null with classes, but got {target_scale}.")
        y_mean, y_std, target = 0.0, 1.0, torch.from_numpy(table.target)
    else:
        knots = fitted_knots(target_scale, table.target[train])
        learnt = rescaled(target_scale, knots, table.target)
        moments = _moments(learnt[train, None], bool(standardise), ())
        y_mean, y_std = float(moments[0][0]), float(moments[1][0])
        target = _float32(table, learnt, y_mean, y_std)

    return Dataset(
        name=table.name,
        task=table.task,
        classes=table.classes,
        encoding=encoding,
        x_train=scaled[train],
        x_val=scaled[val],
        x_test=scaled[test],
        y_train=target[train],
        y_val=target[val],
        y_test=target[test],
        x_mean=torch.from_numpy(x_mean.astype(np.float32)),
        x_std=torch.from_numpy(x_std.astype(np.float32)),
        y_mean=y_mean,
        y_std=y_std,
        y_scale=target_scale,
        y_knots=knots,
        shape=table.shape or (len(encoding.inputs),),
        digest=_digest(
            table,
            encoding,
            (split_seed, val_fraction, test_fraction, train_size, standardise, *_further(target_scale, folds, fold)),
        ),
        note=table.note,
    )


def _further(scale: TargetScale | None, folds: int | None, fold: int | None) -> tuple[object, ...]:
    """Options that there were not when digests were first stored: of those that are not used they know nothing."""
    return (*((scale,) if scale else ()), *((folds, fold) if folds else ()))


def unread(name: str, identity: str) -> Dataset:
    """Data that nobody here has looked at: a LightningDataModule's, known by what the config says of them."""
    none, real = torch.zeros(0, 0), torch.zeros(0)
    return Dataset(
        name=name,
        task="",
        classes=(),
        encoding=Encoding((), {}, None, {}),
        x_train=none,
        x_val=none,
        x_test=none,
        y_train=real,
        y_val=real,
        y_test=real,
        x_mean=real,
        x_std=real,
        y_mean=0.0,
        y_std=1.0,
        y_scale=None,
        y_knots=None,
        shape=(),
        digest=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
    )


def _moments(
    x: Reals, standardise: bool | str, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each column of x (n, d); 0 and 1 unless asked for, deviation 1 where x is constant."""
    if not standardise:
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise == "channels":
        channels = shape[0] if len(shape) > 2 else 1
        parts, each = x.reshape(len(x), channels, -1), x.shape[1] // channels
        mean, std = parts.mean(axis=(0, 2), dtype=np.float64), parts.std(axis=(0, 2), dtype=np.float64)
        constant = parts.min(axis=(0, 2)) == parts.max(axis=(0, 2))
        return mean.repeat(each), np.where(constant, 1.0, std).repeat(each)
    constant = x.min(axis=0) == x.max(axis=0)  # exact, where a computed deviation is only nearly 0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        return mean, np.where(constant, 1.0, std)


def _float32(table: Table, values: Reals, mean: Any, std: Any) -> Tensor:
    """(values - mean) / std as a float32 tensor, refused where that is beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values - mean) / std).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise ValueError(
            f"the numbers in table {table.name!r} must fit into float32, but got {np.abs(values).max():g}. "
            "Rescale the columns with values beyond 1e38."
        )
    return torch.from_numpy(scaled)


def _digest(table: Table, encoding: Encoding, options: tuple[object, ...]) -> str:
    """A hash of what the data set holds and how it was split; the table's name is no part of it."""
    h = hashlib.blake2b(digest_size=16)
    header = (table.task, table.classes, table.features, tuple(table.categorical), table.numeric.shape, options)
    h.update(repr(header).encode())
    h.update(np.ascontiguousarray(table.numeric).data)
    if table.shape:
        h.update(repr(table.shape).encode())
    h.update(np.ascontiguousarray(table.target).tobytes())
    for column in table.categorical.values():
        h.update(repr(column.tolist()).encode())
    for places in (table.groups, table.times):
        if places is not None:
            h.update(places.tobytes())
    if any(category in (MISSING, RARE) for _, category in encoding.inputs):
        h.update(repr(encoding.inputs).encode())
    return h.hexdigest()
