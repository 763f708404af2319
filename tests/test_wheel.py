"""The wheel, in an environment of its own: the command and its options without the repository."""

import os
import re
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

import forked
from conftest import CONF, ROOT, epochs_stored

pytestmark = pytest.mark.slow

SMALL = ["data=iris", "epochs=3"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh one with the wheel in it; what that needs is looked up in ours, whose own .pth files are not obeyed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, timeout=300)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    (packages / "needs.pth").write_text("\n".join(ours))
    return folder


def outside() -> dict[str, str]:
    """The variables of this process but those that would show it the repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def command(environment: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One of the environment's own, in this folder."""
    line = [str(environment / "bin" / words[0]), *words[1:]]
    return subprocess.run(line, cwd=folder, env=outside(), capture_output=True, text=True, timeout=300, check=False)


def results(said: str) -> list[str]:
    """What a run came to, without its clock and its id."""
    return [line for line in said.splitlines() if line.split()[0] in ("run", "test", "best", "verdict")]


def test_it_holds_what_conf_does(wheel: Path) -> None:
    """Every option, and the experiments that are a link here; no file of the repository besides."""
    names = set(zipfile.ZipFile(wheel).namelist())
    options = [*CONF.rglob("*.yaml"), *(CONF / "experiment").glob("*.yaml"), *(CONF / "experiment").glob("*.py")]
    assert {name for name in names if name.startswith("manyfit/conf/")} == {
        f"manyfit/{path.relative_to(ROOT)}" for path in options
    }
    assert {name.partition("/")[0] for name in names} == {"manyfit", "hydra_plugins", "manyfit-0.1.0.dist-info"}


def test_a_run_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    """The same as run.py's here, to the last digit; the package is the wheel's, and so are the words."""
    where = command(environment, tmp_path, "python", "-c", "import manyfit; print(manyfit.__file__)")
    assert Path(where.stdout).is_relative_to(environment)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    done = command(environment, tmp_path / "here", "manyfit", "run", *SMALL, "optimizer=adam")
    assert done.returncode == 0, done.stderr
    assert "(manyfit run resume=" in done.stdout
    same = forked.command(tmp_path / "there", *SMALL, "optimizer=adam")
    assert results(done.stdout) == results(same.stdout) != []
    assert (tmp_path / "here" / "mlruns" / "mlflow.db").exists()
    assert command(environment, tmp_path / "here", "manyfit", "doctor").returncode == 0


def test_help(environment: Path, tmp_path: Path) -> None:
    """What follows `run` is Hydra's, with our words in it."""
    done = command(environment, tmp_path, "manyfit", "run", "trainer=slurm", "--help")
    assert done.returncode == 0, done.stderr
    assert "manyfit run -m optimizer=sgd,adam" in done.stdout
    assert "overfitting" in done.stdout  # of the experiments
    assert "run.py" not in done.stdout.replace("beside run.py", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def project(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `manyfit init` makes."""
    folder = tmp_path_factory.mktemp("project")
    done = command(environment, folder, "manyfit", "init", "mine")
    assert done.returncode == 0, done.stderr
    return folder / "mine"


def test_the_test_of_a_project_passes(environment: Path, project: Path) -> None:
    """As its README says."""
    done = command(environment, project, "python", "-m", "pytest")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["model=mine", *SMALL, "trainer=ddp_cpu", "tracking=off"], "on 2 x CPU"),
        (
            ["-m", "model=mine", *SMALL, "seed=0,1", "hydra.launcher.workers=2", "tracking=off"],
            "again  manyfit run data=iris model=mine",
        ),
        (["experiment=skip", "quick=true"], "verdict  "),
    ],
    ids=["ranks", "workers", "experiment"],
)
def test_a_project_trains_its_own_network(environment: Path, project: Path, words: list[str], known: str) -> None:
    """Options of its conf/ and modules of its folder are found, also by ranks and workers."""
    done = command(environment, project, "manyfit", "run", *words)
    assert done.returncode == 0, done.stderr
    assert known in done.stdout + done.stderr


def test_own_options_win(environment: Path, tmp_path: Path) -> None:
    """A file of the same name in conf/ of the working directory, in runs and in --help."""
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "adam.yaml").write_text("_target_: torch.optim.Adam\nlr: 0.5  # ours\n")
    done = command(environment, tmp_path, "manyfit", "run", *SMALL, "tracking=off")
    assert done.returncode == 0, done.stderr
    assert "iris: adam lr=0.5" in done.stderr
    assert "lr: 0.5  # ours" in command(environment, tmp_path, "manyfit", "run", "--help").stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)])
def test_interrupt(environment: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """It ends as run.py does: a true exit code, and what to type to go on."""
    line = [str(environment / "bin" / "manyfit"), "run", "data=iris", "epochs=100000"]
    process = subprocess.Popen(
        line, cwd=tmp_path, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not epochs_stored(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert re.search(r"\(manyfit run resume=\w+ goes on with it\)", said)
