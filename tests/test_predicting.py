"""Rows as they stand in a file, and what a stored run says of them: `manyfit predict`, and MLflow by itself."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from conftest import command
from manyfit import cli
from manyfit.data import program

OPTIONS = ["data=csv", "data.path=shop.csv", "data.target=bought", "epochs=4", "model.hidden=[8]"]


def shop(n: int = 240) -> pd.DataFrame:
    """Gaps, dates, words, true and false, a name and a number of every row; what is bought depends on them."""
    rng = np.random.default_rng(0)
    age, town = rng.integers(18, 80, n).astype(float), rng.choice(["Oslo", "Bergen", "Bodø"], n)
    joined = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 999, n), "D")
    bought = np.where(age + 20 * (town == "Oslo") + rng.normal(0, 9, n) > 55, "yes", "no")
    frame = pd.DataFrame({"id": np.arange(n) + 1, "name": [f"person {i}" for i in range(n)], "age": age, "town": town})
    frame = frame.assign(joined=joined.strftime("%Y-%m-%d"), member=rng.choice([True, False], n), bought=bought)
    frame.loc[rng.random(n) < 0.1, "age"] = None
    frame.loc[rng.random(n) < 0.1, "town"] = None
    return frame


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command puts its folder first."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder with a run, then a grid of two on the same file, and its rows."""
    folder, rows = tmp_path_factory.mktemp("shop"), shop()
    rows.to_csv(folder / "shop.csv", index=False)
    done = command(folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "left out: id (it numbers the rows), name (its words differ in most rows); data.keep=[id," in done.stdout
    assert "240 rows, 1 column of numbers and 2 columns of words and 1 column of dates: " in done.stdout
    assert command(folder, "-m", *OPTIONS, "optimizer.lr=1e-5,1e-2").returncode == 0
    return folder, rows


def stored(folder: Path) -> dict[str, str]:
    """Ids of runs by their rates, of the single run by None."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.data.params["optimizer.lr"]: run.info.run_id for run in runs if "optimizer.lr" in run.data.params}


def answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> pd.DataFrame:
    assert cli.main(["predict", *arguments]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


def test_new_rows(
    trained: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns in any order, the target and others beside them or not; classes by name, and their probabilities."""
    folder, rows = trained
    monkeypatch.chdir(folder)
    run = stored(folder)["0.001"][:8]
    said = answers(capsys, run, "shop.csv")
    assert list(said) == ["bought", "p(no)", "p(yes)"]
    np.testing.assert_allclose(said["p(no)"] + said["p(yes)"], 1, rtol=1e-5)
    assert (said.bought == np.where(said["p(yes)"] > 0.5, "yes", "no")).all()
    other = rows.drop(columns=["bought", "id", "name"]).iloc[:, ::-1]
    other.to_parquet("other.parquet")
    pd.testing.assert_frame_equal(answers(capsys, run, "other.parquet"), said)


def test_a_member_of_a_sweep_that_kept_no_network(
    trained: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained once more; its answers are those of the run by itself."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    assert cli.main(["predict", stored(folder)["1e-05"], "shop.csv"]) == 0
    found = capsys.readouterr()
    assert "kept no network: it is trained once more" in found.err
    done = command(folder, *OPTIONS, "optimizer.lr=1e-5", "epochs=4")
    assert done.returncode == 0, done.stderr
    again = next(line for line in done.stdout.splitlines() if line.startswith("         id"))
    assert cli.main(["predict", again.split()[1], "shop.csv"]) == 0
    alone = pd.read_csv(io.StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(found.out)), alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("rows.csv", lambda rows: rows.drop(columns="age"), "FILE must have the columns age, .*, but has no age"),
        ("rows.csv", lambda rows: rows.assign(age="old"), "got 'old' in 'rows.csv', line 2, column 'age' and 239 more"),
        ("none.csv", None, "FILE must name a readable file, but got 'none.csv'"),
    ],
)
def test_rows_that_cannot_be_used(
    trained: tuple[Path, pd.DataFrame],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    change: object,
    message: str,
) -> None:
    folder, rows = trained
    monkeypatch.chdir(folder)
    if callable(change):
        change(rows).to_csv(file, index=False)
    assert cli.main(["predict", stored(folder)["0.001"], file]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert re.search(message, err)


def test_a_sweep_is_no_run(
    trained: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (sweep,) = client.search_runs(experiments, "tags.`manyfit.kind` = 'sweep'")
    assert cli.main(["predict", sweep.info.run_id, "shop.csv"]) == 1
    assert f"RUN must be one run, but {sweep.info.run_id} is a whole sweep" in capsys.readouterr().err


def test_data_that_changed(
    trained: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that kept no network is not trained again on others."""
    folder, rows = trained
    monkeypatch.chdir(folder)
    try:
        rows.assign(age=rows.age + 1).to_csv("shop.csv", index=False)
        assert cli.main(["predict", stored(folder)["1e-05"], "shop.csv"]) == 1
        assert "RUN must be of data that are as they were" in capsys.readouterr().err
    finally:
        rows.to_csv("shop.csv", index=False)


def test_a_run_of_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(tmp_path, "data=iris", "epochs=1").returncode == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", *stored(tmp_path).values(), "shop.csv"]) == 1
    assert "RUN must be of a file with named columns (data=csv)" in capsys.readouterr().err
    assert cli.main(["predict", "fff", "shop.csv"]) == 1
    assert "RUN must name one run of the store, but got 'fff'" in capsys.readouterr().err


FRESH = """
import sys
import mlflow.pyfunc, numpy as np, pandas as pd

served = mlflow.pyfunc.load_model(sys.argv[1])
print(served.predict(pd.read_csv("shop.csv")).to_csv(index=False))
assert not [name for name in sys.modules if name.startswith("manyfit")]
"""


@pytest.mark.slow
def test_mlflow_takes_the_original_file(
    trained: tuple[Path, pd.DataFrame], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlflow models predict -t csv` and load_model, where nothing of ours is imported: as `manyfit predict` says."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    run = stored(folder)["0.001"]
    expected = answers(capsys, run, "shop.csv")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns/mlflow.db"}
    served = ["-m", "mlflow", "models", "predict", "-m", f"runs:/{run}/model", "-i", "shop.csv", "-t", "csv"]
    said = []
    for line in (["-c", FRESH, f"runs:/{run}/model"], [*served, "--env-manager", "local"]):
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(said[0])), expected, rtol=1e-5)
    predictions = pd.DataFrame(json.loads(said[1].strip().splitlines()[-1])["predictions"])
    pd.testing.assert_frame_equal(predictions, expected, rtol=1e-5)


MARK = "open('ran', 'w')"


class Leaves:
    """Unpickled it leaves a trace."""

    def __reduce__(self) -> Any:
        return eval, (MARK,)


def _graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the graph, as one of the file's parts."""

    def changed(parts: dict[str, bytes]) -> None:
        graph = json.loads(parts["models/model.json"])
        change(graph)
        parts["models/model.json"] = json.dumps(graph).encode()

    return changed


def _samples(parts: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    torch.save((((Leaves(),), {})), packed)
    parts["data/sample_inputs/model.pt"] = packed.getvalue()


def _weights(parts: dict[str, bytes]) -> None:
    packed, name = io.BytesIO(), "data/weights/model_weights_config.json"
    torch.save(Leaves(), packed)
    config = json.loads(parts[name])
    config["config"]["weight"]["use_pickle"] = True
    parts |= {"data/weights/weight_0": packed.getvalue(), name: json.dumps(config).encode()}


def _constants(parts: dict[str, bytes]) -> None:
    name = "data/constants/model_constants_config.json"
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    parts |= {"data/constants/opaque_obj_0": pickle.dumps(Leaves())}
    parts |= {name: json.dumps({"config": {"x": meta}}).encode()}


def _target(graph: dict[str, Any]) -> None:
    (node,) = graph["graph_module"]["graph"]["nodes"]
    node |= {"target": "torch.os.system", "inputs": [{"name": "", "arg": {"as_string": "touch ran"}, "kind": 1}]}


def _called(graph: dict[str, Any]) -> None:
    (node,) = graph["graph_module"]["graph"]["nodes"]
    node["target"] = "_operator.methodcaller"


def _size(graph: dict[str, Any]) -> None:
    graph["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"]["expr_str"] = MARK


def _guard(graph: dict[str, Any]) -> None:
    graph["guards_code"] = [MARK]


def _library(parts: dict[str, bytes]) -> None:
    parts["data/aotinductor/model/x.so"] = b"x"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_samples, None),
        (_weights, "its weight is no tensor of plain bytes"),
        (_constants, "opaque_obj_0|its x is no tensor"),
        (_graph(_target), "its target is 'torch.os.system'"),
        (_graph(_called), "its target is '_operator.methodcaller'"),
        (_graph(_size), "its expr_str is"),
        (_graph(_guard), "its guards_code is"),
        (_library, "it holds archive/data/aotinductor/model/x.so"),
        (lambda parts: parts.update({"models/model.json": b"{"}), "Expecting"),
    ],
    ids=["samples", "weights", "constants", "target", "operator", "size", "guard", "library", "damaged"],
)
def test_a_stored_network_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, bytes]], None], reason: str | None
) -> None:
    """Whatever torch would unpickle, evaluate or call of a file: it is left out, or the file is refused."""
    monkeypatch.chdir(tmp_path)
    network, x = nn.Linear(2, 1), torch.ones(3, 2)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as file:
        for name, content in parts.items():
            file.writestr(f"archive/{name}", content)
    if reason is None:
        assert torch.equal(program.load(tmp_path / "model.pt2")(x), network(x))
    else:
        with pytest.raises(ValueError, match=f"must be an exported network as it was stored, but .*({reason})"):
            program.load(tmp_path / "model.pt2")
    assert not (tmp_path / "ran").exists()
