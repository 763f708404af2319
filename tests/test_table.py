"""Users' files: what is read from them, and what is said about those that cannot be used."""

import gzip

import numpy as np
import pandas as pd
import pytest

from manyfit.data.files import Frame
from manyfit.data.sources import csv, read
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
        (
            "a,b,y\n" + ROWS + "1,2,\n",
            r"in every row, but there is none in .*, line 10, column 'y'",
        ),
        ("a,b,y\n" + ROWS + "1,2,\n1,2,NA\n", r"in every row, but 2 have none, the first in .*, line 10, column 'y'"),
        ("a,b,y\n" + ROWS + "1,-inf,0\n", r"finite number .* but got '-inf' in .*, line 10, column 'b'"),
        (
            "a,y\n" + "2024-05-31,0\n2023-01-01,1\n" * 4 + "soon,1\n",
            r"a date, .* but got 'soon' in .*, line 10",
        ),
        ("a,b,y\n" + ROWS + "x,2,0\n1,z,\n", r"(?s)got 'x' .*, column 'a'.*got 'z' .*, column 'b'.*data.target must"),
        ("a,b,y\n" + ROWS + "x,2,0\nz,2,0\n", r"but got 'x' in .*, line 10, column 'a' and 1 more\. .*data.drop=\[a\]"),
        (
            "c,d,y\n" + "1,a,0\n1,a,1\n" * 4,
            r"to predict 'y' from, but none .* c \(it is the same in all",
        ),
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
        ("a,b,y\n" + ROWS + "1,2,one\n", r"data.target .* 'y' of .* has both, as 'one'. .*say data.task=class"),
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
    pd.DataFrame({"x": [1.0, np.inf, 3.0], "y": [0, 1, 0]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"but got 'inf' in '.*a.parquet', row 2, column 'x'"):
        csv(str(tmp_path / "a.parquet"), "y")


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
        ({"numeric": np.array([["a"]] * 10)}, "numeric must be float64 or float32, but got <U1"),
        ({"target": np.zeros(10), "task": "regression"}, "classes must be >= 2, or 0 for regression, but got 2"),
        ({"target": np.array([0, 0] * 5)}, r"target must use each code 0..1, but got \[0\]"),
    ],
)
def test_a_source_that_makes_another_table(changes: dict, words: str) -> None:
    """The first rule that does not hold is told, in our words, whatever else is wrong then."""
    good = {"numeric": np.zeros((10, 1)), "target": np.array([0, 1] * 5), "task": "classification"}
    with pytest.raises(ValueError, match=f"{words} in table 'mine'. Correct the source that made it."):
        Table(name="mine", classes=("no", "yes"), features=("x",), **{**good, **changes})


def test_columns_that_say_nothing_of_a_new_row_are_left_out(tmp_path):
    """Names and numbers of rows, and constants; it is told, and data.keep keeps them."""
    rows = "".join(f"{i + 1},k{i},7,{i},{i / 3},{i % 2}\n" for i in range(30))
    path = written(tmp_path, "PassengerId,name,same,count,x,y\n" + rows)
    table = csv(path, "y")
    assert (table.features, table.categorical) == (("count", "x"), {})
    assert table.note == (
        "left out: PassengerId (it numbers the rows), name (its words differ in most rows), same (it is the same in "
        "all rows); data.keep=[PassengerId,name,same] keeps them"
    )
    kept = csv(path, "y", keep=["name", "same"])
    assert kept.features == ("same", "count", "x")
    assert list(kept.categorical) == ["name"]
    assert csv(path, "y", drop=["PassengerId", "name", "same"]).note == ""
    for key in ("drop", "keep"):
        with pytest.raises(ValueError, match=f"data.{key} must name columns of .*, but got z"):
            csv(path, "y", **{key: ["z"]})


@pytest.mark.parametrize("name", ["id", "ID", "user_id", "userId", "Unnamed: 0", "row number", "order-nr", "index"])
def test_names_of_numbers_of_rows(tmp_path, name):
    """A column that is called so is left out if its whole numbers all differ, and else stays."""
    for values, features in ((range(30), ("x",)), ([i // 2 for i in range(30)], (name, "x"))):
        rows = "".join(f"{value},{i / 3},{i % 2}\n" for i, value in enumerate(values))
        assert csv(written(tmp_path, f"{name},x,y\n{rows}"), "y").features == features


@pytest.mark.parametrize("name", ["paid", "grid", "age", "x", "valid"])
def test_other_whole_numbers_stay(tmp_path, name):
    rows = "".join(f"{i},{i % 2}\n" for i in range(30))
    assert csv(written(tmp_path, f"{name},y\n{rows}"), "y").features == (name,)


GAPS = "age,town,joined,member,y\n" + "".join(
    f"{'' if i % 5 == 0 else 20 + i % 40},{('Oslo', 'Bergen', '', 'NA')[i % 4]},"
    f"{'?' if i == 7 else f'2024-{1 + i % 12:02}-{1 + i % 28:02}'},{('True', 'False', '')[i % 3]},{i // 2 % 2}\n"
    for i in range(120)
)


def test_gaps_are_filled_from_the_training_rows(tmp_path):
    """A number's with the median and a flag, a word's with a category of its own; nothing of it leaks."""
    table = csv(written(tmp_path, GAPS), "y")
    assert table.columns == {"age": "number", "town": "words", "joined": "date", "member": "words"}
    dataset = split(table, split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise=False)
    assert dataset.features[:5] == ("age", "joined", "joined.month", "joined.weekday", "age=?")
    assert {"town=?", "town=Bergen", "town=Oslo", "member=?", "member=False", "member=True"} < set(dataset.features)
    x, flag = dataset.x_train[:, 0], dataset.x_train[:, dataset.features.index("age=?")]
    assert x[flag == 1].unique().tolist() == [x[flag == 0].median()]
    assert 0.1 < flag.mean() < 0.3
    words = [i for i, name in enumerate(dataset.features) if name.startswith("town=")]
    assert (dataset.x_val[:, words].sum(1) == 1).all()
    assert dataset.encoding.what["age"].startswith("a number; 24 missing, taken as ")
    assert dataset.encoding.what["joined"].startswith("a date: days since 1970, month, day of the week; 1 missing")
    assert dataset.encoding.what["town"] == "3 categories"
    assert dataset.summary == (
        "120 rows, 1 column of numbers and 2 columns of words and 1 column of dates: "
        f"{len(dataset.features)} inputs; 72/24/24 to train, validate, test"
    )


def test_dates_are_numbers(tmp_path):
    """Days since 1970, month, weekday: 2024-05-31 was a Friday. A time is part of its day; an offset's are local."""
    stamps = ["2024-05-31", "1970-01-02T12:00", "1970-01-01T00:00+01:00"]
    rows = "".join(f"{stamp},{i % 2}\n" for i, stamp in enumerate(stamps * 4))
    table = csv(written(tmp_path, f"when,y\n{rows}"), "y")
    assert table.features == ("when", "when.month", "when.weekday")
    assert table.numeric[:3].tolist() == [[19874, 5, 4], [1.5, 1, 4], [pytest.approx(-1 / 24), 1, 3]]
    pd.DataFrame({"when": pd.to_datetime(["2024-05-31", "1970-01-02"] * 4), "y": [0, 1] * 4}).to_parquet(
        tmp_path / "a.parquet"
    )
    assert csv(str(tmp_path / "a.parquet"), "y").numeric[0].tolist() == [19874, 5, 4]


def test_rare_words_share_an_input(tmp_path):
    """The most frequent have one each; a word that no training row has is a rare one."""
    towns = [f"t{int(i**0.5)}" for i in range(400)]
    rows = "".join(f"{town},{i % 2}\n" for i, town in enumerate(towns))
    table = csv(written(tmp_path, f"town,y\n{rows}"), "y", categories=6)
    dataset = split(table, split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise=True)
    assert len(dataset.features) == 6
    assert dataset.features[-1] == "town=(rare)"
    assert (dataset.x_train.sum(1) == 1).all()
    assert dataset.encoding.of_frame(framed(pd.DataFrame({"town": ["t19", "nowhere"]}))).argmax(1).tolist()[1] == 5
    assert dataset.encoding.what["town"].endswith("rarest as one")
    with pytest.raises(ValueError, match="data.categories must be >= 2, but got 1"):
        csv(written(tmp_path, f"town,y\n{rows}"), "y", categories=1)


def test_new_rows_are_encoded_as_the_tables_were(tmp_path):
    """A frame of the file's own columns, gaps and all, is what the training had; so is one of the inputs by name."""
    table = csv(path := written(tmp_path, GAPS), "y")
    dataset = split(table, split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise=True)
    every = dataset.encoding.of(table.numeric, table.categorical)
    frame = pd.read_csv(path, na_values=["?"]).sample(frac=1, axis=1, random_state=0)
    assert np.array_equal(dataset.encoding.of_frame(framed(frame)), every)
    inputs = pd.DataFrame(every, columns=dataset.features)
    assert np.array_equal(dataset.encoding.of_frame(framed(inputs)), every)
    with pytest.raises(ValueError, match="x must have a number for every input, but one is missing"):
        dataset.encoding.of_frame(framed(inputs.mask(inputs == 1)))


def framed(rows: pd.DataFrame) -> Frame:
    return Frame(rows, "the frame", "x")


def test_a_gap_where_the_training_rows_had_none(tmp_path):
    """In a table of numbers alone the median stands in, and no NaN reaches the network."""
    path = written(tmp_path, "a,b,y\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(40)))
    dataset = split(
        csv(path, "y"), split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise=True
    )
    found = dataset.encoding.of_frame(framed(pd.DataFrame({"a": [None, 1.0], "b": [2, 3]})))
    median = dataset.encoding.medians[0]
    assert found.tolist() == [[median, 2], [1, 3]]


def test_words_are_as_they_are_written(tmp_path):
    """TRUE is no True, 012 no 12, whatever else is in the new rows; 12 that came beside a gap is no 12.0."""
    words = [("TRUE", "A7"), ("FALSE", "12"), ("", "012"), ("TRUE", "B1"), ("FALSE", "C")]
    rows = "".join(f"{','.join(words[i % 5])},{i / 3},{i // 5 % 2}\n" for i in range(100))
    dataset = split(
        csv(written(tmp_path, "t,code,x,y\n" + rows), "y"),
        split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise=True,
    )  # fmt: skip
    assert dataset.features[1:] == ("t=?", "t=FALSE", "t=TRUE", "code=012", "code=12", "code=A7", "code=B1", "code=C")
    new = written(tmp_path, "t,code,x\nTRUE,012,1\nTRUE,12,2\n", "new.csv")
    columns = [column for column, kind in dataset.encoding.columns.items() if kind == "words"]
    found = dataset.encoding.of_frame(read(new, words=columns, key="FILE"))
    assert found[:, 1:].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0, 0, 0]]
    gap = pd.DataFrame({"t": ["TRUE"] * 2, "code": [12, None], "x": [1.0, 2.0]})
    assert dataset.encoding.of_frame(framed(gap))[0, 5] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [f"1,23{i}" for i in range(30)],
            r"numbers with one mark.* got '1,230' in .*, line 2, .*data.decimal=','",
        ),
        (
            [f"{1 + i % 28}.{1 + i // 28}.2024" for i in range(30)],
            r"must have dates as 2024-05-31, but got '1.1.2024' in .*line 2",
        ),
        (["now", "today"] * 15, None),
        ([2**53 + i for i in range(30)], r"a whole number up to 2\^53, since larger ones become alike"),
    ],
)
def test_what_looks_like_numbers(tmp_path, values, message):
    """Numbers with marks, words that pandas takes for times, numbers that float64 does not have."""
    rows = "".join(f'"{value}",{i % 2}\n' for i, value in enumerate(values))
    path = written(tmp_path, "x,y\n" + rows)
    if message is None:
        assert csv(path, "y").columns == {"x": "words"}
    else:
        with pytest.raises(ValueError, match=message):
            csv(path, "y")


def dated(n: int = 120) -> str:
    """Rows of twelve patients, a week apart, the last first; who is measured thrice on a day is there thrice."""
    rows = [f"p{i % 12},2024-{1 + i // 30:02}-{1 + i % 30 // 3 * 3:02},{i / 3},{i // 2 % 2}\n" for i in range(n)]
    return "patient,day,x,y\n" + "".join(reversed(rows))


def splits_of(table: Table, **options: float) -> dict[str, np.ndarray]:
    """Which rows are in each split, by the number x of each."""
    given = {"val_fraction": 0.2, "test_fraction": 0.2} | options
    dataset = split(table, split_seed=0, train_size=None, standardise=False, **given)
    column = dataset.features.index("x")
    return {s: getattr(dataset, f"x_{s}")[:, column].numpy().astype(np.float64) for s in ("train", "val", "test")}


def test_groups_stay_together(tmp_path):
    """No patient is in two splits; the column is no input, unless it is kept."""
    table = csv(written(tmp_path, dated()), "y", groups="patient")
    patient = {float(np.float32(x)): g for x, g in zip(table.numeric[:, -1], table.groups, strict=True)}
    there = [{patient[float(np.float32(x))] for x in rows} for rows in splits_of(table).values()]
    assert [len(one) for one in there] == [6, 3, 3]
    assert len(set.union(*there)) == 12
    assert "patient" not in table.columns
    assert "left out: patient (the rows are split by it)" in table.note
    kept = csv(written(tmp_path, dated()), "y", groups="patient", keep=["patient"])
    assert kept.columns["patient"] == "words"


def test_what_is_latest_is_tested_on(tmp_path):
    """Whatever stands before a validation row in time trains; rows of one day are not separated."""
    table = csv(written(tmp_path, dated()), "y", time="day")
    day = {float(np.float32(x)): t for x, t in zip(table.numeric[:, -1], table.times, strict=True)}
    train, val, test = ([day[float(np.float32(x))] for x in rows] for rows in splits_of(table).values())
    assert max(train) < min(val) <= max(val) < min(test)
    assert len(train) + len(val) + len(test) == 120
    assert 20 <= len(test) <= 27


def test_another_order_of_time_is_another_data_set(tmp_path):
    """The digest knows by what the rows were split."""
    path, options = written(tmp_path, dated()), {"split_seed": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    tables = [csv(path, "y", drop=["patient", "day"]), csv(path, "y", drop=["day"], groups="patient"),
              csv(path, "y", drop=["patient"], time="day")]  # fmt: skip
    digests = {split(table, train_size=None, standardise=True, **options).digest for table in tables}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "patent"}, "data.groups must name columns of .*, but got patent. Did you mean patient?"),
        ({"groups": "patient", "time": "day"}, "data.groups must be null where data.time splits the rows"),
        ({"time": "patient"}, "data.time must name a column of dates or numbers, but 'patient' of .* has words"),
        (
            {"groups": "gap"},
            "data.groups must name a column with a value in every row, .* 1 have none, the first in .*, line 2",
        ),
    ],
)
def test_splits_that_cannot_be(tmp_path, options, message):
    text = "\n".join(f"{line},{'' if i == 1 else i}" for i, line in enumerate(dated().splitlines()))
    with pytest.raises(ValueError, match=message):
        csv(written(tmp_path, text.replace("y,0", "y,gap", 1) + "\n"), "y", **options)


def test_a_group_that_spans_all(tmp_path):
    path = written(tmp_path, "g,x,y\n" + "".join(f"{'ab'[i // 59]},{i / 3},{i % 2}\n" for i in range(60)))
    with pytest.raises(ValueError, match="data.groups must have >= 3 groups, .*, but got 2"):
        splits_of(csv(path, "y", groups="g"))


def test_a_decimal_comma(tmp_path):
    """With data.decimal; a target with one is told, too."""
    rows = "".join(f"{i},5;{i % 7};{i // 3},{i % 10}\n" for i in range(60))
    path = written(tmp_path, "x;z;y\n" + rows)
    table = csv(path, "y", separator=";", decimal=",")
    assert (table.task, table.features) == ("regression", ("x", "z"))
    assert table.numeric[3].tolist() == [3.5, 3]
    assert table.target[11] == 3.1
    with pytest.raises(ValueError, match="one mark.* but got '0,5' in .*(?s:.*)but got '0,0' in .*'y'"):
        csv(path, "y", separator=";")
    with pytest.raises(ValueError, match="data.decimal must be '.' or ',', but got ':'"):
        csv(path, "y", separator=";", decimal=":")
