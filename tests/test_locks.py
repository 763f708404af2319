"""Who is alive and whose turn it is, in each place where a study can be kept; real processes, really killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import psycopg
import pytest
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._grpc.server import make_server

from forked import SERVER
from manyfit.sweeps import locks
from manyfit.sweeps.locks import AdvisoryLocks, locks_of
from manyfit.sweeps.storage import LapsedError, open_storage
from manyfit.sweeps.study import Ledger
from test_rounds import check, finished, opened, searched

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
            with pytest.raises(LapsedError):
                held.__exit__(None, None, None)
        else:
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


def _end_connections(url: str, pid: int | None = None) -> None:
    """What a restart does to them; None: to all."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        asked = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        connection.execute(f"{asked} and datname = current_database() and pid = coalesce(%s, pid)", [pid])


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


# A lock that is lost while its holder is at work


def claim_and_be_suspended(url: str, folder: str) -> None:
    """It stops itself with the study's lock in hand, when it has counted the trials and asked for none yet."""
    locks.BEAT, locks.DEADLINE, locks.RESTARTED = 0.2, 1.0, 0.0
    first = [signal.SIGSTOP]

    def sampler(trials: int) -> tuple[RandomSampler, int]:
        if first:
            os.kill(os.getpid(), first.pop())
        return RandomSampler(seed=trials), trials

    finished(opened(Path(folder), url=url, sampler=sampler))


@pytest.mark.parametrize("url", ["postgresql", "grpc"], indirect=True)
def test_who_was_suspended_with_the_lock_exceeds_no_total(url: str, tmp_path: Path) -> None:
    """Others had the lock meanwhile and met the total: what it asks for then is not made, nor left."""
    process = SERVER.Process(target=claim_and_be_suspended, args=(url, str(tmp_path)))
    process.start()
    try:
        assert process.pid is not None
        suspended = psutil.Process(process.pid)
        assert soon(lambda: suspended.status() == psutil.STATUS_STOPPED)
        if url.startswith("postgresql"):  # whose server gives a lock away only if it is restarted, or cut off
            _end_connections(url)
        with closing(opened(tmp_path, url=url)) as book:
            check(finished(book), 6)
        suspended.resume()
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
    with closing(opened(tmp_path, url=url)) as book:
        check(book.trials(), 6)


def test_a_server_that_ends_a_connection_between_two_questions(database: str, tmp_path: Path) -> None:
    """As it restarts, it ends one that was well a moment ago, and Optuna asks once more on the broken one."""
    told: list[str] = []
    with closing(opened(tmp_path, url=database, waits=told.append)) as book, contextlib.ExitStack() as cut:

        def cut_off(_connection: object, cursor: psycopg.Cursor, statement: str, *_: object) -> None:
            if not told and "FROM trials" in statement:
                _end_connections(database, cursor.connection.info.backend_pid)

        assert isinstance(book.storage, RDBStorage)
        sqlalchemy.event.listen(book.storage.engine, "before_cursor_execute", cut_off)
        cut.callback(sqlalchemy.event.remove, book.storage.engine, "before_cursor_execute", cut_off)
        check(finished(book), 6)
    (said,) = told
    assert "sweep.storage does not answer (terminating connection due to administrator command)" in said


@contextlib.contextmanager
def closing(book: Ledger) -> Iterator[Ledger]:
    """Its connections are closed at the end."""
    yield book
    if isinstance(book.storage, RDBStorage):
        book.storage.remove_session()
        book.storage.engine.dispose()


@pytest.mark.parametrize("url", ["postgresql", "grpc"], indirect=True)
@pytest.mark.parametrize(
    ("lost", "raised", "seen"),
    [
        (True, ValueError, LapsedError),
        (False, ValueError, ValueError),
        (True, KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_an_error_behind_a_lost_lock_is_of_that(
    url: str, lost: bool, raised: type[BaseException], seen: type[BaseException]
) -> None:
    """What another made of it meanwhile is no reason to crash; an interrupt stays one."""

    def work() -> None:
        with ours.named("x"):
            if lost:
                _lose(url, ours)
            raise raised

    ours = locks_of(url)
    with ours, pytest.raises(seen):
        work()


def _lose(url: str, ours: locks.Locks) -> None:
    """As if it were dead to all others."""
    if isinstance(ours, locks.Tickets):
        for ticket in ours._before("x", 1000):
            ours._use_up(ticket._trial_id)
    else:
        _end_connections(url)


def test_who_lost_the_lock_over_its_claim_does_not_report_beside_another(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off just before it wrote that it reports; meanwhile another did, and lives."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "BEAT", 0.2)
    monkeypatch.setattr(locks, "RESTARTED", 0.0)
    late, other = (searched("optimizer.lr=choice(0.1,0.2)", f"sweep.storage='{database}'") for _ in range(2))
    reports: dict[str, str | None] = {}
    note = late.ledger.study.set_user_attr

    def cut_off(key: str, value: object) -> None:
        if key.startswith("reporter") and not reports:
            _end_connections(database)
            assert soon(lambda: not late.ledger.locks.dead(other.ledger.locks.owner))
            reports["other"] = other.claim_report()
        note(key, value)

    monkeypatch.setattr(late.ledger.study, "set_user_attr", cut_off)
    with closing(late.ledger), closing(other.ledger), late.ledger, other.ledger:
        reports["late"] = late.claim_report()
    assert reports == {"other": None, "late": f"process {other.ledger.locks.owner}"}


def test_waiting_for_a_turn_asks_ever_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands who wait, each asks once a second."""
    pauses: list[float] = []
    with served(f"sqlite:///{tmp_path}/optuna.db") as url:
        one, two = locks_of(url), locks_of(url)
        with one, two, one.named("x") as held:
            assert held is None
            monkeypatch.setattr(
                locks.time, "sleep", lambda seconds: pauses.append(seconds) or _give_up_after(6, pauses)
            )
            with pytest.raises(KeyboardInterrupt), two.named("x"):
                pytest.fail("one has it")
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def _give_up_after(times: int, pauses: list[float]) -> None:
    if len(pauses) == times:
        raise KeyboardInterrupt


# A machine that vanishes without a word


@pytest.fixture
def by_tcp() -> Iterator[str]:
    """A server as it is reached from elsewhere: what is set for a TCP connection a Unix socket does not have."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # see conftest.postgresql
        import pgserver
        from pgserver._commands import pg_ctl
        from pgserver.utils import find_suitable_port

        with pgserver.get_server(Path(folder) / "postgresql") as server:
            port = find_suitable_port("127.0.0.1")
            given = ["-w", "-m", "fast", "-l", str(server.log), "-o", f"-F -h 127.0.0.1 -p {port} -k {server.pgdata}"]
            pg_ctl([*given, "restart"], pgdata=server.pgdata, user=server.system_user)
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


OPTIONS = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT
SETTINGS = "keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout"


def test_a_connection_whose_other_end_has_vanished_ends_within_half_a_minute(by_tcp: str) -> None:
    """Without power, or behind a network that is gone, it says nothing: both ends ask, of locks and of all else."""
    storage, ours = open_storage(f"{by_tcp}?options=-cwork_mem%3D7MB"), AdvisoryLocks(by_tcp)
    assert isinstance(storage, RDBStorage)
    for engine in (storage.engine, ours._engine):
        with engine.connect() as connection:
            assert _ends_soon(*_of_our_end(connection))
            theirs = [connection.execute(sqlalchemy.text(f"select current_setting('tcp_{key}')")) for key in SETTINGS]
            assert _ends_soon(*[int(found.scalar_one().removesuffix("ms")) for found in theirs])
    with storage.engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("show work_mem")).scalar_one() == "7MB"
    storage.remove_session()
    storage.engine.dispose()


def _of_our_end(connection: sqlalchemy.Connection) -> list[int]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with socket.socket(fileno=os.dup(driver.fileno())) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return [end.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]


def _ends_soon(idle: int, interval: int, count: int, milliseconds: int) -> bool:
    """One that says nothing, and one that takes nothing."""
    return 0 < idle + interval * count <= 30 and 0 < milliseconds <= 30_000
