"""SQLite as a store of many writers."""

import contextlib
import filecmp
import glob
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeVar

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "afs"}  # file systems

BESIDE = ("", "-wal", "-shm", "-journal")  # a database and what SQLite keeps beside it
STILL = 3.0  # seconds without a write, after which nobody is making a database's tables any more
T = TypeVar("T")


@dataclass(frozen=True)
class Tables:
    """The tables of a library that keeps what it has in a database.

    Attributes:
        make: Fills a new database, which takes seconds.
        kept: Where a copy of a new one is kept for the next, if it can be.
        names: Of its tables.
        own: Which rows of a table the library makes itself, in SQL; all others are what a user has.
    """

    make: Callable[[Path], None]
    kept: Path
    names: Collection[str]
    own: Mapping[str, str] = field(default_factory=dict)


def opened(path: Path, tables: Tables, opens: Callable[[], T], say: Callable[[str], None]) -> T:
    """Open a database, which is made before where there is none, or none but what a killed process left half made.

    Args:
        path: Where.
        tables: Whose.
        opens: Opens it, and fails if it is half made. Only one process at a time may be here.
        say: Told in a sentence that a half-made one was set aside, or what one that is gone has left beside it.
    """
    if not path.exists():
        begin(path, tables.kept, tables.make, say)
    try:
        if path.stat().st_size:
            return opens()
    except Exception:
        if not half_made(path, tables):
            raise
    while half_made(path, tables) and 0 <= _age(path) < STILL:  # another may be making it
        time.sleep(0.5)
    if half_made(path, tables):
        aside = _set_aside(path, "half-made", BESIDE)
        say(f"{path} was left half made, with nothing in it, and is now {aside}; it is made anew")
        begin(path, tables.kept, tables.make, say)
    return opens()


def half_made(path: Path, tables: Tables) -> bool:
    """Whether a table of the library's is missing, or which revision they are, and a user has nothing in the others."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            ours = found & set(tables.names)
            if len(ours) == len(set(tables.names)) and revision(path):
                return False
            strange = {name for name in found - ours if not name.startswith(("alembic_", "_alembic_", "sqlite_"))}
            return not strange and not any(_filled(connection, name, tables.own.get(name, "FALSE")) for name in ours)
    except sqlite3.Error:  # locked, or no database at all: not ours to move
        return False


def _filled(connection: sqlite3.Connection, table: str, own: str) -> bool:
    """Whether there are rows in a table but those that are its library's own."""
    return connection.execute(f'SELECT 1 FROM "{table}" WHERE ({own}) IS NOT TRUE').fetchone() is not None


def _age(path: Path) -> float:
    """Seconds since the last write."""
    files = [Path(f"{path}{ending}") for ending in BESIDE]
    return time.time() - max(file.stat().st_mtime for file in files if file.exists())


def _set_aside(path: Path, why: str, endings: Sequence[str]) -> str:
    """Give a database, or what is beside it, another name, which it keeps; the new name, without an ending.

    The database goes first: what is left without it is set aside before there is another.
    """
    aside = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}")
    for ending in endings:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside.name


def _clear_for(path: Path, say: Callable[[str], None]) -> None:
    """A database that is gone, removed by hand perhaps, may have left what SQLite would write into the next one."""
    left = [ending for ending in BESIDE if ending and Path(f"{path}{ending}").exists()]
    if left and not path.exists():
        aside = _set_aside(path, "left", left)
        say(f"{path} is new; what was left of one that is gone is kept as {aside}{' and '.join(left)}")


def revision(path: Path) -> str | None:
    """Which of its library's schemas a database has, as alembic notes it; None: it does not say."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def copied(path: Path, name: str) -> Path:
    """A copy of a database beside it, whole even while others write to it; if there is one like it, that one.

    Args:
        path: Of the database.
        name: What the name of the copy begins with; the time follows.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / path.name
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(made)) as target:
            source.backup(target)
        for earlier in path.parent.glob(f"{glob.escape(name)}.*"):
            if filecmp.cmp(earlier, made, shallow=False):
                return earlier
        copy = path.with_name(f"{name}.{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
        return made.replace(copy)


def write_ahead(path: Path) -> None:
    """Put a database, a new one too, in SQLite's write-ahead mode: a commit flushes once, readers block no writers.

    Not on a network file system, where it does not work.
    """
    mode = "DELETE" if _file_system(path.resolve()) in NETWORK else "WAL"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")


def begin(path: Path, kept: Path, make: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Make a database that is there whole or not at all.

    Args:
        path: Where; nothing is there, but perhaps what one that is gone has left beside it.
        kept: Where a copy is kept for the next one, if it can be; a damaged one is made anew.
        make: Fills one, which takes seconds.
        say: Told in a sentence what was set aside.
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
        _clear_for(path, say)
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
