"""One study, many machines: real processes with a host name, a network and a folder of their own; real servers."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import optuna
import pytest
import sqlalchemy
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from conftest import ROOT
from hosts import HUB, Network
from manyfit.sweeps.study import lost
from test_rounds import check

if TYPE_CHECKING:
    from pgserver import PostgresServer

COMMAND = ["sweep=lr_batch_size", "epochs=150", "batch_size=choice(16,32,64)", "sweep.study=shared", "sweep.round=2"]
COMMAND += ["sweep.seeds=1", "sweep.n_trials=48", "sweep.confirm_seeds=2"]


@contextlib.contextmanager
def machine(network: Network, folder: Path, host: str, name: str, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a folder of its own, on a host that may be called as another."""
    folder.mkdir()
    words = [*network.on(host, name), sys.executable, str(ROOT / "run.py"), *overrides]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Servers:
    """PostgreSQL and MLflow on the hub.

    Attributes:
        studies: Optuna's database as seen from the hosts.
        seen: The same, from here.
        tracking: MLflow as seen from the hosts.
        runs: Its database from here.
        artifacts: Its folder.
        restart: PostgreSQL.
    """

    studies: str
    seen: str
    tracking: str
    runs: str
    artifacts: Path
    restart: Callable[[], None]

    @property
    def given(self) -> list[str]:
        """For the command."""
        return [f"sweep.storage='{self.studies}'", f"tracking.uri='{self.tracking}'"]


@pytest.fixture
def network() -> Iterator[Network]:
    """A hub with four hosts."""
    with Network() as network:
        for host in ("h0", "h1", "h2", "h3"):
            network.add(host)
        yield network


@pytest.fixture
def servers(tmp_path: Path, network: Network, postgresql: "PostgresServer") -> Iterator[Servers]:
    """The servers of the other tests, on the hub meanwhile."""
    names = [f"{kind}{uuid.uuid4().hex}" for kind in ("studies", "runs")]
    for name in names:
        postgresql.psql(f"create database {name};")
    studies, runs = (f"postgresql+psycopg://{postgresql.get_uri(name)[13:]}" for name in names)
    with (postgresql.pgdata / "pg_hba.conf").open("a") as allowed:
        allowed.write(f"host all all {HUB}/24 trust\n")
    restart = functools.partial(_restarted, postgresql, network.on("hub"), HUB)
    restart()
    kept, home = tmp_path / "kept", tmp_path / "home"
    home.mkdir()
    command = [*network.on("hub"), sys.executable, "-m", "mlflow", "server", "--backend-store-uri", runs]
    command += ["--host", HUB, "--port", "5000", "--artifacts-destination", str(kept), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=null, stderr=null, cwd=home, start_new_session=True) as it:
        try:
            asks = ["bash", "-c", f"until (exec 3<>/dev/tcp/{HUB}/5000) 2> /dev/null; do sleep 0.2; done"]
            subprocess.run([*network.on("hub"), *asks], check=True, timeout=120)
            yield Servers(
                f"postgresql+psycopg://postgres@{HUB}/{names[0]}", studies, f"http://{HUB}:5000", runs, kept, restart
            )
        finally:
            os.killpg(it.pid, signal.SIGKILL)
            _restarted(postgresql, [], "")


def _restarted(server: "PostgresServer", where: list[str], listens: str) -> None:
    """PostgreSQL anew, by its own user, on a host."""
    from pgserver._commands import POSTGRES_BIN_PATH

    sockets = server.get_uri().rpartition("host=")[2]
    words = [str(POSTGRES_BIN_PATH / "pg_ctl"), "-D", str(server.pgdata), "-w", "-m", "fast", "-l", str(server.log)]
    words += ["-o", f"-h '{listens}' -k {sockets}", "restart"]
    user = ["setpriv", "--init-groups", f"--reuid={server.system_user}", "--"] if server.system_user else []
    null = subprocess.DEVNULL
    subprocess.run([*where, *user, *words], check=True, timeout=60, stdout=null, stderr=null)


@pytest.mark.slow
def test_four_machines_share_a_study_through_every_fault(tmp_path: Path, network: Network, servers: Servers) -> None:
    """Two of them under one host name; one is killed, one suspended for a minute, the database restarted once.

    All 48 trials are there, none doubled, none left RUNNING; what the dead had begun is done within 30 s; one of them
    confirms and reports, a later start says which run does, every exit code is true, and the report is on the server.
    """
    with contextlib.ExitStack() as stack:
        given = [*COMMAND, *servers.given]
        names = ("node", "node", "a", "b")
        processes = [
            stack.enter_context(machine(network, tmp_path / f"folder{i}", f"h{i}", name, *given))
            for i, name in enumerate(names)
        ]
        book = Study(servers.seen)
        stack.callback(book.close)
        book.until(lambda trials: len({t.user_attrs.get("owner") for t in trials}) == 4 and done(trials) >= 4, 240)
        suspend(processes[2], network.address("h2"), book)
        suspended = time.monotonic()
        dead = killed_with_trials(processes[1], book)
        killed = time.time()
        book.until(lambda trials: done(trials) >= 12)
        servers.restart()
        book.until(lambda trials: done(trials) >= 24)
        time.sleep(max(0.0, 60 - (time.monotonic() - suspended)))
        processes[2].send_signal(signal.SIGCONT)
        ended = [process.communicate(timeout=240) for process in processes]
        assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0, 0], ended
        trials = book.trials()
        check(trials, 48)
        assert_begun_again(trials, dead, killed)
        with machine(network, tmp_path / "later", "h1", "c", *given) as process:
            said, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        reports = "".join(out for out, _ in ended).count("confirmed:") + "".join(o for o, _ in ended).count("refuted:")
        assert (reports, "reports on them" in said) == (1, True), [out for out, _ in ended]
        client = mlflow.MlflowClient(servers.runs)
        deadline = time.monotonic() + 120  # one that had no answer for a while leaves its uploader at work
        while any(run.info.status == "RUNNING" for run in of_all(client)) and time.monotonic() < deadline:
            time.sleep(1)
        runs = of_all(client)
        assert not [run for run in runs if run.info.status == "RUNNING"]
        assert len([run for run in runs if run.data.tags.get("manyfit.role") == "confirmation"]) in (6, 8)
        finished = Counter(r.data.tags["optuna.trial"] for r in runs if "optuna.trial" in r.data.tags and well(r))
        assert {number: finished[str(number)] for number in finished} == dict.fromkeys(finished, 1)
        assert {int(number) for number in finished} >= {trial.number for trial in trials if not lost(trial)}
        assert len(list(servers.artifacts.rglob("confirmation.md"))) == 1


@pytest.mark.slow
def test_a_machine_that_vanishes(tmp_path: Path, network: Network, servers: Servers) -> None:
    """Its cable is pulled: no connection ends, yet half a minute later another does what it had begun."""
    given = [*COMMAND, *servers.given, "sweep.n_trials=24", "sweep.confirm_seeds=0"]
    with contextlib.ExitStack() as stack:
        here, there = (
            stack.enter_context(machine(network, tmp_path / host, host, host, *given)) for host in ("h0", "h1")
        )
        book = Study(servers.seen)
        stack.callback(book.close)
        book.until(lambda trials: len({t.user_attrs.get("owner") for t in trials}) == 2 and done(trials) >= 4, 240)
        its: set[int] = set()
        window = 0.1
        while not its:
            network.plug("h1", "up")
            time.sleep(window := 2 * window)  # on a busy machine it comes to nothing in a shorter one
            network.plug("h1", "down")
            its = in_hand(there, book)
            assert there.poll() is None, there.communicate()
        vanished = time.time()
        _, errors = here.communicate(timeout=180)
        assert here.returncode == 0, errors
        trials = book.trials()
        check(trials, 24)
        assert_begun_again(trials, its, vanished, within=45)
        assert there.poll() is None


def of_all(client: mlflow.MlflowClient) -> list[Run]:
    """Every run of the server."""
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=5000))


def assert_begun_again(trials: list[FrozenTrial], numbers: set[int], since: float, within: float = 30) -> None:
    """In time, each by another trial."""
    starts = {
        number: [t.datetime_start for t in trials if t.user_attrs.get("retry_of") == number and t.datetime_start]
        for number in numbers
    }
    assert all(times and min(times).timestamp() - since < within for times in starts.values()), (starts, trials)


def suspend(process: subprocess.Popen[str], address: str, book: "Study") -> None:
    """Stop it while it trains, but not while it has the study's lock or is in a transaction: then nobody can go on."""
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # the server answers what it had asked
        if in_hand(process, book) and not book.kept_by(address):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail("it had come to its end before it could be suspended")


def killed_with_trials(process: subprocess.Popen[str], book: "Study") -> set[int]:
    """Kill it while it has trials in hand; their numbers."""
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        if its := in_hand(process, book):
            process.kill()
            return its
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail("it had come to its end before it could be killed")


def in_hand(process: subprocess.Popen[str], book: "Study") -> set[int]:
    """The numbers of the trials that it runs."""
    running = [trial for trial in book.trials() if trial.state == TrialState.RUNNING]
    return {trial.number for trial in running if f".{process.pid}." in trial.user_attrs.get("owner", "")}


def well(run: mlflow.entities.Run) -> bool:
    return str(run.info.status) == "FINISHED"


def done(trials: list[FrozenTrial]) -> int:
    return sum(trial.state == TrialState.COMPLETE for trial in trials)


class Study:
    """The study as it is in the server, which may be away for a moment."""

    def __init__(self, url: str) -> None:
        self.storage = optuna.storages.RDBStorage(url, {"pool_pre_ping": True})

    def trials(self) -> list[FrozenTrial]:
        """None while there is no study."""
        try:
            return optuna.load_study(study_name="shared", storage=self.storage).trials
        except (KeyError, optuna.exceptions.StorageInternalError):
            return []

    def until(self, what: Callable[[list[FrozenTrial]], bool], seconds: float = 120) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + seconds
        while not what(self.trials()):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kept_by(self, address: str) -> bool:
        """Whether sessions of a host hold a lock of a name, or are in the midst of something."""
        asked = sqlalchemy.text(
            "select count(*) from pg_stat_activity left join pg_locks using (pid) where client_addr = :address"
            " and (state <> 'idle' or (locktype = 'advisory' and objsubid = 1))"
        )
        with self.storage.engine.connect() as connection:
            return bool(connection.execute(asked, {"address": address}).scalar_one())

    def close(self) -> None:
        """Its connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()
