"""What training hands over is what MLflow has, once, whatever dies or is away in between."""

import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import sqlalchemy
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from disks import make_room, small_disk
from forked import tables
from manyfit import cli
from manyfit.config.errors import ConfigError
from manyfit.progress import Screen
from manyfit.tracking import doctor, journal, pulse, reading, rejected, upkeep, uploader
from manyfit.tracking.delivery import Session
from manyfit.tracking.limits import MAX_PARAM
from manyfit.tracking.run import DatasetRecord, TrackedRun
from manyfit.tracking.store import Store, Values
from manyfit.tracking.tracker import NoTracker, Tracker

DATA = DatasetRecord("digits", "0123abcd", "sklearn.datasets", 1000, 4, 3)


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an empty store in it."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(tables(), tmp_path / "mlruns" / "mlflow.db")
    return tmp_path


@pytest.fixture
def no_uploader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody delivers: all stays in the spool, as in an outage."""
    monkeypatch.setattr(Tracker, "_start_uploader", lambda _: subprocess.Popen(["false"]))


def start(tracker: Tracker, **changes: object) -> TrackedRun:
    arguments: dict[str, object] = {"experiment": "digits", "name": "adam", "params": {"lr": 0.1}, "tags": {}}
    return tracker.start(**(arguments | changes))  # type: ignore[arg-type]


def client(root: Path) -> MlflowClient:
    return Store(journal.default_uri(root), root).client


def runs(root: Path) -> list[Run]:
    """Every run of a store."""
    experiments = [e.experiment_id for e in client(root).search_experiments()]
    return list(client(root).search_runs(experiments))


def history(root: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(root).get_metric_history(run_id, name))


def abandon(tracker: Tracker) -> None:
    """The session's process dies (as far as the spool can tell)."""
    tracker._uploader.wait()
    tracker._journal.release()


# One session with everything, delivered by its uploader; the tests below look at it from all sides.


@dataclass
class Recorded:
    """A closed session and what it was about."""

    root: Path
    tracker: Tracker
    parent: TrackedRun
    child: TrackedRun
    module: torch.nn.Module


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A sweep and a run in it, with values beyond every limit, started on no store at all."""
    root = tmp_path_factory.mktemp("recorded")
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    module.eval()
    with Tracker(f"sqlite:///{root}/mlruns/mlflow.db", root) as tracker:
        parent = start(tracker, name="sweep")
        params = {f"p{i}": i for i in range(128)} | {"long": "x" * 7000, "uri": "http://me:secret@host/"}
        child = start(tracker, parent=parent, dataset=DATA, params=params, tags={"git": "https://token@host/x"})
        child.metrics([("loss/train", 1 / (i + 1), i) for i in range(1500)])
        child.metrics([("odd", math.nan, 0), ("odd", math.inf, 1), ("odd", np.float32(0.5), 2)])
        child.tags(
            {"mlflow.note.content": "Two sentences. By http://me:secret@host/."} | {f"t{i}": "x" for i in range(120)}
        )
        child.file("config.yaml", b"lr: 0.1\n")
        child.file("figures/a.bin", b"\0\1")
        example = np.ones((1, 4), np.float32)
        child.model(module, example, module(torch.from_numpy(example)).detach().numpy())
        child.end("FINISHED")
        parent.end("FAILED")
        assert tracker.close(), tracker.last_error
    return Recorded(root, tracker, parent, child, module)


def of_child(recorded: Recorded) -> Run:
    assert recorded.child.run_id is not None
    return client(recorded.root).get_run(recorded.child.run_id)


def test_metrics_are_what_was_logged(recorded: Recorded) -> None:
    """More points than one call carries arrive, each once; NaN stays NaN, an infinity is the largest number."""
    run_id = str(recorded.child.run_id)
    assert history(recorded.root, run_id, "loss/train") == [(i, 1 / (i + 1)) for i in range(1500)]
    (_, nan), (_, infinity), (_, half) = history(recorded.root, run_id, "odd")
    assert math.isnan(nan)
    assert infinity > 1e308
    assert half == 0.5


def test_params_and_tags_beyond_the_limits_arrive(recorded: Recorded) -> None:
    """More params and tags than one call carries arrive; a long value is cut with a visible mark."""
    run = of_child(recorded)
    assert len(run.data.params) == 130
    assert run.data.params["p7"] == "7"
    assert len(run.data.params["long"]) == MAX_PARAM
    assert run.data.params["long"].endswith("x ... [cut]")
    assert sum(key.startswith("t") for key in run.data.tags) == 120


def test_credentials_reach_no_param_or_tag(recorded: Recorded) -> None:
    """User, password and token of an address do not get to the store."""
    run = of_child(recorded)
    assert run.data.params["uri"] == "http://***@host/"
    assert run.data.tags["git"] == "https://***@host/x"
    assert run.data.tags["mlflow.note.content"] == "Two sentences. By http://***@host/."


def test_runs_are_named_nested_and_ended(recorded: Recorded) -> None:
    """Name, parent, experiment and status are as given, and nothing is left RUNNING."""
    run = of_child(recorded)
    assert (run.info.run_name, run.info.status) == ("adam", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == recorded.parent.run_id
    assert run.data.tags["manyfit.id"] == recorded.child.id
    assert client(recorded.root).get_run(str(recorded.parent.run_id)).info.status == "FAILED"
    assert client(recorded.root).get_experiment(run.info.experiment_id).name == "digits"


def test_artifacts_lie_under_mlruns(recorded: Recorded) -> None:
    """An artifact is a file under mlruns/artifacts with the given path and content."""
    home = recorded.root / "mlruns" / "artifacts" / str(recorded.child.run_id) / "artifacts"
    assert (home / "config.yaml").read_bytes() == b"lr: 0.1\n"
    assert (home / "figures" / "a.bin").read_bytes() == b"\0\1"
    assert mlflow.artifacts.load_text(of_child(recorded).info.artifact_uri + "/config.yaml") == "lr: 0.1\n"


def test_dataset_is_an_input(recorded: Recorded) -> None:
    """The run names its data with digest, size and the context training."""
    (found,) = of_child(recorded).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", "0123abcd")
    assert json.loads(found.dataset.profile)["num_rows"] == 1000
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_two_processes_name_the_same_data_at_once(root: Path) -> None:
    """One looks for it, the other has written it when the one does: both runs have it, and nothing is refused."""
    store = Store(journal.default_uri(root), root)
    experiment = store.experiment("digits")
    ours, theirs = (store.client.create_run(experiment).info.run_id for _ in range(2))
    engine = SqlAlchemyStore._engine_map[store.uri]

    left = [theirs]

    def overtake(_: object, __: object, statement: str, *___: object) -> None:
        if left and statement.startswith("INSERT INTO datasets"):
            store.dataset(left.pop(), asdict(DATA))

    sqlalchemy.event.listen(engine, "before_cursor_execute", overtake)
    store.dataset(ours, asdict(DATA))
    sqlalchemy.event.remove(engine, "before_cursor_execute", overtake)
    assert not left
    named = [store.client.get_run(run_id).inputs.dataset_inputs for run_id in (ours, theirs)]
    assert [[found.dataset.digest for found in its] for its in named] == [["0123abcd"], ["0123abcd"]]


def test_spool_is_empty_afterwards(recorded: Recorded) -> None:
    """What has arrived is not kept, and there is nothing to report."""
    assert list((recorded.root / "mlruns" / "spool").iterdir()) == []
    assert recorded.tracker.last_error is None


def test_model_predicts_the_same(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model loads by the run's id, from pt2 and not a pickle, and takes any number of rows."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", journal.default_uri(recorded.root))
    inputs = torch.randn(7, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        loaded = mlflow.pytorch.load_model(f"runs:/{recorded.child.run_id}/model")
    for rows in (inputs, inputs[:1]):
        torch.testing.assert_close(loaded(rows), recorded.module(rows), rtol=1e-6, atol=0)
    assert [path.name for path in recorded.root.rglob("model.*")] == ["model.pt2"]


# Sessions that die. The trainer is a real process, and so is the signal.

TRAINER = """
import sys, time
from pathlib import Path
from manyfit.tracking.tracker import Tracker
tracker = Tracker(None, Path(sys.argv[1]))
done, open_ = (
    tracker.start(experiment="digits", name=name, params={"lr": 1}, tags={}) for name in ("done", "open")
)
for step in range(50):
    for run in (done, open_):
        run.metrics([("loss/train", float(step), step)])
        run.file(f"{step}.txt", b"x")
    if step == 25:
        while sys.argv[2] == "delivered" and open_.run_id is None: time.sleep(0.05)
done.end("FINISHED")
print(tracker._uploader.pid, flush=True)
time.sleep(100)
"""


def killed_trainer(root: Path, when: str, and_uploader: bool) -> None:
    """Run TRAINER to its last line, then kill -9 it, and its uploader before it."""
    with subprocess.Popen([sys.executable, "-c", TRAINER, str(root), when], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        uploader = int(process.stdout.readline())
        if and_uploader:
            os.kill(uploader, signal.SIGKILL)
        process.kill()
    while and_uploader and not list(journal.orphans(root)):  # a killed process takes a moment to let go of its locks
        time.sleep(0.01)


def check_killed(root: Path) -> None:
    """All that TRAINER said is there, once, and its open run is KILLED."""
    found = {run.info.run_name: run for run in runs(root)}
    assert len(runs(root)) == 2
    assert {name: run.info.status for name, run in found.items()} == {"done": "FINISHED", "open": "KILLED"}
    for run in found.values():
        assert history(root, run.info.run_id, "loss/train") == [(i, float(i)) for i in range(50)]
        assert len(client(root).list_artifacts(run.info.run_id)) == 50


@pytest.mark.parametrize("when", ["undelivered", "delivered"])
def test_sync_delivers_a_killed_session(root: Path, when: str) -> None:
    """After kill -9 of training and uploader, sync loses and doubles nothing, and the open run is KILLED."""
    killed_trainer(root, when, and_uploader=True)
    report = upkeep.sync(root)
    assert (report.sessions, report.runs, report.held) == (1, 2, ())
    check_killed(root)
    assert upkeep.sync(root).sessions == 0


def test_uploader_survives_its_session(root: Path) -> None:
    """After kill -9 of training alone the uploader delivers the rest by itself."""
    killed_trainer(root, "undelivered", and_uploader=False)
    deadline = time.monotonic() + 30
    while journal.sessions(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    check_killed(root)


@pytest.mark.usefixtures("no_uploader")
@pytest.mark.parametrize(("away", "left"), [(4, 0), (5, 1)])
def test_uploader_of_the_dead_tries_again(root: Path, monkeypatch: pytest.MonkeyPatch, away: int, left: int) -> None:
    """A store that restarts when a session is killed has it half a minute later; a longer outage ends the uploader."""
    tracker = Tracker(None, root)
    start(tracker)
    abandon(tracker)
    (folder,) = journal.sessions(root)
    slept, outage = [0.0], [OSError("503")] * away

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    def embark(folder: Path) -> Session:
        if outage:
            raise outage.pop()
        return Session(Store(tracker.uri, root), folder)

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: slept[0])
    monkeypatch.setattr(uploader, "time", clock)
    monkeypatch.setattr(uploader, "_embark", embark)
    monkeypatch.setattr(uploader.os, "nice", int)
    assert uploader.attend(folder, owner=-1) == (not left)
    assert len(journal.sessions(root)) == left
    assert slept[0] == pytest.approx(30, abs=1)
    assert [run.info.status for run in runs(root)] == ["KILLED"] * (1 - left)


@pytest.mark.usefixtures("no_uploader")
def test_next_start_delivers_what_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new session on the same store replays an orphan in the background, before its own runs."""
    orphan = Tracker(None, root)
    start(orphan, name="first").metrics([("m", 1.0, 0)])
    abandon(orphan)
    monkeypatch.undo()
    with Tracker(None, root) as tracker:
        start(tracker, name="second").end("FINISHED")
    assert {run.info.run_name: run.info.status for run in runs(root)} == {"first": "KILLED", "second": "FINISHED"}


@pytest.mark.usefixtures("no_uploader")
def test_replay_doubles_nothing(root: Path, tmp_path: Path) -> None:
    """A session delivered again from its beginning (killed before anything was acknowledged) changes nothing."""
    tracker = Tracker(None, root)
    run = start(tracker, dataset=DATA)
    run.metrics([("m", float(i), i) for i in range(20)] + [("m", math.nan, 20)])
    run.file("a.txt", b"x")
    module = torch.nn.Linear(4, 3)
    run.model(module, np.ones((1, 4), np.float32), np.ones((1, 3), np.float32))
    run.end("FINISHED")
    assert not tracker.close()
    (folder,) = journal.sessions(root)
    shutil.copytree(folder, tmp_path / "copy")
    assert upkeep.sync(root).runs == 1
    shutil.copytree(tmp_path / "copy", folder)
    assert upkeep.sync(root).held == ()
    (found,) = runs(root)
    assert found.info.status == "FINISHED"
    assert len(client(root).get_metric_history(found.info.run_id, "m")) == 21
    assert len(found.inputs.dataset_inputs) == len(found.outputs.model_outputs) == 1
    assert len(client(root).search_logged_models([found.info.experiment_id])) == 1


@pytest.mark.usefixtures("no_uploader")
def test_torn_last_line_does_not_stop_a_replay(root: Path) -> None:
    """A session killed in the middle of a write is delivered up to there, and its run KILLED."""
    tracker = Tracker(None, root)
    start(tracker).metrics([("m", 1.0, 0)])
    with (tracker._journal.folder / journal.JOURNAL).open("ab") as file:
        file.write(b'{"op":"metrics","run":')
    abandon(tracker)
    assert upkeep.sync(root).held == ()
    (found,) = runs(root)
    assert (found.info.status, found.data.metrics) == ("KILLED", {"m": 1.0})


@pytest.mark.usefixtures("no_uploader")
def test_sync_leaves_a_living_session_alone(root: Path) -> None:
    """A session whose process lives is not replayed by another."""
    tracker = Tracker(None, root)
    start(tracker)
    assert upkeep.sync(root) == upkeep.SyncReport(0, 0, 0, (), 1)
    assert runs(root) == []
    abandon(tracker)


def test_four_first_starters(tmp_path: Path) -> None:
    """Four processes that start at once on an empty folder all get their runs into one store."""
    code = (
        "import sys; from pathlib import Path; from manyfit.tracking.tracker import Tracker\n"
        "with Tracker(None, Path(sys.argv[1])) as t:\n"
        "    t.start(experiment='one', name=sys.argv[2], params={}, tags={}).end('FINISHED')\n"
        "    sys.exit(0 if t.close() else t.last_error)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)]) for i in range(4)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0, 0, 0]
    assert sorted(run.info.run_name for run in runs(tmp_path)) == ["0", "1", "2", "3"]
    assert len({run.info.experiment_id for run in runs(tmp_path)}) == 1


# Outages and refusals.


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_outage_holds_back_and_says_why(tmp_path: Path, port: int) -> None:
    """With no server there training is served, close is False, and everything is in the spool, without a password."""
    with Tracker(f"http://me:secret@127.0.0.1:{port}", tmp_path) as tracker:
        run = start(tracker)
        run.metrics([("m", 1.0, 0)])
        run.end("FINISHED")
        assert not tracker.close()
    assert run.run_id is None
    assert str(port) in str(tracker.last_error)
    (folder,) = journal.sessions(tmp_path)
    assert not any(b"secret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    (held,) = upkeep.sync(tmp_path).held
    assert "MLFLOW_TRACKING_URI must be" in held


@pytest.mark.usefixtures("forked_uploader")
@pytest.mark.parametrize(("at", "uri"), [("mlruns/artifacts", None), ("elsewhere", "sqlite:///elsewhere/other.db")])
def test_a_store_whose_disk_is_full(root: Path, at: str, uri: str | None) -> None:
    """What it does not take is held back, which is said, and arrives once there is room."""
    with small_disk(root / at, "100k") as disk:
        with Tracker(uri, root) as tracker:
            run = start(tracker)
            run.metrics([("m", float(i), i) for i in range(2000)])
            run.file("large.bin", bytes(300_000))
            run.end("FINISHED")
            assert not tracker.close()
        assert tracker.lost is None
        assert re.search("No space left|database or disk is full", str(tracker.last_error))
        assert "nothing is lost: manyfit sync delivers it" in tracker.where(run)
        make_room(disk)
        while not list(journal.orphans(root)):  # who delivered may take a moment to let go of its lock
            time.sleep(0.01)
        assert upkeep.sync(root).held == ()
        store = Store(tracker.uri, root)
        (found,) = store.all("")
        assert found.info.status == "FINISHED"
        assert len(store.client.get_metric_history(found.info.run_id, "m")) == 2000
        assert [(item.path, item.file_size) for item in store.client.list_artifacts(found.info.run_id)] == [
            ("large.bin", 300_000)
        ]
        store.client._tracking_client.store.engine.dispose()


@pytest.mark.usefixtures("forked_uploader")
def test_a_disk_that_promises_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An fsync that fails is told as what it is: all is written, and a run that has arrived is not held back."""

    def refused(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(journal, "EVERY", 0.02)
    with Tracker(None, root) as tracker:
        run = start(tracker)
        while not tracker._journal.unsure:
            time.sleep(0.01)
        run.end("FINISHED")
        assert tracker.close()
    assert tracker.lost is None
    assert "page  " in tracker.where(run)
    said = capsys.readouterr().err
    assert "Input/output error; it is written, but a power cut may cost what is recorded" in said
    assert "in memory" not in said


@contextmanager
def slow(database: Path) -> Iterator[None]:
    """Somebody else writes into it nearly all the time."""
    over = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as somebody:
            while not over.wait(0.15):
                somebody.execute("begin immediate")
                time.sleep(0.4)
                somebody.execute("rollback")

    somebody = threading.Thread(target=write)
    somebody.start()
    try:
        yield
    finally:
        over.set()
        somebody.join()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_uploader")
def test_what_takes_long_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that goes on taking something has all the time that it needs, and what is left is counted."""
    monkeypatch.setattr(pulse, "BUSY", 6.0)
    said = []
    with Screen("") as screen, screen.stage("delivering to the store"):

        def left(runs: int) -> None:
            screen.left(runs)
            said.append(screen._now()[0])

        with monkeypatch.context() as patch:
            patch.setattr(Tracker, "_start_uploader", lambda _: subprocess.Popen(["false"]))  # all waits for the end
            tracker = Tracker(None, root, left)
            tracker._uploader.wait()
        parent = start(tracker)
        for run in [*(start(tracker, parent=parent) for _ in range(400)), parent]:
            run.metrics([("m", float(i), i) for i in range(100)])
            run.end("FINISHED")
        began = time.monotonic()
        with slow(root / "mlruns" / "mlflow.db"):
            assert tracker.close(), tracker.last_error
        assert time.monotonic() - began > pulse.BUSY
    assert {run.info.status for run in runs(root)} == {"FINISHED"}
    counts = [int(found[1]) for words in said if (found := re.search(r"store: (\d+) of \d+ runs", words))]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2


@pytest.mark.usefixtures("forked_uploader")
def test_a_store_that_somebody_holds_locked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing arrives, whatever who delivers is doing: it is waited for only so long, and arrives later."""
    monkeypatch.setattr(pulse, "BUSY", 3.0)
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as somebody:
        somebody.execute("begin immediate")
        with Tracker(None, root) as tracker:
            run = start(tracker)
            run.end("FINISHED")
            began = time.monotonic()
            assert not tracker.close()
            assert time.monotonic() - began < 15  # MLflow alone tries for 20
    assert "delivery goes on in the background" in tracker.where(run)
    deadline = time.monotonic() + 60
    while journal.sessions(root) and time.monotonic() < deadline:
        upkeep.sync(root)
        time.sleep(0.1)
    assert [run.info.status for run in runs(root)] == ["FINISHED"]


def test_a_store_that_does_not_open_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions are held back for it: each may take as long as its address is silent."""
    asked = []

    def silent(uri: str, _: Path) -> Store:
        asked.append(uri)
        raise TimeoutError("timed out")

    for _ in range(3):
        journal.Journal(tmp_path / "mlruns" / "spool", {"op": "session", "uri": None}).release()
    monkeypatch.setattr(upkeep, "Store", silent)
    assert len(upkeep.sync(tmp_path).held) == 3
    assert len(asked) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked_uploader")
def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """One that takes a connection, and says nothing: a command waits at most 15 s in all, and says that all is held.

    A search waits for the ids of its runs, then for everything.
    """
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with Tracker(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path) as tracker:
            run = start(tracker)
            run.metrics([("m", 1.0, 0)])
            run.end("FINISHED")
            time.sleep(2)
            began = time.monotonic()
            tracker.wait_for_ids()
            assert not tracker.close()
            assert time.monotonic() - began <= 15
        assert "held back in mlruns/spool" in tracker.where(run)
        assert re.search("has not answered yet|timed out|timeout", str(tracker.last_error))
    assert len(journal.sessions(tmp_path)) == 1


def test_a_store_that_does_not_answer_is_told_so(tmp_path: Path, port: int) -> None:
    """When runs are looked for in it: one sentence, without a password."""
    uri = f"http://me:secret@127.0.0.1:{port}"
    with pytest.raises(
        ValueError, match=rf"tracking.uri must be a store that answers, but http://\*\*\*@127.0.0.1:{port} "
    ):
        reading.named(uri, tmp_path, "ab")


@pytest.fixture
def serve(tmp_path: Path, port: int) -> Iterator[Callable[[], str]]:
    """A function that starts a real MLflow server and returns its address."""
    servers: list[subprocess.Popen[bytes]] = []

    def up() -> str:
        store = tmp_path / "server"
        store.mkdir()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}/mlflow.db"]
        command += ["--artifacts-destination", str(store / "artifacts"), "--port", str(port), "--workers", "1"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = subprocess.DEVNULL
        servers.append(
            subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, cwd=store, start_new_session=True)
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.1)
        raise TimeoutError("mlflow server")

    yield up
    for server in servers:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_uploader")
def test_sync_delivers_after_an_outage(tmp_path: Path, port: int, serve: Callable[[], str]) -> None:
    """What a missing server held back arrives there when it is up: values, artifacts, dataset and model."""
    with Tracker(f"http://127.0.0.1:{port}", tmp_path) as tracker:
        run = start(tracker, dataset=DATA)
        run.metrics([("m", 1.0, 0), ("m", math.nan, 1)])
        run.file("figures/a.txt", b"x")
        run.model(torch.nn.Linear(4, 3), np.ones((1, 4), np.float32), np.ones((1, 3), np.float32))
        run.end("FINISHED")
        assert not tracker.close()
    deadline = time.monotonic() + 60
    while (report := upkeep.sync(tmp_path)).living and time.monotonic() < deadline:
        time.sleep(0.5)  # its uploader goes on alone for a while
    assert len(report.held) == 1
    server = MlflowClient(address := serve())
    assert upkeep.sync(tmp_path).runs == 0  # a journal does not choose a store
    assert upkeep.sync(tmp_path, address).runs == 1
    experiment = server.get_experiment_by_name("digits")
    assert experiment is not None
    (found,) = server.search_runs([experiment.experiment_id])
    assert (found.info.status, len(found.inputs.dataset_inputs)) == ("FINISHED", 1)
    assert len(server.get_metric_history(found.info.run_id, "m")) == 2
    assert [item.path for item in server.list_artifacts(found.info.run_id, "figures")] == ["figures/a.txt"]
    assert len(found.outputs.model_outputs) == 1


@pytest.mark.usefixtures("no_uploader")
def test_refused_value_spares_the_others(root: Path) -> None:
    """A value that the store refuses for good is kept aside with the reason; all others arrive."""
    tracker = Tracker(None, root)
    run = start(tracker)
    run.metrics([("bad*name", 1.0, 0)] + [("m", float(i), i) for i in range(10)])
    run.end("FINISHED")
    tracker.close()
    assert upkeep.sync(root).refused == 1
    (found,) = runs(root)
    assert len(history(root, found.info.run_id, "m")) == 10
    assert found.info.status == "FINISHED"
    (kept,) = rejected.files(root)
    assert "bad*name" in kept.read_text()
    assert any(line.startswith("problem") and "refused" in line for line in doctor.doctor(root))
    assert upkeep.sync(root, rejects=True).refused == 0
    assert rejected.files(root) == []
    (again,) = [run for run in runs(root) if run.info.run_name == "adam (rejected)"]
    assert again.data.tags["manyfit.rejected.of"] == found.info.run_id
    assert again.data.metrics == {"bad_name": 1.0}
    text = mlflow.artifacts.load_text(again.info.artifact_uri + "/rejected.jsonl")
    assert "bad*name" in text


@pytest.mark.usefixtures("forked_uploader")
def test_a_run_deleted_while_it_trains(root: Path) -> None:
    """What follows is set aside, and said; `sync --rejected` makes a new run of it, with its files."""
    with Tracker(None, root) as tracker:
        run = start(tracker)
        run.metrics([("m", 0.0, 0)])
        tracker.wait_for_ids()
        assert run.run_id is not None
        client(root).delete_run(run.run_id)
        run.metrics([("m", float(i), i) for i in range(1, 2000)])
        run.tags({"fit": "good"})
        run.file("figures/a.txt", b"x")
        run.model(torch.nn.Linear(4, 3), np.ones((1, 4), np.float32), np.ones((1, 3), np.float32))
        run.end("FINISHED")
        assert tracker.close()
    assert "the store must take what is recorded, but refused" in str(tracker.lost)
    assert "manyfit sync --rejected" in str(tracker.lost)
    assert runs(root) == []
    assert upkeep.sync(root, rejects=True).held == ()
    (found,) = runs(root)
    assert (found.info.run_name, found.info.status) == ("adam (rejected)", "FINISHED")
    assert found.data.tags["manyfit.rejected.of"] == run.run_id
    assert found.data.tags["fit"] == "good"
    assert {(i, float(i)) for i in range(1, 2000)} <= set(history(root, found.info.run_id, "m"))
    assert [item.path for item in client(root).list_artifacts(found.info.run_id, "figures")] == ["figures/a.txt"]
    assert len(found.outputs.model_outputs) == 1
    assert list((root / "mlruns" / "rejected").glob("[!.]*")) == []
    assert upkeep.sync(root, rejects=True).sessions == 0


@pytest.mark.usefixtures("no_uploader")
def test_a_name_that_no_store_takes_is_refused_at_once(root: Path) -> None:
    """By its length or its characters, before the run exists; a run's own, made of its settings, is cut."""
    tracker = Tracker(None, root)
    with pytest.raises(ConfigError, match="name must have at most 256 characters.* but got 600"):
        start(tracker, experiment="x" * 600)
    for key in ("k" * 251, "a+b"):
        with pytest.raises(ConfigError, match="a key must have at most 250 characters"):
            start(tracker, params={key: 1})
        with pytest.raises(ConfigError, match="a key must have at most 250 characters"):
            start(tracker, tags={key: "1"})
    start(tracker, name="x" * 600)
    abandon(tracker)
    upkeep.sync(root)
    assert [len(str(run.info.run_name)) for run in runs(root)] == [250]


@pytest.mark.usefixtures("no_uploader")
def test_resumed_run_keeps_one_value_per_step(root: Path) -> None:
    """A run that goes on is RUNNING and then ended again; repeated steps stay single, a changed param is a tag."""
    first = Tracker(None, root)
    start(first, params={"lr": 1, "epochs": 5}).metrics([("m", float(i), i) for i in range(5)])
    abandon(first)
    upkeep.sync(root)
    (before,) = runs(root)
    second = Tracker(None, root)
    run = start(second, params={"lr": 1, "epochs": 9}, run_id=before.info.run_id)
    run.metrics([("m", i + 0.5, i) for i in range(3, 9)])
    abandon(second)
    upkeep.sync(root)
    (after,) = runs(root)
    values = dict(history(root, after.info.run_id, "m"))
    assert values == {i: float(i) for i in range(5)} | {i: i + 0.5 for i in range(5, 9)}
    assert len(client(root).get_metric_history(after.info.run_id, "m")) == 9
    assert after.data.params == {"lr": "1", "epochs": "5"}
    assert after.data.tags["resumed/epochs"] == "9"
    assert after.info.status == "KILLED"


@pytest.mark.usefixtures("no_uploader")
def test_a_clock_that_is_set_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a session the order of values is that of their steps; a run that goes on has the values it had last."""
    first = Tracker(None, root)
    run = start(first)
    run.metrics([("m", 0.0, 0), ("best", 9.0, 0), ("m", 1.0, 1)])
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    run.metrics([("m", 2.0, 2)])
    run.end("FINISHED")
    first.close()
    assert upkeep.sync(root).held == ()
    (before,) = runs(root)
    assert before.info.end_time >= before.info.start_time
    points = sorted(client(root).get_metric_history(before.info.run_id, "m"), key=lambda point: point.step)
    assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    second = Tracker(None, root)
    run = start(second, run_id=before.info.run_id)
    run.metrics([("best", 5.0, 0), ("m", 3.0, 3)])
    run.end("FINISHED")
    second.close()
    assert upkeep.sync(root).held == ()
    (after,) = runs(root)
    assert after.data.metrics == {"m": 3.0, "best": 5.0}


@pytest.fixture
def litter(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What killed processes leave, long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    mlruns, host = root / "mlruns", os.uname().nodename
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    files = [
        mlruns / "checkpoints" / "a" / f".{dead.pid}.tmp",
        mlruns / "locks" / f"{host}.{dead.pid}.0123abcd.lock",
        mlruns / ".abcd1234" / "mlflow.db",
        mlruns / "spool" / ".20250101-000000-00000000" / "lock",
        root / "cache" / "manyfit" / "mlflow-3.0.0.db.123",
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    gone = [path.parent if path.parent.name.startswith(".") else path for path in files]
    for path in gone:
        os.utime(path, (0, 0))
    (mlruns / "spool" / "20250101-000000-00000000").mkdir()  # killed before its first record
    return [*gone, mlruns / "spool" / "20250101-000000-00000000"]


@pytest.mark.usefixtures("forked_uploader")
def test_the_next_start_removes_what_was_left_lying_about(root: Path, litter: list[Path]) -> None:
    """And nothing that is fresh, or of a process that lives."""
    alive = journal.Journal(journal.mlruns(root) / "spool", {"op": "session"})
    fresh = root / "mlruns" / "checkpoints" / "a" / ".1.tmp"
    lock = root / "mlruns" / "locks" / f"{os.uname().nodename}.{os.getpid()}.0123abcd.lock"
    fresh.touch()
    lock.touch()
    os.utime(lock, (0, 0))
    held = journal.claim(lock)
    assert held
    with Tracker(None, root) as tracker:
        start(tracker).end("FINISHED")
    assert [path for path in litter if path.exists()] == []
    assert fresh.exists()
    assert lock.exists()
    assert alive.folder.exists()
    os.close(held)
    alive.release()


@pytest.mark.usefixtures("no_uploader")
def test_deleted_experiment_is_restored(root: Path) -> None:
    """A run in an experiment that was deleted brings it back."""
    experiment = client(root).create_experiment("digits")
    client(root).delete_experiment(experiment)
    tracker = Tracker(None, root)
    start(tracker).end("FINISHED")
    tracker.close()
    assert upkeep.sync(root).held == ()
    assert [run.info.experiment_id for run in runs(root)] == [experiment]


@pytest.mark.usefixtures("no_uploader")
def test_runs_left_open_are_ended(root: Path) -> None:
    """A run that nobody ended is FAILED when an error passes, and KILLED when the tracker closes without one."""
    with pytest.raises(ZeroDivisionError), Tracker(None, root) as tracker:  # noqa: PT012
        start(tracker, name="failed")
        _ = 1 / 0
    with Tracker(None, root) as tracker:
        start(tracker, name="killed")
    upkeep.sync(root)
    assert {run.info.run_name: run.info.status for run in runs(root)} == {"failed": "FAILED", "killed": "KILLED"}


def test_a_thousand_runs_ask_for_their_ids_at_the_cost_of_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived is read once for as long as nothing new has: to read it for each run took minutes of 5000."""
    reads: list[Path] = []
    honest = journal.acks
    monkeypatch.setattr(journal, "acks", lambda folder: reads.append(folder) or honest(folder))
    with Tracker(None, root) as tracker:
        run = tracker.start(experiment="e", name="a", params={}, tags={})
        tracker.wait_for_ids()
        time.sleep(0.5)  # for what is acknowledged besides
        assert run.run_id is not None
        before = len(reads)
        assert {run.run_id for _ in range(1000)} == {run.run_id}
        assert len(reads) <= before + 1


def test_unwritable_folder_is_refused_at_once(tmp_path: Path) -> None:
    """A tracker that could not write says so before a run exists."""
    (tmp_path / "mlruns").write_text("a file")
    with pytest.raises(ValueError, match="mlruns must be writable"):
        Tracker(None, tmp_path)


@pytest.mark.usefixtures("no_uploader")
def test_module_that_cannot_be_exported_costs_a_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user's module that torch.export cannot read is not stored, which is said, and the run goes on."""

    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    tracker = Tracker(None, root)
    run = start(tracker)
    run.model(Branching(), np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
    assert "\nnot stored: model of run " in capsys.readouterr().err
    run.end("FINISHED")
    abandon(tracker)


def test_no_tracker_takes_everything() -> None:
    """With tracking off every call is accepted, and nothing happens."""
    with NoTracker() as tracker:
        run = tracker.start(experiment="x", name="x", params={}, tags={}, dataset=DATA)
        run.metrics([("m", 1.0, 0)])
        run.tags({"a": "b"})
        run.file("a", b"")
        run.model(torch.nn.Linear(1, 1), np.ones((1, 1)), np.ones((1, 1)))
        run.end("FINISHED")
        assert run.run_id is None
    assert tracker.close()
    assert tracker.last_error is None


@pytest.mark.usefixtures("no_uploader")
def test_wrong_status_is_refused(root: Path) -> None:
    """A status that MLflow does not know is an error at once."""
    tracker = Tracker(None, root)
    with pytest.raises(ValueError, match="status must be FINISHED, FAILED or KILLED, but got DONE"):
        start(tracker).end("DONE")
    abandon(tracker)


def test_values_halve_down_to_the_single_one() -> None:
    """Halving a call ends, and loses nothing."""
    values = Values([("m", 1.0, 0, i) for i in range(3)], [("p", "1")], [("t", "1"), ("u", "1")])
    singles: list[Values] = []

    def split(part: Values) -> None:
        halves = part.halves()
        if not halves:
            singles.append(part)
        for half in halves:
            split(half)

    split(values)
    assert [part.size for part in singles] == [1] * 6
    assert [part.points for part in singles[:3]] == [[("m", 1.0, 0, i)] for i in range(3)]


# The command.


def test_training_side_imports_no_mlflow() -> None:
    """What training imports, and `manyfit --help`, load neither MLflow nor torch."""
    code = "import sys, manyfit.tracking, manyfit.cli; sys.exit(' '.join({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stderr.strip() == b""


@pytest.mark.usefixtures("no_uploader")
def test_sync_and_doctor_report_truthfully(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands deliver, say what they did, and exit 0 only when nothing is left."""
    monkeypatch.chdir(root)
    tracker = Tracker(None, root)
    start(tracker).end("FINISHED")
    tracker.close()
    assert cli.main(["sync"]) == 0
    assert "delivered 1 session, 1 run" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "ok: store sqlite:///" in capsys.readouterr().out
    (root / "broken.db").write_bytes(b"this is no database, whatever its name says" * 99)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///broken.db")
    assert cli.main(["doctor"]) == 1
    assert "does not answer" in capsys.readouterr().out


def test_commands_refuse_a_folder_without_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a folder with mlruns/ a command makes nothing and says where to go."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sync"]) == 1
    assert "mlruns/ must be here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ui_says_when_its_port_is_taken(
    root: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A taken port is an error with the next step."""
    monkeypatch.chdir(root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert cli.main(["ui", "--port", str(port)]) == 1
    assert f"--port must be free, but {port} is taken" in capsys.readouterr().err


def test_ui_of_a_server_is_its_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a remote server there is nothing to start: its address is printed, without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example.org")
    assert cli.main(["ui"]) == 0
    assert capsys.readouterr().out.strip().endswith("https://***@runs.example.org")


@pytest.mark.slow
def test_ui_serves_and_ends_cleanly(root: Path, port: int) -> None:
    """`manyfit ui` prints its address, serves, and ends with code 0 and no process left on Ctrl-C."""
    command = [sys.executable, "-m", "manyfit.cli", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as ui:
        assert ui.stdout is not None
        assert f"http://127.0.0.1:{port}".encode() in ui.stdout.readline()
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        ui.send_signal(signal.SIGINT)
        assert ui.wait(timeout=30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_where_a_run_is_and_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its id in the store; held back with our own; without a command where it cannot go on."""
    monkeypatch.chdir(tmp_path)
    tracker: Any = SimpleNamespace(
        last_error=None, elsewhere="", sync="manyfit sync", page=lambda path: f"the page {path}"
    )
    tracker._journal, tracker._delivered = SimpleNamespace(unwritten=list), False
    tracker.acks, tracker._where = lambda: journal.Acks({}, 0, None), partial(Tracker._where, tracker)
    run: Any = SimpleNamespace(id="own456789", run_id="store6789", place=("7", "mlruns/artifacts/store6789"))
    assert Tracker.where(tracker, run, "epochs=9") == (
        "         id  store678  (manyfit run resume=store678 epochs=9 goes on with it)\n"
        "       page  the page #/experiments/7/runs/store6789"
    )
    assert Tracker.where(tracker, run, "").splitlines()[0] == (
        "         id  store678  (manyfit run resume=store678 goes on with it)"
    )
    assert Tracker.where(tracker, run).splitlines()[0] == "         id  store678"
    tracker.last_error, run.run_id = "no server", None
    assert Tracker.where(tracker, run, "") == (
        "       look  held back in mlruns/spool (no server); nothing is lost: manyfit sync delivers it  "
        "(manyfit run resume=own45678 goes on with it)"
    )
