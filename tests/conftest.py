"""What tests share: composing a config as the command does, and trainings that leave nothing behind."""

import contextlib
import functools
import math
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.forkserver import _forkserver  # type: ignore[attr-defined]
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from PIL import Image
from sklearn.utils import Bunch
from torch import nn

from forked import SERVER, forked_uploaders
from forked import command as command
from forked import started as started
from hydra_plugins.manyfit.composing import Composer
from manyfit import curves
from manyfit.config.schema import Config
from manyfit.data.encoding import Encoding
from manyfit.experiments import claims
from manyfit.parallel import workers
from manyfit.tracking.tracker import Tracker
from manyfit.training.trained import Result

if TYPE_CHECKING:
    from pgserver import PostgresServer

    from swept import FakeSweep

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started with & ignores Ctrl-C, and so would its runs
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise one started with nohup

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"

Compose = Callable[..., Config]


def options(group: str) -> list[str]:
    """Every option of a config group, by listing its folder."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def assert_same_bits(a: Result, b: Result) -> None:
    """Every metric of every epoch and the best weights are identical; only the clock may differ."""
    assert set(a.metrics) == set(b.metrics)
    for name in set(a.metrics) - {"time/seconds"}:
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name], err_msg=name)
    assert torch.equal(a.weights, b.weights)
    assert a.test == b.test


def judged_by(name: str) -> ModuleType:
    """What judges one of our experiments: the file beside its YAML."""
    return claims.load(ROOT / "experiments" / f"{name}.py")


def made(config: Config, end: float) -> Result:
    """A result whose validation loss falls to `end`; with NaN it diverged."""
    val = np.r_[2.0, 1.5, end]
    metrics = {"loss/train": val, "loss/val": val, "accuracy/train": 1 - val / 4, "accuracy/val": 1 - val / 4}
    summary = curves.summarise(val, val, 2.3)
    reason = "finished" if math.isfinite(end) else "diverged"
    test = {"accuracy/test": 1 - end / 2}
    example = np.zeros((1, 2), np.float32)
    encoding = Encoding((), {}, None, {})
    return Result(
        config,
        metrics,
        summary,
        test,
        0.1,
        reason,
        nn.Identity(),
        torch.zeros(1),
        example,
        encoding,
        (),
        ("CPU",),
        "native",
    )


def epochs_stored(folder: Path, of: str = "*") -> int:
    """How many validation losses are in the store, read without disturbing who may be making its tables.

    With `of="distinct run_uuid"` of how many runs.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True)) as base:
            return int(base.execute(f"select count({of}) from metrics where key = 'loss/val'").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


@functools.cache
def _composer() -> Composer:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    return Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))


def build(*overrides: str) -> Config:
    """From overrides, as on the command line, to the checked Config; composed as the jobs of a sweep are."""
    return _composer().load(overrides, 0).config()


@pytest.fixture(scope="session")
def composed() -> Compose:
    """A function from overrides, as on the command line, to the checked Config."""
    return build


@pytest.fixture(autouse=True)
def _same_path() -> Iterator[None]:
    """Ray, and MLflow with a model that brings its code, put folders first; tests trust what is beside them."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Tests that draw examples draw the same ones every time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def postgresql() -> Iterator["PostgresServer"]:
    """A real server for tests that share it; its user must see the folder, which those of pytest forbid."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # pgserver's lock file; unset, there would be a warning
        import pgserver

        with pgserver.get_server(Path(folder) / "postgresql") as server:
            yield server


@pytest.fixture
def database(postgresql: "PostgresServer") -> str:
    """The address of an empty database."""
    name = f"d{uuid.uuid4().hex}"
    postgresql.psql(f"create database {name};")
    return postgresql.get_uri(name).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the working directory a table with numbers and words, which OpenML answers, too; arrays; images."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=120), "colour": rng.choice(["red", "green", "blue"], 120)})
    frame["y"] = np.where(frame["size"] + (frame["colour"] == "red") > 0.3, "yes", "no")
    frame.to_csv(tmp_path / "table.csv", index=False)
    bunch = Bunch(
        frame=frame, data=frame[["size", "colour"]], target=frame["y"], target_names=["y"], details={"name": "fixture"}
    )
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: bunch)
    np.savez(tmp_path / "arrays.npz", x=rng.normal(size=(60, 2, 7)), y=np.arange(60) % 3)
    for name, shade in (("dark", 60), ("light", 180)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, shade, (9, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "table.csv"


@pytest.fixture(scope="module")
def _mother_of_uploaders() -> Iterator[Any]:
    with forked_uploaders() as start:
        yield start


@pytest.fixture
def forked_uploader(_mother_of_uploaders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who delivers is a process as ever, but need not import for it what takes seconds."""
    monkeypatch.setattr(Tracker, "_start_uploader", _mother_of_uploaders)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks of who has imported what takes seconds; a worker ends with its parent, which is another then."""
    _forkserver.ensure_running()
    parent = _forkserver._forkserver_pid  # type: ignore[attr-defined]
    monkeypatch.setattr(workers, "multiprocessing", SimpleNamespace(get_context=lambda _: SERVER))
    monkeypatch.setattr(workers, "os", SimpleNamespace(getpid=lambda: parent))


class Normed(nn.Module):
    """A user's module: not a stack of dense layers, with batch statistics and dropout."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_features, 16), nn.BatchNorm1d(16), nn.ELU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        out: torch.Tensor = self.head(self.body(x))
        return out


@pytest.fixture
def swept(composed: Compose) -> "FakeSweep":
    """Three rates with two optimizers and four seeds, as if trained."""
    from swept import FakeSweep, at, by_rate

    sweep = FakeSweep(composed("data=iris", "epochs=2"), by_rate)
    options = [composed("data=iris", "epochs=2", f"optimizer={name}") for name in ("adam", "sgd")]
    jobs = [at(config, lr, seed) for config in options for lr in (1e-3, 1e-2, 1e-1) for seed in range(4)]
    sweep.train(dict(enumerate(jobs)))
    sweep.calls.clear()
    return sweep


def interrupted(action: Callable[[], object], seconds: float) -> int:
    """Do it again and again while Ctrl-C comes at any moment of it; how often that was."""
    count, within, done = 0, list[bool](), threading.Event()

    def stop(*_: object) -> None:
        if within:
            within.clear()
            raise KeyboardInterrupt

    def send(to: int) -> None:
        while not done.wait(random.uniform(1e-4, 1e-3)):
            signal.pthread_kill(to, signal.SIGUSR1)

    before, end = signal.signal(signal.SIGUSR1, stop), time.monotonic() + seconds
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    sender = threading.Thread(target=send, args=[threading.get_ident()])
    sender.start()
    try:
        while time.monotonic() < end:
            with contextlib.suppress(KeyboardInterrupt):
                within.append(True)
                while True:
                    action()
            count += 1
    finally:
        done.set()
        sender.join()
        sys.setswitchinterval(usual)
        signal.signal(signal.SIGUSR1, before)
    return count
