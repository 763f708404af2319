"""Who delivers what a session records: a process beside it.

Run as `python -m manyfit.tracking.uploader <session folder> <pid>` it delivers while training goes on, and when the
session's process is gone, killed or not, it delivers the rest and ends the runs truthfully. `upkeep.sync` does the same
for sessions whose uploader is gone too, and so does the next uploader on the same store.
"""

import contextlib
import gc
import logging
import os
import re
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # MLflow's import makes a million objects and no garbage

from manyfit.config.secrets import mask
from manyfit.tracking import journal, leftovers, pulse, upkeep
from manyfit.tracking.delivery import Session
from manyfit.tracking.store import Store, explain

POLL = 0.1  # seconds between looks at the journal
PAUSE = 1.0  # seconds between deliveries while training runs, at least; and at least SHARE times what the last one took
SHARE = 4.0
LONGEST_WAIT = 30.0  # seconds between tries in an outage
NICENESS = 5  # training goes first

log = logging.getLogger("manyfit.tracking.uploader")


def attend(folder: Path, owner: int) -> bool:
    """Deliver a living session until it closes or its process `owner` is gone; whether everything arrived."""
    lock = journal.claim(folder / journal.UPLOADER_LOCK)
    if lock is None:
        return False
    pulse.still(lock)
    os.nice(NICENESS)
    session: Session | None = None
    due, wait, again, arrived, seen = 0.0, PAUSE, PAUSE, True, 0
    while True:
        abandoned = os.getppid() != owner
        size, word = _last_word(folder)
        last = abandoned or word == "close"
        idle = word == "end" and size > seen  # nothing trains: the training is over, or the next begins
        urgent = (last or idle) if arrived else (last and not abandoned)
        if not urgent and time.monotonic() < due:
            time.sleep(POLL)
            continue
        seen, arrived = size, True
        try:
            session = session or _embark(folder)
            began = time.monotonic()
            session.advance(abandoned)
            wait, again = max(PAUSE, SHARE * (time.monotonic() - began)), PAUSE
        except Exception as error:  # an outage of whatever kind: all stays in the spool
            arrived, wait = False, (again := min(2 * again, LONGEST_WAIT))
            log.warning("held back: %s", mask(repr(error)))
            with contextlib.suppress(OSError):  # of the same full disk: the log has said it, or could not either
                journal.note(folder / journal.ACKS, {"error": explain(error)})
        if last and (arrived or not abandoned or again >= LONGEST_WAIT):  # a store may be away for a moment only
            break
        due = time.monotonic() + wait
    if arrived and not journal.alive(folder):  # it is gone, or has let go while it waited for us
        journal.discard(folder)
    return arrived


def _embark(folder: Path) -> Session:
    """First what earlier sessions left (a run that this session goes on with may be among it), then this one."""
    root, known = folder.parents[2], folder / journal.ACKS
    first = not known.exists()
    store = Store(os.environ["MLFLOW_TRACKING_URI"], root, lambda words: journal.note(known, {"said": words}))
    for path in leftovers.find(root):
        try:
            leftovers.remove(path)
        except OSError as error:  # somebody else's, perhaps
            log.warning("%s is left: %s", path, error)
    pulse.beat(folder)
    for words in upkeep.deliver(store, folder):
        log.warning("held back: %s", words)
    gc.freeze()
    gc.enable()
    return Session(store, folder, first)


def _last_word(folder: Path) -> tuple[int, str]:
    """Bytes of the journal, and what its last record is: `close` says that nothing follows."""
    with (folder / journal.JOURNAL).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 256, 0))
        found = re.search(rb'\{"op":"(\w+)"[^\n]*\n$', file.read())
    return size, found[1].decode() if found else ""


if __name__ == "__main__":
    sys.exit(0 if attend(Path(sys.argv[1]), int(sys.argv[2])) else 1)
