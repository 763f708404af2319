"""How it is known from outside that a delivery goes on, and how much of it is left: by the lock of who delivers."""

import os
import time
from pathlib import Path

from manyfit.tracking.journal import UPLOADER_LOCK, file_of

SILENCE = 12.0  # seconds after which nobody waits any longer for a store elsewhere that takes nothing
BUSY = 60.0  # likewise for one in a file, whose disk may be slow, and which another process may hold locked


def patience(uri: str) -> float:
    """How long a store may take nothing while it is waited for, in seconds."""
    return BUSY if file_of(uri) else SILENCE


def beat(folder: Path, left: int = 0) -> None:
    """A store has answered who delivers this session: its lock is touched, and as long as so many runs are left.

    Its length, since that takes no room on a disk that may be full.
    """
    lock = folder / UPLOADER_LOCK
    lock.touch(0o600)
    os.truncate(lock, left)


def still(lock: int) -> None:
    """No store has answered yet who has just taken this lock."""
    os.truncate(lock, 0)
    os.utime(lock, (0, 0))


class Pulse:
    """Hears the beats of a delivery, by a clock that nobody sets back.

    Args:
        folder: The session.
        waited: Seconds of silence before.

    Attributes:
        left: Runs that are not delivered, as far as that is known; else 0.
    """

    def __init__(self, folder: Path, waited: float = 0.0) -> None:
        self._lock, self._heard, self.left = folder / UPLOADER_LOCK, time.monotonic() - waited, 0
        self._last = self._look()

    def silence(self) -> float:
        """Seconds since the last beat, at most since this listens."""
        before, self._last = self._last, self._look()
        if self._last not in (before, 0):
            self._heard = time.monotonic()
        return time.monotonic() - self._heard

    def _look(self) -> int:
        """When the last beat was."""
        try:
            found = self._lock.stat()
        except FileNotFoundError:  # who delivers is still starting
            return 0
        self.left = found.st_size
        return found.st_mtime_ns
