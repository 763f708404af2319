"""A grid that was stopped: the same command keeps what is finished, and trains the rest, under the one parent run."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from conftest import Compose, command, started
from forked import tables
from manyfit import app
from manyfit.config.errors import TrainingError
from manyfit.progress import Screen
from manyfit.schedules import Schedule
from manyfit.sweeps import again
from manyfit.sweeps.again import Past
from manyfit.sweeps.parent import Sweep
from manyfit.tracking import journal, reading
from manyfit.tracking.tracker import NoTracker
from manyfit.tracking.unfinished import Unfinished
from manyfit.training.prepared import Preparation, prepare
from manyfit.training.trained import restored
from test_cli import SMALL, runs

GRID = ["-m", "data=digits", "epochs=40", "model.hidden=[200,200]", "seed=range(6)", "hydra.launcher.max_members=2"]


def finished(folder: Path) -> list[str]:
    """Names of the children that are."""
    found = [run for run in runs(folder) if "manyfit.kind" not in run.data.tags]
    return sorted(str(run.info.run_name) for run in found if run.info.status == "FINISHED")


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL, then the same command: what was finished is not trained again; one parent run reports on all."""
    with started(tmp_path, *GRID) as process:
        deadline = time.monotonic() + 60
        while len(finished(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
    done = command(tmp_path, *GRID)
    assert done.returncode == 0, done.stderr
    kept = int(re.search(r"(\d) runs of it are finished, and kept", done.stdout)[1])  # type: ignore[index]
    assert 2 <= kept < 6
    assert f"training: {kept} of 6 runs" in done.stderr
    assert "6 runs of 1 setting with 6 seeds (6 finished;" in done.stdout
    (parent,) = [run for run in runs(tmp_path) if "manyfit.kind" in run.data.tags]
    assert (parent.info.status, parent.data.tags["sweep.runs"]) == ("FINISHED", "6")
    children = [run for run in runs(tmp_path) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    seeds = [run.data.params["seed"] for run in children if "manyfit.role" not in run.data.tags]  # not the best again
    assert sorted(seeds) == list("012345")
    assert {run.info.status for run in children} == {"FINISHED"}
    assert not list((tmp_path / "mlruns" / "unfinished").iterdir())  # a finished one begins anew


def deliverer(root: Path, but: Path) -> tuple[Path, psutil.Process] | None:
    """The session that is being delivered, but another, and by whom: who has its lock open."""
    for session in set(journal.sessions(root)) - {but}:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it is gone, or not ours
                if str(session / journal.UPLOADER_LOCK) in {file.path for file in process.open_files()}:
                    return session, process
    return None


@pytest.mark.slow
def test_killed_beside_what_is_held_back(tmp_path: Path) -> None:
    """What the killed one's own uploader has still to deliver is waited for, whatever else lies in the spool.

    Nothing of it is trained twice, though the store has nothing of it yet, not even the parent run.
    """
    held = command(tmp_path, *SMALL, "tracking.uri=http://127.0.0.1:9")
    assert "held back in mlruns/spool" in held.stdout
    (old,) = journal.sessions(tmp_path)
    with started(tmp_path, *GRID) as process:
        deadline = time.monotonic() + 60
        while not (found := deliverer(tmp_path, old)):
            assert time.monotonic() < deadline
        session, uploader = found
        uploader.suspend()
        log = session / journal.JOURNAL
        while (ended := log.read_bytes().count(b'"status":"FINISHED"')) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    with started(tmp_path, *GRID) as process:
        while not process.err.exists() or "looking for what an earlier start has" not in process.err.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
        uploader.resume()
        said, errors = process.communicate(120)
    assert process.returncode == 0, errors
    assert f"{ended} runs of it are finished, and kept" in said
    stored = runs(tmp_path)
    assert len([run for run in stored if "manyfit.kind" in run.data.tags]) == 1
    seeds = [run.data.params["seed"] for run in stored if run.data.params and "manyfit.role" not in run.data.tags]
    assert sorted(seeds) == list("012345")
    assert journal.sessions(tmp_path) == [old]


def test_a_grid_of_which_the_store_has_nothing(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is trained anew, which is said, with what is held back."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(tables(), tmp_path / "mlruns" / "mlflow.db")
    spool = tmp_path / "mlruns" / "spool"
    session = journal.Journal(spool, {"op": "session", "uri": None})
    session.release()
    (session.folder / "acks.jsonl").mkdir()  # nobody can read it
    with Unfinished(tmp_path, "grid") as noted:
        noted.begin("0" * 32)
    with Unfinished(tmp_path, "grid") as noted, Screen("a grid") as screen:
        assert again.past(noted, composed("data=iris"), screen) == Past()
    said = capsys.readouterr().out
    assert f"is not in the store ({session.folder.name}: " in said
    assert "all of it is trained anew" in said


def test_what_was_noted_holds_until_more_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no more, or half of it, as before a kill: the run is known to the next start."""

    def half(file: int, line: bytes, at: int) -> int:
        written(file, line[: len(line) // 2], at)
        raise OSError("no space left on device")

    written = os.pwrite
    with Unfinished(tmp_path, "f") as noted:
        noted.begin("a")
        monkeypatch.setattr(os, "pwrite", half)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                noted.end(tells=True)
    monkeypatch.undo()
    with Unfinished(tmp_path, "f") as noted:
        assert (noted.run, noted.finished) == ("a", False)
        noted.end(tells=True)
    with Unfinished(tmp_path, "f") as noted:
        assert (noted.run, noted.finished) == ("a", True)
        noted.begin("b")
    with Unfinished(tmp_path, "f") as noted:
        assert (noted.run, noted.finished) == ("b", False)


@pytest.mark.usefixtures("forked_uploader")
def test_what_is_stored_is_what_was_trained(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, but for the network; of a killed run only the id is known, of a failed one nothing is kept."""
    monkeypatch.chdir(tmp_path)
    overrides = ("data=wine", "epochs=3", "model.hidden=[4]", "probes=[gradient_norm]", "metrics=[f1]")
    configs = {n: composed(*overrides, f"seed={n}") for n in range(3)}
    with Sweep("grid", configs[0], prune=lambda numbers, *_: [2] if 2 in numbers else []) as sweep:
        children = sweep.train(configs)
    parent, stored, _ = reading.children(None, tmp_path, sweep.parent.id)
    assert parent is not None
    assert parent.run_id == sweep.parent.run_id
    known = {run.own_id: run for run in stored}
    past = Past(parent.run_id, {prepare(child.config).fingerprint: known[child.run.id] for child in children})
    for child in children[:2]:
        run = past.finished(prepare(child.config))
        assert run is not None
        result = restored(prepare(child.config), run.metrics, run.tags)
        assert child.result is not None
        assert result.metrics.keys() == child.result.metrics.keys()
        for name, curve in result.metrics.items():
            np.testing.assert_array_equal(curve, child.result.metrics[name], err_msg=name)
        for name in ("summary", "test", "most_frequent", "reason", "devices", "engine", "sizes", "classes"):
            assert getattr(result, name) == getattr(child.result, name), name
        assert np.isnan(result.metrics["loss/train_running"][0])
        assert past.finished(prepare(child.config)) is None  # it has served
    assert past.finished(prepare(children[2].config)) is None
    assert past.begun(prepare(children[2].config)) == children[2].run.run_id


def test_data_that_changed_are_another_grid(composed: Compose) -> None:
    """As is another config; a seed apart is not the same run."""
    jobs = [prepare(composed("data=moons", *more)) for more in ([], [], ["seed=1"], ["data.noise=0.3"], ["epochs=9"])]
    assert [jobs[0].fingerprint == job.fingerprint for job in jobs] == [True, True, False, False, False]


def test_code_that_changed_is_another_grid(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own, committed or not: a network's file, that of a class it is made of, a metric's; not a library's."""
    (tmp_path / "base_of_mine.py").write_text("from torch import nn\nclass Base(nn.Linear): pass\n")
    (tmp_path / "nets_of_mine.py").write_text("from base_of_mine import Base\nclass Net(Base): pass\n")
    (tmp_path / "measures_of_mine.py").write_text("def share(outputs, targets): return (targets == 0).float().mean()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    left = (f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma"))
    given = "data=moons", "model._target_=nets_of_mine.Net", *left
    config, usual = composed(*given, "metrics=[measures_of_mine.share]"), composed("data=moons")
    at_first, ours = Preparation(), prepare(usual)
    known = [at_first.job(config).fingerprint]
    assert prepare(config).fingerprint == known[0]
    for path in sorted(tmp_path.glob("*.py")):
        path.write_text(path.read_text() + "# mended\n")
        known.append(prepare(config).fingerprint)
    assert len(set(known)) == 4
    assert at_first.job(config.model_copy(update={"epochs": 50})).fingerprint == known[0]  # of what was imported
    assert (ours.code, ours.fingerprint) == ((), prepare(usual).fingerprint)


def test_a_store_that_does_not_answer(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is trained anew, which is said."""
    monkeypatch.chdir(tmp_path)
    with Unfinished(tmp_path, "grid") as noted:
        noted.begin("0" * 32)
    with Unfinished(tmp_path, "grid") as noted, Screen("a grid") as screen:
        config = composed("tracking=server", "tracking.uri=http://127.0.0.1:9")
        assert again.past(noted, config, screen) == Past()
    assert "what it has done cannot be read: tracking.uri must be a store that answers" in capsys.readouterr().out


def test_who_is_at_it_is_left_alone(tmp_path: Path) -> None:
    """A second start beside the first is another grid; who comes after its end finds nothing."""
    with Unfinished(tmp_path, "grid") as first:
        first.begin("a" * 32)
        with Unfinished(tmp_path, "grid") as second:
            assert second.living
            second.begin("b" * 32)
            second.end()
        assert Unfinished(tmp_path, "grid").run == "a" * 32
        first.end()
    assert Unfinished(tmp_path, "grid").run is None


class Trips(Schedule):
    """Constant; raises while a file is there."""

    def __init__(self, over: str) -> None:
        self.over = over

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Factors of 1."""
        if Path(self.over).exists():
            raise OSError("it trips")
        return np.ones_like(progress)


@pytest.mark.usefixtures("forked_uploader")
def test_a_grid_in_which_a_run_failed(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started again, as by a cluster after exit code 1: it is tried again, the other kept; then all is finished."""
    monkeypatch.chdir(tmp_path)
    Path("trap").touch()
    given = "data=iris", "epochs=3", "model.hidden=[4]", "schedule._target_=test_again.Trips"
    configs = {number: composed(*given, f"+schedule.over={over}") for number, over in enumerate(["trap", "nothing"])}
    parents, kept = [], []
    for failed in (1, 0):
        with Unfinished(tmp_path, "grid") as noted, Screen("") as screen:
            found = again.past(noted, configs[0], screen)
            with Sweep("grid", configs[0], noted=noted, tells=True, past=found) as sweep:
                kept.append([child.kept for child in sweep.train(configs)])
                sweep.failure = app._failure(sweep, None, "")
        parents.append(sweep.parent.run_id)
        assert ("1 of 2 runs failed; the first is job 0: it trips" in str(sweep.failure)) == failed
        with Unfinished(tmp_path, "grid") as left:
            assert left.finished == (not failed)
        Path("trap").unlink(missing_ok=True)
    assert parents[0] == parents[1]
    assert kept == [[False, False], [False, True]]


def test_a_run_of_which_values_are_lost(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not finished either: the same command stores it whole."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(NoTracker, "lost", "the store must take what is recorded, but refused it")
    config = composed(*SMALL, "tracking=off")
    with Unfinished(tmp_path, "run") as noted, Screen("") as screen, pytest.raises(TrainingError, match="refused it"):
        app._alone(config, screen, noted=noted)
    with Unfinished(tmp_path, "run") as left:
        assert (left.run, left.finished) == (noted.run, False)
    assert noted.run


@pytest.mark.slow
def test_a_finished_grid_started_again_by_a_cluster(tmp_path: Path) -> None:
    """With autoresume=true it says that it is finished; without it begins anew, as ever."""
    grid = ["-m", *SMALL, "seed=0,1"]
    for more, said, sweeps in (["autoresume=true"], "best", 1), (["autoresume=true"], "finished", 1), ([], "best", 2):
        done = command(tmp_path, *grid, *more)
        assert done.returncode == 0, done.stderr
        assert f"{said}  " in done.stdout
        assert len([run for run in runs(tmp_path) if "manyfit.kind" in run.data.tags]) == sweeps
