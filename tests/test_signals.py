"""What a process does when it is asked to end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SWALLOWED = """
import os, signal, sys, time, weakref
from manyfit.parallel import signals

class Thing: pass

def callback(_):
    {raised}

signals.insist()
with signals.sigterm_exits():
    thing = Thing()
    reference = weakref.ref(thing, callback)
    del thing
    try:
        time.sleep(5)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130, ""),
        ("signal.raise_signal(signal.SIGTERM)", 143, ""),
        ("raise ValueError('of its own'); ", 0, "ValueError: of its own"),
    ],
)
def test_what_a_callback_swallows_comes_again(raised: str, code: int, said: str) -> None:
    """An interrupt ends the process all the same, and in silence; any other exception is told as ever."""
    program = SWALLOWED.format(raised=raised).replace("sleep(5)", f"sleep({5 if code else 0.1})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert said in done.stderr if said else done.stderr == ""


HIDDEN = """
import signal, sys
from manyfit import running

def obey(*_):
    with running.signals.sigterm_exits():
        try:
            {raised}
        finally:
            None.attribute

running._obey = obey
sys.exit(running.command([], []))
"""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130, "stopped: then AttributeError, 'NoneType' object"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "stopped: then AttributeError, 'NoneType' object"),
        ("raise ValueError('of its own')", 1, "AttributeError"),
        ("sys.exit(0)", 1, "AttributeError"),
    ],
)
def test_a_stop_that_an_error_hides(raised: str, code: int, said: str) -> None:
    """A library fails as it is left, as OmegaConf in the middle of a list: the stop counts, and both are said."""
    program = HIDDEN.format(raised=raised)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torch_is_imported_whole(tmp_path: Path, number: signal.Signals) -> None:
    """An exception that comes into its C++ as it is imported aborts the process: the stop comes right after."""
    (tmp_path / "torch.py").write_text(f"import signal\nsignal.raise_signal({number})\nprint('whole', flush=True)\n")
    program = (
        "import sys, time\nfrom manyfit.parallel import signals\ntry:\n    with signals.sigterm_exits():\n"
        "        import torch\n        time.sleep(30)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("whole\n", "", 128 + number)
