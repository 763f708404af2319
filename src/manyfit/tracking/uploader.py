"""Who delivers: the uploader of a living session, and those who look after what others left.

Run as `python -m manyfit.tracking.uploader <session folder> <pid>` it delivers while training goes on, and when the
session's process is gone, killed or not, it delivers the rest and ends the runs truthfully. `sync` does the same for
sessions whose uploader is gone too, and so does the next uploader on the same store.
"""

import gc
import logging
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

if __name__ == "__main__":
    gc.disable()  # MLflow's import makes a million objects and no garbage

from manyfit.config.secrets import mask
from manyfit.tracking import journal
from manyfit.tracking.delivery import Session
from manyfit.tracking.journal import SyncReport
from manyfit.tracking.store import Store

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
    os.nice(NICENESS)
    session: Session | None = None
    due, wait, arrived, seen = 0.0, PAUSE, True, 0
    while True:
        abandoned = os.getppid() != owner
        size, word = _last_word(folder)
        last = abandoned or word == "close"
        pause = word == "end" and size > seen and arrived  # nothing trains: the training is over, or the next begins
        if not last and not pause and time.monotonic() < due:
            time.sleep(POLL)
            continue
        seen, arrived = size, True
        try:
            session = session or _embark(folder)
            began = time.monotonic()
            session.advance(abandoned)
            wait = max(PAUSE, SHARE * (time.monotonic() - began))
        except Exception as error:  # an outage of whatever kind: all stays in the spool
            arrived, wait = False, min(2 * wait, LONGEST_WAIT)
            log.warning("held back: %s", mask(repr(error)))
            journal.note(folder / journal.ACKS, {"error": explain(error)})
        if last:
            break
        due = time.monotonic() + wait
    if abandoned and arrived:
        journal.discard(folder)
    return arrived


def _embark(folder: Path) -> Session:
    """First what earlier sessions left (a run that this session goes on with may be among it), then this one."""
    root = folder.parents[2]
    store = Store(os.environ["MLFLOW_TRACKING_URI"], root)
    for orphan in journal.orphans(root):
        try:
            if _target(orphan, root, None) == store.uri:
                _replay(store, orphan)
        except Exception as error:
            log.warning("%s is held back: %s", orphan.name, mask(repr(error)))
    gc.freeze()
    gc.enable()
    return Session(store, folder, first=not (folder / journal.ACKS).exists())


def _last_word(folder: Path) -> tuple[int, str]:
    """Bytes of the journal, and what its last record is: `close` says that nothing follows."""
    with (folder / journal.JOURNAL).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 256, 0))
        found = re.search(rb'\{"op":"(\w+)"[^\n]*\n$', file.read())
    return size, found[1].decode() if found else ""


def explain(error: Exception) -> str:
    """An obstacle in one line, without credentials."""
    return mask((str(error).strip() or repr(error)).splitlines()[0])[:500]


def _replay(store: Store, folder: Path) -> Session:
    """Deliver a session whose process is gone, and remove it."""
    session = Session(store, folder)
    session.advance(abandoned=True)
    journal.discard(folder)
    return session


def _target(folder: Path, root: Path, uri: str | None) -> str:
    """The store that a session was meant for, or `uri`.

    Raises:
        ValueError: when it takes credentials, which are not kept, and they are not at hand.
    """
    if uri is not None:
        return journal.resolve_uri(uri, root)
    recorded = next(
        (record["uri"] for record in journal.read(folder / journal.JOURNAL)[0] if record["op"] == "session"), None
    )
    if recorded is None:
        return journal.default_uri(root)
    here = journal.resolve_uri(None, root)
    if mask(here) == recorded:
        return here
    if "***@" in recorded:
        raise ValueError(f"MLFLOW_TRACKING_URI must be the address {recorded} with its password, but got {mask(here)}.")
    return str(recorded)


def sync(root: Path, uri: str | None = None) -> SyncReport:
    """See tracker.sync."""
    _quiet()
    stores: dict[str, Store] = {}
    held: list[str] = []
    done: list[Session] = []
    for folder in journal.orphans(root):
        try:
            target = _target(folder, root, uri)
            stores[target] = stores.get(target) or Store(target, root)
            done.append(_replay(stores[target], folder))
        except Exception as error:
            held.append(f"{folder.name}: {explain(error)}")
    living = len(journal.sessions(root)) - len(held)
    return SyncReport(len(done), sum(s.runs for s in done), sum(s.refused for s in done), tuple(held), living)


def make_store(uri: str, root: Path) -> None:
    """See tracker.make_store."""
    _quiet()
    try:
        Store(uri, root)
    except Exception as error:
        raise ValueError(
            f"tracking.uri must be a store that opens, but {mask(uri)} does not: {explain(error)}"
        ) from None


def doctor(root: Path, uri: str | None = None) -> list[str]:
    """See tracker.doctor."""
    _quiet()
    target = journal.resolve_uri(uri, root)
    findings = [
        f"problem: {folder} has damaged records; the others will be delivered"
        for folder in journal.sessions(root)
        if any(record.get("op") == "unreadable" for record in journal.read(folder / journal.JOURNAL)[0])
    ]
    try:
        store = Store(target, root)
    except Exception as error:
        return [*findings, f"problem: store {mask(target)} does not answer: {explain(error)}"]
    findings.append(f"ok: store {mask(target)} answers{_size(target)}")
    report = sync(root, uri)
    if report.sessions:
        findings.append(f"repaired: {report.sessions} sessions ({report.runs} runs) delivered from the spool")
    findings += [f"problem: held back: {reason}" for reason in report.held]
    if report.living:
        findings.append(f"ok: {report.living} sessions are running")
    if killed := _bury(store, root):
        findings.append(f"repaired: {killed} runs were left RUNNING by sessions that are gone; now KILLED")
    rejected = sorted((journal.mlruns(root) / "rejected").glob("*.jsonl"))
    return findings + [f"problem: {path} holds what the store refused; read it, then delete it" for path in rejected]


def _bury(store: Store, root: Path) -> int:
    """Set RUNNING runs of this machine and root KILLED when their session's folder is gone; how many."""
    here = f"{os.uname().nodename}:{journal.mlruns(root) / 'spool'}{os.sep}"
    living = {folder.name for folder in journal.sessions(root)}  # or held back, and to be ended by their delivery
    dead = [run for run, home in store.running().items() if home.startswith(here) and Path(home).name not in living]
    for run_id in dead:
        store.end(run_id, "KILLED")
    return len(dead)


def _size(uri: str) -> str:
    path = Path(unquote(urlparse(uri).path)[1:]) if uri.startswith("sqlite:") else None
    return f" ({path.stat().st_size / 1e6:.1f} MB)" if path is not None and path.exists() else ""


def _quiet() -> None:
    """MLflow and alembic tell a terminal about every table they make."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(0 if attend(Path(sys.argv[1]), int(sys.argv[2])) else 1)
