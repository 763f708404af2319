"""What is not finished, by what it is: the same command, started again, finds it here before it imports MLflow."""

import json
import os
from pathlib import Path
from typing import Self

from manyfit.tracking import journal


class Unfinished:
    """A file that names the run of a command while that is at work, or was stopped; who is at work holds its lock.

    Args:
        root: Folder that holds `mlruns/`.
        fingerprint: Of what the command trains.

    Attributes:
        living: Another process is at it; then nothing is noted of this one.
        run: Our id of the run that was begun, None if none was.
        finished: Whether that one came to its end, where that was to be told.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.path = journal.mlruns(root) / "unfinished" / fingerprint
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = journal.claim(self.path)
        self.living = self._lock is None
        known = [record for record in journal.read(self.path)[0] if "run" in record]
        self.run: str | None = known[-1].get("run") if known else None
        self.finished = bool(known and known[-1].get("finished"))

    def begin(self, run: str) -> None:
        """This run is begun, or gone on with."""
        self.run = run
        self._note({"run": run})

    def end(self, tells: bool = False) -> None:
        """Nothing is left to go on with; whether that is told to who comes next, or the run is forgotten."""
        if tells:
            self._note({"run": self.run, "finished": True})
        elif not self.living:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """It is locked already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let others go on with it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _note(self, record: journal.Record) -> None:
        """Behind what was noted before, which holds until all of this is there."""
        if self._lock is not None:
            line = b"\n" + json.dumps(record).encode() + b"\n"  # half a line may be there
            os.pwrite(self._lock, line, os.fstat(self._lock).st_size)
            os.fsync(self._lock)
