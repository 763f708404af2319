"""Splits, standardisation, label noise and orders."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from manyfit.data import sources, splits
from manyfit.data.splits import Dataset
from manyfit.data.table import Table

SPLITS = ("train", "val", "test")


def split(table: Table, **changes) -> Dataset:
    options = {"split_seed": 0, "val_fraction": 0.15, "test_fraction": 0.15, "train_size": None, "standardise": True}
    return splits.split(table, **(options | changes))


def numbered(table: Table) -> Table:
    """The table with the row's number as its first feature."""
    rows = np.arange(len(table.target), dtype=np.float64)
    return replace(table, numeric=np.column_stack([rows, table.numeric]), features=("row", *table.features))


def rows_of(dataset: Dataset) -> dict[str, list[int]]:
    """Which rows of a `numbered` table, prepared with standardise=False, are in each split."""
    return {s: getattr(dataset, f"x_{s}")[:, 0].int().tolist() for s in SPLITS}


def mixed(n: int = 60) -> Table:
    """A table with a text column; its rarest category occurs in row 0 only."""
    colour = np.array(["red", "green", "blue"])[np.arange(n) % 3]
    return replace(
        numbered(sources.pass_exam(n=n)), categorical={"colour": np.where(np.arange(n) == 0, "violet", colour)}
    )


@pytest.mark.parametrize("table", [sources.digits(), sources.diabetes()], ids=lambda t: t.name)
def test_splits_are_disjoint_and_together_hold_every_row(table):
    """Each row is in exactly one split; sizes are the rounded fractions."""
    n = len(table.target)
    rows = rows_of(split(numbered(table), standardise=False, val_fraction=0.1, test_fraction=0.2))
    assert len(rows["val"]) == round(0.1 * n)
    assert len(rows["test"]) == round(0.2 * n)
    assert sorted(rows["train"] + rows["val"] + rows["test"]) == list(range(n))


def test_rows_keep_their_targets():
    """The target of a row goes where its inputs go."""
    table = numbered(sources.digits())
    dataset = split(table, standardise=False)
    for s, rows in rows_of(dataset).items():
        assert getattr(dataset, f"y_{s}").tolist() == table.target[rows].tolist()
        assert np.array_equal(getattr(dataset, f"x_{s}").numpy(), table.numeric[rows].astype(np.float32))


def test_classification_is_stratified():
    """Each split holds each class in its share of the table, to within one and a half rows."""
    table = sources.breast_cancer()
    share = table.target.mean()
    dataset = split(table)
    for y in (dataset.y_train, dataset.y_val, dataset.y_test):
        assert abs(y.sum().item() - share * len(y)) <= 1.5


def test_types_and_shapes():
    """Inputs are float32, classes int64, real targets float32, and the digest fits MLflow's 36 characters."""
    classes, real = split(mixed()), split(sources.diabetes())
    for dataset, dtype in ((classes, torch.int64), (real, torch.float32)):
        d = len(dataset.features)
        assert dataset.x_mean.shape == dataset.x_std.shape == (d,)
        for s in SPLITS:
            x, y = getattr(dataset, f"x_{s}"), getattr(dataset, f"y_{s}")
            assert x.shape == (len(y), d)
            assert (x.dtype, y.dtype, y.dim()) == (torch.float32, dtype, 1)
        assert len(dataset.digest) <= 36


def test_standardisation_is_that_of_the_training_rows():
    """Training columns get mean 0 and deviation 1, and x_mean, x_std, y_mean, y_std lead back to the raw numbers."""
    table = sources.diabetes()
    dataset, raw = split(table), split(table, standardise=False)
    torch.testing.assert_close(dataset.x_train.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(dataset.x_train.std(0, correction=0), torch.ones(10))
    assert abs(dataset.y_train.mean()) < 1e-5
    for s in SPLITS:
        x, y = getattr(dataset, f"x_{s}"), getattr(dataset, f"y_{s}")
        torch.testing.assert_close(x * dataset.x_std + dataset.x_mean, getattr(raw, f"x_{s}"), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(y * dataset.y_std + dataset.y_mean, getattr(raw, f"y_{s}"), atol=1e-4, rtol=1e-5)


def test_without_standardisation_moments_are_neutral():
    """standardise=False leaves numbers as they are, and says so with means 0 and deviations 1."""
    raw = split(sources.diabetes(), standardise=False)
    assert (raw.y_mean, raw.y_std) == (0.0, 1.0)
    assert not raw.x_mean.any()
    assert (raw.x_std == 1).all()


def test_constant_columns_become_zero():
    """A column without variation gets deviation 1, even where rounding makes its computed deviation nonzero."""
    table = sources.iris()
    constant = np.full((150, 1), 0.1)
    dataset = split(replace(table, numeric=np.hstack([table.numeric, constant]), features=(*table.features, "c")))
    assert dataset.x_std[-1] == 1
    assert dataset.x_train[:, -1].abs().max() < 1e-6


def test_nothing_leaks_into_training():
    """Changing every validation and test row, numbers and categories, changes no training tensor."""
    table = mixed()
    rows = rows_of(split(table, standardise=False))
    held_out = rows["val"] + rows["test"]
    numeric, colour = table.numeric.copy(), table.categorical["colour"].copy()
    numeric[held_out, 1:] = 1e6
    colour[held_out] = "unseen"
    before, after = split(table), split(replace(table, numeric=numeric, categorical={"colour": colour}))
    assert before.features == after.features
    for name in ("x_train", "y_train", "x_mean", "x_std"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert not after.x_val[:, 3:].any()
    assert not after.x_test[:, 3:].any()


def test_categories_become_indicators():
    """A text column becomes one 0/1 column per category of the training rows, standardised or not."""
    table = mixed()
    dataset = split(table)
    rows = rows_of(split(table, standardise=False))
    categories = [name.removeprefix("colour=") for name in dataset.features[3:]]
    assert categories == sorted(set(table.categorical["colour"][rows["train"]]))
    for s in SPLITS:
        expected = table.categorical["colour"][rows[s], None] == np.array(categories)
        assert np.array_equal(getattr(dataset, f"x_{s}")[:, 3:].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("table", [sources.digits(), sources.diabetes()], ids=lambda t: t.name)
def test_train_size_takes_a_part_of_training_alone(table):
    """Any train_size keeps the validation and test rows, and is contained in every larger one."""
    whole = rows_of(split(numbered(table), standardise=False))
    larger: set[int] = set(whole["train"])
    for size in (len(whole["train"]), len(whole["train"]) - 1, 200, 20):
        rows = rows_of(split(numbered(table), standardise=False, train_size=size))
        assert (rows["val"], rows["test"]) == (whole["val"], whole["test"])
        assert len(set(rows["train"])) == size
        assert set(rows["train"]) <= larger
        larger = set(rows["train"])


def test_train_size_is_stratified():
    """A part of the training rows holds each class in its share, to within one row."""
    table = sources.breast_cancer()
    whole = split(table).y_train.float().mean()
    for size in (20, 99, 250):
        assert abs(split(table, train_size=size).y_train.sum() - whole * size) <= 1


def test_split_seed_chooses_the_rows():
    """The same split_seed gives the same tensors, another one other rows."""
    table = sources.wine()
    assert torch.equal(split(table).x_val, split(table).x_val)
    assert not torch.equal(split(table).x_val, split(table, split_seed=1).x_val)


def test_digest_follows_content_and_split():
    """Equal content and options give equal digests whatever the name; any change gives another."""
    table = mixed()
    other = table.numeric.copy()
    other[0, 0] += 1
    changed = [
        split(replace(table, numeric=other)),
        split(replace(table, target=1 - table.target)),
        split(replace(table, classes=("no", "yes"))),
        split(replace(table, categorical={"colour": np.roll(table.categorical["colour"], 1)})),
        split(table, split_seed=1),
        split(table, val_fraction=0.2),
        split(table, test_fraction=0.2),
        split(table, train_size=30),
        split(table, standardise=False),
    ]
    assert split(replace(mixed(), name="other")).digest == split(table).digest
    assert len({split(table).digest, *(dataset.digest for dataset in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 0.0}, r"data.val_fraction must be > 0 and < 1, but got 0.0"),
        ({"test_fraction": 1.5}, r"data.test_fraction must be > 0 and < 1, but got 1.5"),
        ({"val_fraction": float("nan")}, r"data.val_fraction must be > 0 and < 1, but got nan"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"val_fraction \+ data.test_fraction must be < 1, but got 0.5"),
        ({"val_fraction": 0.01}, r"data.val_fraction must leave every class in the val split, but got 0.01: 2 of 150"),
        ({"test_fraction": 0.001}, r"data.test_fraction must leave every class in the test split, but got 0.001"),
        ({"val_fraction": 0.5, "test_fraction": 0.49}, r"must leave every class in the train split, but got 0.5 \+ "),
        ({"train_size": 0}, r"data.train_size must be in 1..106, the rows of the training split, but got 0"),
        ({"train_size": 107}, r"data.train_size must be in 1..106, the rows of the training split, but got 107"),
        ({"train_size": 2}, r"data.train_size must leave every class in the train split, but got 2, which leaves 0"),
        ({"split_seed": -1}, r"data.split_seed must be in 0..2\*\*32-1, but got -1"),
    ],
)
def test_options_that_leave_no_split_are_refused(changes, message):
    """Fractions, train_size and seeds out of range raise, with the full key."""
    with pytest.raises(ValueError, match=message):
        split(sources.iris(), **changes)


@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.05, 0.5), (0.5, 0.05)])
@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_every_split_or_refused(fractions, seed):
    """With 3 rows of one class, either each split has one of them or the error names the fraction and the class."""
    target = np.r_[np.zeros(50), np.ones(47), np.full(3, 2)].astype(np.int64)
    table = Table("rare", np.arange(100.0)[:, None], target, "classification", ("a", "b", "c"), ("x0",))
    try:
        dataset = split(table, val_fraction=fractions[0], test_fraction=fractions[1], split_seed=seed)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(2 in getattr(dataset, f"y_{s}") for s in SPLITS)
    assert not refusal or ("_fraction must leave every class in the" in refusal and "'c'" in refusal)


def test_a_class_of_two_rows_is_refused():
    """Three splits need three rows of each class."""
    target = np.r_[np.zeros(50), np.ones(2)].astype(np.int64)
    table = Table("rare", np.arange(52.0)[:, None], target, "classification", ("a", "b"), ("x0",))
    with pytest.raises(ValueError, match=r"every class must have >= 3 rows.* but got 2 of class 'b' in 'rare'"):
        split(table)


def test_regression_fractions_that_leave_nothing_are_refused():
    """A regression needs at least one row in each split."""
    with pytest.raises(ValueError, match=r"data.val_fraction must leave a row in the val split, but got 0.001: 0 of"):
        split(sources.diabetes(), val_fraction=0.001)


@pytest.mark.parametrize("standardise", [True, False])
def test_numbers_beyond_float32_are_refused(standardise):
    """Inputs that would become inf in float32 raise instead."""
    table = sources.diabetes()
    with pytest.raises(ValueError, match=r"table 'diabetes' must fit into float32, but got .*e\+30"):
        split(replace(table, numeric=table.numeric * 1e305), standardise=standardise)
    with pytest.raises(ValueError, match=r"table 'diabetes' must fit into float32, but got .*e\+30"):
        split(replace(table, target=table.target * 1e305), standardise=standardise)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, r"task must be one of classification, regression, but got ranking in table 'iris'"),
        ({"features": ("a",)}, r"numeric must be \(150, features\), but got \(150, 4\)"),
        ({"numeric": np.full((150, 4), np.inf)}, r"numeric must be finite, or NaN, but got inf"),
        ({"target": np.zeros(150, np.int64)}, r"target must use each code 0..2, but got \[0\]"),
        ({"target": np.zeros(150)}, r"target must be int64 for a classification, but got float64"),
        ({"classes": ("one",)}, r"classes must be >= 2"),
        ({"categorical": {"c": np.array(["x"])}}, r"categorical must be \(150,\)"),
    ],
)
def test_a_table_that_no_source_should_return_is_refused(changes, message):
    """A user's own source is told what is wrong with its table."""
    with pytest.raises(ValueError, match=message):
        replace(sources.iris(), **changes)


def by_number(task: str, n: int = 103, **more: object) -> Table:
    """Rows that are known by their number."""
    rng = np.random.default_rng(0)
    target = np.sort(rng.integers(0, 3, n)) if task == "classification" else rng.normal(size=n)
    classes = ("a", "b", "c") if task == "classification" else ()
    return Table("rows", np.arange(n, dtype=np.float64)[:, None], target, task, classes, ("number",), **more)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_folds(task: str) -> None:
    """Every row is tested on once, in folds whose sizes differ by one; as many train in each; classes in proportion."""
    table = by_number(task)
    cut = [split(table, standardise=False, folds=5, fold=fold) for fold in range(5)]
    tested = torch.cat([one.x_test for one in cut])[:, 0].int().tolist()
    assert sorted(tested) == list(range(103))
    assert sorted(len(one.x_test) for one in cut) == [20, 20, 21, 21, 21]
    assert {len(one.x_train) for one in cut} == {103 - 21 - 15}
    assert len({one.digest for one in cut}) == 5
    for one in cut:
        rows = torch.cat([one.x_train, one.x_val, one.x_test])[:, 0].int().tolist()
        assert sorted(rows) == list(range(103))
        if task == "classification":
            share = torch.bincount(one.y_train) / len(one.y_train)
            np.testing.assert_allclose(share, np.bincount(table.target) / 103, atol=0.02)


def test_folds_leave_groups_whole() -> None:
    """No group is trained on and tested or validated on."""
    groups = np.arange(103) % 13
    tested = []
    for fold in range(4):
        one = split(by_number("regression", groups=groups), standardise=False, folds=4, fold=fold)
        parts = [{int(row) % 13 for row in x[:, 0]} for x in (one.x_train, one.x_val, one.x_test)]
        assert sum(map(len, parts)) == 13
        tested += one.x_test[:, 0].int().tolist()
    assert sorted(tested) == list(range(103))


@pytest.mark.parametrize(
    ("table", "folds", "words"),
    [
        (by_number("regression", groups=np.arange(103) % 4), 4, "data.folds must be < 4, the groups that data.groups"),
        (by_number("classification", n=15), 9, "data.folds must be <= [3-8], the rows of the rarest class, but got 9"),
        (by_number("regression", times=np.arange(103)), 4, "data.folds must be null with data.time"),
    ],
)
def test_folds_that_cannot_be(table: Table, folds: int, words: str) -> None:
    """Too few groups, too few rows of a class, time."""
    with pytest.raises(ValueError, match=words):
        split(table, folds=folds, fold=0)
