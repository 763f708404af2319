"""Delimited text -> a frame, and where in the file each of its cells stands."""

import csv
import difflib
import functools
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

MARKS = {";": "';'", "\t": "tab", "|": "'|'", ",": "','"}  # that separate cells, and how an option says them


MOST = 10_000  # columns of a table: each is looked at by itself
LONGEST = 10**7  # characters of a line: a file of another kind may have none but one


@dataclass(frozen=True, eq=False)
class Frame:
    """A DataFrame and what an error message has to say to point into it."""

    data: "pd.DataFrame"
    label: str
    """What the user called it, e.g. `'scores.csv'`."""
    key: str = "data.path"
    """The option that named it."""
    lines: Sequence[int] | None = None
    """Line number of each row, for text files; otherwise rows count from 1."""
    separating: str = ""
    """What else may be tried where columns look wrong."""

    def dropping(self, columns: Sequence[str]) -> str:
        """How these columns are left out, where that is an option."""
        what = "it" if len(columns) == 1 else "them"
        return f"; data.drop=[{','.join(columns)}] leaves {what} out" if self.key == "data.path" else ""

    def keeping(self, columns: Sequence[str]) -> str:
        """How columns that were left out are kept, where that is an option."""
        return f"; data.keep=[{','.join(columns)}] keeps them" if self.key == "data.path" else ""

    def without(self, columns: Sequence[str]) -> "Frame":
        """The same without these columns."""
        if not columns:
            return self
        names = [str(name) for name in self.data.columns]
        if unknown := [column for column in columns if column not in names]:
            near = difflib.get_close_matches(unknown[0], names, n=1)
            advice = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"data.drop must name columns of {self.label}, some of {', '.join(names[:40])}, but got "
                f"{', '.join(unknown)}.{advice}"
            )
        return replace(self, data=self.data.loc[:, [name not in columns for name in names]])

    def cell(self, row: int, column: str) -> str:
        """Where a cell is, in words."""
        place = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"in {self.label}, {place}, column {column!r}"


def read_text(
    path: Path,
    label: str,
    header: bool,
    separator: str,
    decimal: str = ".",
    words: Sequence[str] = (),
    key: str = "data.path",
) -> Frame:
    """Read delimited UTF-8 text, gzipped if the name ends in .gz.

    The csv module first checks the shape and notes the line of each row, which may span lines and follow blank ones;
    pandas then parses the cells, but for those of columns of words, and of true and false.
    """
    import pandas as pd

    separator = "\t" if separator == "tab" else separator
    if len(separator) != 1:
        raise ValueError(f"data.separator must be one character, or tab, but got {separator!r}. A usual one is ','.")
    with _open(path) as text:
        rows = _rows(text, separator)
        line, first = next(rows, (0, []))
        other = _separating(first, separator)
        require_few(len(first), label, key)
        names = [name.strip() for name in first] if header else [str(i) for i in range(len(first))]
        lines = [] if header or not first else [line]
        for line, row in rows:
            if len(row) != len(names):
                raise ValueError(
                    f"{key} must have as many cells in each row as in the first, {len(names)}, but got {len(row)} "
                    f"in {label}, line {line}. Correct the row{other}."
                )
            lines.append(line)
    if not lines:
        raise ValueError(f"{key} must have rows of data, but got none in {label}. Check that it is the right file.")
    check_names(names, label, key)
    parse: Callable[..., Any] = functools.partial(
        pd.read_csv,
        path,
        sep=separator,
        decimal=decimal,
        header=0 if header else None,
        names=names,
        index_col=False,
        skipinitialspace=True,
        low_memory=False,  # or a column's type may change between chunks
        encoding="utf-8-sig",
    )
    data: pd.DataFrame = parse(dtype=dict.fromkeys(set(words) & set(names), str))
    if truths := [name for name in names if pd.api.types.infer_dtype(data[name], skipna=True) == "boolean"]:
        data[truths] = parse(dtype=str)[truths]  # as they are written: TRUE, true
    if len(data) != len(lines):
        raise ValueError(
            f"{key} must quote its cells properly, but got {len(lines)} or {len(data)} rows in {label}, depending "
            "on the reader. Double the quotation marks inside quoted cells."
        )
    return Frame(data, label, key, lines, other)


def check_names(names: list[str], label: str, key: str) -> None:
    """Raise ValueError unless each column of a frame has a name of its own."""
    require_few(len(names), label, key)
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if not name:
            raise ValueError(
                f"{key} must name every column, but got no name for column {position + 1} of {label}. Name it, or "
                "remove it if it only numbers the rows (pandas: to_csv(index=False))."
            )
        if first.setdefault(name, position) != position:
            raise ValueError(
                f"{key} must name each column once, but got {name!r} for columns {first[name] + 1} and "
                f"{position + 1} of {label}. Rename one, or set data.header=false if the file has no header."
            )


def require_few(columns: int, label: str, key: str) -> None:
    """Raise ValueError if a table has too many columns."""
    if columns > MOST:
        raise ValueError(
            f"{key} must have at most {MOST} columns, but got {columns} in {label}. Keep those that matter; numbers "
            "alone may be more, as data=arrays."
        )


def require_file(path: Path, label: str, key: str) -> None:
    """Raise ValueError if it is a device or a pipe, which may never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(
            f"{key} must name a file, but got {label}, which is a device or a pipe. Copy what it gives into a file."
        )


def _separating(first: Sequence[str], separator: str) -> str:
    """Which other mark may separate the cells, since those of the first row hold it; nothing where none does."""
    text = "".join(first)
    found = next((mark for mark in MARKS if mark in text and mark != separator), None)
    return f', or say "data.separator={MARKS[found]}" if that separates the cells' if found else ""


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(LONGEST):
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST} characters")
        yield line


def _rows(text: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line number where it starts."""
    reader = csv.reader(_lines(text), delimiter=separator, skipinitialspace=True)
    line = 1
    for row in reader:
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield line, row
        line = reader.line_num + 1
