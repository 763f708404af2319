"""The data sets that come along, the made ones, and OpenML on a local fixture."""

import inspect
import random
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Bunch

from manyfit.data import sources
from manyfit.data.splits import split
from manyfit.data.table import Table

SHAPES = {  # source: (rows, columns, classes)
    "digits": (1797, 64, 10),
    "breast_cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 0),
    "mnist": (5000, 784, 10),
    "mnist1d": (5000, 40, 10),
    "pass_exam": (500, 2, 2),
    "moons": (500, 2, 2),
    "circles": (500, 2, 2),
    "spirals": (500, 2, 2),
    "xor": (500, 2, 2),
}
MADE = ("pass_exam", "moons", "circles", "spirals", "xor")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of these tests' own, filled once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "manyfit"


@pytest.mark.parametrize("name", SHAPES)
def test_every_source_gives_a_table_that_can_be_split(name):
    """Rows, columns, classes and names are as documented, and the table goes through `split` with the defaults."""
    rows, columns, classes = SHAPES[name]
    table = getattr(sources, name)()
    assert table.name == name
    assert table.numeric.shape == (rows, columns)
    assert table.numeric.dtype == np.float64
    assert len(set(table.features)) == columns
    assert len(table.classes) == classes
    assert table.task == ("classification" if classes else "regression")
    dataset = split(table, split_seed=0, val_fraction=0.15, test_fraction=0.15, train_size=None, standardise=True)
    assert dataset.x_train.isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_a_source_gives_the_same_table_again(name):
    """Twice the same source, twice the same numbers; cached ones too."""
    first, second = getattr(sources, name)(), getattr(sources, name)()
    assert np.array_equal(first.numeric, second.numeric)
    assert np.array_equal(first.target, second.target)


@pytest.mark.parametrize("name", [*SHAPES, "csv", "openml"])
def test_a_source_has_a_config_with_its_own_defaults(name):
    """conf/data/<name>.yaml names the source and all of its options, each at the function's default."""
    config = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / f"{name}.yaml").read_text())
    source = getattr(sources, name)
    assert config.pop("_target_") == f"manyfit.data.sources.{name}"
    parameters = inspect.signature(source).parameters.values()
    plain = {p.name: [*p.default] if isinstance(p.default, tuple) else p.default for p in parameters}
    assert config == {name: "???" if default is inspect.Parameter.empty else default for name, default in plain.items()}
    assert inspect.get_annotations(source, eval_str=True)["return"] is Table


@pytest.mark.parametrize("name", MADE)
def test_made_data_follows_n_noise_and_seed(name):
    """The number of rows is n; another seed or noise gives other points; no class is much larger than another."""
    source = getattr(sources, name)
    table = source(n=301, noise=0.05, seed=4)
    assert len(table.target) == 301
    assert not np.array_equal(table.numeric, source(n=301, noise=0.05, seed=5).numeric)
    assert np.bincount(table.target).min() > 100


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 9}, r"data.n must be a whole number >= 10, but got 9"),
        ({"n": 100.0}, r"data.n must be a whole number >= 10, but got 100.0"),
        ({"noise": -1.0}, r"data.noise must be >= 0, but got -1.0"),
        ({"seed": -1}, r"data.seed must be in 0..2\*\*32-1, but got -1"),
    ],
)
def test_made_data_refuses_what_it_cannot_make(name, changes, message):
    """Out-of-range options raise, with the full key."""
    with pytest.raises(ValueError, match=message):
        getattr(sources, name)(**changes)


def test_pass_exam_is_the_lectures_example():
    """Without noise, the grade is linear, 50 passes, a line separates, and (4, 5) is on the passing side."""
    grades, passed = sources.pass_exam(task="regression", noise=0), sources.pass_exam(noise=0)
    assert np.allclose(grades.target, passed.numeric @ [10, 5])
    assert grades.target.min() >= 0
    assert grades.target.max() <= 100
    assert np.array_equal(passed.target, (grades.target >= 50).astype(int))
    line = LogisticRegression(C=1e6, max_iter=10_000).fit(passed.numeric, passed.target)
    assert line.score(passed.numeric, passed.target) > 0.995
    assert passed.classes[line.predict([[4, 5]])[0]] == "pass"
    with pytest.raises(ValueError, match=r"data.task must be one of classification, regression, but got 'auto'"):
        sources.pass_exam(task="auto")


def test_spirals_have_as_many_arms_as_asked():
    """An arm per class, the same number of points on each, all within the unit circle; not separable by lines."""
    table = sources.spirals(n=600, noise=0, classes=3, turns=2)
    assert np.bincount(table.target).tolist() == [200, 200, 200]
    assert np.linalg.norm(table.numeric, axis=1).max() <= 1
    assert LogisticRegression().fit(table.numeric, table.target).score(table.numeric, table.target) < 0.6
    for key, value in (("turns", 0), ("classes", 1)):
        with pytest.raises(ValueError, match=f"data.{key} must be"):
            sources.spirals(**{key: value})


def test_xor_labels_opposite_signs():
    """Without noise, class 1 is where the coordinates' signs differ."""
    table = sources.xor(noise=0)
    assert np.array_equal(table.target, (table.numeric.prod(axis=1) < 0).astype(int))


def test_mnist1d_is_the_authors_and_leaves_no_trace(monkeypatch, tmp_path, capfd):
    """It equals the generator's output, prints nothing, and leaves the global random numbers where they were."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    table = sources.mnist1d()
    drawn = (random.random(), np.random.random(), torch.rand(()).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn == (random.random(), np.random.random(), torch.rand(()).item())
    assert np.array_equal(table.numeric, np.concatenate([made["x"], made["x_test"]]))
    assert np.array_equal(table.target, np.concatenate([made["y"], made["y_test"]]))
    assert capfd.readouterr() == ("", "")


def test_a_damaged_cache_is_made_anew(cache):
    """A torn cache file is replaced, and no temporary file stays behind."""
    whole = sources.mnist1d()
    (file,) = cache.glob("mnist1d-*.npz")
    for content in (file.read_bytes()[:5000], b"", b"nonsense"):
        file.write_bytes(content)
        assert np.array_equal(sources.mnist1d().numeric, whole.numeric)
        with np.load(file) as stored:
            assert np.array_equal(stored["x"], whole.numeric)
    assert {path.suffix for path in cache.iterdir()} == {".npz"}


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    """Where the cache folder cannot be made, the table is made all the same."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(sources.mnist1d().target) == 5000


def openml_bunch(**changes) -> Bunch:
    """What fetch_openml returns for a table with a nominal target, a nominal column of digits and two of numbers."""
    data = pd.DataFrame(
        {
            "age": np.arange(40.0),
            "children": np.arange(40) % 4,
            "ward": pd.Categorical(["1", "2", "10", "1"] * 10),
        }
    )
    target = pd.Series(pd.Categorical(["no", "yes"] * 20), name="ill")
    frame = data.assign(ill=target)
    bunch = Bunch(data=data, target=target, frame=frame, target_names=["ill"], details={"name": "patients"})
    return Bunch(**(bunch | changes))


@pytest.mark.parametrize(
    ("name_or_id", "asked"),
    [("patients", {"name": "patients", "version": "active"}), (61, {"data_id": 61}), ("61", {"data_id": 61})],
)
def test_openml_tables_keep_their_nominal_columns(monkeypatch, name_or_id, asked):
    """Nominal columns are categories even where they look like numbers; names and numbers are told apart."""
    calls = []
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **kwargs: calls.append(kwargs) or openml_bunch())
    table = sources.openml(name_or_id)
    assert calls == [{**asked, "as_frame": True, "target_column": "default-target"}]
    assert (table.name, table.task, table.classes) == ("patients", "classification", ("no", "yes"))
    assert table.features == ("age", "children")
    assert set(table.categorical["ward"]) == {"1", "2", "10"}


def test_openml_errors_point_to_the_option(monkeypatch):
    """No network, an unknown name, an empty cell and several targets each raise in the form of the house."""

    def unreachable(**_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", unreachable)
    with pytest.raises(ValueError, match=r"data.name_or_id must name a data set that OpenML can deliver, but got 'x'"):
        sources.openml("x")
    hole = openml_bunch().frame
    hole.loc[6, "age"] = np.nan
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: openml_bunch(frame=hole))
    with pytest.raises(ValueError, match=r"data.name_or_id must have a value .* in OpenML's 'x', row 7, column 'age'"):
        sources.openml("x")
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: openml_bunch(target_names=["a", "b"]))
    with pytest.raises(ValueError, match=r"data.target must name one column, but got \['a', 'b'\]"):
        sources.openml("x")
