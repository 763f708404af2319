"""The command: Hydra in, objective out. `python run.py --help` lists what can be set."""

import atexit
import functools
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from manyfit import progress  # what else is imported takes longer than a person waits for the first word

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: "DictConfig") -> float:
    """Train what the config says and return the value that a sweeper minimises."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from manyfit import app
    from manyfit.config import schema

    context = HydraConfig.get()
    try:
        if cfg.resume is not None and context.mode == RunMode.RUN:
            return app.resume(cfg, context.overrides.task)
        return app.run(schema.parse(cfg, context.runtime.choices))
    except (schema.ConfigError, schema.TrainingError) as error:
        if context.mode == RunMode.MULTIRUN:  # Hydra goes on with the other jobs and raises at the end
            raise
        sys.exit(f"error: {error}")


def obey() -> None:
    """Have the config composed and `main` called, once or for each job; or train what another rank asks for."""
    from omegaconf import OmegaConf

    from hydra_plugins.manyfit.starting import start
    from manyfit import manual
    from manyfit.config import schema
    from manyfit.parallel import ddp

    if ddp.is_helper():
        ddp.serve()
        return
    conf = Path(__file__).parent.absolute() / "conf"
    OmegaConf.register_new_resolver("manual", functools.partial(manual.keys, conf))  # of --help
    try:
        schema.require_writable(Path("mlruns"))  # before Hydra makes its own folder there
        with ddp.sigterm_exits(), ddp.lead():
            start(main, conf)
    except (schema.ConfigError, schema.TrainingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    gc.disable()  # imports make a million objects and no garbage; training turns the collector on again
    atexit.register(gc.freeze)  # and at the end there is nothing worth a second's search
    try:
        progress.announce(sys.argv[1:])
        obey()
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.exit(progress.last_words(stop))
