"""A new database: whole or not there, and copied where one was made before."""

import logging
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest
from alembic import command
from mlflow.store.db import utils

import forked
from forked import SERVER
from manyfit.sweeps.storage import open_storage
from manyfit.tracking import leftovers, sqlite
from manyfit.tracking.store import Store
from manyfit.tracking.store import tables as store_tables


def maker(made: list[Path]) -> Callable[[Path], None]:
    """Notes what it makes."""

    def make(path: Path) -> None:
        made.append(path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table t (a)")

    return make


def tables(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("select name from sqlite_master").fetchall()


def test_it_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []
    for name in ("a.db", "b.db"):
        sqlite.begin(tmp_path / name, tmp_path / "cache" / "kept.db", maker(made), print)
        assert tables(tmp_path / name) == [("t",)]
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    assert len(made) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "b.db", "cache"]


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    kept, made = tmp_path / "kept.db", list[Path]()
    kept.write_bytes(damage)
    sqlite.begin(tmp_path / "a.db", kept, maker(made), print)
    assert tables(tmp_path / "a.db") == tables(kept) == [("t",)]


def test_no_copy_need_be_kept(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    sqlite.begin(tmp_path / "a.db", tmp_path / "cache" / "kept.db", maker([]), print)
    assert tables(tmp_path / "a.db") == [("t",)]


def test_one_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    """As after a process that was killed while it made one: the next begins anew."""

    def broken(path: Path) -> None:
        maker([])(path)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", broken, print)
    assert not list(tmp_path.iterdir())


def test_what_another_made_meanwhile_stays(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        maker([])(path)
        (tmp_path / "a.db").write_text("another's")

    sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", make, print)
    assert (tmp_path / "a.db").read_text() == "another's"


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refused)
    sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", maker([]), print)
    assert tables(tmp_path / "a.db") == [("t",)]


def test_a_store_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its experiments are its own: the first one's artifacts do not lie in another folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "two"):
        store = Store(f"sqlite:///{tmp_path / name / 'mlruns' / 'mlflow.db'}", tmp_path / name)
        first, *others = store.client.search_experiments()
        assert not others
        assert first.name == "Default"
        store.client.create_run(store.experiment("e"))
        assert [run.info.artifact_uri.startswith(str(tmp_path / name)) for run in store.all("")] == [True]
    assert next(path.name for path in (tmp_path / "cache" / "manyfit").iterdir()).startswith("mlflow-")


# A killed process, really: another makes the tables, and is killed when so many are there.


def make_in_place(path: str) -> None:
    """As MLflow does, and as we did."""
    logging.disable()
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()


def make_a_store(path: str) -> None:
    logging.disable()
    os.environ["XDG_CACHE_HOME"] = str(Path(path).parent / "cache")  # no copy is at hand
    Store(f"sqlite:///{path}", Path(path).parent)


def count(folder: Path) -> int:
    """How many tables are in a database that is being made there, perhaps in a folder within."""
    found = 0
    for path in [path for path in folder.rglob("other.db") if path.stat().st_size]:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            try:
                found = connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
            except sqlite3.Error:  # locked, or removed meanwhile
                continue
    return found


def killed(target: Callable[[str], None], path: Path, at: int) -> None:
    """Run in a process of its own, killed with SIGKILL once there are so many tables."""
    process = SERVER.Process(target=target, args=(str(path),))
    process.start()
    deadline = time.monotonic() + 60
    while count(path.parent) < at and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()


@pytest.mark.parametrize("at", [1, 5, 12, 25])
def test_a_half_made_store_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    """Killed while MLflow makes its tables: the next start opens a new one, and says so if it must."""
    monkeypatch.setattr(sqlite, "STILL", 0.0)
    path = tmp_path / "other.db"
    killed(make_in_place, path, at)
    store = Store(f"sqlite:///{path}", tmp_path)
    store.client.create_run(store.experiment("e"))
    assert len(store.all("")) == 1
    aside = [file for file in tmp_path.glob("other.db.half-made-*") if file.suffix[-4:] not in ("-wal", "-shm")]
    assert capsys.readouterr().err.count("was left half made") == bool(aside)


@pytest.mark.parametrize("at", [1, 20])
def test_any_sqlite_store_is_there_whole_or_not_at_all(tmp_path: Path, at: int) -> None:
    """Killed while we make one that is not the default: the next start begins anew."""
    path = tmp_path / "other.db"
    killed(make_a_store, path, at)
    assert not path.exists() or not sqlite.half_made(path, store_tables())  # on a busy machine the kill comes late
    Store(f"sqlite:///{path}", tmp_path)
    assert path.exists()


def write_and_wait(path: str) -> None:
    """Make a table of MLflow's, ahead of the database itself, and stay."""
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table runs (of_long_ago)")
    signal.pause()


@contextmanager
def written_ahead(path: Path) -> Iterator[bytes]:
    """What is written ahead by a process that is killed at the end."""
    log = Path(f"{path}-wal")
    process = SERVER.Process(target=write_and_wait, args=(str(path),))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size > 4096) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield log.read_bytes()
    finally:
        process.kill()
        process.join()


OPENS: dict[str, tuple[Callable[[Path], object], str]] = {
    "runs": (lambda path: Store(f"sqlite:///{path}", path.parent), "experiments"),
    "trials": (lambda path: open_storage(f"sqlite:///{path}"), "trials"),
}


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for _, name, *_ in connection.execute("pragma table_info(runs)")]


@pytest.mark.parametrize("which", OPENS)
def test_what_is_left_of_a_database_is_not_read_into_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    """Removed by hand after a kill, but not its log: that keeps another name, which is said, and the store is new."""
    path, (opens, table) = tmp_path / "other.db", OPENS[which]
    with written_ahead(path) as log:
        pass
    path.unlink()
    opens(path)
    assert (table,) in tables(path)
    assert "of_long_ago" not in columns(path)
    (aside,) = tmp_path.glob("other.db.left-*-wal")
    assert aside.read_bytes() == log
    said = capsys.readouterr()
    assert f"what was left of one that is gone is kept as {aside.name} and " in said.out + said.err


def killed_between(path: str) -> None:
    """Open a store, killed as soon as the first of its files is renamed."""
    rename = os.rename

    def once(*names: str) -> None:
        rename(*names)
        os.kill(os.getpid(), signal.SIGKILL)

    os.rename, sqlite.STILL = once, 0.0  # type: ignore[assignment]
    make_a_store(path)


def test_killed_while_a_store_is_set_aside(tmp_path: Path) -> None:
    """With its log not yet: the next start opens a new one all the same, and both are kept."""
    path = tmp_path / "other.db"
    with written_ahead(path):
        process = SERVER.Process(target=killed_between, args=(str(path),))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not path.exists()
    assert Path(f"{path}-wal").exists()
    Store(f"sqlite:///{path}", tmp_path)
    assert "of_long_ago" not in columns(path)
    assert list(tmp_path.glob("other.db.half-made-*"))
    assert list(tmp_path.glob("other.db.left-*-wal"))


def test_a_half_made_one_with_runs_stays(tmp_path: Path) -> None:
    """What a user has is not moved, however broken the rest is; nor is a database of somebody else's."""
    path = tmp_path / "other.db"
    made = sqlite.Tables(maker([]), tmp_path / "kept.db", {"runs", "traces"}, {"runs": "id = 'own'"})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table runs (id)")
        assert sqlite.half_made(path, made)
        connection.execute("insert into runs values ('own')")
        connection.commit()
        assert sqlite.half_made(path, made)
        connection.execute("insert into runs values (null)")
    assert not sqlite.half_made(path, made)
    assert not sqlite.half_made(path, sqlite.Tables(maker([]), tmp_path / "kept.db", {"t"}))
    with pytest.raises(Exception, match="sqlite|no such|already exists"):
        Store(f"sqlite:///{path}", tmp_path)
    assert tables(path)


@pytest.mark.parametrize(
    "row",
    [
        "insert into registered_models (name, workspace) values ('mine', 'default')",
        "insert into experiments (name, workspace) values ('mine', 'default')",
    ],
)
def test_what_is_not_half_made_is_not_moved(tmp_path: Path, row: str) -> None:
    """A whole store without runs that does not open stays; so does one that lacks a table, with a row of a user's."""
    path = tmp_path / "other.db"
    shutil.copy(forked.tables(), path)

    def refused() -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        sqlite.opened(path, store_tables(), refused, print)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("drop table trace_tags")
    assert sqlite.half_made(path, store_tables())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(row)
    with pytest.raises(OSError, match="no space"):
        sqlite.opened(path, store_tables(), refused, print)
    assert not list(tmp_path.glob("*.half-made-*"))


def test_an_empty_file_that_another_has_just_made_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables are made by another meanwhile: it is opened, and not moved."""
    path = tmp_path / "other.db"
    path.touch()
    made = sqlite.Tables(maker([]), tmp_path / "kept.db", {"t"})

    def others(_: float) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table t (a)")
            connection.execute("create table alembic_version (version_num)")
            connection.execute("insert into alembic_version values ('1')")

    monkeypatch.setattr(time, "sleep", others)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    assert sqlite.opened(path, made, lambda: "open", said.append) == "open"
    assert not said
    path.write_bytes(b"")
    os.utime(path, (0, 0))
    assert sqlite.opened(path, made, lambda: "open", said.append) == "open"
    assert "was left half made" in said[0]
    (aside,) = tmp_path.glob("other.db.half-made-*")
    os.utime(aside, (0, 0))
    (tmp_path / "mlruns").mkdir()
    aside.rename(tmp_path / "mlruns" / aside.name)
    assert leftovers.find(tmp_path) == []


def aged(path: Path) -> str:
    """Bring a store to the tables of an older MLflow; their revision."""
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    config = utils._get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    return str(sqlite.revision(path))


def test_a_store_of_an_older_mlflow_is_copied_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is brought to this one's tables, which is said; the copy beside it is as it was, and keeps its runs."""
    path, uri = tmp_path / "other.db", f"sqlite:///{tmp_path}/other.db"
    store = Store(uri, tmp_path)
    store.client.create_run(store.experiment("e"))
    store.client._tracking_client.store.engine.dispose()
    head = sqlite.revision(path)
    old = aged(path)
    assert old != head
    (tmp_path / f"other.{old}.db").write_text("another, of long ago")
    capsys.readouterr()
    assert len(Store(uri, tmp_path).all("")) == 1
    assert sqlite.revision(path) == head
    (copy,) = tmp_path.glob(f"other.{old}.*.db")
    assert sqlite.revision(copy) == old
    assert f"as it was it is kept as {copy.name}" in capsys.readouterr().err
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (1,)


def test_a_copy_is_of_now(tmp_path: Path) -> None:
    """One of other content stays beside it; one like it is not made twice, however often the next step fails."""
    path = tmp_path / "a.db"
    (tmp_path / "a.1.db").write_text("of long ago")
    maker([])(path)
    first = sqlite.copied(path, "a.1")
    assert tables(first) == [("t",)]
    assert sqlite.copied(path, "a.1") == first
    first.rename(tmp_path / "a.1.20250101-000000.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table u (a)")
    assert tables(sqlite.copied(path, "a.1")) == [("t",), ("u",)]
    assert len(list(tmp_path.iterdir())) == 4
