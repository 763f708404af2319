"""Where studies are kept: a database, opened, written to in one transaction, waited for while it does not answer."""

import contextlib
import functools
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from filelock import Timeout
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models

from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.place import cache
from manyfit.config.secrets import mask
from manyfit.tracking import journal, sqlite

T = TypeVar("T")
PATIENCE = 120.0  # seconds that a storage may be silent
PAUSE = 1.0  # seconds between tries
VANISHED = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "user_timeout": 25_000}
"""Of a TCP connection in PostgreSQL's settings, seconds and milliseconds: one whose other end has vanished ends."""


class OutageError(TrainingError):
    """A storage was silent for too long."""


class LapsedError(Exception):
    """A lock was given to another before its holder gave it back, who had counted as dead: what it did may be void."""

    def __init__(self) -> None:
        super().__init__("a lock was given to another, since this process was not heard of")


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite address, of a URI too, by its one name; None: it is in memory, or no SQLite's."""
    path = journal.file_of(url.replace(":///file:", ":///", 1))
    return path and path.resolve()


def driver_options(url: str) -> dict[str, Any]:
    """For a connection: half a minute after an end of it has vanished the other gives it up, with all its locks."""
    address = sqlalchemy.make_url(url)
    if not address.get_driver_name().startswith("psycopg"):
        return {}
    ours = {key if key.startswith("keepalives") else f"tcp_{key}": value for key, value in VANISHED.items()}
    servers = [*address.normalized_query.get("options", ()), *(f"-c tcp_{k}={v}" for k, v in VANISHED.items())]
    return {"connect_timeout": 10, **ours, "options": " ".join(servers)}


@contextlib.contextmanager
def usable(url: str) -> Iterator[None]:
    """A storage that cannot be opened within is refused: ConfigError."""
    try:
        yield
    except (ConfigError, OutageError):
        raise
    except Exception as error:  # SQLAlchemy's and the drivers' own, of many kinds
        reason = mask(str(error).splitlines()[0])
        raise ConfigError(f"sweep.storage must be a database that can be used, but got {mask(url)}: {reason}") from None


def open_storage(url: str, say: Callable[[str], None] = print) -> BaseStorage:
    """The storage, made where it is not there yet; `say` is told that a half-made one was set aside."""
    if url.startswith("grpc://"):
        return _proxy(url)
    if path := sqlite_file(url):
        path.parent.mkdir(parents=True, exist_ok=True)
        opens = functools.partial(RDBStorage, url)
        named = "uri" in sqlalchemy.make_url(url).query  # which may say anything of how it is opened
        return opens() if named else sqlite.opened(path, tables(), opens, say)
    return RDBStorage(url, {"pool_pre_ping": True, "connect_args": driver_options(url)})


def _fill(path: Path) -> None:
    """Make Optuna's tables."""
    storage = RDBStorage(f"sqlite:///{path}")
    storage.remove_session()
    storage.engine.dispose()


def tables() -> sqlite.Tables:
    """Optuna's."""
    kept = cache() / f"optuna-{optuna.__version__}.db"
    return sqlite.Tables(_fill, kept, models.BaseModel.metadata.tables.keys(), {"version_info": "TRUE"})


def _proxy(url: str) -> BaseStorage:
    """Optuna's proxy before a database: `optuna.storages.run_grpc_proxy_server`."""
    address = sqlalchemy.make_url(url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            proxy = optuna.storages.GrpcStorageProxy(host=address.host or "localhost", port=address.port or 13000)
        proxy.wait_server_ready(5)
    except ImportError as error:
        raise ValueError(f'{error}. pip install "manyfit[grpc]"') from None
    return proxy


def write(storage: BaseStorage, trial_id: int, attributes: Mapping[str, Any], curve: Sequence[float] = ()) -> None:
    """Attributes and intermediate values of a trial, by Optuna's own id; what it has already stays.

    In one transaction where it is a database: Optuna's own set_user_attr and report commit each value, a second for
    fifty epochs.
    """
    trial = storage.get_trial(trial_id)
    attributes = {key: content for key, content in attributes.items() if key not in trial.user_attrs}
    steps = {step: value for step, value in enumerate(curve) if step not in trial.intermediate_values}
    if not isinstance(storage, RDBStorage):
        for key, content in attributes.items():
            storage.set_trial_user_attr(trial_id, key, content)
        for step, value in steps.items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        return
    texts = [{"key": key, "value_json": json.dumps(content)} for key, content in attributes.items()]
    numbers = [
        {"step": step, **dict(zip(("intermediate_value", "intermediate_value_type"), _stored(value), strict=True))}
        for step, value in steps.items()
    ]
    with storage.engine.begin() as connection:
        for model, rows in ((models.TrialUserAttributeModel, texts), (models.TrialIntermediateValueModel, numbers)):
            if rows:
                connection.execute(sqlalchemy.insert(model), [{"trial_id": trial_id, **row} for row in rows])


def _stored(value: float) -> tuple[float | None, Any]:
    return models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)


def _behind(error: BaseException) -> BaseException:
    """What a database said, of what Optuna makes of it; that asks again on a connection which has just broken."""
    before = {StorageInternalError: error.__cause__, sqlalchemy.exc.PendingRollbackError: error.__context__}
    further = before.get(type(error))
    return _behind(further) if further else error


def is_outage(error: BaseException) -> bool:
    """Whether the storage did not answer, or had others to serve: later the same may succeed."""
    error = _behind(error)
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        passing = sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError
        return isinstance(error, passing) or error.connection_invalidated
    return isinstance(error, sqlite3.OperationalError | Timeout) or type(error).__module__.startswith("grpc")


def is_busy(error: BaseException) -> bool:
    """Whether it is an SQLite file that somebody holds locked."""
    return is_outage(error) and "database is locked" in f"{error} {error.__cause__}"


def patiently(
    attempt: Callable[[], T], waits: Callable[[str], None], passes: Callable[[BaseException], bool] = is_outage
) -> T:
    """Call until the storage answers, and no lock was lost within.

    Args:
        attempt: May be called again.
        waits: Told why, once, when it has to wait.
        passes: Whether an error may do so.

    Raises:
        OutageError: It did not for PATIENCE seconds.
    """
    deadline = None  # from the first failure on: this process may have been suspended before
    while True:
        try:
            return attempt()
        except Exception as error:
            if not (passes(error) or isinstance(error, LapsedError)):
                raise
            said = _behind(error)
            reason = mask(str(said.__cause__ or said).splitlines()[0])
            if first := deadline is None:
                deadline = time.monotonic() + PATIENCE
            if time.monotonic() >= deadline:
                raise OutageError(
                    f"sweep.storage must answer, but it did not for {PATIENCE:.0f} s: {reason}. See that it is there, "
                    "has room, and that nothing holds it locked: the same command goes on."
                ) from None
            if first:
                waits(f"sweep.storage does not answer ({reason}): waiting for it")
            time.sleep(PAUSE)
