"""Pictures and models are where everybody finds them who uses the store."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from manyfit.tracking import journal
from manyfit.tracking.doctor import doctor
from manyfit.tracking.store import Store
from manyfit.tracking.tracker import Tracker


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real PostgreSQL."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # pgserver's lock file; unset, there would be a warning
    import pgserver

    with pgserver.get_server(tmp_path / "pg") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[str]:
    """A real tracking server on it, that keeps artifacts in a folder of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port)]
    command += ["--artifacts-destination", str(tmp_path / "kept"), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    home = tmp_path / "home"
    home.mkdir()
    with subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet, cwd=home, start_new_session=True
    ) as process:
        try:
            for _ in range(1200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def recorded(uri: str, root: Path, name: str) -> str:
    """The id of a run with a picture and a model, made in a folder."""
    with Tracker(uri, root) as tracker:
        run = tracker.start(experiment="shared", name=name, params={}, tags={})
        run.file("figures/picture.png", name.encode())
        run.model(torch.nn.Linear(4, 3), np.ones((1, 4), np.float32), np.ones((1, 3), np.float32))
        run.end("FINISHED")
        assert tracker.close(), tracker.last_error
    assert run.run_id is not None
    assert "note" not in tracker.where(run)
    return run.run_id


@pytest.mark.slow
@pytest.mark.usefixtures("forked_uploader")
def test_a_server_keeps_the_artifacts_of_all_its_clients(tmp_path: Path, server: str) -> None:
    """Two clients in folders of their own: every picture and model is to be had through the server alone.

    Where an experiment names a folder of one machine, that is said.
    """
    ids = {name: recorded(server, tmp_path / name, name) for name in ("one", "two")}
    client = MlflowClient(server)
    for name, run_id in ids.items():
        run = client.get_run(run_id)
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        picture = client.download_artifacts(run_id, "figures/picture.png", str(tmp_path))
        assert Path(picture).read_text() == name
        (output,) = run.outputs.model_outputs
        assert [item.path for item in client.list_logged_model_artifacts(output.model_id, "data")] == ["data/model.pt2"]
        assert not (tmp_path / name / "mlruns" / "artifacts").exists()
    assert len(list((tmp_path / "kept").rglob("picture.png"))) == 2
    client.create_experiment("theirs", str(tmp_path / "somewhere"))
    with Tracker(server, tmp_path / "one") as tracker:
        run = tracker.start(experiment="theirs", name="n", params={}, tags={})
        run.end("FINISHED")
        assert tracker.close(), tracker.last_error
    assert f"artifacts of experiment theirs go to {tmp_path}/somewhere, a folder of this machine" in tracker.where(run)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_uploader")
def test_of_a_bare_database_the_artifacts_go_where_mlflows_variable_says(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it to the folder of whoever made the experiment, which doctor says."""
    told = doctor(tmp_path / "one", database)
    assert any(f"artifacts of new experiments go to {tmp_path}/one/mlruns/artifacts" in line for line in told)
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", str(tmp_path / "shared"))
    ids = {name: recorded(database, tmp_path / name, name) for name in ("one", "two")}
    for name, run_id in ids.items():
        picture = tmp_path / "shared" / run_id / "artifacts" / "figures" / "picture.png"
        assert picture.read_text() == name
        assert not (tmp_path / name / "mlruns" / "artifacts").exists()
    assert Store(database, tmp_path / "one").all("")
    assert journal.sessions(tmp_path / "one") == []
