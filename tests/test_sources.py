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
from PIL import Image
from safetensors.numpy import save_file
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


@pytest.mark.parametrize("name", [*SHAPES, "csv", "openml", "arrays", "images"])
def test_a_source_has_a_config_with_its_own_defaults(name):
    """conf/data/<name>.yaml names the source and all of its options, each at the function's default."""
    config = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / f"{name}.yaml").read_text())
    source = getattr(sources, name)
    assert config.pop("_target_") == f"manyfit.data.sources.{name}"
    assert config.pop("standardise", "channels") == "channels"
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
    """No network, an unknown name, a cell that is no number and several targets raise in the form of the house."""

    def unreachable(**_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", unreachable)
    with pytest.raises(ValueError, match=r"data.name_or_id must name a data set that OpenML can deliver, but got 'x'"):
        sources.openml("x")
    endless = openml_bunch().frame
    endless.loc[6, "age"] = np.inf
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: openml_bunch(frame=endless))
    with pytest.raises(ValueError, match=r"name_or_id must have a finite .* in OpenML's 'x', row 7, column 'age'"):
        sources.openml("x")
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: openml_bunch(target_names=["a", "b"]))
    with pytest.raises(ValueError, match=r"data.target must name one column, but got \['a', 'b'\]"):
        sources.openml("x")


X, Y = np.arange(60 * 2 * 3, dtype=np.float32).reshape(60, 2, 3), np.arange(60) % 3


def saved(folder: Path, kind: str, x: np.ndarray = X, y: np.ndarray = Y) -> dict[str, str]:
    """Arrays as a file of a kind: the options that name it."""
    path = folder / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    elif kind == "npy":
        np.save(path, x)
        np.save(folder / "y.npy", y)
        return {"path": str(path), "targets": str(folder / "y.npy")}
    elif kind == "pt":
        torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y), "about": "mine"}, path)
    else:
        save_file({"x": x, "y": y}, path)
    return {"path": str(path)}


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "safetensors"])
def test_arrays_of_any_shape(tmp_path, kind):
    """Each kind of file gives the same table, which knows the shape of an example."""
    table = sources.arrays(**saved(tmp_path, kind))
    assert (table.name, table.task, table.classes, table.shape) == ("mine", "classification", ("0", "1", "2"), (2, 3))
    assert np.array_equal(table.numeric, X.reshape(60, 6))
    assert table.numeric.dtype == np.float32
    dataset = split(table, split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise="channels")
    assert dataset.shape == (2, 3)
    assert dataset.x_mean.unique().numel() == 1


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (np.array(["cat", "dog"] * 30), "classification", ("cat", "dog")),
        (np.array([False, True] * 30), "classification", ("0", "1")),
        (np.arange(60) / 7, "regression", ()),
        ((np.arange(60) % 2)[:, None], "classification", ("0", "1")),
    ],
)
def test_targets_of_arrays(tmp_path, y, task, classes):
    """Words, whole numbers and true/false are classes; real numbers are predicted as such."""
    table = sources.arrays(**saved(tmp_path, "npz", y=y))
    assert (table.task, table.classes) == (task, classes)


def test_channels_are_standardised_each(tmp_path):
    """Of three axes the first is that of channels, each with a mean and a deviation of its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 3, 4, 5)) * np.array([1.0, 10, 100])[:, None, None] + 7
    table = sources.arrays(**saved(tmp_path, "npz", x=x, y=np.arange(90) % 2))
    dataset = split(table, split_seed=0, val_fraction=0.2, test_fraction=0.2, train_size=None, standardise="channels")
    scaled = dataset.x_train.unflatten(1, (3, 4, 5))
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert dataset.x_std.unique().numel() == 3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"y": Y[:-1]}, {}, r"data.y must be \(60,\), a target for each example, but got \(59,\)"),
        ({"y": np.eye(3)[Y]}, {}, r"data.y must be \(60,\), a target for each example, but got \(60, 3\)"),
        ({"y": Y * 2}, {}, r"data.y must have an example of every class 0..4, but there is none of 1, 3\."),
        ({"y": Y - 1}, {}, r"data.y must be class numbers >= 0, but got -1"),
        ({"y": Y / 2}, {"task": "classification"}, "data.y must be whole numbers in a classification"),
        ({"y": np.full(60, np.nan)}, {}, "data.y must be finite numbers in a regression"),
        ({}, {"classes": ["a"] * 4}, "data.y must have an example of every class 0..3, but there is none of 3"),
        ({}, {"classes": ["a"]}, "data.classes must name 3 classes, but got 1"),
        ({}, {"x": "images"}, "data.x must name an array of .*, one of x, y, but got 'images'"),
        ({}, {"task": "ranking"}, "data.task must be one of auto, classification, regression, but got 'ranking'"),
        ({"x": X[:, 0, 0]}, {}, r"data.x must be numbers \(n, \*shape\), but got float32 \(60,\)"),
        ({"x": np.where(X == 13, np.nan, X)}, {}, "data.x must be finite, but example 2 has NaN or inf"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        sources.arrays(**saved(tmp_path, "npz", **changes), **options)


@pytest.mark.parametrize("kind", ["npz", "npy", "pt", "safetensors", "txt"])
def test_files_that_hold_no_arrays(tmp_path, kind):
    (tmp_path / f"mine.{kind}").write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=rf"data.path must name a .*, but got '.*mine.{kind}'"):
        sources.arrays(str(tmp_path / f"mine.{kind}"), targets="y.npy")


def pictures(folder: Path, **sizes: tuple[int, int]) -> str:
    """Images of one brightness for each class."""
    for shade, (name, (height, width)) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[..., i % 3] = 50 * (shade + 1)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


def test_images_of_a_folder_each(tmp_path):
    """Classes are called as the folders; channels come first; 0 to 1."""
    path = pictures(tmp_path / "pets", cat=(4, 5), dog=(4, 5))
    table = sources.images(path)
    assert (table.name, table.classes, table.shape) == ("pets", ("cat", "dog"), (3, 4, 5))
    assert table.target.tolist() == [0] * 6 + [1] * 6
    example = table.numeric[7].reshape(3, 4, 5)
    assert (example[1] == np.float32(100 / 255)).all()
    assert not example[[0, 2]].any()
    assert sources.images(path, colours=False).shape == (4, 5)
    assert sources.images(path, size=(2, 3)).shape == (3, 2, 3)


def test_images_that_cannot_be_used(tmp_path):
    """A folder, a size, a file is named."""
    with pytest.raises(ValueError, match="data.path must name a folder, but got 'none'. There is none of that name in"):
        sources.images("none")
    with pytest.raises(ValueError, match="data.path must be a folder with a folder of images for each class"):
        sources.images(pictures(tmp_path / "one", cat=(2, 2)))
    deep = tmp_path / "deep"
    pictures(deep, cat=(2, 2), dog=(2, 2))
    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(deep / "dog" / "deep.png")
    with pytest.raises(ValueError, match="'.*deep.png', which cannot be decoded .its numbers are of mode I;16"):
        sources.images(str(deep))
    (deep / "dog" / "deep.png").unlink()
    (deep / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="'.*gone.png', which cannot be decoded"):
        sources.images(str(deep))
    mixed = pictures(tmp_path / "mixed", cat=(4, 5), dog=(3, 5))
    with pytest.raises(ValueError, match=r"data.size must be given .* 4 x 5 pixels, .*dog/0.png' has 3 x 5"):
        sources.images(mixed)
    (Path(mixed) / "dog" / "torn.png").write_bytes((Path(mixed) / "dog" / "0.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="got '.*dog/torn.png', which cannot be decoded"):
        sources.images(mixed, size=(4, 4))
