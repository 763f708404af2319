"""`resume=<id>`: go on with an earlier run, from the state after its last epochs."""

import contextlib
import copy
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config, flattened, parse
from manyfit.config.shown import MARK
from manyfit.config.stored import restored

if TYPE_CHECKING:
    from manyfit.tracking.reading import Kept
    from manyfit.training.prepared import Job

MAY_CHANGE = ("epochs", "trainer", "checkpoint", "tracking", "trusted")  # what the command may say beside resume=


class StateError(ConfigError):
    """A state is not what a training writes."""


@dataclass(frozen=True)
class Earlier:
    """A run to go on with.

    Attributes:
        job: Of its own config, with what the command changes.
        run_id: MLflow's.
        folder: Its checkpoints.
        epoch: The last that it has a state of; 0: it has none, and begins again.
        changes: What is not as it would have gone on, in sentences.
    """

    job: "Job"
    run_id: str
    folder: Path
    epoch: int
    changes: tuple[str, ...] = ()


def folder_of(run: str) -> Path:
    """Where the checkpoints of a run are, by our own id; raises ConfigError if it is none, since anybody sets a tag."""
    if not re.fullmatch("[0-9a-f]{32}", run):
        raise ConfigError(f"resume must name a run whose tag manyfit.id is of 32 hex digits, but got {run!r}.")
    return Path("mlruns", "checkpoints", run)


def given(overrides: Sequence[str]) -> dict[str, str]:
    """What the command says, by key; the id of `resume` is not taken from a config, where 3e45 is a number."""
    found = {key.lstrip("+~"): value for key, _, value in (override.partition("=") for override in overrides)}
    if "resume" not in found:
        raise ConfigError("resume must be given on the command line, as resume=<id>, since it is of one run.")
    return found | {"resume": found["resume"].strip("'\"")}


def find(cfg: DictConfig, overrides: Sequence[str]) -> Earlier:
    """The run that `resume=` names, by the beginning of MLflow's id or of ours (the tag `manyfit.id`).

    Args:
        cfg: As composed.
        overrides: Of the command line.

    Raises:
        ConfigError: There is no such run, or no state of it, or something else is to change than may.
    """
    changed = given(overrides)
    prefix = changed.pop("resume")
    for key, value in changed.items():
        if key.split(".")[0] not in MAY_CHANGE and MARK not in value:
            raise _kept(key)
    run_id, own_id = one_run(cfg.tracking.uri, prefix, "resume")
    folder = folder_of(own_id)
    from manyfit.training import checkpoints  # torch: seconds

    again = () if checkpoints.files(folder) else (_trained_again(cfg, run_id, folder),)
    try:
        state = checkpoints.load(folder)
    except ValueError as error:
        raise ConfigError(f"resume must name a run that left its state: {error}") from None
    job, changes = _gone_on_with(state, cfg, list(changed), folder)
    return Earlier(job, run_id, folder, state["epoch"], (*again, *changes))


def _gone_on_with(
    state: Mapping[str, Any], cfg: DictConfig, keys: Sequence[str], folder: Path
) -> tuple["Job", tuple[str, ...]]:
    """The job of a state, with what the command changes, and what is not as it would have gone on."""
    from manyfit.training.building import require_fits
    from manyfit.training.prepared import prepare

    with _as_written(folder):
        ((stored),) = json.loads(state["configs"])
        config = _changed(stored, cfg, keys)
        _require_more(config, state)
        _require_schedule(config, state)
    try:
        job = prepare(config)
    except ValueError as error:  # what the config names is not as it was
        raise ConfigError(str(error)) from error
    with _as_written(folder):
        _require_same_data(job, state)
        require_fits(job, state)
        return job, _changes(stored["source"]["epochs"], job, state)


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """A state that is not what training writes is a StateError, whatever it breaks."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StateError(
            f"resume must name a run whose state is as it was written, but that in {folder} is not "
            f"({type(error).__name__}: {reason}). Bring it back from a copy, or train a new run."
        ) from None


def _trained_again(cfg: DictConfig, run_id: str, folder: Path) -> str:
    """Make the state of a run that kept none, as one of a sweep, by its config: to the last epoch that it has."""
    from manyfit.tracking import reading
    from manyfit.training import fitting

    run = reading.kept(cfg.tracking.uri, Path.cwd(), run_id)
    if not run.config:
        raise ConfigError(
            f"resume must name one run, but {run_id[:8]} is a whole sweep. Its own command goes on with it; name one "
            "of its runs."
        )
    job, last = job_of(run, _of_the_command(cfg), "resume"), max(run.epochs, 1)
    fitting.fit([job], save_to=folder, stops=lambda epoch, going: list(going) if epoch >= last else [])
    return f"state: it kept none, so its first {last} epochs were trained again"


def _of_the_command(cfg: DictConfig) -> dict[str, Any]:
    """What only the command says: which store, and what is trusted."""
    written = OmegaConf.to_container(cfg)
    assert isinstance(written, dict)
    return {key: written[key] for key in ("tracking", "trusted")}


def job_of(run: "Kept", said: Mapping[str, Any], key: str) -> "Job":
    """A stored run that kept neither state nor network, to be trained again; raises ConfigError on other data.

    Args:
        run: The run.
        said: What stands in the place of what is stored, see `restored`.
        key: Of the command, which names the run.
    """
    from manyfit.training.prepared import prepare
    from manyfit.training.recording import CHOSEN

    choices = {group: run.tags[group] for group in CHOSEN if group in run.tags}
    try:
        job = prepare(parse(restored(run.config, said, key, "Train a new run."), choices))
    except ValueError as error:  # what the config names is not as it was
        raise ConfigError(str(error)) from error
    if run.digest and job.data.digest != run.digest:
        raise ConfigError(
            f"{key} must be of data that are as they were, since {run.name!r} is to be trained again, but "
            f"{job.config.dataset} has changed. Bring them back, or train a new run."
        )
    return job


def unfinished(job: "Job", own_id: str) -> Earlier | None:
    """The run of this id of ours and of the same config, which was stopped; None where the store has none.

    Raises:
        ConfigError: The store does not answer.
    """
    from manyfit.tracking import reading
    from manyfit.training import checkpoints

    try:
        run_id = reading.stopped(job.config.tracking.uri, Path.cwd(), own_id)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if run_id is None:
        return None
    folder = folder_of(own_id)
    epoch = _last_epoch(job, folder)
    for path in checkpoints.files(folder) if epoch == 0 else ():  # it begins again, to the same bits
        path.unlink()
    return Earlier(job, run_id, folder, epoch)


def _last_epoch(job: "Job", folder: Path) -> int:
    """Whose state the job can go on from; 0: there is none, none as it was written, or only its end was missing.

    Raises:
        ConfigError: What trained it cannot do so here; on another machine it goes on.
    """
    from manyfit.training import checkpoints
    from manyfit.training.building import require_fits

    try:
        state = checkpoints.load(folder)
        with _as_written(folder):
            _require_more(job.config, state)
            _require_same_data(job, state)
    except ValueError:
        return 0
    try:
        with _as_written(folder):
            require_fits(job, state)
    except StateError:
        return 0
    return int(state["epoch"])


def _require_more(config: Config, state: Mapping[str, Any]) -> None:
    """Raise ConfigError if there is nothing left to train."""
    epoch = state["epoch"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch {epoch!r}")
    if not all(math.isfinite(state["history"][f"loss/{split}"][0, epoch]) for split in ("train", "val")):
        raise ConfigError(
            f"resume must name a run that can go on, but this one diverged in epoch {epoch}. Train another, with a "
            "lower optimizer.lr."
        )
    if config.epochs <= epoch:
        raise ConfigError(
            f"epochs must be > {epoch}, which the run has, but got {config.epochs}. Ask for more: epochs={2 * epoch}."
        )
    idle = epoch - 1 - int(state["best"]["epoch"][0])  # epochs without a better one
    if config.trainer.patience is not None and idle >= config.trainer.patience:
        raise ConfigError(
            f"trainer.patience must be > {idle}, the epochs that the run has been without a better one, or null, but "
            f"got {config.trainer.patience}: it would stop at once. Add trainer.patience=null."
        )


def _require_schedule(config: Config, state: Mapping[str, Any]) -> None:
    """Raise ConfigError if a scheduler of a LightningModule was made for fewer steps, as torch's OneCycleLR is."""
    epoch, steps = state["epoch"], state["history"]["progress/steps"][0, state["epoch"]]
    for scheduler in state.get("checkpoint", {}).get("lr_schedulers", ()):
        most = scheduler.get("total_steps")
        if isinstance(most, int) and scheduler.get("last_epoch", 0) > epoch and most < steps / epoch * config.epochs:
            end = int(most * epoch / steps)
            raise ConfigError(
                f"epochs must be <= {end}, for which the run's scheduler was made ({most} steps), but got "
                f"{config.epochs}. Train a new run of so many epochs."
            )


def _require_same_data(job: "Job", state: Mapping[str, Any]) -> None:
    """Raise ConfigError if they are others now: examples that were trained on might be validated on."""
    if state.get("data", job.data.digest) != job.data.digest:
        raise ConfigError(
            f"data must be those that the run has been trained on, but {job.config.dataset} has changed since: what it "
            "was trained on might be validated on. Or manyfit has changed, and reads them in another way. Bring them "
            "back, or train a new run."
        )


def _kept(key: str) -> ConfigError:
    return ConfigError(
        f"{key} must not be given with resume=, which keeps the run's own config. Only epochs, checkpoint, trainer, "
        "tracking and trusted may change."
    )


def one_run(uri: str | None, prefix: str, key: str) -> tuple[str, str]:
    """MLflow's id and ours of the one run that `key` means; what was held back is delivered first."""
    if not re.fullmatch("[0-9a-f]+", prefix):
        raise ConfigError(f"{key} must be a run's id, or its beginning, but got {prefix!r}. The run's page shows it.")
    from manyfit.tracking import reading, upkeep  # MLflow: seconds

    try:
        report = upkeep.sync(Path.cwd(), named=uri)
        found = reading.named(uri, Path.cwd(), prefix)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if len(found) != 1:
        there = f"{len(found)} runs begin so" if found else "there is none"
        held = f" ({report.held[0]})" if report.held else ""
        raise ConfigError(f"{key} must name one run of the store, but got {prefix!r}: {there}{held}.")
    run = found[0]
    if run.status == "RUNNING":
        raise ConfigError(f"{key} must name a run that has ended, but {run.run_id} is still being trained.")
    return run.run_id, run.own_id


def _changed(stored: dict[str, Any], cfg: DictConfig, keys: Sequence[str]) -> Config:
    """The stored config with these keys of the composed one; only the command says what is trusted, and which store."""
    written, before = OmegaConf.to_container(cfg), dict(flattened(stored["source"], ""))
    assert isinstance(written, dict)
    said = {key: functools.reduce(lambda node, name: node.get(name), key.split("."), written) for key in keys}
    for key, value in said.items():
        if key.split(".")[0] not in MAY_CHANGE and value != before.get(key):
            raise _kept(key)
    return parse(
        restored(stored["source"], _of_the_command(cfg) | said, "resume", "Add ++{name}='{value}'."), stored["choices"]
    )


def _changes(before: int, job: "Job", state: Mapping[str, Any]) -> tuple[str, ...]:
    """That there are more epochs, and where the schedule, which is a function of progress through all, then jumps."""
    now = job.config
    if now.epochs == before:
        return ()
    epochs = f"epochs: {now.epochs} instead of {before}"
    kept = f"{epochs}; a param cannot change in MLflow, so the tag resumed/epochs has the new one"
    if job.engine == "lightning":  # what its rates will be is its own affair
        return (kept,)
    last, following = float(state["last_lr"][0]), _following_lr(job, state)
    name = now.choices.get("schedule", now.schedule.target)
    jump = f"schedule: {name} is now that of {now.epochs} epochs, so lr goes from {last:.2g} to {following:.2g}"
    return (kept,) if math.isclose(last, following, rel_tol=0.01) else (kept, jump)


def _following_lr(job: "Job", state: Mapping[str, Any]) -> float:
    """Of the first step after a state."""
    schedule = copy.deepcopy(job.schedule)
    schedule.load_state(state["schedules"][0])
    steps = job.config.epochs * job.steps_per_epoch
    done = np.ravel(state["steps"])[:1]  # of one run
    return job.config.optimizer.lr * float(schedule(done / steps)[0])
