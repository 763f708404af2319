"""Users' files: what is read from them, and what is said about those that cannot be used."""

import gzip

import numpy as np
import pandas as pd
import pytest

from manyfit.data.sources import csv
from manyfit.data.splits import split
from manyfit.data.table import Table

MIXED = "age,city,member,score,bought\n" + "".join(
    f"{20 + i},{('Oslo', 'Bergen', 'Bodø')[i % 3]},{i % 2 == 0},{i / 7!r},{('no', 'yes')[i % 2]}\n" for i in range(40)
)


REGRESSION = "data.task=regression predicts them as numbers"


def written(tmp_path, text: str, name: str = "my.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def same(a, b) -> bool:
    return (
        (a.name, a.task, a.classes, a.features) == (b.name, b.task, b.classes, b.features)
        and np.array_equal(a.numeric, b.numeric)
        and np.array_equal(a.target, b.target)
        and a.categorical.keys() == b.categorical.keys()
        and all(np.array_equal(a.categorical[c], b.categorical[c]) for c in a.categorical)
    )


def test_numbers_and_text_are_told_apart(tmp_path):
    """Columns of numbers are numeric to the last bit; text and true/false are categorical."""
    table = csv(written(tmp_path, MIXED), "bought")
    assert (table.name, table.task, table.classes) == ("my", "classification", ("no", "yes"))
    assert table.features == ("age", "score")
    assert np.array_equal(table.numeric[:, 1], np.arange(40) / 7)
    assert list(table.categorical) == ["city", "member"]
    assert set(table.categorical["city"]) == {"Oslo", "Bergen", "Bodø"}
    assert table.target.tolist() == [0, 1] * 20
    dataset = split(table, split_seed=0, val_fraction=0.15, test_fraction=0.15, train_size=None, standardise=True)
    assert dataset.features == (
        *("age", "score", "city=Bergen", "city=Bodø", "city=Oslo", "member=False", "member=True"),
    )


@pytest.mark.parametrize("target", ["bought", "score", "member"])
def test_gzip_and_parquet_equal_csv(tmp_path, target):
    """The same table as .csv, .csv.gz and .parquet gives the same numbers, classes and categories."""
    path = written(tmp_path, MIXED)
    with gzip.open(tmp_path / "my.csv.gz", "wt", encoding="utf-8") as file:
        file.write(MIXED)
    pd.read_csv(path).to_parquet(tmp_path / "my.parquet")
    table = csv(path, target)
    assert same(table, csv(str(tmp_path / "my.csv.gz"), target))
    assert same(table, csv(str(tmp_path / "my.parquet"), target))


def test_parquet_keeps_a_named_index(tmp_path):
    """A column that pandas stored as the index is a column; unnamed row labels are not."""
    frame = pd.DataFrame({"x": np.arange(20.0), "y": [0, 1] * 10, "z": np.arange(20.0)})
    frame.set_index("x").to_parquet(tmp_path / "a.parquet")
    frame[frame.x > 3].to_parquet(tmp_path / "b.parquet")
    assert csv(str(tmp_path / "a.parquet"), "y").features == ("x", "z")
    assert csv(str(tmp_path / "b.parquet"), "y").features == ("x", "z")


def test_a_relative_path_starts_at_the_working_directory(tmp_path, monkeypatch):
    """data.path=my.csv is the file beside the user."""
    written(tmp_path, MIXED)
    monkeypatch.chdir(tmp_path)
    assert len(csv("my.csv", "bought").target) == 40


def test_headers_and_separators(tmp_path):
    """Without a header, columns are called by position; separators, byte order marks, blank lines are read."""
    plain = csv(written(tmp_path, "a,b,c\n" + "1,2.5,0\n3,4.5,1\n" * 5), "c")
    headless = csv(written(tmp_path, "1,2.5,0\n3,4.5,1\n" * 5), 2, header=False)
    assert headless.features == ("0", "1")
    assert np.array_equal(plain.numeric, headless.numeric)
    semicolons = "\ufeffa; b; c\n\n" + "1; 2.5; 0\n \n3 ;4.5; 1\r\n" * 5 + "\n\n"
    assert same(plain, csv(written(tmp_path, semicolons), "c", separator=";"))
    tabs = written(tmp_path, "a\tb\tc\n" + "1\t2.5\t0\n3\t4.5\t1\n" * 5)
    assert same(plain, csv(tabs, "c", separator="\t"))
    assert same(plain, csv(tabs, "c", separator="tab"))


@pytest.mark.parametrize(
    ("values", "task", "expected", "classes"),
    [
        (["b", "a"], "auto", "classification", ("a", "b")),
        (["True", "False"], "auto", "classification", ("False", "True")),
        (["0", "1", "2"], "auto", "classification", ("0", "1", "2")),
        (["-1.0", "1.0"], "auto", "classification", ("-1", "1")),
        ([str(i) for i in range(20)], "auto", "classification", tuple(map(str, range(20)))),
        ([str(i) for i in range(21)], "auto", "regression", ()),
        (["0.5", "1.5"], "auto", "regression", ()),
        (["0.5", "1.5"], "classification", "classification", ("0.5", "1.5")),
        (["0", "1"], "regression", "regression", ()),
        (["1", "2", "3", "x"], "classification", "classification", ("1", "2", "3", "x")),
    ],
)
def test_the_task_follows_from_the_target(tmp_path, values, task, expected, classes):
    """Text, true/false and up to 20 whole numbers are classes, all else is a regression, unless task says otherwise."""
    rows = "".join(f"{i / 3},{values[i % len(values)]}\n" for i in range(63))
    table = csv(written(tmp_path, "x,y\n" + rows), "y", task=task)
    assert (table.task, table.classes) == (expected, classes)
    guessed = task == "auto" and len(classes) > 2 and classes[0].isdigit()
    assert table.note == (guessed * f"the {len(classes)} numbers in y are taken for classes; {REGRESSION}")
    if classes:
        assert [table.classes[code] for code in table.target[: len(classes)]] == [
            value.removesuffix(".0") for value in values
        ]


def test_numbered_categories_are_in_the_order_of_numbers(tmp_path):
    """A nominal target "1", "2", "10" has its classes in that order."""
    frame = pd.DataFrame({"x": np.arange(30.0), "y": pd.Categorical(["10", "2", "1"] * 10)})
    frame.to_parquet(tmp_path / "a.parquet")
    table = csv(str(tmp_path / "a.parquet"), "y")
    assert table.classes == ("1", "2", "10")
    assert table.target[:3].tolist() == [2, 1, 0]


ROWS = "1,2,0\n3,4,1\n" * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data.path must have rows of data, but got none in '.*my.csv'"),
        ("\n\n", r"data.path must have rows of data, but got none"),
        ("a,b,y\n", r"data.path must have rows of data, but got none"),
        ("a,b,y\n1,2,0\n1,2\n", r"as many cells in each row as in the first, 3, but got 2 in '.*my.csv', line 3\."),
        ("a,b,y\n1,2,0\n\n1,2,0,9\n", r"but got 4 in '.*my.csv', line 4\."),
        ("a,b,y\n" + ROWS + "x,2,0\n", r"finite number .* but got 'x' in '.*my.csv', line 10, column 'a'"),
        ('a,b,y\n1,2,0\n"1\n",2,1\n\nx,2,0\n1,2,1\n', r"but got 'x' in '.*my.csv', line 6, column 'a'"),
        ("a,b,y\n" + ROWS + "1,,0\n", r"value in every cell, but got an empty cell or NaN .*, line 10, column 'b'"),
        ("a,b,y\n" + ROWS + "1,NaN,0\n", r"empty cell or NaN in .*, line 10, column 'b'"),
        ("a,b,y\n" + ROWS + "1,NA,0\n", r"empty cell or NaN in .*, line 10, column 'b'"),
        ("a,b,y\n" + ROWS + "1,2,\n", r"empty cell or NaN in .*, line 10, column 'y'"),
        ("a,b,y\n" + ROWS + "1,-inf,0\n", r"finite number .* but got '-inf' in .*, line 10, column 'b'"),
        ("a,b,y\np,2,0\n  ,2,1\n", r"empty cell or NaN in .*, line 3, column 'a'"),
        ("a,b,z\n" + ROWS, r"data.target must name a column of '.*my.csv', one of a, b, z, but got 'y'"),
        ("a;b;y\n1;2;0\n", r"one of a;b;y, but got 'y'\. Choose one of these, or say .data.separator=';'. if"),
        ("age;yy\n1;0\n", r"one of age;yy, but got 'y'\. Choose one of these, or say .data.separator=';'. if"),
        ("a\ty\n1\t0\n", r"or say .data.separator=tab. if that separates"),
        ("a,Y1,z\n" + ROWS, r"one of a, Y1, z, but got 'y'\. Choose one of these\.$"),
        ("a,yy,z\n" + ROWS, r"but got 'y'\. Did you mean yy\?"),
        ("a,a,y\n" + ROWS, r"data.path must name each column once, but got 'a' for columns 1 and 2 of '.*my.csv'"),
        (",b,y\n" + ROWS, r"data.path must name every column, but got no name for column 1 of"),
        ("y\n0\n1\n", r"data.path must have input columns besides the target, but got only 'y'"),
        ("a,b,y\n1,2,c\n3,4,c\n", r"data.target must name a column with at least 2 different values, but got only c"),
        ("a,b,y\n1,2,5\n3,4,5\n", r"at least 2 different values, but got only 5.0 in '.*my.csv', column 'y'"),
        ("a,b,y\n" + ROWS + "1,2,one\n", r"finite number .* but got 'one' in .*, line 10, column 'y'"),
        ("a,y\n" + "".join(f"name{i},{i % 2}\n" for i in range(1001)), r"at most 1000 different texts .* got 1001"),
    ],
)
def test_unusable_files_are_refused_by_line_and_column(tmp_path, text, message):
    """Each kind of bad table raises, naming file, line and column where there is one."""
    with pytest.raises(ValueError, match=message):
        csv(written(tmp_path, text), "y")


def test_a_regression_refuses_text(tmp_path):
    """A real target must be numbers throughout, whatever the majority."""
    with pytest.raises(
        ValueError, match=r"data.task must be .* where the target is text, but got regression for column 'y'"
    ):
        csv(written(tmp_path, "x,y\n1,low\n2,high\n3,0.5\n"), "y", task="regression")


def test_parquet_errors_count_rows(tmp_path):
    """Files without lines are pointed into by row, the first being 1."""
    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0], "t": ["a", "b", " "], "y": [0, 1, 0]})
    frame[["x", "y"]].to_parquet(tmp_path / "a.parquet")
    frame[["t", "y"]].to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"empty cell or NaN in '.*a.parquet', row 2, column 'x'"):
        csv(str(tmp_path / "a.parquet"), "y")
    with pytest.raises(ValueError, match=r"empty cell or NaN in '.*b.parquet', row 3, column 't'"):
        csv(str(tmp_path / "b.parquet"), "y")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", "a,y\nBodø,1\n".encode("latin-1")),
        ("torn.csv.gz", gzip.compress(MIXED.encode(), mtime=0)[:100]),
        ("not.csv.gz", MIXED.encode()),
        ("not.parquet", MIXED.encode()),
        ("open.csv", b'a,y\n1,0\n"2,1\n3,0\n'),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, name, content):
    """Bytes that are not what the name says raise in the form of the house, whichever library notices."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"data.path must .* but got .*{name}'"):
        csv(str(tmp_path / name), "y")


@pytest.mark.parametrize("name", ["nothing.csv", "nothing.csv.gz", "nothing.parquet", ""])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    """A file that is not there, or a folder, raises with its name as given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"data.path must name a readable file, but got '{name}'"):
        csv(name, "y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, r"data.task must be one of auto, classification, regression, but got 'ranking'"),
        ({"separator": ""}, r"data.separator must be one character, or tab, but got ''"),
        ({"separator": "::"}, r"data.separator must be one character, or tab, but got '::'"),
        ({"target": 7}, r"data.target must name a column of '.*', one of age, city, member, .*, but got '7'"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, changes, message):
    """An option that cannot be meant raises, with the choices."""
    with pytest.raises(ValueError, match=message):
        csv(**({"path": written(tmp_path, MIXED), "target": "bought"} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": np.array(["yes", "no"] * 5)}, "target must be int64 for a classification, but got <U3"),
        ({"target": np.array(["yes", "no"] * 5, object)}, "target must be int64 for a classification, but got object"),
        ({"target": ["yes", "no"] * 5}, "target must be a NumPy array, but got a list"),
        ({"numeric": np.array([["a"]] * 10)}, "numeric must be float64, but got <U1"),
        ({"target": np.zeros(10), "task": "regression"}, "classes must be >= 2, or 0 for regression, but got 2"),
        ({"target": np.array([0, 0] * 5)}, r"target must use each code 0..1, but got \[0\]"),
    ],
)
def test_a_source_that_makes_another_table(changes: dict, words: str) -> None:
    """The first rule that does not hold is told, in our words, whatever else is wrong then."""
    good = {"numeric": np.zeros((10, 1)), "target": np.array([0, 1] * 5), "task": "classification"}
    with pytest.raises(ValueError, match=f"{words} in table 'mine'. Correct the source that made it."):
        Table(name="mine", classes=("no", "yes"), features=("x",), **{**good, **changes})


def test_columns_are_left_out(tmp_path):
    """An identifier, which becomes an input for each row, is told; data.drop leaves it out."""
    path = written(tmp_path, "id,x,y\n" + "".join(f"k{i},{i / 3},{i % 2}\n" for i in range(30)))
    said = csv(path, "y").note
    assert said == (
        "most texts in id are there once, and each becomes an input of its own; data.drop=[id] leaves it out"
    )
    table = csv(path, "y", drop=["id"])
    assert (table.features, table.categorical, table.note) == (("x",), {}, "")
    with pytest.raises(ValueError, match="data.drop must name columns of .*, some of id, x, y, but got z"):
        csv(path, "y", drop=["z"])
