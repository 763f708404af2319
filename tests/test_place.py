"""Where options lie, how the command was called, and on what machine."""

import os
import resource
import sys
from pathlib import Path

import pytest

from conftest import CONF, ROOT
from manyfit import cli, running
from manyfit.config import place


@pytest.mark.parametrize(
    ("program", "called", "modules"),
    [
        (str(ROOT / "run.py"), "python run.py", "beside run.py"),
        ("/home/me/.venv/bin/manyfit", "manyfit run", "in this folder"),
        ("/usr/lib/python3/site-packages/manyfit/cli.py", "manyfit run", "in this folder"),  # torchrun -m manyfit.cli
    ],
)
def test_called(monkeypatch: pytest.MonkeyPatch, program: str, called: str, modules: str) -> None:
    """What is said to a person is what that person typed."""
    monkeypatch.setattr(sys, "argv", [program, "data=iris"])
    assert (place.called(), place.modules()) == (called, modules)


def test_own_options_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """conf/ of the working directory, where there is one that is not ours already; then those of the package."""
    assert place.options() == CONF
    for folder, found in [(tmp_path, [CONF]), (ROOT, [CONF])]:
        monkeypatch.chdir(folder)
        assert place.folders() == found
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    assert place.folders() == [tmp_path / "conf", CONF]


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use; on macOS, which has no such call, those of the machine."""
    assert 1 <= place.cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert place.cores() == os.cpu_count()


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with what to do, before anything else."""
    monkeypatch.setattr(sys, "platform", "win32")
    for begin in (
        lambda: cli.main(["run", "data=iris"]),
        lambda: cli.main(["ui"]),
        lambda: running.command([], [CONF]),
    ):
        with pytest.raises(
            SystemExit, match="error: manyfit must run on Linux or macOS, but got Windows. Use it in WSL"
        ):
            begin()


def test_memory_of_its_own() -> None:
    """What `ulimit -v` leaves, where that is less than the machine has."""
    free, (soft, hard) = place.memory(), resource.getrlimit(resource.RLIMIT_AS)
    taken = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    try:
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, hard))
        assert 0 < place.memory() <= 2**28 < free
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "900", "a/memory.current": "700"}, 200),
        ("0::/\n", {"memory.max": "900", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 50\n"}, 250),
        (
            "4:memory:/elsewhere\n1:cpu:/\n",
            {"memory/memory.limit_in_bytes": "800", "memory/memory.usage_in_bytes": "900"},
            0,
        ),
        ("0::/\n", {"memory.max": "max", "memory.current": "700"}, 4096),
    ],
)
def test_memory_of_a_control_group(tmp_path: Path, groups: str, files: dict[str, str], left: int) -> None:
    """The least that it, those around it, and the machine leave; of a container with a path from outside its own."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:  4 kB\n")
    for name, content in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert place.memory(tmp_path) == left
