"""Two ranks, and something happens to them: what the run, the exit code and the process table say afterwards."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import ROOT, command, epochs_stored, started
from disks import make_room, small_disk
from forked import Started
from manyfit.tracking import journal, upkeep
from manyfit.training import checkpoints

RUN = str(ROOT / "run.py")
LONG = ("data=digits", "epochs=100000", "trainer=ddp_cpu")
FAULTY = """
import os, torch
from torch import nn

class Faulty(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(in_features, out_features), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if os.environ.get("RANK") == "1" and self.calls > 200:
            raise ValueError("something is wrong here")
        return self.layer(x)
"""


@contextlib.contextmanager
def training(
    folder: Path, *overrides: str, torchrun: bool = False
) -> Iterator[tuple["subprocess.Popen[str] | Started", list[psutil.Process]]]:
    """The command and its two ranks, once some epochs are finished, and stored; in a group of their own."""
    with under_torchrun(folder, *overrides) if torchrun else started(folder, *LONG, *overrides, alone=True) as process:
        try:
            deadline = time.monotonic() + 240  # a new store takes longest, and torchrun does not wait for it
            while time.monotonic() < deadline:
                if list(folder.glob("mlruns/checkpoints/*/epoch-*")) and epochs_stored(folder):
                    break
                assert process.poll() is None, process.communicate(timeout=60)[1]
                time.sleep(0.1)
            time.sleep(0.5)
            yield process, ranks_of(process.pid)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # it, or one of them, ends just now
                for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()


def under_torchrun(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """What starts the command twice."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--monitor-interval=5"]
    line += [RUN, *LONG, *overrides]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=folder, stderr=pipe, stdout=pipe, text=True, start_new_session=True)


def ranks_of(parent: int) -> list[psutil.Process]:
    """By rank: a child whose environment says which it is."""
    found = {}
    for child in psutil.Process(parent).children():
        if "spawn_main" in " ".join(child.cmdline()) or RUN in child.cmdline():
            found[child.pid] = child
    assert len(found) == 2
    return [found[pid] for pid in sorted(found)]  # they are started in the order of their ranks


def the_run(folder: Path) -> Run:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


Fault = Callable[["subprocess.Popen[str] | Started", list[psutil.Process]], None]
FAULTS: dict[str, tuple[Fault, int, str, str]] = {
    "kill rank 0": (lambda _, ranks: ranks[0].kill(), 1, "FAILED", "rank 0 of 2 was killed by SIGKILL"),
    "kill rank 1": (lambda _, ranks: ranks[1].kill(), 1, "FAILED", "rank 1 of 2 was killed by SIGKILL"),
    "terminate the command": (lambda process, _: process.terminate(), 143, "KILLED", "SystemExit: 143"),
    "terminate rank 1": (lambda _, ranks: ranks[1].terminate(), 143, "KILLED", "SystemExit: 143"),
    "terminate all": (lambda process, _: os.killpg(process.pid, signal.SIGTERM), 143, "KILLED", "SystemExit: 143"),
    "ctrl-c": (lambda process, _: os.killpg(process.pid, signal.SIGINT), 130, "KILLED", "KeyboardInterrupt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_truth_is_told_and_nothing_is_left(tmp_path: Path, fault: str) -> None:
    """Exit code, status and cause; the state after the last epochs; no process, no file in the temporary folder."""
    happen, code, status, cause = FAULTS[fault]
    (tmp_path / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path / "tmp"))
        with training(tmp_path) as (process, ranks):
            happen(process, ranks)
            said, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(ranks, timeout=15)
    assert not alive
    run = the_run(tmp_path)
    assert run.info.status == status
    assert cause in run.data.tags["error"]
    (folder,) = (tmp_path / "mlruns" / "checkpoints").iterdir()
    assert f"python run.py resume={run.info.run_id[:8]}" in said
    stored = run.data.metrics["progress/steps"] / 40  # steps an epoch; the last may not have been told any more
    kept = checkpoints.load(folder)["epoch"]
    assert 0 < kept <= stored + 1
    if fault != "kill rank 0":  # which is who keeps the state; a slow disk leaves it further behind
        assert kept >= stored - 1
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith(("manyfit", "torchelastic"))]


@pytest.mark.slow
def test_an_exception_on_one_rank(tmp_path: Path) -> None:
    """The run is FAILED with that rank's exception, not with the other's surprise at its end."""
    (tmp_path / "faulty.py").write_text(textwrap.dedent(FAULTY))
    model = ["model._target_=faulty.Faulty", *(f"~model.{key}" for key in ("hidden", "activation", "init", "sigma"))]
    done = command(tmp_path, *LONG, *model, "~model.dropout", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    run = the_run(tmp_path)
    assert run.info.status == "FAILED"
    assert "rank 1 of 2 failed: ValueError: something is wrong here" in run.data.tags["error"]
    assert "error: rank 1 of 2 failed: ValueError: something is wrong here" in done.stderr
    assert 'raise ValueError("something is wrong here")' in done.stderr  # the user's own line


UNDER_TORCHRUN: dict[str, tuple[Fault, str, str]] = {
    "terminate": (lambda process, _: process.terminate(), "KILLED", "SystemExit: 143"),
    "ctrl-c": (lambda process, _: os.killpg(process.pid, signal.SIGINT), "KILLED", "KeyboardInterrupt|SystemExit: 130"),
    "kill rank 1": (lambda _, ranks: ranks[1].kill(), "FAILED", "another rank is gone"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", UNDER_TORCHRUN)
def test_under_torchrun(tmp_path: Path, fault: str) -> None:
    """There rank 0 is the command: it says what happened before torchrun ends it, and no rank is left."""
    happen, status, cause = UNDER_TORCHRUN[fault]
    with training(tmp_path, "trainer.devices=auto", torchrun=True) as (process, ranks):
        happen(process, ranks)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not psutil.wait_procs(ranks, timeout=15)[1]
    run = the_run(tmp_path)
    assert run.info.status == status, errors
    assert re.search(cause, run.data.tags["error"])


@pytest.mark.slow
def test_killed_with_its_ranks_it_resumes(tmp_path: Path) -> None:
    """SIGKILL to the command: its ranks end too; the same run then goes on to its end, also on one device."""
    with training(tmp_path) as (process, ranks):
        process.kill()
        process.communicate(timeout=60)
        assert not psutil.wait_procs(ranks, timeout=15)[1]
    wait_until(lambda: not journal.sessions(tmp_path))  # its uploader goes on alone
    (folder,) = (tmp_path / "mlruns" / "checkpoints").iterdir()
    epochs = checkpoints.load(folder)["epoch"] + 100  # more than were recorded since
    done = command(tmp_path, f"resume={folder.name[:8]}", f"epochs={epochs}", "trainer=cpu")
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path)
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/val")]
    assert sorted(steps) == list(range(epochs + 1))  # every epoch once


# A disk that is full, really: see disks.py.


@pytest.mark.slow
def test_a_disk_that_fills_while_a_run_trains(tmp_path: Path) -> None:
    """The journal is refused: one sentence says which epochs are lost and what is not, and the exit code is 1.

    Once there is room what came before is delivered, and the next command is as ever.
    """
    with small_disk(tmp_path / "disk", "200k") as folder:
        done = command(folder, "data=iris", "epochs=600")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "waits in memory: make room there" in done.stderr
        (last,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        lost = re.search(r"epochs (\d+) to 600 and the end of 1 run is lost. What came before is kept", last)
        assert lost, last
        make_room(folder)
        while journal.sessions(folder):  # the command's own uploader may still be trying, too
            assert upkeep.sync(folder).held == ()
        run = the_run(folder)
        assert run.info.status == "KILLED"
        steps = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").get_metric_history(run.info.run_id, "loss/val")
        assert sorted(metric.step for metric in steps) == list(range(int(lost[1])))
        assert command(folder, "data=iris", "epochs=3").returncode == 0


def test_a_disk_that_is_full_before(tmp_path: Path) -> None:
    """One sentence, and nothing is left behind that a next command stumbles over."""
    with small_disk(tmp_path / "disk", "40k") as folder:
        (folder / "filler").write_bytes(bytes(36864))
        done = command(folder, "data=iris", "epochs=3")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: mlruns must have room, but [Errno 28] No space left")
        make_room(folder)
        assert command(folder, "data=iris", "epochs=3").returncode == 0


def test_a_disk_without_room_for_states(tmp_path: Path) -> None:
    """A run whose state could not be kept says so, and is otherwise whole."""
    with small_disk(tmp_path / "mlruns" / "checkpoints", "8k"):
        done = command(tmp_path, "data=iris", "epochs=200")
        assert done.returncode == 0, done.stderr
        assert "the state was not kept: OSError: [Errno 28] No space left" in done.stderr
    assert the_run(tmp_path).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_is_deleted_in_the_ui(tmp_path: Path) -> None:
    """The command says at its end that the store refused the rest, and where that is; the exit code is 1."""
    with started(tmp_path, "data=digits", "epochs=400") as process:
        while not epochs_stored(tmp_path) and process.poll() is None:
            time.sleep(0.05)
        run = the_run(tmp_path)
        MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").delete_run(run.info.run_id)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: the store must take what is recorded, but refused" in errors
    assert upkeep.sync(tmp_path, rejects=True).held == ()
    assert the_run(tmp_path).data.tags["manyfit.rejected.of"] == run.info.run_id


# A tracking server that takes every connection, and answers none.


@pytest.fixture(scope="module")
def mute() -> Iterator[str]:
    """Its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def recorded(folder: Path, what: bytes) -> bool:
    """Whether such a record is in a journal there."""
    return any(what in path.read_bytes() for path in folder.glob(f"mlruns/spool/[0-9]*/{journal.JOURNAL}"))


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_commands_of_a_server_that_never_answers(tmp_path: Path, mute: str) -> None:
    """A run and a grid, trained side by side: rc 0 at most 15 s after they are trained, and all is held back, said."""
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    with (
        started(one, "data=iris", "epochs=3", f"tracking.uri={mute}") as run,
        started(several, "-m", "data=iris", "epochs=3", "seed=0,1,2", MLFLOW_TRACKING_URI=mute) as grid,
    ):
        trained, ended = dict[Path, float](), dict[Path, float]()

        def over() -> bool:
            for folder, process in ((one, run), (several, grid)):
                if folder not in trained and recorded(folder, b'{"op":"close"'):
                    trained[folder] = time.monotonic()
                if folder not in ended and process.poll() is not None:
                    ended[folder] = time.monotonic()
            return len(ended) == 2

        wait_until(over, 120)
        for folder, process in ((one, run), (several, grid)):
            said, errors = process.communicate(1)
            assert process.returncode == 0, errors
            assert ended[folder] - trained[folder] <= 15
            assert re.search(
                r"look  held back in mlruns/spool \(.*\); nothing is lost: .*manyfit sync delivers it", said
            )


@pytest.mark.slow
def test_going_on_with_a_server_that_never_answers(tmp_path: Path, mute: str) -> None:
    """After a kill, with autoresume=true: a grid says what cannot be read and is trained anew; a run is refused."""
    grid, run = tmp_path / "grid", tmp_path / "run"
    given = {
        grid: ("-m", "data=digits", "epochs=20", "seed=0,1,2", "autoresume=true", f"tracking.uri={mute}"),
        run: ("data=digits", "epochs=2000", "autoresume=true", f"tracking.uri={mute}"),
    }
    for folder in given:
        folder.mkdir()
    with started(grid, *given[grid]) as first, started(run, *given[run]) as second:
        for folder, process in ((grid, first), (run, second)):
            wait_until(functools.partial(recorded, folder, b'"loss/val"'))
            process.kill()
    began = time.monotonic()
    with started(grid, *given[grid]) as first, started(run, *given[run]) as second:
        _, errors = second.communicate(120)
        assert second.returncode == 1
        assert "error: tracking.uri must be a store that answers" in errors
        assert time.monotonic() - began < 60
        said, errors = first.communicate(120)
        assert first.returncode == 0, errors
    assert "what it has done cannot be read: tracking.uri must be a store that answers" in said
    assert "held back in mlruns/spool" in said
    assert time.monotonic() - began < 90
