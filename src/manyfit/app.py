"""What a command does with accepted configs: one tracked run, or a sweep of them trained as populations."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from manyfit.config.build import place_of
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config, parse
from manyfit.config.secrets import mask
from manyfit.config.shown import as_written, looked_up
from manyfit.displays import line
from manyfit.experiments import claims
from manyfit.experiments.experiment import Experiment
from manyfit.parallel.launch import Launch
from manyfit.progress import Screen
from manyfit.resume import Earlier, find, folder_of, given, unfinished
from manyfit.sweeps import again, checking
from manyfit.sweeps.parent import Proposed, Sweep, best_loss, collect_garbage, objective
from manyfit.sweeps.settings import Settings, settings
from manyfit.tracking.run import TrackedRun
from manyfit.tracking.tracker import NoTracker, Tracker, tracker_of
from manyfit.tracking.unfinished import Unfinished

if TYPE_CHECKING:
    from manyfit.training.prepared import Job, Preparation
    from manyfit.training.trained import Result


def run(config: Config) -> float:
    """Train, track and sum up one run; returns its best validation loss.

    Raises:
        ConfigError: Something in the config cannot be used; no run exists then.
        TrainingError: The training came to a bad end; its run says so.
    """
    result, _ = fit(config)
    return best_loss(result)


def fit(config: Config, says: bool = True) -> "tuple[Result, TrackedRun]":
    """Train, track and sum up one run, however it ends; `says` whether the sum is printed."""
    with Screen(f"{config.experiment}: {config.title()}", says) as screen:
        return _alone(config, screen)


def resume(cfg: DictConfig, overrides: Sequence[str]) -> float:
    """Go on with an earlier run; otherwise like `run`."""
    with Screen(f"going on with run {given(overrides)['resume']}") as screen:
        looking = screen.stage("looking for it in the store, which takes torch and MLflow")
        with looking, as_written(partial(looked_up, cfg)):
            earlier = find(cfg, overrides)
        screen.say(line("resume", f"run {earlier.run_id}, from epoch {earlier.epoch}"))
        for change in earlier.changes:
            screen.say(line("", change))
        result, _ = _alone(earlier.job.config, screen, earlier)
    return best_loss(result)


def autoresume(config: Config) -> float:
    """Go on with the run of the same config, data and code that was stopped in this folder, or begin it; like `run`.

    Raises:
        ConfigError: Another process is at it, or the store does not answer.
    """
    with Screen(f"{config.experiment}: {config.title()}") as screen:
        with screen.stage("importing torch"):
            from manyfit.training.prepared import prepare
        try:
            job = prepare(config)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with Unfinished(Path.cwd(), job.fingerprint) as noted:
            _require_alone(noted)
            if noted.finished:
                screen.say(_finished(noted))
                return math.nan
            earlier = None
            if noted.run:
                with screen.stage("looking for it in the store, which takes MLflow"):
                    earlier = unfinished(job, noted.run)
                if not earlier:
                    screen.note("an earlier start of this was stopped, but is not in the store: it is trained anew")
            if earlier:
                screen.say(line("resume", f"run {earlier.run_id}, from epoch {earlier.epoch}"))
            result, _ = _alone(config, screen, earlier, job, noted)
    return best_loss(result)


def _require_alone(noted: Unfinished) -> None:
    """Raise ConfigError if another process is at it."""
    if noted.living:
        raise ConfigError("autoresume must be false while another process trains the same, but got true.")


def _finished(noted: Unfinished) -> str:
    """That there is nothing left to do."""
    return line("finished", f"run {str(noted.run)[:8]} of this command; autoresume=false begins anew")


def _alone(
    config: Config,
    screen: Screen,
    earlier: Earlier | None = None,
    job: "Job | None" = None,
    noted: Unfinished | None = None,
) -> "tuple[Result, TrackedRun]":
    """Train, track and sum up; `job` where it is prepared, `noted` where the run is, while it is not finished."""
    with screen.stage("importing torch"):
        from manyfit.training.prepared import prepare
    try:
        with screen.stage("loading data"):  # before Lightning, which takes seconds to import
            job = earlier.job if earlier else job or prepare(config)
        with as_written(config.stands):
            tracker = tracker_of(config, screen.left)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _say_data(job, screen)
    with tracker:
        result, run = _trained(job, tracker, screen, earlier, noted)
    if tracker.lost:
        raise TrainingError(tracker.lost)
    if noted:
        noted.end(tells=result.status == "FINISHED")
    return result, run


def _say_data(job: "Job", screen: Screen) -> None:
    """What a person is to see of the data before anything is trained on them."""
    if job.data.note:
        screen.note(job.data.note)
    kind = job.config.choices.get("data")
    if kind in ("csv", "arrays", "images"):
        screen.say(line("data", job.data.summary))
    if kind == "csv":  # a column that gives the target away is best seen here
        screen.say(line("inputs", f"of {job.config.data.arguments['target']}: {_listed(job.data.encoding.columns)}"))


def _trained(
    job: "Job", tracker: Tracker | NoTracker, screen: Screen, earlier: Earlier | None, noted: Unfinished | None
) -> "tuple[Result, TrackedRun]":
    """Train a run, sum it up and deliver it, however it ends; see `_alone`."""
    with screen.stage("importing Lightning"):
        from manyfit.training import fitting, recording, words

    changed = {"resumed": "; ".join(earlier.changes)} if earlier and earlier.changes else {}
    ids = [earlier.run_id] if earlier else None
    recorder = recording.Recorder(tracker, [job], tags=[changed], run_ids=ids)
    (run,) = recorder.runs
    folder = earlier.folder if earlier else folder_of(run.id)
    if noted and not earlier:
        noted.begin(run.id)
    save_to = folder if job.config.checkpoint and not isinstance(tracker, NoTracker) else None
    try:
        collect_garbage()
        with screen.stage("training"):
            goes_on = folder if earlier and earlier.epoch else None
            (result,) = fitting.fit([job], recorder, screen=screen, save_to=save_to, resume=goes_on)
    except BaseException as error:
        recorder.fail(error)
        if not isinstance(error, Exception):
            error.add_note(_kept(tracker, recorder.recorded[0]))
        _deliver(tracker, run, screen, _after_all(job.config, earlier) if folder.exists() else None)
        raise
    screen.say(words.summary(result))
    _deliver(tracker, run, screen, _further(result) if save_to else None)
    return result, run


def _kept(tracker: Tracker | NoTracker, epochs: int) -> str:
    """What an interrupt leaves of a run."""
    if isinstance(tracker, NoTracker):
        return "nothing is kept: tracking=off"
    return f"the run is KILLED and keeps its {max(epochs, 0)} epochs"


def _listed(names: "Iterable[str]", most: int = 12) -> str:
    """The columns that a target is predicted from, as far as they fit into a line or two."""
    columns = list(names)
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(columns[:most]) + more


def _deliver(tracker: Tracker | NoTracker, run: TrackedRun, screen: Screen, resume: str | None) -> None:
    """Wait for the store, and say where the run is; `resume` as for `Tracker.where`."""
    with screen.stage("delivering to the store"):
        tracker.close()
    screen.say(tracker.where(run, resume))


def _after_all(config: Config, earlier: Earlier | None) -> str:
    """What a command says behind `resume=<id>` to go on with a run that was stopped."""
    return " ".join([*([f"epochs={config.epochs}"] if earlier else []), *_trusting(config)])


def _trusting(config: Config) -> list[str]:
    return [f"trusted=[{','.join(config.trusted)}]"] if config.trusted else []


def _further(result: "Result") -> str | None:
    """What a command says behind `resume=<id>` to go on with a run; None where it ended badly, or would end again."""
    config = result.config
    by_itself = result.reason == "stopped early" and config.trainer.patience is None
    if result.status != "FINISHED" or by_itself:
        return None
    patience = ["trainer.patience=null"] if result.reason == "stopped early" else []
    return " ".join([f"epochs={2 * config.epochs}", *patience, *_trusting(config)])


def unreported(jobs: Mapping[int, Proposed], launch: Launch) -> dict[int, float | Exception]:
    """Train what Hydra's own sweeper launches, as populations: a sweep without a report.

    Args:
        jobs: By number.
        launch: How populations are trained.

    Returns:
        Each job's best validation loss, or its error.
    """
    outcomes: dict[int, float | Exception] = {}
    configs: list[Config] = []
    for number, job in jobs.items():
        try:
            configs.append(job.config())
        except ConfigError as error:
            outcomes[number] = error
    if not configs:
        return outcomes
    about = f"{len(jobs)} jobs on {configs[0].experiment}"
    with Screen(about) as screen, Sweep("jobs", configs[0], launch=launch, screen=screen) as sweep:
        for child in sweep.run(list(jobs.values())):
            try:
                outcomes[child.number] = objective(child)
            except Exception as error:
                outcomes[child.number] = error
    return outcomes


def grid(
    first: DictConfig,
    arguments: Sequence[str],
    jobs: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Config],
    train: Callable[[Sweep, list[list[str]]], None],
    launch: Launch,
    *,
    beside: Sequence[Sequence[str]] = (),
    wish: bool = False,
    says: bool = True,
) -> Sweep:
    """A sweep over a grid: a parent run, and at the end its report, or the verdict on its claim.

    Args:
        first: What all jobs share, composed.
        arguments: Of the command.
        jobs: The overrides of each.
        compose: From a job's overrides to its config.
        train: The sweep's jobs that are to be run: each was tried, and is there once.
        launch: How populations are trained.
        beside: The overrides of those to be trained beside what an experiment tunes.
        wish: Whether data.train_size is an experiment's, which the data may cap.
        says: Whether the report is printed.

    Returns:
        The sweep; its `failure` says how many runs failed, and why the first did, or why the claim was not judged.

    Raises:
        ConfigError: Some jobs cannot be run, and nothing was.
    """
    if not jobs:
        raise ConfigError("a grid must have a job, but a key has no value.")
    config, about = _shared(first, arguments, jobs, compose)
    with Screen(about, says) as screen:
        with screen.stage("importing torch"):
            from manyfit.training.prepared import Preparation
        preparation = Preparation()
        with as_written(partial(looked_up, first)):
            experiment, configs = _accepted(first, jobs, beside, compose, preparation, wish, screen)
            sought = _sought(first, experiment, configs, preparation)
        accepted = [list(job) for job in configs]
        sweep = Sweep(" ".join(arguments), config, len(accepted), launch, screen=screen)
        sweep.preparation = preparation
        _note(sweep, first, experiment, configs.values(), sought)
        with sweep.noted or contextlib.nullcontext():
            if sweep.noted and not _begins(sweep, sweep.noted, first.autoresume):
                return sweep
            with sweep:
                with screen.stage("training", len(accepted)):
                    train(sweep, accepted)
                broken = _concluded(sweep, experiment, sought)
                sweep.failure = _failure(sweep, experiment, broken)
    return sweep


def _shared(
    first: DictConfig,
    arguments: Sequence[str],
    jobs: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Config],
) -> tuple[Config, str]:
    """What all jobs of a grid share, and what it is about, in words; see `grid`."""
    swept = [override.lstrip("+") for override in set(jobs[0]) - set(arguments)]
    alike = not any(o.startswith(("data=", "data.")) and not o.startswith("data.fold=") for o in swept)
    # where the data are swept over, what all jobs share names other data, or none; and no fold
    shared = alike and first.data.get("folds") is None
    config = parse(first, first.hydra.runtime.choices, first.hydra.overrides.task) if shared else compose(jobs[0])
    if name := config.choices.get("experiment"):
        return config, f"experiment {name}: {len(jobs)} runs"
    return config, f"grid of {len(jobs)} runs on {config.experiment if alike else 'several data'}"


def _sought(
    first: DictConfig,
    experiment: Experiment | None,
    configs: Mapping[tuple[str, ...], Config],
    preparation: "Preparation",
) -> Settings:
    """What a grid is ranked by; an experiment has a claim for that."""
    usual = settings(OmegaConf.create())
    sought = usual if experiment else settings(first)
    if sought != usual:
        from manyfit.sweeps.rounds import check_objective

        check_objective(sought, preparation.job(next(iter(configs.values()))))
    return sought


def _note(
    sweep: Sweep, first: DictConfig, experiment: Experiment | None, configs: Iterable[Config], sought: Settings
) -> None:
    """Where a grid is, for the same command later; that of a claim that looks at networks, which go, begins anew."""
    looks = bool(experiment and claims.looks_at_networks(experiment.claim))
    if looks and first.autoresume:
        raise ConfigError(
            "autoresume must be false with a claim that looks at networks, which are not stored, but got true."
        )
    if looks:
        sweep.networks = None
    elif sweep.config.tracking.kind != "off":
        fingerprint = again.fingerprint_of(map(sweep.preparation.job, configs), sought, experiment)
        sweep.noted = Unfinished(Path.cwd(), fingerprint)


def _failure(sweep: Sweep, experiment: Experiment | None, broken: str) -> TrainingError | None:
    """What a grid ends with if runs failed, or if its claim is `broken`."""
    errors = sweep.errors()
    if experiment:  # a rate that diverges may be what is looked for
        errors = {number: error for number, error in errors.items() if sweep.children[number].error is not None}
    if errors:
        number, reason = next(iter(errors.items()))
        return TrainingError(
            f"{len(errors)} of {len(sweep.children)} runs failed; the first is job {number}: {mask(str(reason))}"
        )
    return TrainingError(f"the claim could not be judged: {mask(broken)}") if broken else None


def _begins(sweep: Sweep, noted: Unfinished, tells: bool) -> bool:
    """Whether there is anything to do; then with what an earlier start has done, and noted for a later one.

    Args:
        sweep: Not begun.
        noted: Where it is.
        tells: Whether it is to go on by itself, and to tell that it is finished.
    """
    if tells:
        _require_alone(noted)
    if tells and noted.finished:
        sweep.screen.say(_finished(noted))
        return False
    sweep.tells, sweep.past = tells, again.past(noted, sweep.config, sweep.screen)
    if not noted.living:
        sweep.again = "The same command goes on with the rest."
    return True


def _accepted(
    first: DictConfig,
    jobs: Sequence[Sequence[str]],
    beside: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Config],
    preparation: "Preparation",
    wish: bool,
    screen: Screen,
) -> tuple[Experiment | None, dict[tuple[str, ...], Config]]:
    """The experiment, if it is one, and the jobs that are to be run, by their overrides; see `grid`."""
    with screen.stage(f"checking {len(jobs)} jobs"):
        experiment = Experiment.of(first)
        checked = checking.check(jobs, compose, preparation, wish)
        if experiment and first.data.get("folds") is not None:
            raise ConfigError(
                f"data.folds must be null in an experiment, but got {first.data.folds}: its claim takes runs for "
                "independent, which folds are not."
            )
        if experiment:
            apart = checking.check(beside, compose, preparation, wish)
            experiment = replace(experiment, beside=tuple(apart.configs.values()))
            experiment.accept(list(checked.configs.values()), preparation)
    if first.quick:
        screen.say(line("quick", "two seeds, the ends of every range, a tenth of the epochs: this decides nothing"))
    for note in checked.told():
        screen.note(note)
    return experiment, checked.configs


def _concluded(sweep: Sweep, experiment: Experiment | None, sought: Settings) -> str:
    """Report on a grid, or judge its claim; says why that could not be judged."""
    with sweep.screen.stage("drawing"):
        from manyfit.sweeps import conclusion, grids

        broken = ""
        try:
            sweep.verdict = experiment.conclude(sweep) if experiment else None
        except Exception as error:  # of a claim, perhaps the user's own: the runs and their report stay
            broken = f"{type(error).__name__}: {error}{place_of(error)}"
            sweep.parent.tags({"error": f"the claim could not be judged: {broken}"[:2000]})
            sweep.status = "FAILED"
        rows = grids.rows_of(sweep.children, str(sought.objective), sought.direction)
        sweep.report = conclusion.conclude(
            sweep, rows, objective=str(sought.objective), direction=sought.direction, verdict=sweep.verdict
        )
    return broken
