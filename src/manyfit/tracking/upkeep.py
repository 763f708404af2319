"""Looking after a store: what ended sessions left is delivered, and what they left RUNNING is ended."""

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from manyfit.config.secrets import mask
from manyfit.tracking import journal, rejected
from manyfit.tracking.delivery import Session
from manyfit.tracking.pulse import Pulse, patience
from manyfit.tracking.records import parse
from manyfit.tracking.store import Store, explain


@dataclass(frozen=True)
class SyncReport:
    """What a replay did.

    Attributes:
        sessions: Sessions of which everything arrived.
        runs: Runs in them.
        refused: Deliveries that the store refused for good, kept in `mlruns/rejected/`.
        held: Why others are still held back, one sentence each.
        living: Sessions left alone because their process, or their uploader, is at work.
    """

    sessions: int
    runs: int
    refused: int
    held: tuple[str, ...]
    living: int


def replay(store: Store, folder: Path, courier: Path | None = None) -> Session:
    """Deliver a session whose process is gone, and remove it; `courier` as for `Session`."""
    session = Session(store, folder, courier=courier)
    session.advance(abandoned=True)
    journal.discard(folder)
    return session


def deliver(store: Store, courier: Path | None = None) -> list[str]:
    """Deliver to a store what was left for it by sessions that are gone; what is held back, and why, a sentence each.

    Args:
        store: Where to.
        courier: See `Session`.
    """
    held = []
    for orphan in journal.orphans(store.root):
        try:
            if journal.empty(orphan):
                journal.discard(orphan)
            elif _is_for(store, orphan):
                replay(store, orphan, courier)
        except Exception as error:
            held.append(f"{orphan.name}: {explain(error)}")
    return held


def settle(store: Store) -> list[str]:
    """The same, and wait for what others are delivering to it, for as long as that goes on.

    A session that was just killed may have an uploader of its own.
    """
    quiet()
    held = []
    for folder in journal.sessions(store.root):
        if journal.alive(folder) or not _is_for(store, folder):
            continue
        pulse, limit = Pulse(folder), patience(store.uri)
        while journal.attended(folder):
            if pulse.silence() > limit:
                held.append(f"{folder.name}: who delivers it has delivered nothing for {limit:.0f} s")
                break
            time.sleep(0.1)
    return [*held, *deliver(store)]


def _is_for(store: Store, folder: Path) -> bool:
    """Whether a session was meant for this store."""
    try:
        return target(folder, store.root, None, store.uri) == store.uri
    except ValueError:
        return False


def target(folder: Path, root: Path, uri: str | None, named: str | None = None) -> str:
    """The store that a session was meant for, or `uri`.

    A journal may be anybody's, and a store is sent what the environment has of passwords: only one that lies in this
    folder, or that the command names, is gone to.

    Args:
        folder: The session.
        root: Folder that holds `mlruns/`.
        uri: Where to instead.
        named: By the command, beside MLFLOW_TRACKING_URI.

    Raises:
        ValueError: It is another, or takes credentials, which are not kept, and they are not at hand.
    """
    if uri is not None:
        return journal.resolve_uri(uri, root)
    recorded = next(
        (uri for line in journal.lines(folder / journal.JOURNAL)[0][:1] if (uri := (parse(line)[0] or {}).get("uri"))),
        None,
    )
    if recorded is None:
        return journal.default_uri(root)
    here = journal.resolve_uri(None, root)
    for known in (here, journal.resolve_uri(named, root)):
        if mask(known) == recorded:
            return known
    if "***@" in recorded:
        raise ValueError(f"MLFLOW_TRACKING_URI must be the address {recorded} with its password, but got {mask(here)}.")
    if not journal.within(recorded, root):
        raise ValueError(
            f"MLFLOW_TRACKING_URI must be {recorded}, which the session names, but got {mask(here)}. If that store is "
            f"yours: MLFLOW_TRACKING_URI={shlex.quote(recorded)} manyfit sync delivers it."
        )
    return str(recorded)


def sync(root: Path, uri: str | None = None, rejects: bool = False, named: str | None = None) -> SyncReport:
    """Deliver what ended sessions left in the spool, to the store each was meant for (see `target`), or to `uri`.

    With `rejects` also what was set aside before, into new runs.
    """
    quiet()
    stays = rejected.release_all(root) if rejects else []
    stores: dict[str, Store | Exception] = {}
    held: list[str] = []
    done: list[Session] = []
    for folder in journal.orphans(root):
        try:
            if journal.empty(folder):
                journal.discard(folder)
                continue
            address = target(folder, root, uri, named)
            store = stores[address] = stores.get(address) or _opened(address, root)
            if isinstance(store, Exception):  # it is not waited for again
                raise store
            done.append(replay(store, folder))
        except Exception as error:
            held.append(f"{folder.name}: {explain(error)}")
    living = len(journal.sessions(root)) - len(held)
    return SyncReport(len(done), sum(s.runs for s in done), sum(s.refused for s in done), (*stays, *held), living)


def _opened(uri: str, root: Path) -> Store | Exception:
    try:
        return Store(uri, root)
    except Exception as error:
        return error


def busy_in(root: Path) -> set[str]:
    """The runs, by our ids and MLflow's, of sessions that live or are held back: their status is not the last word."""
    found: set[str] = set()
    for folder in journal.sessions(root):
        known = journal.acks(folder).ids
        found |= {*known, *known.values()}
        for record in journal.read(folder / journal.JOURNAL)[0]:
            found |= {str(record.get(key)) for key in ("run", "run_id")}
    return found


def make_store(uri: str, root: Path) -> None:
    """Make the store when it is not there yet.

    Raises:
        ValueError: It cannot be opened.
    """
    quiet()
    try:
        Store(uri, root)
    except Exception as error:
        raise ValueError(
            f"tracking.uri must be a store that opens, but {mask(uri)} does not: {explain(error)}"
        ) from None


def quiet() -> None:
    """MLflow and alembic tell a terminal about every table they make."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
