"""Commands, and the uploaders of tests, as forks of a process that has imported what takes seconds.

Tests of how a process starts (imports, first words, the uploader's own command line) start a real one with subprocess.
"""

import atexit
import contextlib
import functools
import gc
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from functools import partialmethod
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from manyfit.tracking import journal
from manyfit.tracking.tracker import Tracker

ROOT = Path(__file__).parent.parent

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = """
manyfit manyfit.tracking.uploader mlflow.store.tracking.sqlalchemy_store mlflow.pytorch
torch torch.export._trace torch.export.pt2_archive._package pytorch_lightning optuna hydra pandas scipy.stats
manyfit.app manyfit.data.sources manyfit.sweeps.conclusion manyfit.training.recording
sklearn.datasets sklearn.model_selection scipy.io.arff matplotlib.backends.backend_agg
"""
SERVER.set_forkserver_preload(PRELOADED.split())


def command(
    folder: Path, *overrides: str, run: Path = ROOT / "run.py", seconds: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python run.py`, from its start to its end."""
    with started(folder, *overrides, run=run, **environment) as process:
        said, errors = process.communicate(seconds)
        assert process.returncode is not None
        return subprocess.CompletedProcess(list(overrides), process.returncode, said, errors)


@contextlib.contextmanager
def started(
    folder: Path,
    *overrides: str,
    run: Path = ROOT / "run.py",
    alone: bool = False,
    new: bool = False,
    **environment: str,
) -> Iterator["Started"]:
    """`python run.py` in a process of its own, which is killed if it is left.

    With `alone` it is in a group of its own, with `new` MLflow makes the tables of a store that is not there.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        given = (run, list(overrides), str(folder), {**os.environ, **environment}, str(out), str(err))
        process = SERVER.Process(target=_be_the_command, args=(*given, alone, "" if new else tables()))
        process.start()
        try:
            yield Started(process, out, err)
        finally:
            process.kill()
            process.join()


class Started:
    """A command at work, in the words of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess, out: Path, err: Path) -> None:
        assert process.pid is not None
        self.pid, self.process, self.out, self.err = process.pid, process, out, err

    @property
    def returncode(self) -> int | None:
        """None while it is at work; of a signal its negative number."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """To it alone."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """By SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """By SIGKILL."""
        self.process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it wrote."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("run.py", timeout, self.err.read_text())
        return self.out.read_text(), self.err.read_text()


def _be_the_command(
    run: Path, overrides: list[str], folder: str, environment: dict[str, str], out: str, err: str, alone: bool, db: str
) -> None:
    from manyfit.tracking.store import DEFAULTS  # set by an import, but it is of long ago

    if alone:
        os.setsid()
    os.chdir(folder)
    _speak(out, err)
    os.environ.clear()
    os.environ.update(DEFAULTS | environment)
    warnings.resetwarnings()
    sys.argv, sys.path[0] = [str(run), *overrides], str(run.parent)
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
    _uploaders_by_a_fork(db)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _speak(out: str, err: str) -> None:
    """Into these files, whoever writes."""
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


# What delivers to the store


@functools.cache
def tables() -> str:
    """A database with MLflow's tables, which take more than a second to make."""
    from manyfit.tracking import upkeep
    from manyfit.tracking.store import Store

    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    upkeep.quiet()
    Store(journal.default_uri(root), root)
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as source, sqlite3.connect(root / "copy.db") as target:
        source.backup(target)
    return str(root / "copy.db")


def _uploaders_by_a_fork(db: str) -> None:
    """What uploaders import takes seconds: a mother, forked here while there are no threads, has it and bears them."""
    ours, hers = multiprocessing.Pipe()
    if os.fork() == 0:
        ours.close()
        os.setsid()  # Ctrl-C does not reach an uploader
        _bear(hers, db)
    hers.close()
    Tracker._start_uploader = partialmethod(_ask, mother=ours)  # type: ignore[assignment,method-assign]


@contextlib.contextmanager
def forked_uploaders() -> Iterator["partialmethod[Uploader]"]:
    """What can stand for `Tracker._start_uploader` in this process."""
    ours, hers = multiprocessing.Pipe()
    mother = SERVER.Process(target=_bear, args=(hers, tables()))
    mother.start()
    hers.close()
    yield partialmethod(_ask, mother=ours)
    ours.close()
    mother.join()


def _ask(tracker: Tracker, mother: Connection) -> "Uploader":
    over, end = os.pipe()
    mother.send((tracker._journal.folder, tracker.root, tracker.uri, dict(os.environ)))
    reduction.send_handle(mother, end, 0)
    os.close(end)
    return Uploader(over)


def _bear(orders: Connection, db: str) -> NoReturn:
    """Fork an uploader for each order, until who gives them is gone; then they see that they are orphans."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    mother = os.getpid()
    with contextlib.suppress(EOFError):
        while True:
            order, end = orders.recv(), reduction.recv_handle(orders)
            if os.fork() == 0:
                _deliver(*order, end, mother, db)
            os.close(end)
    os._exit(0)


def _deliver(
    folder: Path, root: Path, uri: str, environment: dict[str, str], end: int, owner: int, db: str
) -> NoReturn:
    """As `python -m manyfit.tracking.uploader` does, but a new store has its tables from a copy."""
    from mlflow.store.db import utils

    from manyfit.tracking import uploader
    from manyfit.tracking.store import DEFAULTS

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.disable()
        os.chdir(root)
        os.environ.clear()
        os.environ.update(DEFAULTS | environment | {"MLFLOW_TRACKING_URI": uri})
        _speak(str(folder / journal.LOG), str(folder / journal.LOG))
        store = journal.mlruns(root) / "mlflow.db"
        if db and uri == journal.default_uri(root) and not store.exists():
            with tempfile.TemporaryDirectory(dir=store.parent) as place, contextlib.suppress(FileExistsError):
                os.link(shutil.copy(db, place), store)
        utils.MAX_RETRY_COUNT = 2  # where no database answers, MLflow asks for 100 seconds
        code = 0 if uploader.attend(folder, owner) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(end, bytes([code]))
        os._exit(code)


class Uploader:
    """A uploader at work, in the words of `subprocess.Popen`; `over` is readable once it has ended."""

    def __init__(self, over: int) -> None:
        self.over = over
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it is at work."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """For its end."""
        if self.returncode is None:
            if not select.select([self.over], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("uploader", timeout or 0)
            code = os.read(self.over, 1)
            os.close(self.over)
            self.returncode = code[0] if code else -signal.SIGKILL
        return self.returncode
