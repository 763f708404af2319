"""What it costs to force the journal to the disk once a second: training with and without, in turn, in one process.

    python benchmarks/durable.py [pairs]

Prints the median, over pairs of trainings, of the ratio of their times, with its quartiles.
"""

import contextlib
import os
import statistics
import sys
import tempfile

import manyfit as mf
from manyfit.tracking.journal import Journal

OVERRIDES = ("data=digits", "epochs=600", "optimizer=adam")


def seconds() -> float:
    """Of a training, as its last epoch has it."""
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        return float(mf.fit(*OVERRIDES).curves["time/seconds"].iloc[-1])


def main(pairs: int) -> None:
    """Each pair begins with another arm."""
    force, ratios = Journal._force, []
    arms = {"with": force, "without": lambda _: None}
    seconds()
    for pair in range(pairs):
        took = {}
        for name in sorted(arms, reverse=bool(pair % 2)):
            Journal._force = arms[name]
            took[name] = seconds()
        ratios.append(took["with"] / took["without"])
        print(f"{took['with']:.2f} s with, {took['without']:.2f} s without", flush=True)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"with / without: {middle:.3f} ({low:.3f} to {high:.3f}, {pairs} pairs)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
        os.chdir("..")
