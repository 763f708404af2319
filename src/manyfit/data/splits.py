"""A table becomes tensors: train/val/test splits, standardisation.

What is learnt from data (means, deviations, medians, categories) is learnt from the training rows alone.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfit.data.columns import MISSING
from manyfit.data.draws import TRAIN_SIZE
from manyfit.data.encoding import RARE, Encoding, fitted
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
    _check(table, split_seed, val_fraction, 1 / folds if folds else test_fraction)
    if folds:
        rows, val, test = _fold(table, split_seed, val_fraction, folds, fold or 0)
    else:
        rows, val, test = _split(table, split_seed, val_fraction, test_fraction)
    train = _subset(table, rows, train_size, split_seed)

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


def sizes(n: int, val_fraction: float, test_fraction: float) -> tuple[int, int, int]:
    """How many of n rows go to train, val and test."""
    n_val, n_test = round(val_fraction * n), round(test_fraction * n)
    return n - n_val - n_test, n_val, n_test


def _check(table: Table, split_seed: int, val_fraction: float, test_fraction: float) -> None:
    """Refuse options that no split could satisfy."""
    if not 0 <= split_seed < 2**32:
        raise ValueError(f"data.split_seed must be in 0..2**32-1, but got {split_seed}. Choose a small whole number.")
    for key, fraction in (("val", val_fraction), ("test", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(f"data.{key}_fraction must be > 0 and < 1, but got {fraction}. A usual value is 0.15.")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction + data.test_fraction must be < 1, but got {val_fraction} + {test_fraction}. "
            "Lower them: what is left is the training split."
        )
    for name, count in zip(table.classes, np.bincount(table.target) if table.classes else (), strict=True):
        if count < 3:
            raise ValueError(
                f"every class must have >= 3 rows, one for each of train, val and test, but got {count} of class "
                f"{name!r} in {table.name!r}. Merge or drop rare classes, or, if numbers are meant, write "
                "them as such and set data.task=regression."
            )


def _split(table: Table, seed: int, val_fraction: float, test_fraction: float) -> tuple[NDArray[np.int64], ...]:
    """Row numbers of train, val and test: disjoint, together all rows, each with every class."""
    from sklearn.model_selection import train_test_split

    n = len(table.target)
    n_train, n_val, n_test = sizes(n, val_fraction, test_fraction)
    leave = {
        "train": (n_train, "data.val_fraction + data.test_fraction", f"{val_fraction} + {test_fraction}"),
        "val": (n_val, "data.val_fraction", str(val_fraction)),
        "test": (n_test, "data.test_fraction", str(test_fraction)),
    }
    for split, (size, key, got) in leave.items():
        if size < max(1, len(table.classes)):
            at_least = f"every class in the {split} split" if table.classes else f"a row in the {split} split"
            raise ValueError(
                f"{key} must leave {at_least}, but got {got}: {size} of {n} rows for {len(table.classes)} classes. "
                "Change the fractions, or use more rows."
            )

    if table.times is not None:
        return _required(table, _in_time(table, n_train, n_val), leave)
    if table.groups is not None:
        return _required(table, _by_groups(table, seed, val_fraction, test_fraction), leave)
    strata = table.target if table.classes else None
    rest, test = train_test_split(np.arange(n), test_size=n_test, random_state=seed, stratify=strata)
    _require_classes(table, test, "test", *leave["test"][1:])
    _require_classes(table, rest, "train and val", *leave["test"][1:], least=2)
    strata = table.target[rest] if table.classes else None
    train, val = train_test_split(rest, test_size=n_val, random_state=seed, stratify=strata)
    _require_classes(table, val, "val", *leave["val"][1:])
    _require_classes(table, train, "train", *leave["train"][1:])
    return train, val, test


def _fold(table: Table, seed: int, val_fraction: float, folds: int, fold: int) -> "Parts":
    """Row numbers of train, val and test, the fold-th of parts that have every row once, of as equal sizes as can be.

    Train is as large in every fold, unless groups are of unlike sizes.
    """
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    if table.times is not None:
        raise ValueError("data.folds must be null with data.time: what comes later would be trained on.")
    rest, test = _folds_of(table, seed, folds)[fold]
    n = len(table.target)
    n_val = round(val_fraction * n)
    leave = {split: (0, "data.folds", str(folds)) for split in ("train", "val", "test")}
    if table.groups is not None:
        share = val_fraction * n / len(rest)
        train, val = next(
            GroupShuffleSplit(1, test_size=share, random_state=seed).split(rest, None, table.groups[rest])
        )
        return _required(table, (rest[train], rest[val], test), leave)
    n_train = n - -(-n // folds) - n_val
    if n_train < max(1, len(table.classes)):
        raise ValueError(f"data.folds must leave rows to train on, but got {folds}, which leaves {n_train} of {n}.")
    strata = table.target[rest] if table.classes else None
    train, val = train_test_split(rest, train_size=n_train, random_state=seed, stratify=strata)
    return _required(table, (train, val, test), leave)


def _folds_of(table: Table, seed: int, folds: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows beside each fold, and its own."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    n, groups = len(table.target), table.groups
    if groups is not None and (count := int(groups.max()) + 1) <= folds:
        raise ValueError(f"data.folds must be < {count}, the groups that data.groups makes, but got {folds}.")
    least = min(np.bincount(table.target)) if table.classes else n
    if least < folds:
        raise ValueError(
            f"data.folds must be <= {least}, the rows of the {'rarest class' if table.classes else 'table'}, but got "
            f"{folds}: each fold is tested on all classes."
        )
    kinds = {False: (KFold, GroupKFold), True: (StratifiedKFold, StratifiedGroupKFold)}
    kind = kinds[bool(table.classes)][groups is not None]
    cut = kind(folds, shuffle=True, random_state=seed)
    return list(cut.split(np.arange(n), table.target, groups))


Parts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _required(table: Table, parts: Parts, leave: Mapping[str, tuple[int, str, str]]) -> Parts:
    """Train, val and test, each with rows of every class."""
    for rows, (split, (_, key, got)) in zip(parts, leave.items(), strict=True):
        if not len(rows):
            raise ValueError(
                f"{key} must leave a row in the {split} split, but got {got}. Change it, or use more rows."
            )
        _require_classes(table, rows, split, key, got)
    return parts


def _in_time(table: Table, n_train: int, n_val: int) -> Parts:
    """Rows in the order of their times; those of one time are not separated."""
    assert table.times is not None
    order = np.argsort(table.times, kind="stable")
    times = table.times[order]
    first, second = (int(np.searchsorted(times, times[at])) for at in (n_train, n_train + n_val))
    return order[:first], order[first:second], order[second:]


def _by_groups(table: Table, seed: int, val_fraction: float, test_fraction: float) -> Parts:
    """Shares of the groups, drawn at random, with all of their rows."""
    from sklearn.model_selection import GroupShuffleSplit

    assert table.groups is not None
    count = int(table.groups.max()) + 1
    if count < 3:
        raise ValueError(f"data.groups must have >= 3 groups, one for each of train, val and test, but got {count}.")
    every = np.arange(len(table.target))
    rest, test = next(GroupShuffleSplit(1, test_size=test_fraction, random_state=seed).split(every, None, table.groups))
    share = val_fraction / (1 - test_fraction)
    train, val = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(rest, None, table.groups[rest]))
    return rest[train], rest[val], test


def _require_classes(table: Table, rows: NDArray[np.int64], split: str, key: str, got: str, least: int = 1) -> None:
    """Refuse a split in which a class has fewer than `least` rows."""
    counts = np.bincount(table.target[rows], minlength=len(table.classes)) if table.classes else ()
    for name, count in zip(table.classes, counts, strict=True):
        if count < least:
            raise ValueError(
                f"{key} must leave every class in the {split} split, but got {got}, which leaves {count} rows of class "
                f"{name!r}. Change it, or merge rare classes."
            )


def _subset(table: Table, rows: NDArray[np.int64], size: int | None, seed: int) -> NDArray[np.int64]:
    """The first `size` of the training rows, in an order whose every prefix holds the classes in proportion.

    Rows are shuffled and sorted by their quantile within their class. scikit-learn's stratified split would not do:
    its subsets are not nested, and it refuses to leave out fewer rows than there are classes.
    """
    if size is not None and not 1 <= size <= len(rows):
        raise ValueError(
            f"data.train_size must be in 1..{len(rows)}, the rows of the training split, but got {size}. "
            "Leave it at null for all of them."
        )
    rows = np.random.default_rng((TRAIN_SIZE, seed)).permutation(rows)
    strata = table.target[rows] if table.classes else np.zeros(len(rows), np.int64)
    counts = np.bincount(strata)
    by_class = np.argsort(strata, kind="stable")
    rank = np.empty(len(rows))
    rank[by_class] = np.arange(len(rows)) - (np.cumsum(counts) - counts)[strata[by_class]]
    kept = rows[np.argsort((rank + 0.5) / counts[strata], kind="stable")][:size]
    _require_classes(table, kept, "train", "data.train_size", str(size))
    return kept


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
