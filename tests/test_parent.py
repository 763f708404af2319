"""A sweep in this process, on a real store, read back."""

from pathlib import Path

import mlflow
import numpy as np
import pytest

from conftest import Compose, assert_same_bits
from manyfit.parent import Sweep
from manyfit.schedules import Schedule
from manyfit.training import fit


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
