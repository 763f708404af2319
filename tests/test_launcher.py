"""The launcher `fused` and the sweeper `grid`: the real command, read back, and compared with Hydra's own way."""

from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from mlflow.entities import Run
from omegaconf import OmegaConf, open_dict

from conftest import CONF, ROOT, Compose, command
from hydra_plugins.manyfit.composing import Composer
from hydra_plugins.manyfit.fused import FusedLauncher
from hydra_plugins.manyfit.grid import jobs_of
from manyfit.config.errors import ConfigError
from manyfit.sweeps.parent import Sweep
from test_cli import client, runs

GRID = ["-m", "data=iris", "epochs=3", "model.hidden=[8]", "optimizer=sgd,adam", "optimizer.lr=1e-3,3e-2", "seed=0,1"]


def children(folder: Path) -> dict[str, Run]:
    """The runs of a sweep by name; its one parent is left out."""
    found = runs(folder)
    (parent,) = [run for run in found if run.data.tags.get("manyfit.kind") == "sweep"]
    assert parent.info.status in ("FINISHED", "FAILED")
    rest = [run for run in found if run.info.run_id != parent.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in rest} == {parent.info.run_id}
    return {run.info.run_name: run for run in rest}


def curve(folder: Path, run: Run, name: str) -> list[float]:
    return [m.value for m in client(folder).get_metric_history(run.info.run_id, name)]


@pytest.mark.slow
def test_grid_is_the_runs_one_by_one(tmp_path: Path) -> None:
    """Fused and basic leave the same children, bit for bit, and so does a plain command; job folders are Hydra's."""
    fused, basic, plain = (tmp_path / name for name in ("fused", "basic", "plain"))
    for folder, arguments in ((fused, GRID), (basic, [*GRID, "hydra/launcher=basic"])):
        folder.mkdir()
        done = command(folder, *arguments)
        assert done.returncode == 0, done.stderr
    plain.mkdir()
    assert command(plain, "data=iris", "epochs=3", "model.hidden=[8]", "optimizer.lr=3e-2", "seed=1").returncode == 0
    together, alone = children(fused), children(basic)
    assert set(together) == set(alone)
    assert len(together) == 8
    for name, run in together.items():
        assert run.info.status == "FINISHED"
        assert run.data.params == alone[name].data.params
        for metric in set(run.data.metrics) - {"time/seconds", "examples_per_second"}:
            assert curve(fused, run, metric) == curve(basic, alone[name], metric), (name, metric)
    (lone,) = runs(plain)
    member = together[lone.info.run_name]
    assert curve(plain, lone, "loss/val") == curve(fused, member, "loss/val")
    assert member.data.params == lone.data.params
    jobs = sorted(path.relative_to(fused).parts[4] for path in fused.glob("mlruns/jobs/*/*/*/.hydra"))
    assert jobs == [str(i) for i in range(8)]
    for name in ("config.yaml", "overrides.yaml", "hydra.yaml"):
        (a,), (b,) = (list(folder.glob(f"mlruns/jobs/*/*/5/.hydra/{name}")) for folder in (fused, basic))
        if name != "hydra.yaml":
            assert a.read_text() == b.read_text()


@pytest.mark.parametrize("more", [[], pytest.param(["hydra/launcher=basic"], marks=pytest.mark.slow)], ids=str)
def test_a_grid_with_a_bad_job_is_refused(tmp_path: Path, more: list[str]) -> None:
    """Bad values of both kinds, found when parsed and when built, are all told; nothing is run, nothing is left."""
    done = command(tmp_path, "-m", "data=iris", "epochs=2", "optimizer.lr=-1,1e-2,abc", "batch_size=16,1000", *more)
    assert done.returncode == 1
    assert "optimizer.lr must be > 0, but got -1. (2 of 6 jobs, the first: " in done.stderr
    assert "optimizer.lr must be a valid number, but got 'abc'. (2 of 6 jobs, the first: " in done.stderr
    assert "batch_size must be <= 106, the training examples, but got 1000. Use batch_size=full. (1 of 6" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["hydra/launcher=basic"]], ids=["fused", "basic"])
def test_one_bad_run_fails_alone(tmp_path: Path, more: list[str]) -> None:
    """A run that diverges: the rest finish, exit code 1; a job that is there twice is run once."""
    done = command(tmp_path, "-m", "data=diabetes", "epochs=2", "optimizer=sgd", "optimizer.lr=1e9,1e-2,0.01", *more)
    assert done.returncode == 1
    assert "1 of 2 runs failed" in done.stderr
    assert "1 of 3 jobs repeat another: each is run once" in done.stdout
    assert sorted(run.info.status for run in children(tmp_path).values()) == ["FAILED", "FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize("artifacts", ["best", "all", "none"])
def test_which_children_have_artifacts(tmp_path: Path, artifacts: str) -> None:
    """Picture and model are stored of the best child, of all or of none, as tracking.artifacts says."""
    small = ["-m", "data=iris", "epochs=2", "model.hidden=[4]", "optimizer.lr=1e-3,3e-2"]
    done = command(tmp_path, *small, f"tracking.artifacts={artifacts}")
    assert done.returncode == 0, done.stderr
    found, store = list(children(tmp_path).values()), client(tmp_path)
    assert len(found) == 2
    first = min(found, key=lambda run: run.data.metrics["best/loss_val"])
    expected = {run.info.run_id for run in {"best": [first], "all": found, "none": []}[artifacts]}
    names = {run.info.run_id: {file.path for file in store.list_artifacts(run.info.run_id)} for run in found}
    assert {run_id for run_id, files in names.items() if "overfitting.png" in files} == expected
    models = store.search_logged_models([found[0].info.experiment_id])
    assert {model.source_run_id for model in models} == expected
    assert [model.name for model in models] == ["model"] * len(expected)


@pytest.mark.usefixtures("forked_uploader")
def test_what_is_stored_is_what_was_trained(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status, params and every value of a finished, a diverged and a pruned child, as they came out of the training."""
    monkeypatch.chdir(tmp_path)
    common = ("data=diabetes", "epochs=4", "model=perceptron", "optimizer=sgd")
    configs = {n: composed(*common, f"optimizer.lr={lr}", f"seed={n}") for n, lr in enumerate([0.01, 1e30, 0.02])}
    with Sweep("stored", configs[0], prune=lambda *asked: [2] if asked[1] == 2 else []) as sweep:
        trained = sweep.train(configs)
    stored = {run.data.tags["manyfit.id"]: run for run in children(tmp_path).values()}
    for child, status in zip(trained, ("FINISHED", "FAILED", "KILLED"), strict=True):
        run, result = stored[child.run.id], child.result
        assert result is not None
        assert run.info.status == result.status == status
        assert run.data.params == {key: str(value) for key, value in child.config.flat().items()}
        summary = {"best/epoch": result.summary.best_epoch, "best/loss_val": result.summary.best_loss_val}
        summary["examples_per_second"] = result.speed
        expected = {**result.metrics, **{name: [value] for name, value in {**result.test, **summary}.items()}}
        assert set(run.data.metrics) == set(expected)
        for name, values in expected.items():
            points = {m.step: m.value for m in client(tmp_path).get_metric_history(run.info.run_id, name)}
            first = 1 if name == "loss/train_running" else 0  # there is none of an untrained network
            assert sorted(points) == list(range(first, len(values))), name
            np.testing.assert_array_equal([points[step] for step in sorted(points)], values[first:], err_msg=name)


@pytest.mark.parametrize(
    "jobs",
    [
        [["optimizer=sgd", "optimizer.lr=0.1", "seed=3"], ["optimizer=sgd", "optimizer.lr=0.2", "seed=4"]],
        [["model.hidden=[3,4]"], ["model.hidden=[5]"]],
        [["optimizer=adam", "seed=1"], ["optimizer=sgd", "seed=1"]],
        [["+optimizer.foo=1", "seed=1"], ["seed=2"], ["++seed=3"], ["~optimizer.eps"]],
        [["trainer.patience=null", "name='a b'"], ["trainer.patience=3", "name=c"]],
        [["optimizer.lr=1e-3", "optimizer={lr:1}"], ["optimizer.lr=1e-4", "optimizer={lr:1}"]],
        [["model.hidden.0=3"], ["model.hidden.0=4"]],
        [["epochs=${batch_size}", "seed=1"], ["epochs=${batch_size}", "seed=2"]],
    ],
    ids=str,
)
def test_jobs_are_composed_as_hydra_does(jobs: list[list[str]]) -> None:
    """Composing many jobs the quick way gives what Hydra gives for each, but for a name that nothing uses."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", ["data=moons"], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, config)
        for number, overrides in enumerate(jobs):
            ours = composer.load(overrides, number)
            theirs = loader.load_sweep_config(config, overrides)
            with open_dict(theirs):
                theirs.hydra.job.id, theirs.hydra.job.num = str(number), number
                hydra = OmegaConf.to_container(theirs.pop("hydra"), enum_to_str=True)
            assert OmegaConf.create(ours.task) == theirs
            assert ours.hydra["runtime"].pop("output_dir") == str(ours.folder.absolute())
            del hydra["runtime"]["output_dir"]  # set when the job runs
            assert ours.hydra == hydra
            assert ours.folder.name == str(number)


def test_grids_become_jobs() -> None:
    """Each a product, one after the other; drawn keys vary together; what the command line names is not of the grid.

    Of other data, neither is what only the grid's own know.
    """
    mine = [{"data.n": "9", "data.train_size": "5"}]
    assert jobs_of(OmegaConf.create({"quick": False}), mine, ["seed=1"], []) == [
        ["data.n=9", "data.train_size=5", "seed=1"]
    ]
    assert jobs_of(OmegaConf.create({"quick": False}), mine, ["data=wine"], []) == [["data.train_size=5", "data=wine"]]
    drawn = {"seed": "range(2)", "optimizer.lr": "tag(log,interval(1e-5,10))", "optimizer.eps": "interval(0.1,0.2)"}
    grids = [{"seed": "1,2", "batch_size": "8,16"}, {**drawn, "draws": 5}]
    cfg = OmegaConf.create({"quick": False, "epochs": 20})
    jobs = jobs_of(cfg, grids, ["data=wine"], [])
    assert jobs[:4] == [[f"seed={s}", f"batch_size={b}", "data=wine"] for s in (1, 2) for b in (8, 16)]
    points = {(lr, eps) for _, lr, eps, _ in jobs[4:]}
    assert len(jobs[4:]) == 10
    assert len(points) == 5
    assert len(jobs_of(cfg, grids, ["optimizer.lr=0.1"], [])) == 4 + 10  # the rest is still drawn
    assert len(jobs_of(OmegaConf.merge(cfg, {"quick": True}), grids, [], [])) == 4 + 4
    for wrong in ({**drawn}, {**drawn, "draws": "many"}, {"seed": "1,2", "draws": 4}):
        with pytest.raises(ConfigError, match="grids: draws must say how many points of its intervals to draw"):
            jobs_of(cfg, [wrong], [], [])


@pytest.mark.parametrize(
    "how",
    [["-m", "optimizer.lr=1e-3,3e-2"], ["sweep=lr"], [], ["-m", "hydra/sweeper=basic", "seed=1,2"]],
    ids=["grid", "search", "run", "Hydra's sweeper"],
)
@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_foreign_launchers_are_refused(tmp_path: Path, how: list[str], launcher: str) -> None:
    """A launcher whose jobs are processes of their own leaves orphans: refused before there is a run or a study."""
    done = command(tmp_path, *how, "data=iris", "epochs=2", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert f"hydra/launcher must be fused, ray or basic, but got {launcher}" in done.stderr
    assert "Traceback" not in done.stderr
    assert runs(tmp_path) == []
    assert not (tmp_path / "mlruns").exists()


def test_max_members_is_checked() -> None:
    """A population has at least one member."""
    with pytest.raises(ValueError, match="hydra.launcher.max_members must be >= 1 or null, but got 0"):
        FusedLauncher(max_members=0)
    with pytest.raises(ValueError, match="hydra.launcher.workers must be >= 1 or auto, but got True"):
        FusedLauncher(workers=True)


def test_plugins_are_light() -> None:
    """Hydra imports every plugin at each start: they bring in neither torch nor mlflow nor optuna."""
    import subprocess
    import sys

    code = (
        "import sys, hydra_plugins.manyfit.fused, hydra_plugins.manyfit.grid, hydra_plugins.manyfit.optuna_study\n"
        "assert not {'torch', 'mlflow', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
