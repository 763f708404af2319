"""What a command does with accepted configs: one tracked run, or a sweep of them trained as populations."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from manyfit import checking, experiments
from manyfit.config import Config, ConfigError, TrainingError, parse
from manyfit.parent import Sweep, current, objective, tracker_of, value_of, where
from manyfit.resume import Earlier, find, folder_of
from manyfit.tracking import NoTracker


def run(config: Config, number: int = 0) -> float:
    """Train, track and sum up one run; returns its best validation loss. In a sweep it becomes a child.

    Raises:
        ConfigError: Something in the config cannot be used; no run exists then.
        TrainingError: The training came to a bad end; its run says so.
    """
    if current:
        (child,) = current[-1].train({number: config})
        return objective(child)
    return _alone(config)


def resume(cfg: DictConfig, overrides: Sequence[str]) -> float:
    """Go on with an earlier run; otherwise like `run`."""
    earlier = find(cfg, overrides)
    print(f"{'resume':>11}  run {earlier.run_id}, from epoch {earlier.epoch}")
    for change in earlier.changes:
        print(f"{'':>11}  {change}")
    return _alone(earlier.config, earlier)


def _alone(config: Config, earlier: Earlier | None = None) -> float:
    from manyfit.jobs import prepare  # torch

    try:
        prepare(config)  # first: what it refuses need not wait for Lightning, which takes seconds to import
        tracker = tracker_of(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with tracker:
        from manyfit import recording, terminal, training

        ids, tags = ([earlier.run_id], [{"resumed": "; ".join(earlier.changes)}]) if earlier else (None, None)
        recorder = recording.Recorder(tracker, [config], tags=tags, run_ids=ids)
        folder = earlier.folder if earlier else folder_of(recorder.runs[0].id)
        keep = folder if config.checkpoint and not isinstance(tracker, NoTracker) else None
        try:
            with terminal.Progress() as progress:
                (result,) = training.fit(
                    [config], recorder, progress=progress, keep=keep, resume=folder if earlier else None
                )
        except BaseException:
            if folder.exists():
                print(f"its state is kept; go on with: python run.py resume={folder.name[:8]}", file=sys.stderr)
            raise
        tracker.close()
    print(terminal.summary(result, where(tracker)))
    if tracker.lost:
        raise TrainingError(tracker.lost)
    return value_of(result)


def train_jobs(
    jobs: Mapping[int, Config | ConfigError],
    names: Mapping[int, str],
    max_members: int | None = None,
    workers: int | None = None,
) -> dict[int, float | Exception]:
    """Train accepted jobs, by job number, as populations.

    Args:
        jobs: Their configs, or why they were refused.
        names: For those that were refused.
        max_members: Largest population; None: as large as pays.
        workers: Processes that train populations side by side; None: one for each GPU.

    Returns:
        Each job's objective, or its error.
    """
    configs = {number: job for number, job in jobs.items() if isinstance(job, Config)}
    outcomes: dict[int, float | Exception] = {n: job for n, job in jobs.items() if isinstance(job, ConfigError)}
    if not current and not configs:
        return outcomes
    with contextlib.nullcontext(current[-1]) if current else Sweep("jobs", next(iter(configs.values()))) as sweep:
        sweep.max_members, sweep.workers = max_members, workers
        for number, refusal in outcomes.items():
            assert isinstance(refusal, Exception)
            sweep.refuse(number, names[number], refusal)
        for child in sweep.train(configs):
            try:
                outcomes[child.number] = objective(child)
            except Exception as error:
                outcomes[child.number] = error
    return outcomes


@contextlib.contextmanager
def grid(
    first: DictConfig,
    arguments: Sequence[str],
    jobs: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Config],
    *,
    beside: Sequence[Sequence[str]] = (),
    wish: bool = False,
) -> Iterator[list[list[str]]]:
    """A sweep over a grid: a parent run, and at the end its report, or the verdict on its claim.

    Args:
        first: What all jobs share, composed.
        arguments: Of the command.
        jobs: The overrides of each.
        compose: From a job's overrides to its config.
        beside: The overrides of those to be trained beside what an experiment tunes.
        wish: Whether data.train_size is an experiment's, which the data may cap.

    Yields:
        The jobs that are to be run: each was tried, and is there once.

    Raises:
        SystemExit: Some jobs cannot be run, and nothing was; or some failed: says how many, and why the first did.
    """
    try:
        config = parse(first, first.hydra.runtime.choices)
        experiment = experiments.Experiment.of(first)
        checked = checking.check(jobs, compose, wish)
        if experiment:
            apart = checking.check(beside, compose, wish)
            experiment = replace(experiment, beside=tuple(apart.configs.values()))
            experiment.accept(list(checked.configs.values()))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if experiment and first.quick:
        print(f"{'quick':>11}  two seeds, the ends of every range, a tenth of the epochs: this decides nothing")
    for line in checked.told():
        print(f"{'note':>11}  {line}")
    with Sweep(" ".join(arguments), config, len(checked.configs)) as sweep:
        yield [list(job) for job in checked.configs]
        from manyfit import reports

        verdict, broken = None, ""
        try:
            verdict = experiment.conclude(sweep) if experiment else None
        except Exception as error:  # of a claim, perhaps the user's own: the runs and their report stay
            broken = _described(error)
            sweep.parent.tags({"error": f"the claim could not be judged: {broken}"[:2000]})
            sweep.status = "FAILED"
        reports.conclude(sweep, reports.rows_of(sweep.children), verdict=verdict)
    errors = sweep.errors()
    if experiment:  # a rate that diverges may be what is looked for
        errors = {number: error for number, error in errors.items() if sweep.children[number].error is not None}
    if errors:
        number, reason = next(iter(errors.items()))
        sys.exit(f"error: {len(errors)} of {len(sweep.children)} runs failed; the first is job {number}: {reason}")
    if broken:
        sys.exit(f"error: the claim could not be judged: {broken}")


def _described(error: Exception) -> str:
    """An exception with the place that raised it: the user's own, if any is."""
    frames, ours = traceback.extract_tb(error.__traceback__), str(Path(__file__).parent)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(ours)), frames[-1])
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno}, {last.line})"


@contextlib.contextmanager
def verdicts() -> Iterator[None]:
    """Several experiments, one after the other, and at the end the table of what came out."""
    start = time.monotonic()
    yield
    from manyfit.claims import charts

    found = experiments.verdicts
    print(f"\n{charts.verdicts(found)}\n\n{len(found)} experiments in {time.monotonic() - start:.0f} s")
