"""The command, as `python run.py` or `manyfit run`: Hydra in, objective out. `--help` lists what can be set."""

import atexit
import errno
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manyfit import progress  # what else is imported takes longer than a person waits for the first word
from manyfit.config import place
from manyfit.config.secrets import mask
from manyfit.parallel import signals

if TYPE_CHECKING:
    from omegaconf import DictConfig


def command(arguments: Sequence[str], folders: Sequence[Path]) -> int:
    """Do what the command line says, in a process of its own; returns the exit code.

    Args:
        arguments: Hydra's: overrides and options.
        folders: Of options, the first first; the last has config.yaml.
    """
    place.require_posix()
    signals.insist()
    gc.disable()  # imports make a million objects and no garbage; training turns the collector on again
    atexit.register(gc.freeze)  # and at the end there is nothing worth a second's search
    try:
        progress.announce(arguments)
        _obey(arguments, folders)
    except (KeyboardInterrupt, SystemExit) as stop:
        return progress.last_words(stop)
    except Exception as error:
        hidden = signals.stop_behind(error)
        if hidden is None:
            raise
        hidden.add_note(f"then {type(error).__name__}, {mask(str(error))}")
        return progress.last_words(hidden)
    return 0


def _obey(arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Have the config composed and `_train` called, once or for each job; or train what another rank asks for."""
    from hydra_plugins.manyfit.starting import start
    from manyfit.config import errors
    from manyfit.parallel import leader
    from manyfit.parallel.signals import sigterm_exits

    if leader.is_helper():
        leader.serve()
        return
    try:
        place.require_writable(Path("mlruns"))  # before Hydra makes its own folder there
        with sigterm_exits(), leader.lead():
            start(_train, arguments, folders)
    except (errors.ConfigError, errors.TrainingError) as error:
        sys.exit(errors.sentence(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(errors.sentence(error, f"mlruns must have room, but {error}. Make some, and start the command again."))


def _train(cfg: "DictConfig") -> float:
    """Train what the config says and return the value that a sweeper minimises."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from manyfit import app
    from manyfit.config import errors, schema

    context = HydraConfig.get()
    try:
        written = OmegaConf.to_container(cfg)
        assert isinstance(written, dict)
        if written["resume"] is not None and context.mode == RunMode.RUN:
            said = OmegaConf.to_container(context.overrides.task)  # as written: an item of it would be looked up
            assert isinstance(said, list)
            return app.resume(cfg, [str(override) for override in said])
        config = schema.parse(cfg, context.runtime.choices, context.overrides.task)
        return app.autoresume(config) if written["autoresume"] and context.mode == RunMode.RUN else app.run(config)
    except (errors.ConfigError, errors.TrainingError) as error:
        if context.mode == RunMode.MULTIRUN:  # Hydra goes on with the other jobs and raises at the end
            raise
        sys.exit(errors.sentence(error))
