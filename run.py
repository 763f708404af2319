"""The command: Hydra in, objective out. `python run.py --help` lists what can be set."""

import atexit
import gc
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from hydra_plugins.manyfit.starting import start
from manyfit import config, distributed


def main(cfg: DictConfig) -> float:
    """Train what the config says and return the value that a sweeper minimises."""
    from manyfit import command

    context = HydraConfig.get()
    try:
        if cfg.resume is not None and context.mode == RunMode.RUN:
            return command.resume(cfg, context.overrides.task)
        number = 0 if context.mode == RunMode.RUN else context.job.num
        return command.run(config.parse(cfg, context.runtime.choices), number)
    except (config.ConfigError, config.TrainingError) as error:
        if context.mode == RunMode.MULTIRUN:  # Hydra goes on with the other jobs and raises at the end
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    gc.disable()  # imports make a million objects and no garbage; training turns the collector on again
    atexit.register(gc.freeze)  # and at the end there is nothing worth a second's search
    if distributed.is_helper():
        distributed.serve()
        sys.exit()
    try:
        config.require_writable(Path("mlruns"))  # before Hydra makes its own folder there
        with distributed.lead():
            start(main, Path(__file__).parent.absolute() / "conf")
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, SystemExit) as stop:
        code = getattr(stop, "code", 130)
        if code in (130, 143):
            print("stopped: what was training is KILLED and keeps its epochs", file=sys.stderr)
        sys.exit(code)
