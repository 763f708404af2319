"""What a sweep of 100 000 runs on 1000 nodes would wait for: what one process does for all of them, measured.

    python benchmarks/scale.py [--runs 500 5000] [--trials 100 1000 10000]

Runs: a grid of tiny networks with everything tracked in SQLite, by the stages of its command; a stage within another
counts there alone. Whatever the nodes train, the command that started them hears of every epoch, the store gets every
value, and one parent reports. Trials: a study that holds so many, asked for 16 more; as in a search, in SQLite.
"""

import argparse
import contextlib
import sqlite3
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna

import manyfit as mf
from manyfit.progress import Screen
from manyfit.tracking import journal

EPOCHS = 20
GRID = ["data=iris", "model.hidden=[4]", f"epochs={EPOCHS}"]
SPACE = {
    "optimizer.lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
    "model.dropout": optuna.distributions.FloatDistribution(0, 0.6),
    "batch_size": optuna.distributions.CategoricalDistribution((16, 32, 64, 128)),
}


def clocks() -> np.ndarray:
    """The wall's and this process's, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


@contextlib.contextmanager
def timed(spent: dict[str, np.ndarray]) -> Iterator[None]:
    """Seconds of every stage, and of this process's CPU, without those within it."""
    honest, inner = Screen.stage, [np.zeros(2)]

    @contextlib.contextmanager
    def stage(self: Screen, words: str, *counts: int) -> Iterator[None]:
        inner.append(np.zeros(2))
        start = clocks()
        with honest(self, words, *counts):
            yield
        took = clocks() - start
        spent[words] += took - inner.pop()
        inner[-1] += took

    Screen.stage = stage
    try:
        yield
    finally:
        Screen.stage = honest


def grid(runs: int) -> None:
    """A sweep of so many runs: eight rates, and seeds."""
    spent: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), timed(spent):
        start = time.perf_counter()
        rates = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1"
        done = mf.grid(*GRID, f"optimizer.lr={rates}", f"seed=range(0,{runs // 8})")
        whole, store = time.perf_counter() - start, Path("mlruns/mlflow.db")
        while journal.sessions(Path()):  # a store that took nothing for a minute is not waited for
            time.sleep(0.2)
        arrived = time.perf_counter() - start
        assert len(done) == runs // 8 * 8
        with contextlib.closing(sqlite3.connect(store)) as base:
            rows = sum(base.execute(f"select count(*) from {t}").fetchone()[0] for t in ("metrics", "params", "tags"))
        size = store.stat().st_size / 2**20
    print(f"\n| {len(done)} runs of {EPOCHS} epochs: {whole:.0f} s | seconds | of CPU | CPU, ms a run |")
    print("|---|---|---|---|")
    for words, (wall, cpu) in sorted(spent.items(), key=lambda item: -item[1][1]):
        if wall > 0.2:
            print(f"| {words} | {wall:.1f} | {cpu:.1f} | {cpu / len(done) * 1e3:.2f} |", flush=True)
    print(
        f"\n{rows} rows, {size:.0f} MiB, in the store after {arrived:.0f} s: {rows / arrived:.0f} a second", flush=True
    )


def filled(trials: int, url: str) -> optuna.Study:
    """A study in SQLite with so many trials, each with a value and a curve's last point."""
    study = optuna.create_study(storage=url, sampler=optuna.samplers.TPESampler(seed=0))
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = made.ask(SPACE)
        made.tell(trial, (trial.params["optimizer.lr"] * 100 - 1) ** 2 + trial.params["model.dropout"])
    study.add_trials(made.get_trials(deepcopy=False))
    return study


def seconds(repeats: int, work: Callable[[], object]) -> float:
    """Median of so many calls."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def trials(counts: list[int]) -> None:
    """What a round waits for, by how many trials the study has."""
    print(
        "\n| trials in the study | get_trials, cold | warm | ask, TPE | ask, random | tell |\n|---|---|---|---|---|---|"
    )
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/optuna.db"
            name = filled(count, url).study_name

            def load(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
                return optuna.load_study(study_name=name, storage=url, sampler=sampler)  # noqa: B023

            cold = seconds(3, lambda: load(optuna.samplers.RandomSampler()).get_trials(deepcopy=False))
            study, plain = load(optuna.samplers.TPESampler(seed=0)), load(optuna.samplers.RandomSampler(seed=0))
            warm = seconds(5, lambda: study.get_trials(deepcopy=False))  # noqa: B023
            asked: list[optuna.Trial] = []
            ask = seconds(5, lambda: asked.append(study.ask(SPACE)))  # noqa: B023
            random = seconds(5, lambda: asked.append(plain.ask(SPACE)))  # noqa: B023
            tell = seconds(5, lambda: study.tell(asked.pop(), 0.5))  # noqa: B023
            cells = [f"{value * 1e3:.0f} ms" for value in (cold, warm, ask, random, tell)]
            print(f"| {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="*", default=[500, 5000])
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10000])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for number in options.runs:
        grid(number)
    trials(options.trials)
