"""The same curve on any number of devices, and the truth when one of them fails."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import nn
from torch.distributed.launcher import api

from conftest import ROOT, Compose, command, started
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config
from manyfit.parallel import ddp
from manyfit.parallel.channel import PipeChannel
from manyfit.parallel.leader import Leader
from manyfit.parallel.ranks import Ranks
from manyfit.population.dropout import Dropout
from manyfit.training.fitting import fit, train
from manyfit.training.prepared import prepare
from manyfit.training.trained import Trained

RUN = str(ROOT / "run.py")
COMMON = ("data=wine", "epochs=10", "model.hidden=[24,8]", "data.train_size=103", "optimizer.lr=0.003")
MLP = ("hidden", "activation", "init", "sigma")  # arguments of model=mlp
CASES: dict[str, list[tuple[str, ...]]] = {  # each a population
    "alone": [("batch_size=32",)],
    "dropout": [("batch_size=25", "model.dropout=0.3")],
    "odd widths and dropout": [("batch_size=7", "model.hidden=[5,3]", "model.dropout=0.4")],
    "last batch of one": [("batch_size=6", "optimizer=sgd", "optimizer.lr=0.03")],
    "full": [("batch_size=full", "optimizer=sgd", "optimizer._target_=torch.optim.ASGD", "optimizer.lr=0.03")],
    "plateau": [("schedule=plateau", "schedule.patience=0", "schedule.threshold=0.2", "optimizer=sgd")],
    "clipped": [("trainer.gradient_clip=0.5", "optimizer=rmsprop")],
    "noise": [("data.label_noise=0.2", "optimizer=adamw", "optimizer.weight_decay=0.1")],
    "regression": [("data=diabetes", "data.train_size=null", "model.dropout=0.2")],
    "one output": [("data=breast_cancer", "data.train_size=null", "batch_size=50")],
    "early stop": [("trainer.patience=1", "optimizer.lr=0.1", "data.label_noise=0.3")],
    "population": [("model.dropout=0.3", "seed=1"), ("seed=2", "optimizer.lr=0.01"), ("model.dropout=0.1", "seed=3")],
    "a user's model": [
        ("model._target_=test_ddp.Users", "~model.hidden", "~model.activation", "~model.init", "~model.sigma")
    ],
}


class Users(nn.Module):
    """Differentiated by autograd, with a dropout of its own."""

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.25) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(in_features, 9), nn.Linear(9, out_features)
        self.drop = nn.Dropout(dropout or 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.b(self.drop(torch.sin(self.a(x))))


def populations(composed: Compose, *more: str) -> list[list[Config]]:
    return [[composed(*COMMON, *member, *more) for member in members] for members in CASES.values()]


def each(tasks: Sequence[Sequence[Config]], **kwargs: Any) -> list[Trained]:
    """Several trainings on one set of ranks: starting them takes seconds."""
    return [train(configs, **kwargs) for configs in tasks[0]]  # type: ignore[arg-type]


def on(ranks: int, tasks: list[list[Config]]) -> list[Trained]:
    tasks = [
        [c.model_copy(update={"trainer": c.trainer.model_copy(update={"devices": ranks})}) for c in t] for t in tasks
    ]
    if ranks == 1:
        return each([tasks])
    with ddp.own_ranks(each, [tasks], ranks) as launched:
        return launched.serve(None, None)  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "precision", "tolerance"), [(2, "64-true", 1e-9), (3, "32-true", 1e-5)])
def test_the_curve_does_not_depend_on_the_number_of_ranks(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, ranks: int, precision: str, tolerance: float
) -> None:
    """Every metric of every epoch on one and on several ranks, and the best weights."""
    monkeypatch.setattr(api, "LaunchConfig", partial(api.LaunchConfig, start_method="forkserver"))  # imports are slow
    common = (f"trainer.precision={precision}", "trainer.accelerator=cpu", "trainer.engine=batched")
    tasks = populations(composed, *common)
    for case, a, b in zip(CASES, on(1, tasks), on(ranks, tasks), strict=True):
        assert a.ended == b.ended, case
        for name in set(a.history) - {"time/seconds"}:
            np.testing.assert_allclose(
                b.history[name], a.history[name], tolerance, tolerance, err_msg=f"{case}: {name}"
            )
        torch.testing.assert_close(b.weights, a.weights, rtol=100 * tolerance, atol=100 * tolerance)
        assert len(b.devices) == ranks


def runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_a_job_leaves_nothing_behind(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command's worth: the curve of one device, the environment as it was, no file, and the result says where."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (one,) = fit([composed("data=iris", "epochs=2", "model.dropout=0.2", "batch_size=33")])
    before = dict(os.environ)
    (several,) = fit([composed("data=iris", "epochs=2", "model.dropout=0.2", "trainer=ddp_cpu", "batch_size=33")])
    assert several.devices == ("CPU", "CPU")
    assert one.devices == ("CPU",)
    assert several.status == one.status == "FINISHED"
    np.testing.assert_allclose(several.metrics["loss/val"], one.metrics["loss/val"], rtol=1e-6)
    np.testing.assert_allclose(several.metrics["loss/train_running"], one.metrics["loss/train_running"], rtol=1e-6)
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("last_words", [None, "lost", "failed"])
@pytest.mark.parametrize("cause", [-signal.SIGKILL, 7])
@pytest.mark.parametrize("died", [0, 1])
def test_the_cause_is_told_whoever_is_seen_first(died: int, cause: int, last_words: str | None) -> None:
    """The launcher ends the ranks that are left by SIGTERM; that is no one's wish to stop the command."""
    with pytest.raises(TrainingError, match=f"rank {died} of 2 (was killed by SIGKILL|ended with 7)"):
        ended({died: (cause, None), 1 - died: (143 if last_words is None else 1, last_words)})


@pytest.mark.parametrize("codes", [(143, 143), (143, -signal.SIGTERM)])
def test_a_rank_that_was_asked_to_end(codes: tuple[int, int]) -> None:
    """Nothing failed: the command ends as if it had been asked."""
    with pytest.raises(SystemExit) as stopped:
        ended({rank: (code, None) for rank, code in enumerate(codes)})
    assert stopped.value.code == 143
    with pytest.raises(SystemExit):
        ended({0: (143, None), 1: (1, "lost")})


def ended(ranks: dict[int, tuple[int, str | None]]) -> None:
    """What the command makes of ranks that all ended, by exit code and last words."""
    with socket.create_server(("localhost", 0)) as door:
        over, end = multiprocessing.Pipe()
        present = {}
        for rank, (code, words) in ranks.items():
            channel, other = map(PipeChannel, multiprocessing.Pipe())
            if words:
                other.send(words, "as it said")
            other.close()
            present[channel] = rank, SimpleNamespace(exitcode=code)
        try:
            ddp.Launched(door, over, len(ranks), present).serve(None, None)  # type: ignore[arg-type]
        finally:
            end.close()


DIES = "import os, sys; from manyfit.parallel.rank_process import announce; announce(sys.argv[1], 1); os._exit(3)"


def test_a_rank_that_dies_before_its_first_word_is_named(tmp_path: Path) -> None:
    """It is there and gone again before the command has heard anything of it."""
    over, end = multiprocessing.Pipe()
    with socket.socket(socket.AF_UNIX) as door, over, end:
        door.bind(str(tmp_path / "door"))
        door.listen(2)
        done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "door")], timeout=60, check=False)
        assert done.returncode == 3
        with pytest.raises(TrainingError, match="rank 1 of 2 died as it started"):
            ddp.Launched(door, over, 2).serve(None, None)


def fails_on_rank_0(_: Sequence[Config], ranks: Ranks, **__: Any) -> None:
    """For `own_ranks`: the other rank waits for ever."""
    if ranks.rank == 0:
        raise ValueError("something is wrong here")
    threading.Event().wait()


def test_only_our_own_ranks_are_ended() -> None:
    """After a rank has failed, the other is ended, and a child that this process had before is left in peace."""
    foreign = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    foreign.start()
    try:
        with (
            pytest.raises(TrainingError, match="rank 0 of 2 failed: ValueError: something is wrong here"),
            ddp.own_ranks(fails_on_rank_0, [], 2) as launched,  # type: ignore[arg-type]
        ):
            launched.serve(None, None)
        assert foreign.is_alive()
        assert multiprocessing.active_children() == [foreign]
    finally:
        foreign.kill()
        foreign.join()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_ranks_masks_are_a_part_of_the_whole(world: int) -> None:
    """Cut at the rank's rows, whatever their number and width; a layer of odd width begins in the middle of a hash."""
    dropout = Dropout([3, 4], [[0.3, 0.5], [0.1, 0.2]], torch.device("cpu"))
    keys, rows, widths = dropout.keys(1, 3), 11, (5, 4)
    calls = [(layer, torch.Size([rows, width])) for layer, width in enumerate(widths)]
    whole = dropout.applied(keys, calls)
    for rank in range(world):
        share = Ranks(rank, world).share(rows)
        own = [(layer, torch.Size([share.stop - share.start, width])) for layer, width in enumerate(widths)]
        for part, mask in zip(dropout.applied(keys, own, share.start), whole, strict=True):
            assert torch.equal(part, mask[:, :, share])


@pytest.mark.parametrize("n", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_one_ranks(world: int, n: int) -> None:
    """The shares follow on each other, and differ by one row at most."""
    shares = [Ranks(rank, world).share(n) for rank in range(world)]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer=ddp"], "trainer.accelerator must be available, but got 'gpu' and there is no GPU"),
        (["trainer.devices=4", "batch_size=3"], "batch_size must be >= 4, the devices that share a batch, but got 3"),
        (["trainer=ddp_cpu", "optimizer=lbfgs", "batch_size=full"], "trainer.devices must be 1 with optimizer lbfgs"),
        (["trainer=slurm"], "trainer=slurm must be started by srun"),
        (["trainer.devices=0"], "trainer.devices must be >= 1"),
    ],
)
def test_refused_before_a_run_exists(composed: Compose, overrides: list[str], words: str) -> None:
    """What cannot run on so many devices is named, with what there is."""
    if torch.cuda.is_available() and overrides == ["trainer=ddp"]:
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=words):
        prepare(composed("data=iris", *overrides))


def test_more_gpus_than_there_are(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how many there are; the count is all that is made up here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="trainer.devices must be <= 2, the GPUs of this machine, but got 4"):
        prepare(composed("data=iris", "trainer=ddp", "trainer.devices=4"))


def test_more_ranks_than_gpus_under_torchrun(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun asks nobody how many there are."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="trainer.devices must be <= 2, the GPUs of this machine, but got 4"):
        prepare(composed("data=iris", "trainer=ddp"))


def test_srun_has_to_be_named_where_its_tasks_see_it(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file they could not know it before they have a config."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ConfigError, match="trainer=slurm must stand on the command line"):
        prepare(composed("data=iris", "trainer=slurm", "trainer.accelerator=cpu"))


class MyLBFGS(torch.optim.LBFGS):
    """A user's own."""


def test_lbfgs_by_any_name(composed: Compose) -> None:
    """What it is decides, not what it is called."""
    mine = f"optimizer._target_={MyLBFGS.__module__}.MyLBFGS"
    with pytest.raises(ConfigError, match="trainer.devices must be 1 with optimizer lbfgs"):
        prepare(composed("data=iris", "trainer=ddp_cpu", "optimizer=lbfgs", mine, "batch_size=full"))


def test_after_an_error_the_leader_asks_no_more() -> None:
    """Nobody knows then where the other ranks are: the next job is refused instead of waiting for ever."""
    reader, _ = os.pipe()
    os.set_blocking(reader, False)
    leader = Leader(Ranks(), 0, reader)

    def fails(*_: Any, **__: Any) -> Trained:
        raise ValueError("of this rank alone")

    with pytest.raises(ValueError, match="of this rank alone"):
        leader.train(fails, [], None, None)
    with pytest.raises(TrainingError, match="given up after an earlier error .ValueError: of this rank alone"):
        leader.train(fails, [], None, None)


GROUP = """
import contextlib, importlib, os
from manyfit.parallel.rank_process import group

class Training:
    def __reduce__(self):
        return importlib.import_module, ("manyfit.training.fitting",)

with group() as (ranks, _):
    ranks.world = 2  # so that it is sent and made again, as in a helper
    print(ranks.agree(Training()))
names = set()
for task in os.listdir("/proc/self/task"):
    with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
        names.add(open(f"/proc/self/task/{task}/comm").read().strip())
assert not any("gloo" in name for name in names), names
"""


def test_no_thread_outlives_the_group(tmp_path: Path) -> None:
    """One that still lets go of a tensor while Python ends aborts the process, one time in thirty."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    subprocess.run([sys.executable, "-c", GROUP], cwd=tmp_path, env=os.environ | place, check=True, timeout=60)


@pytest.mark.slow
def test_a_grid_and_a_pruned_search(tmp_path: Path) -> None:
    """Two children and one parent, all FINISHED; four told trials; folders as without ranks."""
    ranks = ("trainer=ddp_cpu", "trainer.devices=2", "data=iris", "epochs=3")
    command(tmp_path, "-m", *ranks, "optimizer.lr=1e-3,1e-2").check_returncode()
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"] * 3
    assert sum("mlflow.parentRunId" in run.data.tags for run in runs(tmp_path)) == 2
    search = ("sweep=lr", "sweep.n_trials=4", "sweep.seeds=1", "sweep.confirm_seeds=0", "pruner=median")
    command(tmp_path, *search, *ranks, seconds=180).check_returncode()
    storage = f"sqlite:///{tmp_path}/mlruns/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]
    assert len(states) == 4
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert "RUNNING" not in {run.info.status for run in runs(tmp_path)}
    assert {run.data.tags.get("world_size", "2") for run in runs(tmp_path)} == {"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]
    assert len(list((tmp_path / "mlruns" / "jobs").glob("*/*"))) == 2


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Rank 0 is the command, the other serves it: a grid, each run tracked once, and one folder each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    given = ("-m", "trainer=ddp_cpu", "trainer.devices=auto", "data=iris", "epochs=3", "optimizer.lr=1e-3,1e-2")
    done = subprocess.run(
        [*launcher, RUN, *given], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"] * 3
    children = [run for run in runs(tmp_path) if "mlflow.parentRunId" in run.data.tags]
    assert [run.data.tags["world_size"] for run in children] == ["2"] * 2
    assert len(list((tmp_path / "mlruns" / "jobs").glob("*/*"))) == 1


@pytest.mark.slow
def test_under_srun(tmp_path: Path) -> None:
    """Two processes with the variables that srun sets: one run, and both end well."""
    job = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "NODEID": 0, "JOB_ID": os.getpid(), "JOB_NAME": "x"}
    with contextlib.ExitStack() as stack:
        tasks = []
        for task in range(2):
            variables = job | {"PROCID": task, "LOCALID": task, "NODELIST": "localhost"}
            environment = {f"SLURM_{name}": str(value) for name, value in variables.items()}
            given = ("trainer=slurm", "trainer.accelerator=cpu", "epochs=3")
            tasks.append(stack.enter_context(started(tmp_path, *given, **environment)))
        errors = [task.communicate(timeout=120)[1] for task in tasks]
        assert [task.returncode for task in tasks] == [0, 0], errors
    assert [(run.info.status, run.data.tags["world_size"]) for run in runs(tmp_path)] == [("FINISHED", "2")]
