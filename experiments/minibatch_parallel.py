"""How much more a second brings with a mini-batch than with one example at a time."""

import math
from collections.abc import Sequence

from manyfit.experiments import (
    POSITIVE,
    Chart,
    Run,
    Series,
    Verdict,
    by_batch_size,
    decide,
    effect,
    line,
    nearest,
)

MINI = 32  # a mini-batch
TIMES = 4.0  # as many examples/s: less is not parallel


def minibatch_parallel(runs: Sequence[Run]) -> Verdict:
    """In batches of 32 (or the nearest tried) at least 4 times as many examples/s as one by one, paired by seed.

    Timed from the end of the first epoch to the end of the last, evaluation of both included.
    """
    sizes = by_batch_size([run for run in runs if not run.diverged])
    one, mini = min(sizes), nearest([size for size in sizes if size > min(sizes)] or list(sizes), MINI)
    singly = {run.seed: speed(run) for run in sizes[one]}
    times = effect([speed(run) / singly[run.seed] for run in sizes[mini] if run.seed in singly])
    means = {size: effect([speed(run) for run in of]).mean for size, of in sizes.items()}
    fastest = max(means, key=lambda size: means[size])
    linear = Series("if every step took as long", list(sizes), [means[one] * size / one for size in sizes])
    return Verdict(
        decide(times, TIMES),
        times,
        f"times as many examples/s in batches of {mini} as of {one}",
        f"{means[one]:.3g} examples/s in batches of {one}, {means[mini]:.3g} in batches of {mini}, at most "
        f"{means[fastest]:.3g} in batches of {fastest}.",
        f"Batches of {mini}: {times.mean:.0f} times the throughput",
        (
            Chart(
                "batch size, examples",
                "throughput, examples/s",
                [line("measured", sizes, speed, limits=POSITIVE), linear],
                x_log=True,
                y_log=True,
            ),
        ),
    )


def speed(run: Run) -> float:
    """Examples a second, the first epoch left out."""
    examples, seconds = run.metrics["progress/examples"], run.metrics["time/seconds"]
    passed = seconds[-1] - seconds[1]
    return float((examples[-1] - examples[1]) / passed) if passed > 0 else math.nan
