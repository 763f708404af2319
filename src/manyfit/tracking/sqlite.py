"""SQLite as a store of many writers."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "afs"}  # file systems


def write_ahead(path: Path) -> None:
    """Put a database, a new one too, in SQLite's write-ahead mode: a commit flushes once, readers block no writers.

    Not on a network file system, where it does not work.
    """
    mode = "DELETE" if _file_system(path.resolve()) in NETWORK else "WAL"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")


def begin(path: Path, kept: Path, make: Callable[[Path], None]) -> None:
    """Make a database that is there whole or not at all.

    Args:
        path: Where; nothing is there.
        kept: Where a copy is kept for the next one, if it can be; a damaged one is made anew.
        make: Fills one, which takes seconds.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / path.name
        if not _copied(kept, made):
            make(made)
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                beside = Path(shutil.copyfile(made, f"{kept}.{os.getpid()}"))
                beside.replace(kept)
        write_ahead(made)
        try:
            os.link(made, path)
        except FileExistsError:  # who does not take our lock has made one meanwhile
            return
        except OSError:  # a file system without links
            made.replace(path)


def _copied(source: Path, target: Path) -> bool:
    try:
        shutil.copyfile(source, target)
        with contextlib.closing(sqlite3.connect(target)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
            if sound and connection.execute("SELECT name FROM sqlite_master").fetchone():
                return True
    except (OSError, sqlite3.DatabaseError):
        pass
    target.unlink(missing_ok=True)
    return False


def _file_system(path: Path) -> str:
    mounts = Path("/proc/mounts")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    kinds: dict[PurePath, str] = {PurePath(point): kind for _, point, kind, *_ in map(str.split, lines)}
    return next((kinds[folder] for folder in path.parents if folder in kinds), "")
