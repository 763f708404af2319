"""What a table is, and how a DataFrame or a text file becomes one: every cell checked, none skipped in silence."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyfit.data.columns import (
    Kind,
    arranged,
    column_of,
    kind_of,
    marked_otherwise,
    no_number,
    numbers_in,
    require_few_others,
    says_nothing,
    text_of,
)
from manyfit.data.files import Frame, check_names

if TYPE_CHECKING:
    pass  # 1 s to import: at run time only inside the functions that need it

TASKS = ("classification", "regression")
Reals = NDArray[np.floating[Any]]
Input = tuple[str, str | None]
"""Of a network: a column, and the category that it is 1 for (of numbers: `MISSING`); None: its number."""

MAX_CLASSES = 20  # under task=auto, a target of whole numbers with more distinct values than this is a regression
CATEGORIES = 50  # inputs that a column of words becomes at most


@dataclass(frozen=True, eq=False)
class Table:
    """What every source returns: n examples as plain arrays, before any split."""

    name: str
    """What people call it: the source's name, or the file's stem."""
    numeric: Reals
    """(n, d), float64 or float32, finite, or NaN where there is no number."""
    target: NDArray[Any]
    """(n,): int64 class codes 0..C-1, or float64."""
    task: str
    """One of `TASKS`."""
    classes: tuple[str, ...] = ()
    """Names of the classes by code; () for regression."""
    features: tuple[str, ...] = ()
    """Names of the numeric columns, all d of them."""
    shape: tuple[int, ...] = ()
    """Of an example that is more than a row: (height, width), (channels, height, width), ..., d numbers in all."""
    categorical: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Column name -> (n,) words, `MISSING` where there is none."""
    categories: int = CATEGORIES
    """Inputs that a column of words becomes at most: the rarest share one."""
    target_name: str = ""
    """The column of the file that is predicted; "" where there is no file."""
    columns: Mapping[str, Kind] = field(default_factory=dict)
    """The kind of each column of the file that is an input; none where there is no file, but the columns above."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Columns of the source that are none, and why."""
    groups: NDArray[np.int64] | None = None
    """(n,): rows of the same number go into the same split."""
    times: NDArray[np.float64] | None = None
    """(n,): the latest rows are tested on, those before them validated on."""
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
        yield self.numeric.dtype in (np.float64, np.float32), "numeric must be float64 or float32", self.numeric.dtype
        numbers = math.prod(self.shape) if self.shape else len(self.features)
        yield numbers == len(self.features), "shape must be of as many numbers as there are features", self.shape
        yield not (self.shape and self.categorical), "shape must be () where there are words", self.shape
        yield all(c.shape == (n,) for c in self.categorical.values()), f"categorical must be ({n},)", "other lengths"
        yield n > 0 and len(self.features) + len(self.categorical) > 0, "a table must have rows and columns", "none"
        yield self.target.shape == (n,), "target must have one dimension", self.target.shape
        whole = self.task == "classification"
        kind = np.dtype(np.int64 if whole else np.float64)
        yield self.target.dtype == kind, f"target must be {kind} for a {self.task}", self.target.dtype
        yield classes >= 2 if whole else classes == 0, "classes must be >= 2, or 0 for regression", classes
        yield not np.isinf(self.numeric).any(), "numeric must be finite, or NaN", "inf"
        yield bool(np.isfinite(self.target).all()), "target must be finite", "nan or inf"
        codes = np.unique(self.target) if whole else np.arange(0)
        yield np.array_equal(codes, np.arange(classes)), f"target must use each code 0..{classes - 1}", codes[:20]


def to_table(
    frame: Frame,
    name: str,
    target: str,
    task: str = "auto",
    keep: Sequence[str] = (),
    categories: int = CATEGORIES,
    groups: str | None = None,
    time: str | None = None,
) -> Table:
    """Turn a DataFrame into a table.

    A column of numbers is numeric; one of dates becomes the days since 1970, the month and the day of the week; one of
    text, true/false or pandas categories is of words. What more than half of the cells are, all are meant to be:
    others are errors, as is inf. A cell may be empty, but for the target's. Columns that say nothing of a new row are
    left out: constants, and those that only name the rows.

    Args:
        frame: the rows; one column is the target, the others are inputs.
        name: the table's name.
        target: the name of the target column.
        task: "classification", "regression" or "auto": a target of text, of true/false, or of 2 to 20 distinct
            whole numbers is a classification, any other is a regression.
        keep: columns that are not left out.
        categories: inputs that a column of words becomes at most.
        groups: a column that names what stays in one split; no input unless it is kept.
        time: a column by whose order the rows are split; no input unless it is kept.

    Raises:
        ValueError: names the file, and of each column that cannot be used the first row.
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

    for key, named in (("keep", keep), ("groups", [groups]), ("time", [time])):
        if unknown := [str(column) for column in named if column is not None and column not in columns]:
            near = difflib.get_close_matches(unknown[0], columns, n=1)
            advice = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"data.{key} must name columns of {frame.label}, but got {', '.join(unknown)}.{advice}")
    if groups is not None and time is not None:
        raise ValueError(f"data.groups must be null where data.time splits the rows, but got {groups} and {time}.")
    if not categories >= 2:
        raise ValueError(f"data.categories must be >= 2, but got {categories}. A usual number is {CATEGORIES}.")

    require_few_others(frame)
    kinds: dict[str, Kind] = {}
    read: dict[str, NDArray[Any]] = {}
    problems, left_out = [], dict[str, str]()
    for i, column in enumerate(columns):
        if column == target:
            continue
        if column in (groups, time) and column not in keep:
            left_out[column] = "the rows are split by it"
            continue
        try:
            kind = kind_of(frame, i)
            values = column_of(frame, i, column, kind)
        except ValueError as error:
            problems.append(str(error))
            continue
        if kind == "words" and column not in keep and (marked := no_number(frame, column, values)):
            problems.append(f"{marked} If they are words, say data.keep=[{column}].")
            continue
        why = None if column in keep else says_nothing(column, values)
        if why and kind == "words" and (marked := marked_otherwise(frame, column, values)):
            problems.append(f"{marked} If they are words, say data.keep=[{column}].")
            continue
        if why:
            left_out[column] = why
        else:
            kinds[column], read[column] = kind, values
    try:
        codes, classes, note = _target(frame, columns.index(target), target, task)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    told = [f"{column} ({why})" for column, why in left_out.items()]
    if not kinds:
        raise ValueError(
            f"{frame.key} must have columns to predict {target!r} from, but none of {frame.label} says anything of a "
            f"new row: {', '.join(told)}{frame.keeping(list(left_out))}."
        )
    features, numeric, categorical = arranged(kinds, read)
    notes = [note, f"left out: {', '.join(told)}{frame.keeping(list(left_out))}" if told else ""]
    return Table(
        name=name,
        numeric=numeric,
        target=codes,
        task="classification" if classes else "regression",
        classes=classes,
        features=features,
        categorical=categorical,
        categories=categories,
        target_name=target,
        groups=None if groups is None else _grouped(frame, columns.index(groups), groups),
        times=None if time is None else _timed(frame, columns.index(time), time),
        columns=kinds,
        left_out={column: f"left out: {why}" for column, why in left_out.items()},
        note="; ".join(filter(None, notes)),
    )


def to_arrays(x: NDArray[Any], y: NDArray[Any], name: str, task: str, classes: tuple[str, ...]) -> Table:
    """Turn examples of any shape (n, *shape) and targets (n,) into a table.

    Raises:
        ValueError: They are no such arrays.
    """
    if task not in (*TASKS, "auto"):
        raise ValueError(f"data.task must be one of auto, {', '.join(TASKS)}, but got {task!r}. Choose one of these.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise ValueError(f"data.x must be numbers (n, *shape), but got {x.dtype} {x.shape}.")
    if y.ndim != 1 or len(y) != len(x):
        raise ValueError(f"data.y must be ({len(x)},), a target for each example, but got {y.shape}.")
    small = x.dtype.itemsize <= (4 if x.dtype.kind == "f" else 2)  # all of its numbers are float32's
    numbers: Reals = x.reshape(len(x), -1).astype(np.float32 if small else np.float64, copy=False)
    finite = np.isfinite(numbers).all(axis=1)
    if not finite.all():
        raise ValueError(f"data.x must be finite, but example {int(finite.argmin())} has NaN or inf.")
    if task == "auto":
        few = y.dtype.kind in "biu" and len(np.unique(y)) <= MAX_CLASSES
        task = "classification" if few or classes or y.dtype.kind in "USO" else "regression"
    if classes and (task == "regression" or y.dtype.kind in "USO"):
        raise ValueError("data.classes must be [] unless data.y are class numbers, but got names.")
    if task == "regression":
        if y.dtype.kind not in "biuf" or not np.isfinite(y.astype(np.float64)).all():
            raise ValueError(f"data.y must be finite numbers in a regression, but got {y.dtype} with others.")
        target: NDArray[Any] = y.astype(np.float64)
    elif y.dtype.kind in "USO":
        distinct, codes = np.unique(y.astype(np.str_), return_inverse=True)
        target, classes = _numbered(distinct, codes)
    else:
        target, classes = _numbers_of_classes(y, classes)
    features = tuple(f"x{i}" for i in range(numbers.shape[1]))
    shape = x.shape[1:] if x.ndim > 2 else ()
    return Table(name, numbers, target, task, classes, features, shape)


def _numbers_of_classes(y: NDArray[Any], classes: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers that are used from 0 on, and the names of the classes."""
    codes = y.astype(np.int64)
    if (codes != y).any():
        raise ValueError("data.y must be whole numbers in a classification, but got others. Use data.task=regression.")
    found = np.unique(codes)
    if found[0] < 0:
        raise ValueError(f"data.y must be class numbers >= 0, but got {found[0]}. Number the classes from 0 on.")
    count = max(len(classes), int(found[-1]) + 1, 2)
    if absent := np.setdiff1d(np.arange(min(count, len(found) + 10)), found).tolist():
        raise ValueError(
            f"data.y must have an example of every class 0..{count - 1}, but there is none of "
            f"{', '.join(map(str, absent[:10]))}. Number the classes from 0 on, without holes, or say "
            "data.task=regression."
        )
    if classes and len(classes) != count:
        raise ValueError(f"data.classes must name {count} classes, but got {len(classes)}.")
    return codes, classes or tuple(map(str, range(count)))


def name_of(one: Input) -> str:
    """`column`, or `column=category`."""
    column, category = one
    return column if category is None else f"{column}={category}"


def _grouped(frame: Frame, position: int, name: str) -> NDArray[np.int64]:
    """A number for each row, the same for the same name."""
    text = text_of(frame.data.iloc[:, position])
    _complete(frame, "groups", name, text == "")
    return np.unique(text, return_inverse=True)[1].astype(np.int64)


def _timed(frame: Frame, position: int, name: str) -> NDArray[np.float64]:
    """A number or the days since 1970 of each row."""
    kind = kind_of(frame, position)
    if kind == "words":
        raise ValueError(f"data.time must name a column of dates or numbers, but {name!r} of {frame.label} has words.")
    values = column_of(frame, position, name, kind)
    found: NDArray[np.float64] = values[:, 0] if values.ndim > 1 else values
    _complete(frame, "time", name, np.isnan(found))
    return found


def _complete(frame: Frame, key: str, name: str, empty: NDArray[np.bool_]) -> None:
    if empty.any():
        raise ValueError(
            f"data.{key} must name a column with a value in every row, but {int(empty.sum())} have none, the first "
            f"{frame.cell(int(empty.argmax()), name)}. Fill it in, or drop these rows."
        )


def _target(frame: Frame, position: int, name: str, task: str) -> tuple[NDArray[Any], tuple[str, ...], str]:
    """Class codes and class names, or real targets and (), by the rule in `to_table`; and what it took for granted."""
    text = text_of(frame.data.iloc[:, position])
    empty = text == ""
    if empty.any():
        count = f"{int(empty.sum())} have none, the first " if empty.sum() > 1 else "there is none "
        raise ValueError(
            f"data.target must name a column with a value in every row, but {count}"
            f"{frame.cell(int(empty.argmax()), name)}. Drop these rows: there is nothing to learn from them."
        )
    kind = kind_of(frame, position)
    mixed = kind == "number" and not np.isfinite(numbers_in(text)).all()
    if mixed and task == "auto":
        raise ValueError(
            f"data.target must name a column of numbers or one of words, but {name!r} of {frame.label} has both, as "
            f"{str(text[int(np.isnan(numbers_in(text)).argmax())])!r}. Correct it, or say data.task=classification."
        )
    words = kind == "date" or (task == "classification" and mixed)
    values = column_of(frame, position, name, "words" if words else kind)
    if task == "regression" and values.dtype != np.float64:
        raise ValueError(
            f"data.task must be classification, or auto, where the target is text, but got regression for column "
            f"{name!r} of {frame.label}. Leave it out, or choose another target."
        )
    distinct, codes = np.unique(values, return_inverse=True)
    if values.dtype.kind == "U" and task == "auto" and (marked := no_number(frame, name, values)):
        raise ValueError(f"{marked} If they are classes, say data.task=classification.")
    if values.dtype.kind == "U" and len(distinct) > MAX_CLASSES and (marked := marked_otherwise(frame, name, values)):
        raise ValueError(marked)
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
