"""How long a person waits without a word: seconds to the first byte, and the longest gaps until the command has ended.

    python benchmarks/silence.py [--pipe] [--show] [OVERRIDE ...]

Each command runs in a fresh folder, at a pseudo terminal or, with --pipe, at a pipe. A gap without a byte is a screen
that stands still; one without news is a stage: of the live line only the clock goes on.
"""

import argparse
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = [
    ["optimizer=adam"],
    ["-m", "optimizer=sgd,adam", "optimizer.lr=1e-3,3e-3,1e-2,3e-2", "seed=range(0,8)"],
    ["sweep=lr_batch_size", "sweep.n_trials=32"],
]
CLOCK = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|\xe2\xa0.|\d+:\d\d(:\d\d)?|\d+ s\b")  # colour, spinner, seconds


def heard(overrides: list[str], pipe: bool) -> list[tuple[float, bytes]]:
    """When the command said what, in seconds from its start; the last is its end."""
    theirs_read, theirs = os.pipe() if pipe else pty.openpty()
    start, said = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, str(ROOT / "run.py"), *overrides]
        environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"}
        process = subprocess.Popen(arguments, cwd=folder, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        while True:
            try:
                content = os.read(theirs_read, 65536)
            except OSError:  # a pseudo terminal whose other end is closed
                content = b""
            said.append((time.monotonic() - start, content))
            if not content:
                break
        process.wait()
    os.close(theirs_read)
    return said


def silences(said: list[tuple[float, bytes]]) -> tuple[float, float, float, float]:
    """Seconds to the first byte, of the longest gap without a byte, without news, and in all."""
    words, told, news, still = b"", 0.0, 0.0, 0.0
    for before, (when, content) in zip([(0.0, b""), *said], said, strict=False):
        still = max(still, when - before[0])
        now = CLOCK.sub(b"", content).strip()
        if not content or (now and now != words):
            words, news, told = now, max(news, when - told), when
    return said[0][0], still, news, said[-1][0]


def main() -> None:
    """Run each command, print its four numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipe", action="store_true", help="no terminal")
    parser.add_argument("--show", action="store_true", help="what was said, and when")
    options, overrides = parser.parse_known_args()
    for command in [overrides] if overrides else COMMANDS:
        said = heard(command, options.pipe)
        first, still, news, total = silences(said)
        print(
            f"{' '.join(command)}: first byte after {first:.2f} s; longest without one {still:.1f} s, without news "
            f"{news:.1f} s; in all {total:.1f} s",
            flush=True,
        )
        if options.show:
            print("\n".join(f"{when:8.2f}  {content!r}" for when, content in said))


if __name__ == "__main__":
    main()
