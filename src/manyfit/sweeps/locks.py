"""Who is alive: locks that the operating system gives back when their holder dies, also by kill -9."""

import os
import re
import socket
import uuid
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout


class Locks:
    """Locks by name in a folder; and the lock that shows that this process is alive while it owns trials.

    Args:
        folder: Shared by the processes that share a study on one machine.

    Attributes:
        owner: Name of this process's own lock: `host.pid.random`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._own = self.named(self.owner)

    def __enter__(self) -> Self:
        """Show that we are alive."""
        self._own.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing it."""
        self._own.release()
        Path(self._own.lock_file).unlink(missing_ok=True)

    def named(self, name: str) -> FileLock:
        """The lock of this name, to be held by one process at a time."""
        return FileLock(self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.lock")

    def dead(self, owner: str) -> bool:
        """Whether an owner no longer lives. Of one on another machine we cannot know, so it counts as living."""
        if not owner.startswith(f"{_host()}."):
            return False
        if owner == self.owner:
            return False
        lock = self.named(owner)
        try:
            with lock.acquire(timeout=0):
                Path(lock.lock_file).unlink(missing_ok=True)
                return True
        except Timeout:
            return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname())
