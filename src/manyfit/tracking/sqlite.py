"""SQLite as a store of many writers."""

import sqlite3
from pathlib import Path, PurePath

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "afs"}  # file systems


def write_ahead(path: Path) -> None:
    """Begin a database in SQLite's write-ahead mode: a commit flushes once, and readers do not block writers.

    Not on a network file system, where it does not work.
    """
    if path.exists() or _file_system(path.resolve()) in NETWORK:
        return
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _file_system(path: Path) -> str:
    mounts = Path("/proc/mounts")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    kinds: dict[PurePath, str] = {PurePath(point): kind for _, point, kind, *_ in map(str.split, lines)}
    return next((kinds[folder] for folder in path.parents if folder in kinds), "")
