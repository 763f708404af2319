"""Which rows of a table are trained on, validated on and tested on: by chance, by groups, in time, by folds."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from manyfit.data.draws import TRAIN_SIZE
from manyfit.data.table import Table

Parts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def rows_of(
    table: Table, seed: int, val_fraction: float, test_fraction: float, folds: int | None, fold: int | None
) -> Parts:
    """Row numbers of train, val and test; arguments as for `splits.split`.

    Raises:
        ValueError: An option is out of range, or leaves a part empty or without one of the classes.
    """
    _check(table, seed, val_fraction, 1 / folds if folds else test_fraction)
    if folds:
        return _fold(table, seed, val_fraction, folds, fold or 0)
    return _split(table, seed, val_fraction, test_fraction)


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


def _split(table: Table, seed: int, val_fraction: float, test_fraction: float) -> Parts:
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


def _fold(table: Table, seed: int, val_fraction: float, folds: int, fold: int) -> Parts:
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


def subset(table: Table, rows: NDArray[np.int64], size: int | None, seed: int) -> NDArray[np.int64]:
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
