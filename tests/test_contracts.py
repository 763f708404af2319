"""Every option of every config group, found by listing its folder, composes, builds and trains."""

import pytest
import torch

from conftest import Compose, options
from manyfit.training.fitting import fit
from manyfit.training.prepared import prepare

GROUPS = ["data", "model", "loss", "optimizer", "schedule", "trainer", "tracking", "experiment"]
EXTRA = {  # what an option needs beside its name
    "data=csv": ["data.path=table.csv", "data.target=y"],
    "data=arrays": ["data.path=arrays.npz"],
    "data=images": ["data.path=pictures"],
    "data=openml": ["data.name_or_id=fixture"],
    "loss=bce": ["data=breast_cancer"],
    "loss=mse": ["data=diabetes"],
    "loss=huber": ["data=diabetes"],
    "optimizer=lbfgs": ["batch_size=full"],
    "tracking=server": ["tracking.uri=http://127.0.0.1:1"],
}
OWN = ("data=csv", "data=openml", "data=arrays", "data=images")
CASES = [f"{group}={option}" for group in GROUPS for option in options(group)]


@pytest.mark.parametrize("option", CASES)
def test_option_trains(composed: Compose, option: str, request: pytest.FixtureRequest) -> None:
    """It composes, and two epochs give finite losses."""
    if option in ("trainer=gpu", "trainer=ddp"):
        pytest.skip("needs a GPU: pytest -m gpu")
    if option == "trainer=mps" and not torch.backends.mps.is_available():
        pytest.skip("needs a Mac")
    if option == "trainer=slurm":
        pytest.skip("needs srun, or what it sets: tests/test_ddp.py")
    if option == "trainer=ddp_cpu":
        pytest.skip("starts processes, and is compared with one device in tests/test_ddp.py")
    if option in OWN:
        request.getfixturevalue("own_data")
    group = option.split("=")[0]
    data = [] if group in ("data", "experiment") or option in EXTRA else ["data=iris"]
    config = composed(option, *EXTRA.get(option, []), *data, "epochs=2")
    (result,) = fit([config])
    assert len(result.metrics["loss/val"]) == 3
    assert result.status == "FINISHED"


@pytest.mark.parametrize("option", [f"optimizer={name}" for name in options("optimizer")])
def test_optimizer_learns(composed: Compose, option: str) -> None:
    """With its own default rate, every optimizer lowers the loss on real data."""
    (result,) = fit([composed(option, *EXTRA.get(option, []), "data=breast_cancer", "epochs=5")])
    assert result.metrics["loss/train"][-1] < 0.9 * result.metrics["loss/train"][0]


@pytest.mark.parametrize("data", options("data"))
def test_data_prepares(composed: Compose, data: str, request: pytest.FixtureRequest) -> None:
    """Every data set splits into three parts that share no size of zero."""
    if f"data={data}" in OWN:
        request.getfixturevalue("own_data")
    job = prepare(composed(f"data={data}", *EXTRA.get(f"data={data}", [])))
    assert min(len(job.data.x_train), len(job.data.x_val), len(job.data.x_test)) > 0
