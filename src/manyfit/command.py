"""One tracked run from start to end: what `python run.py` does with an accepted config."""

from pathlib import Path

from manyfit.config import Config, ConfigError, TrainingError
from manyfit.jobs import prepare
from manyfit.tracking import NoTracker, Tracker


def run(config: Config) -> float:
    """Train, track and sum up one run; returns its best validation loss.

    Raises:
        ConfigError: Something in the config cannot be used; no run exists then.
        TrainingError: The loss was not finite.
    """
    try:
        prepare(config)  # first: what it refuses need not wait for Lightning, which takes seconds to import
        tracker = NoTracker() if config.tracking.kind == "off" else Tracker(config.tracking.uri, Path.cwd())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with tracker:
        from manyfit import terminal, training

        (result,) = training.fit([config], tracker)
        tracker.close()
    print(terminal.summary(result, _where(tracker)))
    if result.status == "FAILED":
        raise TrainingError(f"the run {result.reason}: {result.config.title()}")
    return result.summary.best_loss_val


def _where(tracker: Tracker | NoTracker) -> str:
    if isinstance(tracker, NoTracker):
        return "nowhere: tracking=off stores nothing"
    if tracker.last_error:
        return f"held back in mlruns/spool ({tracker.last_error}); nothing is lost: manyfit sync delivers it"
    return "manyfit ui"
