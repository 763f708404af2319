"""A new database: whole or not there, and copied where one was made before."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from manyfit.tracking import sqlite
from manyfit.tracking.store import Store


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
        sqlite.begin(tmp_path / name, tmp_path / "cache" / "kept.db", maker(made))
        assert tables(tmp_path / name) == [("t",)]
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    assert len(made) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "b.db", "cache"]


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    kept, made = tmp_path / "kept.db", list[Path]()
    kept.write_bytes(damage)
    sqlite.begin(tmp_path / "a.db", kept, maker(made))
    assert tables(tmp_path / "a.db") == tables(kept) == [("t",)]


def test_no_copy_need_be_kept(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    sqlite.begin(tmp_path / "a.db", tmp_path / "cache" / "kept.db", maker([]))
    assert tables(tmp_path / "a.db") == [("t",)]


def test_one_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    """As after a process that was killed while it made one: the next begins anew."""

    def broken(path: Path) -> None:
        maker([])(path)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", broken)
    assert not list(tmp_path.iterdir())


def test_what_another_made_meanwhile_stays(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        maker([])(path)
        (tmp_path / "a.db").write_text("another's")

    sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", make)
    assert (tmp_path / "a.db").read_text() == "another's"


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refused)
    sqlite.begin(tmp_path / "a.db", tmp_path / "kept.db", maker([]))
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
