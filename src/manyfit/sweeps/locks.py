"""Who is alive, and whose turn it is: locks that are given back when their holder dies, also by kill -9.

They are where the study is, so that whoever shares it shares them: beside a SQLite file; in PostgreSQL; and in any
other storage of Optuna's as trials of a study of their own.
"""

import contextlib
import hashlib
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from manyfit.sweeps.storage import LapsedError, driver_options, is_outage, open_storage, sqlite_file

BEAT = 2.0  # seconds between signs of life
DEADLINE = 20.0  # seconds without one after which an owner counts as dead
RESTARTED = 15.0  # seconds after its server's start in which no owner does: all are coming back
HELD = 30.0  # seconds that a lock is waited for; who holds it longer has been suspended
LOOK = 0.1, 1.0  # seconds between the first two looks whether it is our turn, and between later ones
OURS = 0x6D616E79  # "many": the first key of our advisory locks, beside those of others in a database
OWNER = re.compile(r"[A-Za-z0-9_-]+\.\d+\.[0-9a-f]{8}")  # no other lock, as that of a study, is taken for a process


class Locks(Protocol):
    """A context manager: within it, this process is seen to be alive.

    Attributes:
        owner: Name of this process: `host.pid.random`.
    """

    owner: str

    def __enter__(self) -> Self:
        """Show that we are alive."""

    def __exit__(self, *_: object) -> None:
        """Stop showing it."""

    def named(self, name: str) -> contextlib.AbstractContextManager[object]:
        """The lock of this name, held by one process at a time.

        Raises:
            LapsedError: At its end, whatever else was raised within: another has, or had, the lock meanwhile.
        """

    def dead(self, owner: str) -> bool:
        """Whether an owner is gone. One that lost its connection for long, and lives, may be called dead."""


def lives(locks: Locks, owner: object) -> bool:
    """Whether what a study names as an owner, which may be anything, is a process that is alive."""
    return isinstance(owner, str) and bool(OWNER.fullmatch(owner)) and not locks.dead(owner)


def locks_of(url: str) -> Locks:
    """Those of a storage."""
    if url.startswith("sqlite"):
        return FileLocks((sqlite_file(url) or Path("mlruns/optuna.db")).parent / "locks")
    return AdvisoryLocks(url) if url.startswith("postgresql") else Tickets(open_storage(url))


class FileLocks:
    """Lock files, beside the database that the processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = _owner()
        self._own = self.named(self.owner)

    def __enter__(self) -> Self:
        """Hold the lock of our name."""
        self._own.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._own.release()
        Path(self._own.lock_file).unlink(missing_ok=True)

    def named(self, name: str) -> FileLock:
        """See Locks."""
        return FileLock(self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.lock", timeout=HELD)

    def dead(self, owner: str) -> bool:
        """See Locks."""
        if owner == self.owner:
            return False
        lock = self.named(owner)
        try:
            with lock.acquire(timeout=0):
                Path(lock.lock_file).unlink(missing_ok=True)
                return True
        except Timeout:
            return False


class AdvisoryLocks:
    """PostgreSQL's own: it takes a lock back when the connection that holds it ends.

    A server that was restarted has forgotten them, and so has one that was cut off: whoever lives comes back.
    """

    def __init__(self, url: str) -> None:
        self.owner = _owner()
        self._engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=driver_options(url)
        )
        self._left = threading.Event()

    def __enter__(self) -> Self:
        """Hold the lock of our name in a connection that is looked after."""
        self._left.clear()
        self._looking = threading.Thread(target=self._look_after, args=(self._hold(),), daemon=True)
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        self._left.set()
        self._looking.join()

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """See Locks."""
        with self._engine.connect() as connection:  # its end is the lock's end
            connection.execute(sqlalchemy.text(f"set lock_timeout = '{HELD}s'"))
            connection.execute(sqlalchemy.text("select pg_advisory_lock(hashtext(:name))"), {"name": name})
            with _fenced(lambda: _answers(connection)):  # else the server may have given it to another
                yield

    def dead(self, owner: str) -> bool:
        """See Locks."""
        asked = sqlalchemy.text(
            "select now() - pg_postmaster_start_time() > make_interval(secs => :restarted) and not exists ("
            "select from pg_locks where locktype = 'advisory' and classid = :ours and objid = :key and objsubid = 2"
            " and database = (select oid from pg_database where datname = current_database()))"
        )
        if owner == self.owner:
            return False
        with self._engine.connect() as connection:
            known = {"restarted": RESTARTED, "ours": OURS, "key": _key(owner)}
            return bool(connection.execute(asked, known).scalar())

    def _look_after(self, connection: sqlalchemy.Connection) -> None:
        while not self._left.wait(BEAT):
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # until the server is there again
                try:
                    connection.execute(sqlalchemy.text("select 1"))
                except sqlalchemy.exc.SQLAlchemyError:
                    connection.invalidate()
                    connection = self._hold()
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            connection.close()

    def _hold(self) -> sqlalchemy.Connection:
        connection = self._engine.connect()
        connection.execute(
            sqlalchemy.text("select pg_advisory_lock(:ours, :key)"), {"ours": OURS, "key": _key(self.owner)}
        )
        return connection


class Tickets:
    """In any storage: whoever wants a lock draws a ticket, a trial, and has it when all before are used or of the dead.

    A trial gets its number in one transaction, in every storage of Optuna's. Signs of life are attributes of the study
    of tickets.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self.owner = _owner()
        self._storage = storage
        self._seen: dict[str, tuple[float, float]] = {}  # the last sign of an owner, and when it was first seen here
        try:
            self._study = storage.create_new_study([StudyDirection.MINIMIZE], "manyfit.locks")
        except DuplicatedStudyError:
            self._study = storage.get_study_id_from_name("manyfit.locks")
        self._left = threading.Event()
        self._beat()

    def __enter__(self) -> Self:
        """Give signs of life."""
        self._left.clear()
        self._beating = threading.Thread(target=self._go_on_beating, daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give no more, and say so."""
        self._left.set()
        self._beating.join()
        try:
            self._storage.set_study_user_attr(self._study, self.owner, 0.0)
        except Exception as error:  # then it is seen by what does not come
            if not is_outage(error):
                raise

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """See Locks."""
        ticket = self._turn(name)
        with _fenced(lambda: self._use_up(ticket)):
            yield

    def _turn(self, name: str) -> int:
        """Draw a ticket and wait until it is its turn."""
        drawn = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"lock": name, "owner": self.owner})
        pause, longest = LOOK
        while True:
            ticket = self._storage.create_new_trial(self._study, drawn)
            number = self._storage.get_trial(ticket).number
            while before := self._before(name, number):
                for trial in before:  # one of our own was left by an outage
                    if trial.user_attrs["owner"] == self.owner or self.dead(trial.user_attrs["owner"]):
                        self._use_up(trial._trial_id)
                time.sleep(pause)
                pause = min(2 * pause, longest)
            if self._storage.get_trial(ticket).state == TrialState.RUNNING:  # else we counted as dead
                return ticket

    def dead(self, owner: str) -> bool:
        """See Locks. Clocks may differ: one whose first sign is old, or of tomorrow, is watched for another."""
        if owner == self.owner:
            return False
        if not (sign := self._sign(owner)):
            return True
        if owner not in self._seen and abs(time.time() - sign) > DEADLINE:
            self._seen[owner] = sign, -math.inf
            time.sleep(2 * BEAT)
            sign = self._sign(owner)
        if self._seen.get(owner, (None,))[0] != sign:
            self._seen[owner] = sign, time.monotonic()
        return time.monotonic() - self._seen[owner][1] > DEADLINE

    def _sign(self, owner: str) -> float:
        return float(self._storage.get_study_user_attrs(self._study).get(owner, 0.0))

    def _before(self, name: str, number: int) -> list[FrozenTrial]:
        going = self._storage.get_all_trials(self._study, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in going if trial.number < number and trial.user_attrs["lock"] == name]

    def _use_up(self, ticket: int) -> bool:
        """Whether it was there to be used: another may have done it."""
        try:
            return self._storage.set_trial_state_values(ticket, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _beat(self) -> None:
        self._storage.set_study_user_attr(self._study, self.owner, time.time())

    def _go_on_beating(self) -> None:
        while not self._left.wait(BEAT):
            try:
                self._beat()
            except Exception as error:  # an outage ends; whatever else is wrong, the training meets it as well
                if not is_outage(error):
                    return


@contextlib.contextmanager
def _fenced(holds: Callable[[], bool]) -> Iterator[None]:
    """Raise LapsedError if a lock does not hold at the end: then an error within may be of that.

    An interrupt goes its way: whoever is interrupted leaves, and so do its locks.
    """
    try:
        yield
    except Exception as error:
        if not holds():
            raise LapsedError from error
        raise
    if not holds():
        raise LapsedError


def _answers(connection: sqlalchemy.Connection) -> bool:
    """Whether a connection is there, and so what it holds."""
    try:
        connection.execute(sqlalchemy.text("select 1"))
    except sqlalchemy.exc.SQLAlchemyError:
        return False
    return True


def _owner() -> str:
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname())
    return f"{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def _key(owner: str) -> int:
    """The second key of an owner's advisory lock: 31 bits."""
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:4], "big") >> 1
