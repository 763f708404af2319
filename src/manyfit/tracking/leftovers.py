"""What killed processes leave lying about, and nobody needs: half a file, a folder that nobody has seen, a lock."""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from manyfit.config import place
from manyfit.tracking import journal

STALE = 3600.0  # seconds without a change: whatever makes such a thing takes seconds
OWNER = re.compile(r"(?P<host>[\w-]+)\.\d+\.[0-9a-f]{8}\.lock")  # sweeps/locks.py
OTHER = re.compile(r"[^A-Za-z0-9_-]+")


def find(root: Path) -> list[Path]:
    """All that is there of a folder and of the user's cache, and has not changed for a while."""
    found = [*_half_written(journal.mlruns(root)), *_locks(journal.mlruns(root))]
    return sorted(path for path in found if not path.is_symlink() and _age(path) > STALE)


def remove(path: Path) -> None:
    """One of them; another may have done it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.suffix == ".lock":
        remove_unheld(path)
    else:
        path.unlink(missing_ok=True)


def remove_unheld(path: Path) -> None:
    """A lock goes while we hold it: then nobody else does."""
    if (lock := journal.claim(path)) is not None:
        path.unlink(missing_ok=True)
        os.close(lock)


def _half_written(mlruns: Path) -> Iterator[Path]:
    yield from mlruns.glob("checkpoints/*/.*.tmp")  # training/checkpoints.py
    yield from place.cache().glob("mlflow-*.db.[0-9]*")  # sqlite.py, as the next two
    yield from place.cache().glob("optuna-*.db.[0-9]*")
    yield from (path.parent for path in mlruns.glob(".*/*.db") if re.fullmatch(r"\.[a-z0-9_]{8}", path.parent.name))
    for folder in mlruns.glob("spool/.[0-9]*"):  # a session before anybody could see it
        if not journal.alive(folder):
            yield folder


def _locks(mlruns: Path) -> Iterator[Path]:
    """Those by which a process of this machine showed that it is alive, which it is no more.

    Its number says nothing: containers of one host name that share a folder each count their own.
    """
    here = OTHER.sub("-", platform.node())
    for path in mlruns.glob("locks/*.lock"):
        owner = OWNER.fullmatch(path.name)
        if owner and owner["host"] == here and _free(path):
            yield path


def _free(path: Path) -> bool:
    try:
        lock = journal.claim(path)
    except OSError:  # somebody else's, or gone
        return False
    if lock is not None:
        os.close(lock)
    return lock is not None


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
