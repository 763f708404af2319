"""Jobs of a grid before the first of them runs."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import Compose, command
from manyfit.config.errors import ConfigError
from manyfit.sweeps.checking import Checked, check
from manyfit.training.prepared import Preparation
from test_launcher import children

SMALL = ("data=wine", "model.hidden=[4]")


def checked(composed: Compose, jobs: Sequence[Sequence[str]], wish: bool = False) -> Checked:
    return check(jobs, lambda overrides: composed(*SMALL, *overrides), Preparation(), wish)


def test_every_refusal_is_told_once(composed: Compose) -> None:
    """With how many jobs it is of, and the first of them."""
    jobs = [[f"batch_size={size}", f"seed={seed}"] for size in (8, 500, 501) for seed in range(3)]
    with pytest.raises(ConfigError) as told:
        checked(composed, jobs)
    first, second, last = str(told.value).splitlines()
    assert first.startswith("batch_size must be <= 124")
    assert first.endswith("but got 500. Use batch_size=full. (3 of 9 jobs, the first: batch_size=500 seed=0)")
    assert "501" in second
    assert last == "Nothing was run."


def test_equal_jobs_are_one(composed: Compose) -> None:
    """Whatever their overrides look like."""
    found = checked(composed, [["seed=0"], ["seed=1"], ["seed=0"], ["optimizer.lr=1e-3"], ["optimizer.lr=0.001"]])
    assert list(found.configs) == [("seed=0",), ("seed=1",)]
    assert found.told() == ["3 of 5 jobs repeat another: each is run once"]


def test_what_a_table_takes_for_granted_is_told_once(composed: Compose, tmp_path: Path) -> None:
    """However many jobs there are on it."""
    (tmp_path / "own.csv").write_text("x,y\n" + "".join(f"{i / 7},{i % 3}\n" for i in range(60)))
    own = ("data=csv", f"data.path={tmp_path}/own.csv", "data.target=y")
    found = check([["seed=0"], ["optimizer.lr=0.1"]], lambda overrides: composed(*own, *overrides), Preparation())
    assert found.told() == ["the 3 numbers in y are taken for classes; data.task=regression predicts them as numbers"]


def test_the_data_cap_an_experiments_wish(composed: Compose) -> None:
    """Of train_size the run has the real number; jobs that become equal are one; without a wish it is refused."""
    jobs = [[f"data.train_size={size}", "seed=0"] for size in (100, 124, 400, 1000)]
    found = checked(composed, jobs, wish=True)
    assert [config.data.train_size for config in found.configs.values()] == [100, 124]
    assert [config.flat()["data.train_size"] for config in found.configs.values()] == [100, 124]
    assert found.told() == [
        "data.train_size is 124, all there are; the experiment asks for 400, 1000",
        "2 of 4 jobs repeat another: each is run once",
    ]
    with pytest.raises(ConfigError, match="data.train_size must be in 1..124"):
        checked(composed, jobs)


@pytest.mark.slow
def test_an_experiment_on_fewer_examples(tmp_path: Path) -> None:
    """It takes all there are, says so, and every run's parameter is the real number."""
    done = command(tmp_path, "experiment=dropout", "data=wine", "quick=true")
    assert done.returncode == 0, done.stderr
    assert "data.train_size is 124, all there are; the experiment asks for 1000" in done.stdout
    found = children(tmp_path).values()
    assert [(run.info.status, run.data.params["data.train_size"]) for run in found] == [("FINISHED", "124")] * 4


@pytest.mark.slow
def test_a_typed_train_size_is_no_wish(tmp_path: Path) -> None:
    """It is refused, and nothing is left."""
    done = command(tmp_path, "experiment=dropout", "data=wine", "quick=true", "data.train_size=400")
    assert done.returncode == 1
    assert "data.train_size must be in 1..124, the rows of the training split, but got 400" in done.stderr
    assert list(tmp_path.iterdir()) == []
