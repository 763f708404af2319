"""`manyfit doctor` looks, `--fix` mends, and `manyfit clean` makes room and asks before."""

import os
import platform
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from forked import tables
from manyfit import cli
from manyfit.sweeps.study import Told
from manyfit.tracking import clean, journal, leftovers, rejected, sqlite
from manyfit.tracking.doctor import _unfinished, doctor
from manyfit.tracking.store import Store
from manyfit.tracking.tracker import Tracker
from manyfit.tracking.unfinished import Unfinished
from test_rounds import opened
from test_sqlite import aged


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are: a folder with an empty store in it, of which nobody delivers sessions."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Tracker, "_start_uploader", lambda _: subprocess.Popen(["false"]))
    monkeypatch.setattr(sqlite, "STILL", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(tables(), tmp_path / "mlruns" / "mlflow.db")
    return tmp_path


def client(root: Path) -> MlflowClient:
    return Store(journal.default_uri(root), root).client


def held_back(root: Path, damaged: bool = False) -> None:
    """A session that ended, and was not delivered."""
    tracker = Tracker(None, root)
    run = tracker.start(experiment="e", name="held", params={}, tags={})
    run.metrics([("bad*name", 1.0, 0), ("m", 1.0, 0)])
    run.end("FINISHED")
    if damaged:
        with (tracker._journal.folder / journal.JOURNAL).open("ab") as file:
            file.write(b"\0\0\n")
    tracker.close()


def left_running(root: Path) -> str:
    home = f"{os.uname().nodename}:{root}/mlruns/spool/20250101-000000-00000000"
    return str(client(root).create_run("0", tags={"manyfit.tracking.spool": home}).info.run_id)


def state(root: Path) -> dict[str, bytes]:
    """Every file of mlruns/ with its content, but for the store's and its lock."""
    found = {str(path): path.read_bytes() for path in (root / "mlruns").rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if "mlflow.db" not in name and "lock" not in name}


def test_it_looks_and_changes_nothing_until_it_is_told_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem is told, and the exit code is 1; with --fix each is mended, and then all is well."""
    ours = left_running(root)
    others = client(root).create_run("0", tags={"manyfit.tracking.spool": "elsewhere:/x/mlruns/spool/y"}).info.run_id
    held_back(root, damaged=True)
    litter = root / "mlruns" / "checkpoints" / "a" / ".99.tmp"
    litter.parent.mkdir(parents=True)
    litter.touch()
    os.utime(litter, (0, 0))
    before = state(root)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    held = "1 session is held back in mlruns/spool, with 1 damaged record, to be set aside"
    for words in (held, "1 run was left RUNNING", "killed processes left"):
        assert words in said
    assert said.count("problem: ") == said.count("(manyfit doctor --fix mends it)") == 3
    assert state(root) == before
    assert client(root).get_run(ours).info.status == "RUNNING"

    assert cli.main(["doctor", "--fix"]) == 0
    said = capsys.readouterr().out
    assert said.count("mended: ") == 4  # what was refused on the way as well
    assert rejected.files(root) == leftovers.find(root) == journal.sessions(root) == []
    assert client(root).get_run(ours).info.status == "KILLED"
    assert client(root).get_run(others).info.status == "RUNNING"
    assert cli.main(["doctor"]) == 0
    assert "problem" not in capsys.readouterr().out


def test_a_lock_that_is_held_stays(root: Path) -> None:
    """Whoever holds it may count as another process elsewhere: one of that number need not be here."""
    path = root / "mlruns" / "locks" / f"{leftovers.OTHER.sub('-', platform.node())}.999999999.00000000.lock"
    path.parent.mkdir()
    held = journal.claim(path)
    assert held
    os.utime(path, (0, 0))
    assert leftovers.find(root) == []
    leftovers.remove(path)
    assert path.exists()
    os.close(held)
    assert leftovers.find(root) == [path]
    leftovers.remove(path)
    assert leftovers.find(root) == list(path.parent.iterdir()) == []


def test_a_half_made_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told, and made anew only with --fix."""
    path = root / "mlruns" / "mlflow.db"
    for name in sqlite.BESIDE:
        Path(f"{path}{name}").unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table runs (run_uuid)")
    assert cli.main(["doctor"]) == 1
    assert "was left half made" in capsys.readouterr().out
    assert list(root.glob("mlruns/mlflow.db.half-made-*")) == []
    assert doctor(root, fix=True)[0].startswith("mended: store")
    assert len(list(root.glob("mlruns/mlflow.db.half-made-*"))) >= 1
    assert cli.main(["doctor"]) == 0


def test_a_store_of_an_older_mlflow(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told, and nothing is asked of it, which would renew it; with --fix it is renewed, and a copy stays."""
    path = root / "mlruns" / "mlflow.db"
    now = sqlite.revision(path)
    old = aged(path)
    before = path.read_bytes()
    assert cli.main(["doctor"]) == 1
    assert (
        f"is of an older MLflow (its tables are {old}); a copy stays (manyfit doctor --fix" in capsys.readouterr().out
    )
    assert path.read_bytes() == before
    assert doctor(root, fix=True)[0].startswith("mended: store")
    assert sqlite.revision(path) == now
    (copy,) = (root / "mlruns").glob(f"mlflow.{old}.*.db")
    assert sqlite.revision(copy) == old
    assert cli.main(["doctor"]) == 0


def test_what_cannot_be_mended_is_a_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that does not open stays one, with --fix too."""
    (root / "broken.db").write_bytes(b"this is no database, whatever its name says" * 99)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///broken.db")
    assert cli.main(["doctor", "--fix"]) == 1
    assert "does not answer" in capsys.readouterr().out
    assert (root / "broken.db").exists()


def refused(root: Path) -> tuple[Path, Path]:
    """A session's folder, and the file of what the store refused of it."""
    session = root / "mlruns" / "spool" / "20250101-000000-00000000"
    session.mkdir(parents=True)
    rejected.keep(session, {"id": "a"}, "no", [{"op": "metrics", "run": "a", "time": 1, "rows": [["m", 1.0, 0]]}])
    return session, rejected.files(root)[0]


@pytest.mark.parametrize("lock", [journal.LOCK, journal.UPLOADER_LOCK])
def test_what_may_grow_is_not_delivered_yet(root: Path, lock: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever delivers a session may set aside more of it: that would be removed unread."""
    session, path = refused(root)
    held = journal.claim(session / lock)
    assert held
    before = path.read_bytes()
    assert cli.main(["sync", "--rejected"]) == 1
    assert f"held back {path.name}: its session is at work" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert journal.sessions(root) == [session]
    os.close(held)
    assert rejected.release_all(root) == []
    assert not path.exists()


def test_one_delivers_what_was_refused_at_a_time(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another leaves it alone, and says so; so does one that cannot write."""
    session, path = refused(root)
    session.rmdir()
    held = journal.claim(path.parent / ".lock")
    assert held
    assert cli.main(["sync", "--rejected"]) == 1
    assert "another process is delivering it" in capsys.readouterr().out
    os.close(held)
    session.parent.rmdir()
    session.parent.touch()
    assert cli.main(["sync", "--rejected"]) == 1
    assert "held back 20250101-000000-00000000.jsonl: [Errno 17] File exists" in capsys.readouterr().out
    assert path.exists()


def test_what_will_not_be_gone_on_with(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A note of a run that is not in the store, or of long ago, goes with --fix; not one that may be gone on with."""
    store = Store(journal.default_uri(root), root)
    for own in ("a", "c"):
        store.create("e", {"time": 1, "name": own}, {"manyfit.id": own})
    held_back(root)
    (waits,) = (journal.read(path / journal.JOURNAL)[0][1]["run"] for path in journal.sessions(root))
    (root / "mlruns" / "checkpoints" / "d").mkdir(parents=True)
    for own in ("a", "b", "c", "d", "e", waits):
        with Unfinished(root, own) as noted:
            noted.begin(own)
    notes = root / "mlruns" / "unfinished"
    os.utime(notes / "c", (0, 0))
    untold = root / "mlruns" / "untold" / "study-0.jsonl"
    untold.parent.mkdir()
    untold.write_text("{}\n{}\n")
    with Unfinished(root, "e"):
        assert cli.main(["doctor"]) == 1
        said = capsys.readouterr().out
        assert "problem: 2 commands are noted in mlruns/unfinished" in said
        assert "ok: mlruns/untold/study-0.jsonl holds 2 results of a search" in said
        (finding,) = _unfinished(journal.default_uri(root), root)
        assert finding.told(fix=True).startswith("mended")
    assert {path.name for path in notes.iterdir()} == {"a", "d", "e", waits}


def test_a_half_made_database_of_searches(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told, and made anew only with --fix."""
    path = root / "mlruns" / "optuna.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table studies (study_id integer primary key, study_name varchar(512))")
    assert cli.main(["doctor"]) == 1
    assert f"problem: {path} was left half made" in capsys.readouterr().out
    assert cli.main(["doctor", "--fix"]) == 0
    assert f"mended: {path}" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0


def test_what_searches_left_is_mended(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of the dead, of every study, and results that are not told; those of the living are no problem."""
    url, folder = "sqlite:///mlruns/optuna.db", root / "mlruns"
    with opened(folder, url=url, name="living") as living:
        (kept,) = living.claim(1)
        for name in ("one", "other"):
            with opened(folder, url=url, name=name) as dead:
                told, *_ = dead.claim(3)
                dead.open.clear()  # so that it leaves them as a kill would
        dead.open[told.number], dead.silent = told, "no answer"
        dead.tell(Told(told.number, "COMPLETE", 0.5, {}))
        for fix, words, code in ((), "problem", 1), (("--fix",), "mended", 0):
            assert cli.main(["doctor", *fix]) == code
            said = capsys.readouterr().out
            assert f"{words}: study one has 3 trials of processes that are gone, to be handed back" in said
            assert (
                f"{words}: study other has 3 trials of processes that are gone, to be handed back and 1 result" in said
            )
            assert "study living" not in said
        assert cli.main(["doctor"]) == 0
        assert [trial.number for trial in living.trials() if trial.state == TrialState.RUNNING] == [kept.number]
    studies = [opened(folder, url=url, name=name).trials() for name in ("one", "other")]
    assert not [trial for trials in studies for trial in trials if trial.state == TrialState.RUNNING]
    assert studies[1][told.number].value == 0.5
    assert len([trial for trial in studies[1] if trial.state == TrialState.WAITING]) == 2


def test_options_that_do_not_go_together(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused in a sentence; none is ignored."""
    assert cli.main(["doctor", "--storage", "sqlite:///x.db"]) == 1
    assert "--storage must come with --study NAME" in capsys.readouterr().err
    assert cli.main(["doctor", "--fix", "--study", "x"]) == 1
    assert "--fix must not come with --study x" in capsys.readouterr().err
    assert not (root / "x.db").exists()


def test_what_cannot_be_delivered_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full while what was refused is read: all of it is there, and nothing beside it."""

    def full(*_: object) -> str:
        raise OSError("no space left on device")

    session, path = refused(root)
    session.rmdir()
    monkeypatch.setattr(journal.Journal, "file", full)
    assert cli.main(["sync", "--rejected"]) == 1
    assert f"held back {path.name}: no space left on device" in capsys.readouterr().out
    assert path.exists()
    assert journal.sessions(root) == []


def run_of(root: Path, own: str, status: str, model: bool = False) -> str:
    """A run with a state, a picture and a job's folder."""
    store = Store(journal.default_uri(root), root)
    start = {"time": 1, "name": own[0]}
    run_id = store.create("e", start, {"manyfit.id": own})
    picture = root / "picture.png"
    picture.write_bytes(bytes(1000))
    store.file(run_id, picture, None)
    if model:
        store.client.create_logged_model(store.experiment("e"), "model", run_id)
    if status != "RUNNING":
        store.end(run_id, status, 2)
    (root / "mlruns" / "checkpoints" / own).mkdir(parents=True)
    (root / "mlruns" / "checkpoints" / own / "epoch-1.safetensors").write_bytes(bytes(100_000))
    return run_id


def test_clean(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how much there is of each kind, and removes nothing unasked, and nothing that a run still needs."""
    owns = {
        status: letter * 32
        for letter, status in zip("abcdef", ["FINISHED", "KILLED", "FAILED", "RUNNING"], strict=False)
    }
    ids = {status: run_of(root, own, status) for status, own in owns.items()}
    deleted = run_of(root, "9" * 32, "KILLED", model=True)
    again = run_of(root, "8" * 32, "FINISHED")  # which is being gone on with
    tracker = Tracker(None, root)
    tracker.start(experiment="e", name="again", params={}, tags={}, run_id=again)
    client(root).delete_run(deleted)
    unknown = root / "mlruns" / "checkpoints" / ("7" * 32)
    unknown.mkdir()
    job = root / "mlruns" / "jobs" / "2025-01-01" / "00-00-00-000000"
    job.mkdir(parents=True)
    (job / "run.log").write_bytes(bytes(5000))
    busy = job.with_name("00-00-00-000001")  # of a command without a session
    shutil.copytree(job, busy)
    for path in (job, busy, job / "run.log", job.with_name("notes")):
        path.touch()
        os.utime(path, (0, 0))
    new = root / "mlruns" / "jobs" / "2025-01-02" / "00-00-00-000000"
    new.mkdir(parents=True)

    assert cli.main(["clean"]) == 0
    said = capsys.readouterr().out
    assert "0.2 MB  2 states of finished and deleted runs" in said
    assert "1 folder of commands, Hydra's" in said
    assert "1 deleted run," in said
    assert "nothing is removed without a terminal" in said
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert cli.main(["clean"]) == 0
    assert [kind.count for kind in clean.kinds(root)] == [2, 1, 1]

    assert cli.main(["clean", "--yes"]) == 0
    assert [kind.count for kind in clean.kinds(root)] == [0, 0, 0]
    left = {path.name for path in (root / "mlruns" / "checkpoints").iterdir()}
    assert left == {owns["KILLED"], owns["FAILED"], owns["RUNNING"], "8" * 32, "7" * 32}
    assert new.exists()
    assert busy.exists()
    assert job.with_name("notes").exists()
    assert not job.exists()
    runs = client(root).search_runs([client(root).get_experiment_by_name("e").experiment_id], run_view_type=3)  # type: ignore[union-attr]
    assert {run.info.run_id for run in runs} == {*ids.values(), again}
    assert {path.name for path in (root / "mlruns" / "artifacts").iterdir()} - {"models"} == {*ids.values(), again}
    tracker._uploader.wait()
    tracker._journal.release()
    assert [kind.count for kind in clean.kinds(root)] == [0, 0, 0]  # a session that is held back has its say first


def test_clean_removes_runs_of_ours_where_they_are_their_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not those of others in a shared database, nor a folder that the database names as if it were a run's."""
    ours, fooled, linked = (run_of(root, letter * 32, "FINISHED") for letter in "abc")
    folder = root / "mlruns" / "artifacts"
    precious = root / "precious"
    precious.mkdir()
    (precious / "thesis").touch()
    others = client(root).create_run(Store(journal.default_uri(root), root).experiment("e")).info.run_id
    for run_id in (ours, fooled, linked, others):
        client(root).delete_run(run_id)
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as connection, connection:
        connection.execute("update runs set artifact_uri = ? where run_uuid = ?", (str(precious), fooled))
    shutil.move(folder / linked, root / "moved")
    (folder / linked).symlink_to(root / "moved")
    assert cli.main(["clean", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"1 deleted run, with all artifacts in {folder} (2 more stay: their artifacts lie at" in said
    assert (precious / "thesis").exists()
    assert list((root / "moved").rglob("*.png"))
    assert {run.info.run_id for run in client(root).search_runs(["0", "1"], run_view_type=2)} == {
        fooled,
        linked,
        others,
    }
    assert not (folder / ours).exists()
    with pytest.raises(ValueError, match="must lie in a folder of their run"):
        Store(journal.default_uri(root), root).erase(fooled)
