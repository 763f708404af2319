"""A storage that is made by halves, locked, silent, or a proxy."""

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from disks import make_room, small_disk
from forked import ROOT, SERVER, Started, command, started
from manyfit import cli
from manyfit.config.errors import ConfigError
from manyfit.sweeps import storage
from manyfit.sweeps.storage import OutageError
from manyfit.sweeps.study import Ledger, Told, reopened
from manyfit.tracking.sqlite import half_made
from test_cli import runs
from test_locks import served, soon
from test_rounds import check, done, finished, opened, shared
from test_sqlite import killed


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """An SQLite file that somebody else writes to, and does not end."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        yield
        other.execute("rollback")


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    """For longer than SQLite waits by itself (5 s): it is said once, and then all goes on."""
    told: list[str] = []
    book = opened(tmp_path, waits=told.append)
    holder = threading.Thread(target=_hold, args=(tmp_path / "optuna.db", 7.0))
    with book:
        claimed = book.claim(2)
        holder.start()
        time.sleep(0.2)
        for trial in claimed:
            assert book.tell(Told(trial.number, "COMPLETE", 1.0, {"ended": "finished"}, [1.0, 2.0]))
    holder.join()
    assert len(told) == 1
    assert "sweep.storage does not answer" in told[0]
    check(finished(opened(tmp_path)), 6)


def _hold(path: Path, seconds: float) -> None:
    with locked(path):
        time.sleep(seconds)


def test_what_a_silent_storage_does_not_take_is_told_by_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in a file; the trials are not trained again."""
    book = opened(tmp_path, waits=lambda _: None)
    with book:
        claimed = book.claim(3)
        monkeypatch.setattr(storage, "PATIENCE", 0.0)
        with locked(tmp_path / "optuna.db"):
            for trial in claimed:
                assert book.tell(Told(trial.number, "COMPLETE", 0.5, {"ended": "finished"}, [1.0, float("nan")]))
            with pytest.raises(
                OutageError, match="sweep.storage must answer, but it did not .* The study has lost nothing"
            ):
                book.claim(3)
    monkeypatch.undo()
    trials = finished(opened(tmp_path))
    check(trials, 6)
    assert len(trials) == 6
    assert [trial.value for trial in trials][:3] == [0.5] * 3
    assert not list((tmp_path / "untold").glob("*.jsonl"))


def test_what_comes_while_the_untold_are_told_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of one folder: one tells, and removes the file, while the storage still fails the other."""
    late, book = opened(tmp_path), opened(tmp_path)
    with late:
        first, second = late.claim(2)
        late.silent = "it does not answer"
        late.tell(Told(first.number, "COMPLETE", 0.5, {}))
        adding = threading.Thread(target=late.tell, args=(Told(second.number, "COMPLETE", 0.25, {}),))
        honest = Ledger._tell

        def tell(its: Ledger, trial: int, told: Told) -> bool:
            if its is book:
                adding.start()
                adding.join(0.5)
            return honest(its, trial, told)

        monkeypatch.setattr(Ledger, "_tell", tell)
        with book:
            adding.join()
    monkeypatch.undo()
    assert [trial.value for trial in finished(opened(tmp_path))][:2] == [0.5, 0.25]


def test_what_a_full_disk_does_not_take_either_is_said_and_made_again(tmp_path: Path) -> None:
    """With the reason; the trial is left to the next session."""
    book = opened(tmp_path)
    with small_disk(tmp_path / "untold", "4k") as disk, book:
        (disk / "filler").write_bytes(bytes(4096))
        (trial,) = book.claim(1)
        book.silent = "sweep.storage must answer."
        assert book.tell(Told(trial.number, "COMPLETE", 0.5, {}))
        with pytest.raises(OutageError, match=r"answer\. What came of trial 0 is lost \(.*No space left"):
            book.claim(1)
    check(finished(opened(tmp_path)), 6)


def test_what_is_untold_of_a_study_that_is_gone_is_let_go(tmp_path: Path) -> None:
    """Numbers are counted anew: it would be told of another trial. A line that a kill cut off is no reason to stop."""
    book = opened(tmp_path)
    book.untold.parent.mkdir()
    told = {"number": 0, "state": "COMPLETE", "value": 9.0, "attributes": {}, "curve": []}
    book.untold.write_text(json.dumps({"owner": "host.1.00000000", **told}) + "\n" + '{"owner": "ho')
    trials = finished(opened(tmp_path))
    check(trials, 6)
    assert trials[0].value != 9.0
    assert not book.untold.exists()


def test_a_trial_that_was_given_to_another_is_dropped(tmp_path: Path) -> None:
    """Who was thought dead, and was not, tells what counts no more: no crash, and nothing is doubled."""
    late = opened(tmp_path)
    with late:
        claimed = late.claim(2)
        late.locks.__exit__()  # it is not heard of any more
        finished(opened(tmp_path))
        assert [late.tell(Told(trial.number, "COMPLETE", 1.0, {})) for trial in claimed] == [False, False]
        late.locks.__enter__()
    check(late.trials(), 6)


def test_what_failed_is_tried_again_by_the_next_session(tmp_path: Path) -> None:
    """It does not count towards the total; in its own session its point is not tried twice."""
    book = opened(tmp_path, total=3)
    with book:
        first = book.claim(3)
        for trial in first:
            book.tell(Told(trial.number, "FAIL", None, {"ended": "failed"}))
        assert book.done() == 0
        assert {trial.params["lr"] for trial in book.claim(3)}.isdisjoint(trial.params["lr"] for trial in first)
    again = opened(tmp_path, total=3)
    finished(again)
    assert again.done() == 3


def test_a_grid_whose_points_failed_is_done_by_the_next_session(tmp_path: Path) -> None:
    """A space of six: what failed is free again, and the report has each point once."""
    from manyfit.sweeps import space

    values = {
        "lr": optuna.distributions.CategoricalDistribution((1, 2, 3)),
        "b": optuna.distributions.CategoricalDistribution((1, 2)),
    }
    changes = {"space": values, "points": space.grid(values)}
    book = opened(tmp_path, **changes)
    with book:
        for trial in book.claim(2):
            book.tell(Told(trial.number, "FAIL", None, {"ended": "failed"}))
        while claimed := book.claim(2):
            for trial in claimed:
                book.tell(Told(trial.number, "COMPLETE", 1.0, {}))
        assert (book.done(), len(book.ended())) == (4, 6)
    again = opened(tmp_path, **changes)
    finished(again)
    assert again.done() == len(again.ended()) == 6


def test_a_proxy_is_a_storage_as_any(tmp_path: Path) -> None:
    """grpc://host:port, before a real database; values, curve and attributes arrive."""
    with served(f"sqlite:///{tmp_path}/optuna.db") as url:
        book = opened(tmp_path, url=url)
        with book:
            (trial,) = book.claim(1)
            book.tell(Told(trial.number, "PRUNED", None, {"ended": "pruned", "runs": []}, [3.0, 2.0]))
        check(finished(opened(tmp_path, url=url)), 6)
        kept = book.trials()[0]
    assert (kept.state, kept.value, kept.intermediate_values) == (TrialState.PRUNED, 2.0, {0: 3.0, 1: 2.0})
    assert kept.user_attrs["ended"] == "pruned"


def work_through(url: str, folder: str) -> None:
    finished(opened(Path(folder), total=12, url=url), size=1)


@pytest.mark.slow
def test_processes_share_a_study_through_a_proxy(tmp_path: Path) -> None:
    """Three at once, each with tickets for the study's lock: no trial is made twice, and no more than the total."""
    with served(f"sqlite:///{tmp_path}/optuna.db") as url:
        processes = [SERVER.Process(target=work_through, args=(url, str(tmp_path))) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        trials = opened(tmp_path, total=12, url=url).trials()
    check(trials, 12)
    assert len({trial.user_attrs["owner"] for trial in trials}) > 1


def test_a_proxy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In a sentence."""
    with pytest.raises(ConfigError, match="sweep.storage must be a database that can be used, but got grpc"):
        opened(tmp_path, url="grpc://localhost:1")


def test_trials_of_the_dead_are_handed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of whoever was killed; those of the living stay."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/optuna.db"
    with opened(tmp_path) as living:
        living.claim(1)
        dead = opened(tmp_path)
        with dead:
            dead.claim(2)
            dead.open.clear()  # so that it leaves them as a kill would
        for back in (2, 0):
            assert cli.main(["doctor", "--study", "study", "--storage", url]) == 0
            said = capsys.readouterr().out
            assert "study study: 0 trials are done, 1 are being run" in said
            assert f"handed back: {back} that" in said
    check(finished(opened(tmp_path)), 6)
    with pytest.raises(ConfigError, match="study must be one of study in sqlite.*, but got other"):
        reopened(url, "other", tmp_path)
    with pytest.raises(ConfigError, match="study must be one of none"):
        reopened(f"sqlite:///{tmp_path}/none.db", "study", tmp_path)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("tables", [1, 5, 11])
def test_what_was_left_half_made_is_made_anew(tmp_path: Path, tables: int) -> None:
    """The first tables of Optuna's, as a kill in their midst leaves them where they are made in place."""
    whole = tmp_path / "whole.db"
    storage.open_storage(f"sqlite:///{whole}")
    with contextlib.closing(sqlite3.connect(whole)) as base:
        made = [sql for (sql,) in base.execute("select sql from sqlite_master where type = 'table' order by rowid")]
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as half:
        for sql in made[:tables]:
            half.execute(sql)
        half.commit()
    check(finished(opened(tmp_path)), 6)


def test_a_file_that_is_no_database_stays(tmp_path: Path) -> None:
    """It is somebody's: refused, and left as it is."""
    (tmp_path / "optuna.db").write_bytes(b"my thesis" * 100)
    with pytest.raises(ConfigError, match="sweep.storage must be a database that can be used"):
        opened(tmp_path)
    assert (tmp_path / "optuna.db").read_bytes() == b"my thesis" * 100


def make_a_study(path: str) -> None:
    os.environ["XDG_CACHE_HOME"] = str(Path(path).parent / "cache")  # no copy is at hand
    storage.open_storage(f"sqlite:///{path}")


@pytest.mark.parametrize("at", [1, 6])
def test_tables_are_there_whole_or_not_at_all(tmp_path: Path, at: int) -> None:
    """Killed while Optuna makes them, so many of them are there: the next one begins anew."""
    path = tmp_path / "other.db"
    killed(make_a_study, path, at)
    assert not path.exists() or not half_made(path, storage.tables())  # on a busy machine the kill comes late
    check(finished(opened(tmp_path, url=f"sqlite:///{path}")), 6)


# the command

COMMAND = ["sweep=lr_batch_size", "data=iris", "epochs=1000", "batch_size=choice(16,32,64)", "sweep.study=shared"]
COMMAND += ["sweep.seeds=1", "sweep.round=4", "sweep.n_trials=8", "sweep.confirm_seeds=0"]
STAYS_LOCKED = r"sweep\.storage must answer, but it did not for 1 s: .*database is locked\. See that"
CLAIMED = "trial_user_attributes where key = 'owner'"  # by rounds of four: of eight, four are in training
IN_A_FILE = "sweep.storage='sqlite:///mlruns/optuna.db?timeout=1'"


def impatient(folder: Path) -> Path:
    """A run.py that waits for a storage for a second, not for two minutes."""
    path = folder / "run.py"
    script = ["import runpy", "from manyfit.sweeps import storage", "storage.PATIENCE = 1.0"]
    path.write_text("\n".join([*script, f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"]))
    return path


def until(holds: Callable[[], bool], process: Started) -> None:
    """Wait; it is to come before the process has ended."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate(1)[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(code: int | None, errors: str) -> str:
    """The one sentence that a command ended with."""
    assert code == 1, errors
    assert "Traceback" not in errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    return sentence


@pytest.mark.slow
def test_a_search_whose_database_stays_locked(tmp_path: Path) -> None:
    """One sentence; the same command tells what was trained, and trains it no more. Locked from the start: likewise."""
    path, run = tmp_path / "mlruns" / "optuna.db", impatient(tmp_path)
    with started(tmp_path, *COMMAND, IN_A_FILE, run=run) as process:
        until(lambda: done(tmp_path, CLAIMED) == 8, process)
        with locked(path):
            _, errors = process.communicate(120)
    assert re.search(STAYS_LOCKED + ".* The study has lost nothing", refused(process.returncode, errors))
    with locked(path):
        again = command(tmp_path, *COMMAND, IN_A_FILE, run=run)
    assert re.search(STAYS_LOCKED, refused(again.returncode, again.stderr))
    again = command(tmp_path, *COMMAND, IN_A_FILE)
    assert again.returncode == 0, again.stderr
    check(shared(tmp_path), 8)
    trained = Counter(r.data.tags["optuna.trial"] for r in runs(tmp_path) if "optuna.trial" in r.data.tags)
    assert set(trained.values()) == {1}  # also what was trained and could not be told
    assert len(trained) == 8
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED", "FAILED"}  # a parent's, whose search failed


@pytest.mark.slow
def test_a_search_whose_disk_fills(tmp_path: Path) -> None:
    """One sentence says what is lost, of the study and of the runs; once there is room the same command goes on."""
    with small_disk(tmp_path / "disk", "40m") as folder:
        with started(folder, *COMMAND, run=impatient(tmp_path)) as process:
            until(lambda: done(folder, CLAIMED) == 8, process)
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            _, errors = process.communicate(120)
        sentence = refused(process.returncode, errors)
        assert re.search(r"What came of trials? [\d, ]+ is lost \(.*No space left", sentence), errors
        assert re.search(r"mlruns must take what is recorded, but .* is lost. What came before is kept", sentence)
        make_room(folder)
        again = command(folder, *COMMAND)
        assert again.returncode == 0, again.stderr
        check(shared(folder), 8)
        assert "RUNNING" not in {run.info.status for run in runs(folder)}


PROXY = """
import sys, optuna
optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(sys.argv[1]), host="localhost", port=int(sys.argv[2]))
"""


@pytest.mark.slow
def test_searches_share_a_study_through_a_proxy(tmp_path: Path) -> None:
    """Two commands from two folders, started at the same moment: the total is met, and nothing is doubled."""
    url = f"sqlite:///{tmp_path}/studies.db"
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    folders = [tmp_path / name for name in ("a", "b")]
    given = [*COMMAND, "epochs=200", "sweep.round=2", "tracking=off", f"sweep.storage=grpc://localhost:{port}"]
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROXY, url, str(port)]) as proxy:
        try:
            for folder in folders:
                folder.mkdir()
            assert soon(lambda: _listens(port), 120)
            with started(folders[0], *given) as first, started(folders[1], *given) as second:
                for process in (first, second):
                    _, errors = process.communicate(120)
                    assert process.returncode == 0, errors
        finally:
            proxy.kill()
    trials = optuna.load_study(study_name="shared", storage=url).trials
    check(trials, 8)
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False
