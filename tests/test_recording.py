"""What cannot be recorded costs that, and never the training: neither its status, nor its curves, nor a second one."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.live import Live

from conftest import ROOT, Compose
from manyfit import app, displays
from manyfit.plots import overfitting
from manyfit.progress import Screen
from manyfit.sweeps import conclusion, grids, report
from manyfit.sweeps.parent import Sweep
from manyfit.tracking.tracker import Tracker
from manyfit.training import fitting, recording

pytestmark = pytest.mark.usefixtures("forked_uploader")

SMALL = ("data=iris", "epochs=3", "model.hidden=[4]")


def stored(folder: Path) -> dict[str, Run]:
    """The runs of the store in a folder, by name."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run for run in runs}


def artifacts(folder: Path, run: Run) -> set[str]:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(overfitting, "overfitting", fails)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The members of every training that takes place."""
    found: list[int] = []
    train = fitting.train

    def counted(configs: Any, *arguments: Any, **options: Any) -> Any:
        found.append(len(configs))
        return train(configs, *arguments, **options)

    monkeypatch.setattr(fitting, "train", counted)
    return found


@pytest.mark.usefixtures("no_pictures")
def test_a_picture_that_cannot_be_drawn(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lone run is FINISHED and returns its value; a line and a tag say what is missing, and why."""
    monkeypatch.chdir(tmp_path)
    config = composed(*SMALL)
    assert app.run(config) > 0
    said = [line for line in capsys.readouterr().err.splitlines() if "stored" in line]
    assert said == [f"not stored: overfitting.png of run {config.title()} (RuntimeError: no such font)"]
    (run,) = stored(tmp_path).values()
    assert run.info.status == "FINISHED"
    assert run.data.tags["not_stored"] == "overfitting.png (RuntimeError: no such font)"
    assert "error" not in run.data.tags
    assert {"config.yaml", "columns.json", "environment.txt"} == artifacts(tmp_path, run)
    assert run.outputs.model_outputs


@pytest.mark.usefixtures("no_pictures")
def test_pictures_of_a_sweep_that_cannot_be_drawn(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[int]
) -> None:
    """All children are FINISHED after one training of all, and the parent run too, with its other figures."""
    monkeypatch.chdir(tmp_path)
    configs = {n: composed(*SMALL, "tracking.artifacts=all", f"seed={n}") for n in range(4)}
    with Sweep("pictures", configs[0]) as sweep:
        children = sweep.train(configs)
        monkeypatch.setattr(report.figures, "curves", overfitting.overfitting)  # which fails
        conclusion.conclude(sweep, grids.rows_of(sweep.children))
    assert trainings == [4]
    assert [child.error for child in children] == [None] * 4
    runs = stored(tmp_path)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all("overfitting.png" in runs[config.title()].data.tags["not_stored"] for config in configs.values())
    assert runs["pictures"].data.tags["not_stored"] == "curves.png (RuntimeError: no such font)"
    assert "table.md" in artifacts(tmp_path, runs["pictures"])


def test_whatever_fails_in_recording(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error while an epoch is recorded, or the summary made, is said once for each run; they end as they did."""
    monkeypatch.chdir(tmp_path)

    def fails(*_: Any) -> None:
        raise KeyError("wrong")

    configs = {n: composed(*SMALL, f"seed={n}") for n in range(2)}
    with monkeypatch.context() as patch, Sweep("recording", configs[0]) as sweep:
        patch.setattr(recording, "note", fails)
        patch.setattr("manyfit.tracking.run.TrackedRun.metrics", fails)
        children = sweep.train(configs)
    assert [child.result is not None for child in children] == [True, True]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"not stored: {what} of run {config.title()} (KeyError: 'wrong')"
        for what in ("curves", "summary")
        for config in configs.values()
    ]
    runs = stored(tmp_path)
    assert [runs[config.title()].info.status for config in configs.values()] == ["FINISHED"] * 2


@pytest.mark.parametrize("where", ["start", "refresh", "stop"])
def test_a_display_that_fails(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """It is said once, and training goes on without it."""
    works = getattr(Live, where)

    def fails(*arguments: Any, **options: Any) -> None:
        works(*arguments, **options)
        raise OSError("the terminal is gone")

    monkeypatch.setattr(displays.LiveLine, "every", 1e-3)
    monkeypatch.setattr(displays, "is_terminal", lambda: True)
    monkeypatch.setattr(Live, where, fails)
    with Screen("fails") as shown, shown.stage("training"):
        (result,) = fitting.fit([composed(*SMALL)], screen=shown)
    assert result.status == "FINISHED"
    assert capsys.readouterr().err.count("the terminal is gone") == 1


@pytest.fixture
def disk() -> Iterator[Callable[[int], None]]:
    """A function that lets this process write no file beyond so many bytes, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_for_the_picture(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    disk: Callable[[int], None],
) -> None:
    """The spool takes the curves and refuses picture and model: both are named, and the run is FINISHED."""
    monkeypatch.chdir(tmp_path)
    config = composed(*SMALL, "checkpoint=false")
    with Tracker(None, tmp_path) as tracker:  # its uploader is not limited
        recorder = recording.Recorder(tracker, [config])
        disk(8000)
        (result,) = fitting.fit([config], recorder)
        disk(resource.RLIM_INFINITY)
    said = capsys.readouterr().err
    for what in ("overfitting.png", "model"):
        assert f"not stored: {what} of run {config.title()} (" in said
        assert "File too large" in said
    (run,) = stored(tmp_path).values()
    assert (run.info.status, result.status) == ("FINISHED", "FINISHED")
    assert run.data.metrics["loss/val"] == result.metrics["loss/val"][-1]
    assert run.data.tags["not_stored"].count("File too large") == 2
    assert artifacts(tmp_path, run) == {"config.yaml", "columns.json", "environment.txt"}


FULL = """
import resource, runpy, sys
from manyfit.training import fitting

fit = fitting.fit

def without_room(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    return fit(*arguments, **options)

fitting.fit = without_room
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [["seed=1"], ["-m", "seed=1,2"]])
def test_a_journal_that_does_not_reach_the_disk(tmp_path: Path, seeds: list[str]) -> None:
    """What is lost is not called held back, and the command ends with an error."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(ROOT / "run.py"), *seeds, *SMALL, "checkpoint=false"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "look  manyfit sync, once there is room, for what reached the disk" in done.stdout
    assert re.search("error: mlruns must take what is recorded, but .*File too large.* is lost", done.stderr)
    assert done.returncode == 1
