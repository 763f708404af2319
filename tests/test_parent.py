"""A sweep in this process, on a real store, read back."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from conftest import CONF, Compose, assert_same_bits, command
from manyfit.parallel.launch import Launch
from manyfit.parallel.workers import Pool, Process
from manyfit.schedules import Schedule
from manyfit.sweeps import conclusion, grids
from manyfit.sweeps.parent import Sweep
from manyfit.training import fitting
from manyfit.training.fitting import fit

pytestmark = pytest.mark.usefixtures("forked_uploader")


class Breaks(Schedule):
    """Constant, and raises once progress is `at`."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Factors of 1, as long as it lasts."""
        if progress.max() > self.at:
            raise ArithmeticError("this schedule is broken")
        return np.ones_like(progress)


def test_an_error_in_a_population_is_one_members_own(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member whose schedule raises halfway is FAILED and says why; the others finish as if alone, no step twice."""
    monkeypatch.chdir(tmp_path)
    common = ["data=iris", "epochs=4", "model.hidden=[4]", "schedule._target_=test_parent.Breaks"]
    configs = {
        number: composed(*common, f"+schedule.at={at}", f"seed={number}") for number, at in enumerate([2, 2, 0.6, 2, 2])
    }
    with Sweep("broken", configs[0]) as sweep:
        children = sweep.train(configs)
        ids = [child.run.id for child in children]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("iris").experiment_id])
    by_id = {run.data.tags.get("manyfit.id"): run for run in runs}
    assert len(runs) == 6
    for number, child in enumerate(children):
        run = by_id[ids[number]]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss/val")]
        if number == 2:
            assert run.info.status == "FAILED"
            assert "this schedule is broken" in run.data.tags["error"]
            assert sorted(steps) == [0, 1, 2]
        else:
            assert run.info.status == "FINISHED"
            assert sorted(steps) == [0, 1, 2, 3, 4]
            assert child.result is not None
            (alone,) = fit([configs[number]])
            assert_same_bits(child.result, alone)


class Broken(Schedule):
    """Raises when it is shown a loss."""

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Factors of 1."""
        return np.ones_like(progress)

    def observe(self, loss_val: float) -> None:  # noqa: ARG002
        """See Schedule."""
        raise ArithmeticError("it looks at nothing")


class Picky(nn.Module):
    """Cannot be built, or trained, in some weights, which the seed draws; or raises on every fourth training batch."""

    def __init__(self, in_features: int, out_features: int, bad: str) -> None:
        super().__init__()
        self.layer, self.bad, self.calls = nn.Linear(in_features, out_features), bad, 0
        if bad == "built" and abs(float(self.layer.weight[0, 0])) > 0.4:
            raise ValueError("its first weight is too large")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        self.calls += self.training
        if self.bad == "always" and self.calls > 9:
            raise ValueError("it is tired")
        return self.layer(x)


def looks(network: nn.Module, *_: object) -> float:
    """A probe that one of the networks has no number for."""
    first = float(next(network.parameters()).detach()[0, 0])
    return 1 / first if abs(first) < 0.4 else int("not a number")


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Members of every training from here on, here or in a worker; who trains together is no question of time."""
    monkeypatch.setattr("manyfit.training.grouping._why_apart", lambda _: None)
    counted: list[int] = []
    train = fitting.train

    def counting(jobs: Sequence[Any], *given: Any, **more: Any) -> Any:
        counted.append(len(jobs))
        return train(jobs, *given, **more)

    def sending(pool: Pool, run: Any, configs: Sequence[Any], *given: Any) -> Any:
        counted.append(len(configs))
        return send(pool, run, configs, *given)

    send = Pool.train
    monkeypatch.setattr(fitting, "train", counting)
    monkeypatch.setattr(Pool, "train", sending)
    return counted


def processes_of(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Workers that are started from here on."""
    begun: list[Process] = []
    begin = Process.__init__

    def noted(process: Process, *given: Any) -> None:
        begun.append(process)
        begin(process, *given)

    monkeypatch.setattr(Process, "__init__", noted)
    return begun


GONE = [f"~model.{key}" for key in ("hidden", "activation", "dropout", "init", "sigma")]
OF_ONE: dict[str, tuple[list[str], list[str]]] = {
    "a schedule": (["+schedule.at=2"], ["schedule._target_=test_parent.Breaks", "+schedule.at=0.6"]),
    "one that looks": ([], ["schedule._target_=test_parent.Broken"]),
}


@pytest.mark.parametrize(("engine", "workers"), [("native", 1), ("batched", 1), ("native", 2)])
@pytest.mark.parametrize("which", OF_ONE)
@pytest.mark.usefixtures("forked_workers")
def test_one_members_fault_costs_the_others_no_training(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, engine: str, workers: int, which: str
) -> None:
    """It is let go, and said to have failed; the others go on, and so do the processes that train side by side."""
    usual, broken = OF_ONE[which]
    usual = [*usual, "schedule._target_=test_parent.Breaks"] if usual else usual
    common = ["data=iris", "epochs=4", "model.hidden=[4]", f"trainer.engine={engine}", "tracking=off"]
    configs = {n: composed(*common, *(broken if n == 5 else usual), f"seed={n}") for n in range(8)}
    counted, begun = trainings(monkeypatch), processes_of(monkeypatch)
    with Sweep("broken", configs[0], launch=Launch(workers=workers)) as sweep:
        children = sweep.train(configs)
    assert counted == [8 // workers] * workers
    assert len(begun) == (workers if workers > 1 else 0)
    assert [n for n, child in enumerate(children) if child.result is None] == [5]
    assert isinstance(children[5].error, ArithmeticError)
    assert all(child.result.status == "FINISHED" for child in children if child.result)


LOOKS = ["probes=[test_parent.looks]"]


@pytest.mark.parametrize(
    ("bad", "more", "workers", "counts"),
    [
        ("built", [], 1, [7, 6]),
        ("never", LOOKS, 1, [7]),
        pytest.param("built", LOOKS, 2, [4, 3, 2], marks=pytest.mark.slow),
    ],
)
def test_a_fault_of_some_seeds(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, bad: str, more: list[str], workers: int, counts: list[int]
) -> None:
    """Networks that cannot be built, or looked at by a function of the user's: the others are trained once.

    One is refused before any training. Of those that train together in a worker only what could not begin begins again.
    """
    common = ["data=iris", "epochs=2", "model._target_=test_parent.Picky", *GONE, f"+model.bad={bad}", "tracking=off"]
    configs = {n: composed(*common, *more, f"seed={n}") for n in range(8)}
    counted, begun = trainings(monkeypatch), processes_of(monkeypatch)
    with Sweep("picky", configs[0], launch=Launch(max_members=8, workers=workers)) as sweep:
        children = sweep.train(configs)
    failed = [n for n, child in enumerate(children) if child.error]
    assert failed
    assert len(failed) < 8
    assert all(isinstance(children[n].error, ValueError) for n in failed)
    assert list(sweep.refused) == [0]
    assert sorted(counted, reverse=True) == counts
    assert len(begun) == (workers if workers > 1 else 0)


def test_halving_ends_where_both_halves_say_the_same(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails of all is tried three times, not fifteen; all have its words."""
    common = ["data=iris", "epochs=4", "model._target_=test_parent.Picky", *GONE, "+model.bad=always", "tracking=off"]
    configs = {n: composed(*common, f"seed={n}") for n in range(8)}
    counted = trainings(monkeypatch)
    with Sweep("tired", configs[0], launch=Launch(max_members=8)) as sweep:
        children = sweep.train(configs)
    assert counted == [8, 4, 4]
    assert {str(child.error) for child in children} == {"it is tired"}
    assert "8 runs failed together (it is tired), and each half with the same words" in capsys.readouterr().err


LIMITED = """
import resource, sys
from pathlib import Path
from manyfit import running
from manyfit.training import fitting  # what is imported is no part of the limit
resource.setrlimit(resource.RLIMIT_AS, (1024 * int({pages}) * 4 + {room} * 2**20,) * 2)
sys.exit(running.command(sys.argv[1:], [Path({conf!r})]))
"""


@pytest.mark.parametrize("engine", ["native", pytest.param("batched", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("launcher", "halved"), [([], False), (["hydra.launcher.max_members=24"], True)])
def test_too_little_memory_for_all_at_once(tmp_path: Path, launcher: list[str], halved: bool, engine: str) -> None:
    """Under `ulimit -v` populations are as large as fits; one that is not is halved until it does. None is lost."""
    run = tmp_path / "run.py"
    run.write_text(LIMITED.format(pages="open('/proc/self/statm').read().split()[0]", room=500, conf=str(CONF)))
    wide = ["data=digits", "data.train_size=64", "epochs=1", "model.hidden=[1024,1024]", "tracking=off"]
    done = command(tmp_path, "-m", *wide, f"trainer.engine={engine}", "seed=range(24)", *launcher, run=run)
    assert done.returncode == 0, done.stderr
    assert "24 finished" in done.stdout
    assert ("24 runs failed together" in done.stderr) == halved


def networks(sweep: Sweep, numbers: range, composed: Compose) -> int:
    """How many modules are alive once the sweep has trained so many more, three at a time."""
    sweep.launch = Launch(max_members=3)
    sweep.train({n: composed("data=iris", "epochs=1", "model.hidden=[4]", f"seed={n}") for n in numbers})
    gc.collect()
    return sum(issubclass(type(found), nn.Module) for found in gc.get_objects())


def test_networks_of_a_sweep_do_not_pile_up(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twice as many runs as many modules are alive; those of the best runs, with weights of their own."""
    monkeypatch.chdir(tmp_path)
    with Sweep("long", composed("data=iris", "tracking=off"), networks=2) as sweep:
        before = networks(sweep, range(6), composed)
        assert networks(sweep, range(6, 18), composed) == before
        results = {number: child.result for number, child in sweep.children.items() if child.result}
        whole = {number: result for number, result in results.items() if result.predictor}
        ranked = sorted(results, key=lambda number: results[number].summary.best_loss_val)
        assert sorted(whole) == sorted(ranked[:2])
        assert all(result.weights.untyped_storage().nbytes() < 1000 for result in whole.values())
        assert len(grids.rows_of(sweep.children)) == 18


def test_the_model_of_a_run_whose_network_is_gone(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained again to the same bits; picture and model are the best run's. No pruner is asked."""
    monkeypatch.chdir(tmp_path)
    configs = {n: composed("data=iris", "epochs=2", "model.hidden=[4]", f"optimizer.lr=1e-{n}") for n in (1, 2, 3)}

    def prune(numbers: Sequence[int], *_: object) -> list[int]:
        assert set(numbers) == set(configs)
        return []

    with Sweep("gone", configs[1], networks=0, prune=prune) as sweep:
        sweep.train(configs)
        assert not [child for child in sweep.children.values() if child.result and child.result.predictor]
        conclusion.conclude(sweep, grids.rows_of(sweep.children))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("iris").experiment_id])
    (wanted,) = [run.data.tags["best.manyfit.id"] for run in runs if "best.manyfit.id" in run.data.tags]
    (best,) = [run for run in runs if run.data.tags.get("manyfit.id") == wanted]
    (again,) = [run for run in runs if "again" in run.data.tags.get("manyfit.role", "")]
    assert again.data.metrics["loss/val"] == best.data.metrics["loss/val"]
    assert best.outputs.model_outputs
    assert "overfitting.png" in {artifact.path for artifact in client.list_artifacts(best.info.run_id)}
