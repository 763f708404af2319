"""Who is alive and whose turn it is, in each place where a study can be kept; real processes, really killed."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.storages._grpc.server import make_server

from manyfit.sweeps import locks
from manyfit.sweeps.locks import locks_of

KINDS = ["sqlite", "postgresql", "grpc"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place; deadlines are short."""
    monkeypatch.setattr(locks, "BEAT", 0.2)
    monkeypatch.setattr(locks, "DEADLINE", 1.0)
    monkeypatch.setattr(locks, "RESTARTED", 0.0)
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/optuna.db"
    elif request.param == "postgresql":
        yield request.getfixturevalue("database")
    else:
        with served(f"sqlite:///{tmp_path}/optuna.db") as address:
            yield address


@contextlib.contextmanager
def served(storage: str) -> Iterator[str]:
    """Optuna's proxy before a database."""
    server = make_server(optuna.storages.get_storage(storage), "localhost", 0)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"grpc://localhost:{port}"
    finally:
        server.stop(0).wait()


ALIVE = """
import sys, time
from manyfit.sweeps import locks
locks.BEAT, locks.DEADLINE, locks.RESTARTED = 0.2, 1.0, 0.0
mine = locks.locks_of(sys.argv[1])
with mine, mine.named("turn"):
    print(mine.owner, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another(url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of its own that lives and has the lock `turn`; and its name."""
    with subprocess.Popen([sys.executable, "-c", ALIVE, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def soon(what: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False


def test_who_is_killed_is_dead_and_holds_nothing(url: str) -> None:
    """Until then it lives, suspended or not where the place itself knows; then its lock is anybody's."""
    ours = locks_of(url)
    with another(url) as (process, owner), ours:
        assert not ours.dead(owner)
        if not url.startswith("grpc"):  # of which a sign of life is all that is known
            process.send_signal(signal.SIGSTOP)
            time.sleep(2)
            assert not ours.dead(owner)
        process.kill()
        assert soon(lambda: ours.dead(owner))
        with ours.named("turn"):
            assert not ours.dead(ours.owner)


def test_one_has_the_lock_at_a_time(url: str) -> None:
    """Four threads with locks of their own read, wait and write: no number is lost."""
    total = [0]

    def count() -> None:
        with locks_of(url) as mine:
            for _ in range(3):
                with mine.named("count"):
                    known = total[0]
                    time.sleep(0.01)
                    total[0] = known + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [12]


def test_a_lock_that_an_outage_left_taken_is_free_again(url: str) -> None:
    """The release did not arrive: its owner, who lives, takes it again, and so does everybody."""
    one, two = locks_of(url), locks_of(url)
    with one, two:
        held = one.named("x")
        held.__enter__()
        if url.startswith("grpc"):  # elsewhere the lock's connection, or its process, is all there is
            with one.named("x"):
                assert not two.dead(one.owner)
        held.__exit__(None, None, None)
        with two.named("x"):
            assert not two.dead(one.owner)


def test_who_leaves_is_dead(url: str) -> None:
    """At once, and of names that nobody has it is said as well."""
    one, two = locks_of(url), locks_of(url)
    with two:
        with one:
            assert not two.dead(one.owner)
        assert soon(lambda: two.dead(one.owner), 5)
        assert two.dead("nobody.1.00000000")


def test_a_server_that_was_restarted_knows_the_living_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has forgotten every lock: their owners come back, and until they had the time to, nobody is called dead."""
    monkeypatch.setattr(locks, "BEAT", 0.2)
    one, two = locks_of(database), locks_of(database)
    with one, two:
        monkeypatch.setattr(locks, "RESTARTED", 1e9)  # as if this server were young
        assert not two.dead("nobody.1.00000000")
        monkeypatch.setattr(locks, "RESTARTED", 0.0)
        assert two.dead("nobody.1.00000000")
        _end_connections(database)
        assert soon(lambda: not two.dead(one.owner))


def _end_connections(url: str) -> None:
    """What a restart does to them."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        asked = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        connection.execute(asked + " and datname = current_database()")


def test_names_of_files_are_beside_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever folder a process was started in: containers that share a file share its locks."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    url = f"sqlite:///{tmp_path}/data/optuna.db"
    monkeypatch.chdir(tmp_path / "a")
    one = locks_of(url)
    with one:
        monkeypatch.chdir(tmp_path / "b")
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        assert not locks_of(url).dead(one.owner)
    assert locks_of(url).dead(one.owner)
    assert not list(tmp_path.glob("[ab]/*"))
