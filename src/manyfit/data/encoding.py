"""Columns as the inputs, as the training rows have them: gaps filled, words as categories; new rows likewise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfit.data.columns import MISSING, Kind, columns_of
from manyfit.data.files import Frame
from manyfit.data.table import Input, Reals, Table, name_of

KINDS = {"number": "a number", "date": "a date: days since 1970, month, day of the week"}
RARE = "(rare)"  # the category that stands for all that are too rare to have one each


@dataclass(frozen=True, eq=False)
class Encoding:
    """What was learnt from the training rows of a table. Made by `fitted`.

    Attributes:
        inputs: Of the network, (d,): numbers, then flags for those that may be missing, then categories.
        columns: The kind of every column that is one.
        medians: Of the numbers, (numbers,), for those that are missing; None: the inputs are the numbers as they are.
        what: What was done with every column, in words.
        target: The column of the file that is predicted; "" where there is no file.
    """

    inputs: tuple[Input, ...]
    columns: Mapping[str, Kind]
    medians: NDArray[np.float64] | None
    what: Mapping[str, str]
    target: str = ""

    def of(self, numeric: Reals, words: Mapping[str, NDArray[np.str_]]) -> Reals:
        """(rows, d) of numbers (rows, numbers), NaN where there is none, and words (rows,) by column."""
        if self.medians is None:
            if np.isnan(numeric).any():
                raise ValueError("x must have a number in every cell, but got an empty one or NaN. Fill it in.")
            return numeric
        missing, features = np.isnan(numeric), [column for column, category in self.inputs if category is None]
        flagged = [features.index(c) for c, category in self.inputs if category is not None and c not in words]
        parts = [np.where(missing, self.medians, numeric), missing[:, flagged]]
        parts += [_hot(cells, [str(own) for c, own in self.inputs if c == column]) for column, cells in words.items()]
        return np.hstack(parts).astype(np.float64)

    def of_frame(self, frame: Frame) -> Reals:
        """(rows, d) of raw rows; or of rows that have the inputs themselves, by name, as columns.

        A word that no training row had is none of those that had, or one of the rare ones where there are any.

        Raises:
            ValueError: A column is missing or there twice, or a cell is not what its column has.
        """
        there, names = set(map(str, frame.data.columns)), [name_of(one) for one in self.inputs]
        if set(self.columns) <= there or not set(names) <= there:
            return self.of(*columns_of(frame, self.columns))
        found, _ = columns_of(frame, dict.fromkeys(names, "number"))
        if np.isnan(found).any():
            raise ValueError(f"{frame.key} must have a number for every input, but one is missing. Fill it in.")
        return found


def fitted(table: Table, train: NDArray[np.int64]) -> Encoding:
    """The encoding of a table by these of its rows."""
    gaps = np.asarray(np.isnan(table.numeric[train]).any(axis=0))
    numbered: dict[str, Kind] = dict.fromkeys(table.features, "number")
    columns = table.columns or numbered | dict.fromkeys(table.categorical, "words")
    what = dict(table.left_out) | {column: KINDS[kind] for column, kind in table.columns.items() if kind in KINDS}
    numbers: list[Input] = [(column, None) for column in table.features]
    if not table.target_name and not table.categorical and not np.isnan(table.numeric).any():
        return Encoding(tuple(numbers), columns, None, what, table.target_name)
    from sklearn.preprocessing import OneHotEncoder

    known = np.ma.median(np.ma.masked_invalid(table.numeric[train].astype(np.float64)), axis=0)  # type: ignore[no-untyped-call]
    medians: NDArray[np.float64] = np.ma.filled(known, 0.0)
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=table.categories)
    if table.categorical:
        encoder.fit(np.column_stack([cells[train].astype(object) for cells in table.categorical.values()]))
    flags: list[Input] = [(table.features[i], MISSING) for i in np.flatnonzero(gaps)]
    for column, kind in columns.items():
        if kind != "words":
            i = table.features.index(column)
            count = int(np.isnan(table.numeric[:, i]).sum())
            median = "the median" if kind == "date" else f"{medians[i]:.4g}, the median"
            filled = f"; {count} missing, taken as {median}" if count else ""
            what[column] = KINDS[kind] + filled + ("; a flag says so" if gaps[i] else "")
    words: list[Input] = []
    for i, column in enumerate(table.categorical):
        found = [str(category) for category in encoder.categories_[i]]
        rare = encoder.infrequent_categories_[i]
        together = set() if rare is None else set(map(str, rare))
        own = [category for category in found if category not in together] + ([RARE] if together else [])
        words += [(column, category) for category in own]
        what[column] = f"{len(found)} categories" + (f", the {len(together)} rarest as one" if together else "")
    return Encoding(tuple(numbers + flags + words), columns, medians, what, table.target_name)


def _hot(cells: NDArray[np.str_], own: Sequence[str]) -> NDArray[np.bool_]:
    """Which category each cell (rows,) is, (rows, own): the last if it is none of them and that is of the rare ones."""
    distinct, place = np.unique(cells, return_inverse=True)
    found: NDArray[np.bool_] = distinct[:, None] == np.array(own)
    if own[-1] == RARE:
        found[:, -1] = ~found[:, :-1].any(axis=1)
    return found[place]
