"""Columns of a frame: of which kind each is, and its cells as numbers, dates or words; every cell checked."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from manyfit.data.files import Frame, check_names

if TYPE_CHECKING:
    import pandas as pd  # 1 s to import: at run time only inside the functions that need it

Kind = Literal["number", "date", "words"]
"""Of a column: a date becomes three numbers, words become categories."""

MISSING = "?"  # the word where there is none, and the flag of a number that is not there
LARGEST = 2**53  # whole number up to which float64 has all
MARKED = re.compile(r"[-+]?\d[\d.,' ]*%?")  # 1,234 or 3,5
PERCENT = re.compile(r"[-+]?\d[\d.,' ]*%|[-+]?\.\d+ *%")
COMPLEX = re.compile(r"\(?[-+]?\d[\d.]*(e[-+]?\d+)? *[-+] *\d[\d.]*(e[-+]?\d+)?[ij]\)?", re.IGNORECASE)
OTHERS = 1_000  # columns that are not plain numbers: each takes milliseconds, or becomes many inputs
DAY_FIRST = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T].*)?")
NUMBERED = re.compile(r"(?i:(.*[_ .-])?(id|index|idx|key|nr|no|row|row.?number)|unnamed: \d+)|.*[a-z]I[Dd]")
OFFSET = re.compile(r"(?<=:\d\d)(\.\d+)?(Z|[+-]\d\d:?(\d\d)?)$")  # of a time


def columns_of(frame: Frame, kinds: Mapping[str, Kind]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.str_]]]:
    """Numbers (rows, numbers) and words (rows,) by column, of a frame that has columns of these kinds.

    Raises:
        ValueError: A column is missing or there twice, or a cell is not of its kind.
    """
    names = [str(column) for column in frame.data.columns]
    check_names(names, frame.label, frame.key)
    if absent := [column for column in kinds if column not in names]:
        raise ValueError(f"{frame.key} must have the columns {', '.join(kinds)}, but has no {', '.join(absent)}.")
    read = {column: column_of(frame, names.index(column), column, kind) for column, kind in kinds.items()}
    return arranged(kinds, read)[1:]


def arranged(
    kinds: Mapping[str, Kind], read: Mapping[str, NDArray[Any]]
) -> tuple[tuple[str, ...], NDArray[np.float64], dict[str, NDArray[np.str_]]]:
    """Names of the numbers, they (n, d), and words (n,) by column."""
    features: list[str] = []
    numbers: list[NDArray[np.float64]] = []
    for column, kind in kinds.items():
        if kind == "number":
            features.append(column)
            numbers.append(read[column][:, None])
        elif kind == "date":
            features += [column, f"{column}.month", f"{column}.weekday"]
            numbers.append(read[column])
    words = {column: read[column] for column, kind in kinds.items() if kind == "words"}
    n = len(next(iter(read.values())))
    return tuple(features), np.hstack(numbers) if numbers else np.empty((n, 0)), words


def marked_otherwise(frame: Frame, name: str, words: NDArray[np.str_]) -> str | None:
    """What to do with words that look like numbers or dates in another way of writing, if most do."""
    for pattern, what, way in (
        (DAY_FIRST, "dates as 2024-05-31", "Write them so."),
        (MARKED, "numbers with one mark, that of decimals", "For a decimal comma say \"data.decimal=','\"."),
    ):
        found = [bool(pattern.fullmatch(word)) for word in words]
        if np.mean(found) > 0.5:
            row = found.index(True)
            return f"{frame.key} must have {what}, but got {str(words[row])!r} {frame.cell(row, name)}. {way}"
    return None


def no_number(frame: Frame, name: str, words: NDArray[np.str_]) -> str | None:
    """What to do with words that are numbers of a kind that nobody can take for numbers, or for words, if most are."""
    for pattern, what, way in (
        (PERCENT, "plain numbers", "Write it without the mark, such as 5 or 0.05"),
        (COMPLEX, "real numbers", "Give each of its two parts a column"),
    ):
        found = [bool(pattern.fullmatch(word)) for word in words]
        if sum(found) > sum(word != MISSING for word in words) / 2:
            row = found.index(True)
            return f"{frame.key} must have {what}, but got {str(words[row])!r} {frame.cell(row, name)}. {way}."
    return None


def require_few_others(frame: Frame) -> None:
    """Raise ValueError if a frame has too many columns that are not plain numbers."""
    import pandas as pd

    others = sum(not pd.api.types.is_numeric_dtype(kind) for kind in frame.data.dtypes)
    if others > OTHERS:
        raise ValueError(
            f"{frame.key} must have at most {OTHERS} columns that hold more than numbers, such as words and dates, but "
            f"got {others} in {frame.label}. Keep those that matter."
        )


def says_nothing(name: str, values: NDArray[Any]) -> str | None:
    """Why a column says nothing of a new row, if it does not."""
    first = values[:, 0] if values.ndim > 1 else values
    distinct = len(np.unique(first))  # NaN once
    if distinct == 1:
        return "it is the same in all rows"
    if first.dtype.kind == "U":
        return "its words differ in most rows" if distinct > len(first) / 2 else None
    whole = not np.isnan(first).any() and bool((first == np.round(first)).all())
    return "it numbers the rows" if NUMBERED.fullmatch(name) and whole and distinct == len(first) else None


def kind_of(frame: Frame, position: int) -> Kind:
    """What more than half of the cells that hold something are."""
    import pandas as pd

    values = frame.data.iloc[:, position]
    if pd.api.types.is_bool_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype):
        return "words"
    if pd.api.types.is_numeric_dtype(values):
        return "number"
    text = text_of(values)
    text = text[text != ""]
    if len(text) == 0 or np.isfinite(numbers_in(text)).mean() > 0.5:
        return "number"
    return "date" if np.mean(~np.isnat(_dates(text))) > 0.5 else "words"


def column_of(frame: Frame, position: int, name: str, kind: Kind) -> NDArray[Any]:
    """One column as its kind: float64 (n,), NaN where there is none; of dates (n, 3); words (n,), `MISSING` likewise.

    Args:
        frame: where it stands.
        position: its place in the frame.
        name: its name, for messages.
        kind: see there.
    """
    import pandas as pd

    values = frame.data.iloc[:, position]
    if kind == "number" and pd.api.types.is_numeric_dtype(values):
        numbers, empty = values.to_numpy(np.float64, na_value=np.nan), values.isna().to_numpy()
        _require(frame, name, empty | np.isfinite(numbers), values, "a finite number", "of numbers")
        exact = empty | (np.abs(numbers) <= LARGEST) | (not pd.api.types.is_integer_dtype(values))
        _require(frame, name, exact, values, "a whole number up to 2^53, since larger ones become alike,", "of numbers")
        return numbers
    text = text_of(values)
    empty = text == ""
    if kind == "words":
        return np.where(empty, MISSING, text)
    if kind == "date":
        dates = _dates(text)
        _require(frame, name, empty | ~np.isnat(dates), values, "a date, such as 2024-05-31,", "of dates")
        wall = np.array(
            [OFFSET.sub("", cell) for cell in text.tolist()], np.str_
        )  # month and weekday are those of the place
        return _of_dates(dates, _dates(wall))
    numbers = numbers_in(text)
    _require(frame, name, empty | np.isfinite(numbers), values, "a finite number", "of numbers")
    return np.where(empty, np.nan, numbers)


def _require(
    frame: Frame, name: str, holds: NDArray[np.bool_], values: "pd.Series[Any]", what: str, column: str
) -> None:
    if holds.all():
        return
    row, more = int(holds.argmin()), int((~holds).sum()) - 1
    others = f" and {more} more" if more else ""
    raise ValueError(
        f"{frame.key} must have {what} or nothing in every cell of a column {column}, but got "
        f"{str(values.iloc[row])!r} {frame.cell(row, name)}{others}. Correct the cells, or drop the rows or the "
        f"column{frame.dropping([name])}."
    )


def text_of(values: "pd.Series[Any]") -> NDArray[np.str_]:
    """Cells as text, "" where there is nothing, or `MISSING`."""
    import pandas as pd

    present = values.dropna()
    if pd.api.types.is_float_dtype(values.dtype) and (present.abs() < LARGEST).all() and (present % 1 == 0).all():
        values = values.astype("Int64")  # whole numbers that came with a gap are called without ".0"
    text = values.astype(str).str.strip()
    return text.mask(values.isna() | (text == MISSING), "").to_numpy(dtype=np.str_)


def numbers_in(text: NDArray[np.str_]) -> NDArray[np.float64]:
    """NaN where it is none."""
    import pandas as pd

    return np.asarray(pd.to_numeric(text, errors="coerce"), np.float64)


def _dates(text: NDArray[np.str_]) -> NDArray[np.datetime64]:
    """Of ISO 8601, in UTC; not a time where it is none."""
    import pandas as pd

    distinct, place = np.unique(text, return_inverse=True)
    cells = [cell if cell[:1].isdecimal() else "" for cell in distinct.tolist()]  # "now" is none
    if not any(cells):
        return np.full(len(text), np.datetime64("NaT", "us"))
    read = pd.to_datetime(pd.Series(cells), format="ISO8601", errors="coerce", utc=True)
    return read.dt.tz_localize(None).to_numpy("datetime64[us]")[place]


def _of_dates(dates: NDArray[np.datetime64], local: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Days since 1970 (UTC); of the local time month 1 to 12 and day of the week 0 to 6 from Monday on: (n, 3).

    NaN where there is none.
    """
    import pandas as pd

    days = (dates - np.datetime64(0, "us")) / np.timedelta64(1, "D")
    index = pd.DatetimeIndex(local)
    made = np.column_stack([days, index.month.to_numpy(np.float64), index.day_of_week.to_numpy(np.float64)])
    made[np.isnat(dates)] = np.nan
    return made
