"""What a table is, and how a DataFrame or a text file becomes one: every cell checked, none skipped in silence."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyfit.data.files import Frame, check_names

if TYPE_CHECKING:
    import pandas as pd  # 1 s to import: at run time only inside the functions that need it

TASKS = ("classification", "regression")
Input = tuple[str, str | None]
"""Of a network: a column, and the category that it is 1 for; None: its number."""

MAX_CLASSES = 20  # under task=auto, a target of whole numbers with more distinct values than this is a regression
MAX_CATEGORIES = 1000  # a text column becomes one input per category; beyond this it is an identifier, not a category


@dataclass(frozen=True, eq=False)
class Table:
    """What every source returns: n examples as plain arrays, before any split."""

    name: str
    """What people call it: the source's name, or the file's stem."""
    numeric: NDArray[np.float64]
    """(n, d), finite."""
    target: NDArray[Any]
    """(n,): int64 class codes 0..C-1, or float64."""
    task: str
    """One of `TASKS`."""
    classes: tuple[str, ...] = ()
    """Names of the classes by code; () for regression."""
    features: tuple[str, ...] = ()
    """Names of the numeric columns, all d of them."""
    categorical: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Column name -> (n,) text; encoded one-hot by `split`."""
    note: str = ""
    """What was taken for granted and need not be right, in words."""

    def __post_init__(self) -> None:
        for holds, must, got in self._rules():
            if not holds:
                raise ValueError(f"{must}, but got {got} in table {self.name!r}. Correct the source that made it.")

    def _rules(self) -> Iterator[tuple[bool, str, Any]]:
        """What must hold, and what is there instead; each makes sense only where those before it hold."""
        yield self.task in TASKS, f"task must be one of {', '.join(TASKS)}", self.task
        for name in ("numeric", "target"):
            found = getattr(self, name)
            yield isinstance(found, np.ndarray), f"{name} must be a NumPy array", f"a {type(found).__name__}"
        n, classes = len(self.target), len(self.classes)
        yield self.numeric.shape == (n, len(self.features)), f"numeric must be ({n}, features)", self.numeric.shape
        yield self.numeric.dtype == np.float64, "numeric must be float64", self.numeric.dtype
        yield all(c.shape == (n,) for c in self.categorical.values()), f"categorical must be ({n},)", "other lengths"
        yield n > 0 and len(self.features) + len(self.categorical) > 0, "a table must have rows and columns", "none"
        yield self.target.shape == (n,), "target must have one dimension", self.target.shape
        whole = self.task == "classification"
        kind = np.dtype(np.int64 if whole else np.float64)
        yield self.target.dtype == kind, f"target must be {kind} for a {self.task}", self.target.dtype
        yield classes >= 2 if whole else classes == 0, "classes must be >= 2, or 0 for regression", classes
        yield bool(np.isfinite(self.numeric).all()), "numeric must be finite", "nan or inf"
        yield bool(np.isfinite(self.target).all()), "target must be finite", "nan or inf"
        codes = np.unique(self.target) if whole else np.arange(0)
        yield np.array_equal(codes, np.arange(classes)), f"target must use each code 0..{classes - 1}", codes[:20]


def to_table(frame: Frame, name: str, target: str, task: str = "auto") -> Table:
    """Turn a DataFrame into a table.

    A column of numbers is numeric, a column of text, true/false or pandas categories is categorical. A column in
    which more than half of the cells are numbers is meant to be numeric: text in it is an error. An empty cell, NaN
    or inf is an error.

    Args:
        frame: the rows; one column is the target, the others are inputs.
        name: the table's name.
        target: the name of the target column.
        task: "classification", "regression" or "auto": a target of text, of true/false, or of 2 to 20 distinct
            whole numbers is a classification, any other is a regression.

    Raises:
        ValueError: names the file, the row and the column.
    """
    if task not in (*TASKS, "auto"):
        raise ValueError(f"data.task must be one of auto, {', '.join(TASKS)}, but got {task!r}. Choose one of these.")
    columns = [str(column) for column in frame.data.columns]
    check_names(columns, frame.label, frame.key)
    if target not in columns:
        listed = ", ".join(columns[:40]) + (f" and {len(columns) - 40} more" if len(columns) > 40 else "")
        near = [] if frame.separating else difflib.get_close_matches(target, columns, n=1)
        advice = f"Did you mean {near[0]}?" if near else f"Choose one of these{frame.separating}."
        raise ValueError(
            f"data.target must name a column of {frame.label}, one of {listed}, but got {target!r}. {advice}"
        )
    if len(columns) == 1:
        raise ValueError(
            f"{frame.key} must have input columns besides the target, but got only {target!r} in {frame.label}. "
            f"Add columns to predict it from{frame.separating}."
        )
    if frame.data.empty:
        raise ValueError(f"{frame.key} must have rows of data, but got none in {frame.label}. Check the file.")

    inputs = {c: _column(frame, i, c) for i, c in enumerate(columns) if c != target}
    numeric = {c: values for c, values in inputs.items() if values.dtype == np.float64}
    distinct = {c: len(np.unique(values)) for c, values in inputs.items() if c not in numeric}
    _require_categories(frame, distinct)
    codes, classes, note = _target(frame, columns.index(target), target, task)
    return Table(
        name=name,
        numeric=np.column_stack([*numeric.values()]) if numeric else np.empty((len(codes), 0)),
        target=codes,
        task="classification" if classes else "regression",
        classes=classes,
        features=tuple(numeric),
        categorical={c: inputs[c] for c in distinct},
        note="; ".join(filter(None, [note, _identifiers(frame, distinct)])),
    )


def name_of(one: Input) -> str:
    """`column`, or `column=category`."""
    column, category = one
    return column if category is None else f"{column}={category}"


def encoded(frame: "pd.DataFrame", inputs: Sequence[Input]) -> NDArray[np.float64]:
    """Rows of a frame as a network's inputs (n, d): a number, or whether a text is the category.

    A category that has a column of its own, named `column=category`, is taken from there.

    Raises:
        ValueError: A column is missing or there twice, or a cell has no value, or no number where one is needed.
    """
    names = [str(column) for column in frame.columns]
    given, texts, found = Frame(frame, "the frame", "x"), dict[str, NDArray[Any]](), []
    check_names(names, given.label, given.key)
    for column, category in inputs:
        feature = name_of((column, category))
        if feature in names:
            values = frame.iloc[:, names.index(feature)]
            whole = values.astype(np.float64) if values.dtype == bool else values
            found.append(_column(replace(given, data=whole.to_frame()), 0, feature, "numbers"))
        elif column in names:
            if column not in texts:
                texts[column] = _column(given, names.index(column), column, "words")
            found.append((texts[column] == category).astype(np.float64))
        else:
            needed = ", ".join(dict.fromkeys(name for name, _ in inputs))
            raise ValueError(f"x must have the columns {needed}, but has no {column}.")
    return np.column_stack(found)


def _identifiers(frame: Frame, distinct: Mapping[str, int]) -> str:
    """Of columns of text that differ in most rows: each text becomes an input of its own, which no other row has."""
    found = [column for column, count in distinct.items() if count > len(frame.data) / 2]
    alone = f"most texts in {' and '.join(found)} are there once, and each becomes an input of its own"
    return alone + frame.dropping(found) if found else ""


def _column(frame: Frame, position: int, name: str, want: str = "auto") -> NDArray[Any]:
    """One column as float64 (finite) or as text.

    Args:
        frame: where it stands.
        position: its place in the frame.
        name: its name, for messages.
        want: "numbers" refuses text, "words" takes all cells as text, "text" does so unless all are numbers, "auto"
            goes by the majority.
    """
    import pandas as pd

    values = frame.data.iloc[:, position]
    number_type = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    label_type = pd.api.types.is_bool_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype)
    missing = values.isna().to_numpy() | (False if number_type else _text(values) == "")
    if missing.any():
        raise ValueError(
            f"{frame.key} must have a value in every cell, but got an empty cell or NaN "
            f"{frame.cell(int(missing.argmax()), name)}. Fill it in, or drop the row or the "
            f"column{frame.dropping([name])}."
        )
    if want == "words" or (want != "numbers" and label_type):
        return _text(values)
    if number_type:
        numbers = values.to_numpy(np.float64)
    else:
        numbers = pd.to_numeric(_text(values), errors="coerce").astype(np.float64)
    unread = np.isnan(numbers)
    if (want == "text" and unread.any()) or (want == "auto" and unread.mean() >= 0.5):
        return _text(values)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(
            f"{frame.key} must have a finite number in every cell of a numeric column, but got "
            f"{str(values.iloc[row])!r} {frame.cell(row, name)}. Correct the cell, or drop the row or the column."
        )
    return numbers


def _text(values: "pd.Series[Any]") -> NDArray[np.str_]:
    return values.astype(str).str.strip().to_numpy(dtype=np.str_)


def _require_categories(frame: Frame, distinct: Mapping[str, int]) -> None:
    for name, count in distinct.items():
        if count > MAX_CATEGORIES:
            raise ValueError(
                f"{frame.key} must have at most {MAX_CATEGORIES} different texts in a column, but got {count} "
                f"in {frame.label}, column {name!r}. Turn it into numbers, or drop it{frame.dropping([name])}."
            )


def _target(frame: Frame, position: int, name: str, task: str) -> tuple[NDArray[Any], tuple[str, ...], str]:
    """Class codes and class names, or real targets and (), by the rule in `to_table`; and what it took for granted."""
    values = _column(frame, position, name, "text" if task == "classification" else "auto")
    if task == "regression" and values.dtype != np.float64:
        raise ValueError(
            f"data.task must be classification, or auto, where the target is text, but got regression for column "
            f"{name!r} of {frame.label}. Leave it out, or choose another target."
        )
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) < 2:
        raise ValueError(
            f"data.target must name a column with at least 2 different values, but got only {distinct[0]!s} in "
            f"{frame.label}, column {name!r}. Choose another target, or add rows."
        )
    if values.dtype != np.float64:
        return *_numbered(distinct, codes), ""
    whole = bool((distinct == np.round(distinct)).all())
    if task == "regression" or (task == "auto" and not (whole and len(distinct) <= MAX_CLASSES)):
        return values, (), ""
    taken = (
        f"the {len(distinct)} numbers in {name} are taken for classes; data.task=regression predicts them as numbers"
    )
    classes = tuple(f"{value:.0f}" if whole else str(float(value)) for value in distinct)
    return codes.astype(np.int64), classes, taken if task == "auto" and len(distinct) > 2 else ""


def _numbered(distinct: NDArray[np.str_], codes: NDArray[np.intp]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Codes in the order of the class names, which is that of their numbers where all are numbers ("9" before "10")."""
    try:
        rank = np.argsort(distinct.astype(np.float64), kind="stable")
    except ValueError:
        rank = np.arange(len(distinct))
    return np.argsort(rank)[codes].astype(np.int64), tuple(distinct[rank].tolist())
