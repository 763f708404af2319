"""The command in a checkout, with the conf/ beside it. `python run.py --help` lists what can be set."""

import sys
from pathlib import Path

from manyfit import running

if __name__ == "__main__":
    sys.exit(running.command(sys.argv[1:], [Path(__file__).parent.absolute() / "conf"]))
