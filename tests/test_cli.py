"""The real command, in a temporary folder, read back with MLflow's own client."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import ROOT, Compose, command, epochs_stored, started
from manyfit import cli
from manyfit.tracking import journal
from manyfit.training.prepared import prepare

RUN = str(ROOT / "run.py")
SMALL = ["data=iris", "epochs=3", "model.hidden=[8]"]


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


def runs(folder: Path) -> list[Run]:
    if not (folder / "mlruns" / "mlflow.db").exists():
        return []
    experiments = client(folder).search_experiments()
    return list(client(folder).search_runs([e.experiment_id for e in experiments]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Run]:
    """One finished run on iris."""
    folder = tmp_path_factory.mktemp("finished")
    done = command(folder, *SMALL, "optimizer=adam", "schedule=cosine")
    assert done.returncode == 0, done.stderr
    (run,) = runs(folder)
    return folder, done, run


def test_summary(finished: tuple[Path, subprocess.CompletedProcess[str], Run]) -> None:
    """The terminal ends with test score, best epoch, verdict, time, and the run's id, page and picture."""
    folder, done, run = finished
    for word in ("iris: adam lr=0.001 b=32 8 cosine s=0", "test", "accuracy", "best epoch", "verdict", "manyfit ui"):
        assert word in done.stdout
    *_, own, page, picture = done.stdout.splitlines()
    short = run.info.run_id[:8]
    assert own == f"         id  {short}  (python run.py resume={short} epochs=6 goes on with it)"
    assert page.endswith(f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    assert (folder / picture.removeprefix("    picture  ")).is_file()


def test_without_a_terminal_a_run_tells_its_stages(
    finished: tuple[Path, subprocess.CompletedProcess[str], Run],
) -> None:
    """A successful run says on stderr what it is about and what it is doing, in a few lines, and nothing else."""
    _, done, _ = finished
    first, about, *stages = done.stderr.splitlines()
    assert (first, about) == ("    manyfit  starting", "    manyfit  iris: adam lr=0.001 b=32 8 cosine s=0")
    assert len(stages) < 20
    known = "at work|importing torch|loading data|importing Lightning|training: .*|drawing|delivering to the store"
    for line in stages:
        assert re.fullmatch(rf" *(\d+ s|\d+:\d\d)  ({known})", line), line


def test_run_is_tracked(finished: tuple[Path, subprocess.CompletedProcess[str], Run]) -> None:
    """Name, status, metrics at every epoch, params, tags, note, data set and artifacts are in the store."""
    folder, _, run = finished
    store = client(folder)
    assert (run.info.run_name, run.info.status) == ("adam lr=0.001 b=32 8 cosine s=0", "FINISHED")
    for name in ("loss/train", "loss/val", "loss/gap", "accuracy/train", "accuracy/val", "lr", "progress/steps"):
        history = store.get_metric_history(run.info.run_id, name)
        assert [m.step for m in history] == [0, 1, 2, 3], name
    assert len(store.get_metric_history(run.info.run_id, "loss/train_running")) == 3
    gap = run.data.metrics["loss/val"] - run.data.metrics["loss/train"]
    assert run.data.metrics["loss/gap"] == pytest.approx(gap, rel=1e-12)
    assert {"best/epoch", "best/loss_val", "loss/test", "accuracy/test"} <= set(run.data.metrics)
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.tags["fit"] in ("good", "overfit", "underfit", "unfinished")
    assert run.data.tags["mlflow.note.content"].count(". ") >= 1
    assert {"hardware", "python", "torch"} <= set(run.data.tags)
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "iris"
    assert data.dataset.digest
    names = {artifact.path for artifact in store.list_artifacts(run.info.run_id)}
    assert {"overfitting.png", "config.yaml", "environment.txt"} <= names
    config = Path(store.download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert "lr: 0.001" in config


def test_same_command_same_bits(finished: tuple[Path, subprocess.CompletedProcess[str], Run], tmp_path: Path) -> None:
    """The same command in another process gives the same values to the last bit."""
    folder, _, run = finished
    assert command(tmp_path, *SMALL, "optimizer=adam", "schedule=cosine").returncode == 0
    (again,) = runs(tmp_path)
    clocks = {"time/seconds", "examples_per_second"}
    assert {k: v for k, v in run.data.metrics.items() if k not in clocks} == {
        k: v for k, v in again.data.metrics.items() if k not in clocks
    }
    for name in ("loss/train", "loss/val"):
        a = [m.value for m in client(folder).get_metric_history(run.info.run_id, name)]
        b = [m.value for m in client(tmp_path).get_metric_history(again.info.run_id, name)]
        assert a == b


FRESH = """
import sys
import mlflow.pytorch, numpy as np, torch

model, served = mlflow.pytorch.load_model(sys.argv[1]), mlflow.pyfunc.load_model(sys.argv[1])
x = np.load("x.npy")
np.savez("p.npz", all=model(torch.from_numpy(x)).detach(), one=served.predict(x[:1]))
assert not [name for name in sys.modules if name.startswith("manyfit")]
print(served.metadata.signature)
"""


@pytest.mark.slow
def test_logged_model_predicts(
    finished: tuple[Path, subprocess.CompletedProcess[str], Run], composed: Compose, tmp_path: Path
) -> None:
    """Where nothing of ours is imported, load_model and `mlflow models predict` give the run's own test accuracy.

    From rows as they stand in the table, any number of them.
    """
    folder, _, run = finished
    data, model = prepare(composed("data=iris")).data, f"runs:/{run.info.run_id}/model"
    x = (data.x_test * data.x_std + data.x_mean).numpy()
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "in.json").write_text(json.dumps({"inputs": x[:3].tolist()}))
    served = [sys.executable, "-m", "mlflow", "models", "predict", "-m", model, "-i", "in.json", "-t", "json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns/mlflow.db"}
    said = []
    for line in ([sys.executable, "-c", FRESH, model], [*served, "--env-manager", "local"]):
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    p = np.load(tmp_path / "p.npz")
    assert (p["all"].argmax(1) == data.y_test.numpy()).mean() == pytest.approx(run.data.metrics["accuracy/test"])
    np.testing.assert_allclose(p["one"], p["all"][:1], rtol=1e-6)
    assert "Tensor('float32', (-1, 4))" in said[0]
    assert "Tensor('float32', (-1, 3))" in said[0]
    predictions = json.loads(said[1].strip().splitlines()[-1])["predictions"]
    np.testing.assert_allclose(np.array(predictions), p["all"][:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lr=abc"], "optimizer.lr must be a valid number, but got 'abc'"),
        (["optimizer.lrr=1"], "optimizer.lrr"),
        (["optimizer=adm"], "adamw"),
        (["model.dropout=1.2"], "model.dropout must be in [0, 1), but got 1.2"),
        (["batch_size=5000"], "batch_size must be <= 1257"),
        (["data=csv", "data.path=no.csv", "data.target=y"], "data.path must"),
        (["loss=mse"], "loss must suit the data"),
        pytest.param([f"name={'x' * 600}"], "name must have at most 256 characters", id="a long name"),
    ],
    ids=str,
)
def test_bad_input_leaves_no_run(tmp_path: Path, overrides: list[str], words: str) -> None:
    """A bad value is one clear message, exit code 1, no traceback and no run."""
    done = command(tmp_path, *overrides)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert runs(tmp_path) == []


def test_unwritable_output(tmp_path: Path) -> None:
    """Where mlruns cannot be written, that is what is said."""
    (tmp_path / "mlruns").write_text("a file where the folder should be")
    done = command(tmp_path, *SMALL)
    assert done.returncode == 1
    assert "mlruns must be a folder that can be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_divergence(tmp_path: Path) -> None:
    """A loss that turns NaN: FAILED, verdict diverged, exit code 1."""
    done = command(tmp_path, "data=diabetes", "optimizer=sgd", "optimizer.lr=1e9", "epochs=5")
    assert done.returncode == 1
    assert "diverged" in done.stderr.lower()
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["fit"] == "diverged"
    assert np.isfinite(run.data.metrics["loss/test"])


def test_tracking_off(tmp_path: Path) -> None:
    """tracking=off trains and stores nothing in MLflow."""
    done = command(tmp_path, *SMALL, "tracking=off")
    assert done.returncode == 0
    assert runs(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupt(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C, SIGTERM or a closed terminal: exit code as the shell expects, run KILLED with its epochs so far."""
    with started(tmp_path, "data=digits", "epochs=100000") as process:
        deadline = time.monotonic() + 60
        while not epochs_stored(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    (run,) = runs(tmp_path)
    assert run.info.status == "KILLED"
    assert run.data.metrics["loss/val"] > 0
    assert errors.endswith("epochs\n")
    assert re.search(r"stopped: the run is KILLED and keeps its \d+ epochs\n$", errors)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_ctrl_c_twice(tmp_path: Path, pause: float) -> None:
    """Who cannot wait for the delivery is let go; the uploader ends the runs, and nothing is left of the session."""
    with started(tmp_path, "-m", "seed=1,2", "data=digits", "epochs=100000") as process:
        deadline = time.monotonic() + 60
        while not epochs_stored(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while journal.sessions(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.returncode == 130
    assert {run.info.status for run in runs(tmp_path)} == {"KILLED"}
    assert list((tmp_path / "mlruns" / "spool").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.9, 1.7, 3.0])
def test_interrupt_at_the_start(tmp_path: Path, seconds: float, number: signal.Signals) -> None:
    """Whatever is being imported or loaded: no traceback, the exit code of a shell, and nothing is left RUNNING."""
    command = [sys.executable, "-u", RUN, "data=iris", "epochs=1000000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "manyfit  starting" in process.stderr.readline()
            time.sleep(seconds)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    not_heard_yet = {-signal.SIGTERM} if number == signal.SIGTERM and "importing torch" not in errors else set()
    assert process.returncode in {128 + number} | not_heard_yet, errors
    assert "Traceback" not in errors
    assert {run.info.status for run in runs(tmp_path)} <= {"KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "again"),
    [
        (["-m", "seed=1,2", "optimizer=sgd,adam"], "of 4 runs are done and kept.* The same command goes on with the"),
        (
            ["sweep=lr", "sweep.n_trials=4", "sweep.seeds=1", "sweep.round=2"],
            "of 4 runs are done and kept.* the same command goes on",
        ),
    ],
    ids=["grid", "search"],
)
def test_an_interrupted_sweep_says_what_is_kept(tmp_path: Path, command: list[str], again: str) -> None:
    """How many runs are done, what became of the others, and what the same command does."""
    with started(tmp_path, *command, "data=iris", "epochs=100000") as process:
        deadline = time.monotonic() + 90
        while not epochs_stored(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert re.search(f"stopped: 0 {again}", errors), errors
    assert {run.info.status for run in runs(tmp_path)} == {"KILLED"}


@pytest.mark.slow
def test_four_first_runs_at_once(tmp_path: Path) -> None:
    """Four first runs started at the same moment on an empty folder all succeed."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(tmp_path, *SMALL, f"seed={s}", new=True)) for s in range(4)]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"] * 4


def test_help_says_what_it_is(tmp_path: Path) -> None:
    """Without torch: in the first screen what the tool is and how it is used, then every key with its comment."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = [{RUN!r}, 'data=csv', '--help']\n"
        f"try: runpy.run_path({RUN!r}, run_name='__main__')\n"
        "finally: assert not {'torch', 'mlflow', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[:20]
    assert "trains neural networks" in first[0]
    for example in ("optimizer=sgd optimizer.lr=0.1", "data=csv", "-m optimizer=sgd,adam", "sweep=lr", "experiment="):
        assert any(f"python run.py {example}" in line for line in first)
    groups = [folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()]
    for group in groups:
        assert any(re.search(rf"\b{group}  ", line) for line in first), group
        assert f"\n{group}: " in done.stdout
    for line in (ROOT / "conf" / "config.yaml").read_text().partition("\nhydra:")[0].splitlines()[20:]:
        assert line in done.stdout
    assert "  separator: " in done.stdout
    assert not (tmp_path / "mlruns").exists()


def test_help_of_manyfit(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it is for, and gives examples."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert "manyfit run --help" in said
    for example in ("manyfit run ", "manyfit init ", "manyfit ui  ", "manyfit sync  ", "manyfit doctor  "):
        assert f"\n  {example}" in said


def test_help_is_quick_to_import(tmp_path: Path) -> None:
    """--help, --cfg and a refused override never import torch or mlflow."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = [{RUN!r}, '--cfg', 'job']\n"
        f"try: runpy.run_path({RUN!r}, run_name='__main__')\n"
        "finally: assert not {'torch', 'mlflow', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "optimizer:" in done.stdout


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_who_reaches_a_host(host: str, only_here: bool) -> None:
    """An address of this machine alone, by number or by name, or one that others reach."""
    assert cli._is_loopback(host) == only_here


def test_others_are_let_in_by_yes_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal, where nobody can be asked, `manyfit ui --host` says what it means and how it is said."""
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ui", "--host", "0.0.0.0"]) == 1
    said = capsys.readouterr().err
    assert "--host must be 127.0.0.1 unless --yes is said, but got 0.0.0.0: whoever reaches this machine" in said
    assert "can read, change and delete all runs: there is no password." in said
    assert cli.main(["ui", "--host", "no.such.host.invalid"]) == 1
    assert "--host must be an address of this machine" in capsys.readouterr().err
    assert not list((tmp_path / "mlruns").iterdir())


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("", None),
        ("no", None),
        *(pytest.param("y", n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_others_are_let_in_after_a_question(tmp_path: Path, answer: str, number: signal.Signals | None) -> None:
    """In a terminal `manyfit ui --host 0.0.0.0` asks; only yes starts a server, which ends with the command.

    It is asked to end while the server is started: an end of the terminal would stay open if that were left behind.
    """
    (tmp_path / "mlruns").mkdir()
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "manyfit.cli", "ui", "--host", "0.0.0.0", "--port", str(port)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said, asked = "", False
    with contextlib.suppress(OSError):  # which says that the other end is gone
        while text := os.read(ours, 4096).decode():
            said += text
            if "[y/N]" in said and not asked:
                asked = bool(os.write(ours, f"{answer}\n".encode()))
            if number and "Ctrl-C ends it" in said:
                process.send_signal(number)
    os.close(ours)
    assert (process.wait(60) == 1) == (answer != "y"), said
    assert "can read, change and delete all runs" in said
    assert ("MLflow UI on" in said) == (answer == "y")
