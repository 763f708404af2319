"""One study, many machines: real processes with a host name, a network and a folder of their own; one real server."""

import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from conftest import ROOT
from manyfit.sweeps.study import lost
from test_rounds import check

if_allowed = pytest.mark.skipif(
    subprocess.run(["unshare", "--uts", "--net", "true"], capture_output=True).returncode != 0,
    reason="namespaces must be allowed (root, or CAP_SYS_ADMIN): a machine here is a host name and a network",
)

if TYPE_CHECKING:
    from pgserver import PostgresServer

COMMAND = ["sweep=lr_batch_size", "epochs=150", "batch_size=choice(16,32,64)", "sweep.study=shared", "sweep.round=2"]
COMMAND += ["sweep.seeds=1", "sweep.n_trials=48", "sweep.confirm_seeds=2"]


@contextlib.contextmanager
def machine(folder: Path, host: str, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a folder, a network and under a host name of its own."""
    folder.mkdir()
    words = ["unshare", "--uts", "--net", "sh", "-c", 'hostname "$0" && exec "$@"', host]
    words += [sys.executable, str(ROOT / "run.py"), *overrides]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@if_allowed
def test_four_machines_share_a_study_through_every_fault(tmp_path: Path, postgresql: "PostgresServer") -> None:
    """Two of them under one host name; one is killed, one suspended for a minute, the server restarted once.

    All 48 trials are there, none doubled, none left RUNNING; what the dead had begun is done within 30 s; one of them
    confirms and reports, a later start says which run does, and every exit code is true.
    """
    from pgserver._commands import pg_ctl

    server = postgresql
    with contextlib.ExitStack() as stack:
        server.psql("create database studies;")
        server.psql("create database runs;")
        studies, stored = (f"postgresql+psycopg://{server.get_uri(name)[13:]}" for name in ("studies", "runs"))
        given = [*COMMAND, f"sweep.storage='{studies}'", f"tracking.uri='{stored}'"]
        hosts = ("node", "node", "a", "b")
        processes = [
            stack.enter_context(machine(tmp_path / f"folder{i}", host, *given)) for i, host in enumerate(hosts)
        ]
        book = Study(studies)
        stack.callback(book.close)
        book.until(lambda trials: len({t.user_attrs.get("owner") for t in trials}) == 4 and done(trials) >= 4)
        suspend(processes[2], book)
        suspended = time.monotonic()
        dead = killed_with_trials(processes[1], book)
        killed = time.time()
        book.until(lambda trials: done(trials) >= 12)
        pg_ctl(["-w", "-m", "fast", "restart"], pgdata=server.pgdata, user=server.system_user)
        book.until(lambda trials: done(trials) >= 24)
        time.sleep(max(0.0, 60 - (time.monotonic() - suspended)))
        processes[2].send_signal(signal.SIGCONT)
        ended = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0, 0], ended
        trials = book.trials()
        check(trials, 48)
        begun = {
            number: [t.datetime_start for t in trials if t.user_attrs.get("retry_of") == number and t.datetime_start]
            for number in dead
        }
        assert all(starts and min(starts).timestamp() - killed < 30 for starts in begun.values()), (begun, trials)
        third = machine(tmp_path / "later", "c", *given)
        with third as process:
            said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        reports = "".join(out for out, _ in ended).count("confirmed:") + "".join(o for o, _ in ended).count("refuted:")
        assert (reports, "reports on them" in said) == (1, True), [out for out, _ in ended]
        client = mlflow.MlflowClient(stored)
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=5000)
        assert not [run for run in runs if run.info.status == "RUNNING"]
        assert len([run for run in runs if run.data.tags.get("manyfit.role") == "confirmation"]) in (6, 8)
        finished = Counter(r.data.tags["optuna.trial"] for r in runs if "optuna.trial" in r.data.tags and well(r))
        assert {number: finished[str(number)] for number in finished} == dict.fromkeys(finished, 1)
        assert {int(number) for number in finished} >= {trial.number for trial in trials if not lost(trial)}


def suspend(process: subprocess.Popen[str], book: "Study") -> None:
    """Stop it, but not while it holds the study's lock: then nobody can go on."""
    while (before := done(book.trials())) < 40:
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if done(book.trials()) > before + 4:  # more than what was in training
                return
            time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
    pytest.fail("the study is at its end, and nothing was suspended yet")


def killed_with_trials(process: subprocess.Popen[str], book: "Study") -> set[int]:
    """Kill it while it has trials in hand; their numbers."""
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        running = [trial for trial in book.trials() if trial.state == TrialState.RUNNING]
        if its := {trial.number for trial in running if f".{process.pid}." in trial.user_attrs.get("owner", "")}:
            process.kill()
            return its
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    pytest.fail("it had come to its end before it could be killed")


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

    def close(self) -> None:
        """Its connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()
