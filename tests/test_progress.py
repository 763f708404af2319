"""What a person sees: the first line before anything heavy, and at every moment what is being done."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from manyfit import displays
from manyfit.progress import Screen

RUN = str(ROOT / "run.py")
COUNTED = """
import sys, time
import numpy as np
from manyfit import displays, progress
displays.LOOK = 0.01
progress.announce(["-m", "seed=1,2"])
with progress.Screen("grid of 8 runs") as shown:
    with shown.stage("importing torch"):
        time.sleep(0.5)
    with shown.stage("training", 8), shown.population(4, 10) as report:
        report(5, np.arange(4), {"loss/val": np.full(4, 0.25)})
        time.sleep(0.5)
        with shown.stage("checking jobs"):
            time.sleep(0.5)
    shown.say("a result " + "x" * 200)
    print("a stray word")
    for i in range(2000):
        with shown.stage(f"stage {i}"):
            time.sleep(1e-4)
"""
EPOCH = "training: 0 of 8 runs, epoch 5 of 10, best loss/val 0.25"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_a_terminal(folder: Path, *arguments: str, stdout: int | None = None) -> str:
    """What a terminal gets of a command."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ):
        os.close(theirs)
        said = b""
        while True:
            try:
                content = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            said += content
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=iris"], "iris: adam lr=0.001 b=32 s=0"),
        (["-m", "data=iris", "seed=0,1"], "grid of 2 runs on iris"),
        (["sweep=lr", "data=iris", "sweep.n_trials=3"], "search lr on iris, 3 trials"),
        (["experiment=dropout", "quick=true"], "experiment dropout: "),
    ],
    ids=["run", "grid", "search", "experiment"],
)
def test_the_first_lines_come_before_torch(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Where torch cannot even be imported, the command has begun to speak, and has said what it is about."""
    code = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = [{RUN!r}, *{arguments!r}]\n"
        f"runpy.run_path({RUN!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, second, *_ = done.stderr.splitlines()
    assert first == "    manyfit  starting"
    assert second.startswith(f"    manyfit  {words}")
    assert "torch" in done.stderr


def test_the_first_word_comes_before_hydra(tmp_path: Path) -> None:
    """Where Hydra cannot be imported either, the command has begun to speak."""
    code = f"import sys, runpy\nsys.modules['hydra'] = None\nrunpy.run_path({RUN!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("    manyfit  starting\n")


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path: Path) -> None:
    """Each stage that lasts has a line on stderr, with what is counted; what is over at once floods nobody."""
    done = subprocess.run([sys.executable, "-c", COUNTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[:2] == ["    manyfit  starting", "    manyfit  grid of 8 runs"]
    told = [match[1] for line in lines if (match := re.fullmatch(r" +\d+ s  (.*)", line))]
    places = [told.index(one) for one in ("importing torch", EPOCH, "training: checking jobs")]
    assert places == sorted(places)
    assert len(lines) < 200
    assert done.stdout == "a result " + "x" * 200 + "\na stray word\n"


def test_at_a_terminal_there_is_one_live_line(tmp_path: Path) -> None:
    """It says the stage, counts, is gone at the end, and neither breaks nor loses what else is written."""
    said = at_a_terminal(tmp_path, "-c", COUNTED)
    plain = CONTROLS.sub("", said)
    for words in (
        "importing torch",
        f"━ {EPOCH}",
        "━ training: checking jobs",
    ):
        assert words in plain
    assert "a result " + "x" * 200 in plain
    assert "a stray word" in plain
    assert said.endswith("\x1b[2K") or said.endswith("\x1b[?25h")


def test_results_go_to_stdout_wherever_that_is(tmp_path: Path) -> None:
    """With stdout in a file the live line stays at the terminal, and the file has the results alone."""
    with (tmp_path / "out.txt").open("w") as file:
        said = at_a_terminal(tmp_path, "-c", COUNTED, stdout=file.fileno())
    assert "importing torch" in said
    assert (tmp_path / "out.txt").read_text() == "a result " + "x" * 200 + "\na stray word\n"


def test_who_has_read_enough_breaks_nothing(tmp_path: Path) -> None:
    """As head does."""
    code = COUNTED + "\nfor i in range(9): shown.say('x' * 99999)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.read(10)
        done.stdout.close()
        assert b"Traceback" not in done.stderr.read()
    assert done.returncode == 0


def test_stages_are_nested(capsys: pytest.CaptureFixture[str]) -> None:
    """An inner stage hides the outer one while it lasts; runs that come to a bad end alone are counted as well."""
    shown = Screen("")
    assert shown._now() == ("at work", None)
    with shown.stage("confirming on 2 seeds"):
        with shown.training(4):
            assert shown._now() == ("confirming on 2 seeds: 0 of 4 runs", 0.0)
            with shown.population(3, 10):
                pass
            with pytest.raises(ValueError, match="broken"), shown.population(1, 10):
                raise ValueError("broken")
            assert shown._now() == ("confirming on 2 seeds: 4 of 4 runs", 1.0)
        assert shown._now() == ("confirming on 2 seeds", None)
    with shown.stage("training"), shown.population(1, 20) as report:
        assert shown._now() == ("training: starting", 0.0)  # its processes may be
        report(5, np.zeros(1), {f"loss/{name}": np.full(1, 0.5) for name in ("train", "val", "gap")})
        assert shown._now() == ("training: epoch 5 of 20, train 0.5, val 0.5, gap 0.5", 0.25)
    assert capsys.readouterr() == ("", "")  # of a screen that was not entered


def test_plain_lines_become_rarer() -> None:
    """A new stage is told at once at first, later every tenth of the time that has passed; an old one every 30 s."""
    assert [displays.pause(passed, news=True) for passed in (0, 5, 100, 10000)] == [1, 1, 10, 30]
    assert displays.pause(0, news=False) == 30
