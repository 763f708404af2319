"""The kernel's machine code: compiled once, kept where it can be, and used where it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Compose
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.native import machine
from manyfit.training.prepared import prepare

LOAD = (
    "import sys; from manyfit.training import fitting; fitting.machine.load('float32'); print('numba' in sys.modules)"
)


def loaded(cache: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", LOAD], env={**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip


@pytest.mark.slow
def test_compiled_once_and_said_so(tmp_path: Path) -> None:
    """In a process of its own: Numba is never imported; a file that is not whole is made anew."""
    first = loaded(tmp_path)
    assert first.stdout == "False\n"
    assert "compiling for this machine, once" in first.stderr
    again = loaded(tmp_path)
    assert (again.stdout, again.stderr) == ("False\n", "")
    (file,) = (tmp_path / "manyfit").glob("kernel-*.o")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "compiling" in loaded(tmp_path).stderr
    assert file.read_bytes()[:16] == machine._hash(file.read_bytes()[16:])


@pytest.mark.slow
def test_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """Each process compiles for itself; a folder that is a file cannot be written to, by root neither."""
    (tmp_path / "manyfit").write_text("")
    for _ in range(2):
        assert "compiling" in loaded(tmp_path).stderr


def test_what_cannot_be_compiled_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TrainingError, match=r"could not be compiled.*\n.*trainer.engine=batched"):
        machine.Compilation("float32", tmp_path / "kernel.o").result()


@pytest.mark.parametrize(
    ("overrides", "engine"),
    [
        ([], "native"),
        (["trainer.precision=64-true"], "native"),
        (["trainer.engine=batched"], "batched"),
        (["trainer.precision=bf16-mixed"], "batched"),
        (["optimizer=lbfgs", "batch_size=full"], "batched"),
        (["trainer=ddp_cpu", "trainer.devices=2"], "batched"),
        (["+optimizer.foreach=true"], "batched"),
        (["data=mnist", "model.hidden=[4096,4096]", "batch_size=512"], "batched"),
        (["data=mnist", "model.hidden=[4096,4096]", "batch_size=512", "trainer.engine=native"], "native"),
    ],
)
def test_which_engine(composed: Compose, overrides: list[str], engine: str) -> None:
    assert prepare(composed(*overrides)).engine == engine


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["trainer.precision=bf16-mixed"], "it knows no trainer.precision=bf16-mixed"),
        (["optimizer=lbfgs", "batch_size=full"], "it does not know the optimizer LBFGS"),
        (["trainer=ddp_cpu", "trainer.devices=2"], "it trains on one device"),
        (["+optimizer.foreach=true"], "it does not know all options of Adam"),
    ],
)
def test_an_engine_that_cannot_is_refused(composed: Compose, overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.engine must be auto or batched here, but got 'native': {why}"):
        prepare(composed(*overrides, "trainer.engine=native"))
