"""The sweeper `optuna_study`: asks Optuna for the jobs. Hydra imports this at every start, so nothing heavy here."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.manyfit.composing import Composer
from hydra_plugins.manyfit.fused import launch_of
from manyfit.config import schema
from manyfit.config.shown import as_written, looked_up
from manyfit.progress import Screen

if TYPE_CHECKING:
    from manyfit.sweeps import parent


@dataclass
class OptunaStudyConfig:
    """All settings are in the group `sweep`."""

    _target_: str = "hydra_plugins.manyfit.optuna_study.OptunaStudy"


ConfigStore.instance().store(group="hydra/sweeper", name="optuna_study", node=OptunaStudyConfig, provider="manyfit")


class OptunaStudy(Sweeper):
    """Composes the space and leaves the search to `manyfit.sweeps.rounds`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over; no launcher is made."""
        del task_function
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Search the space of `sweep.space` and of the command line, which wins."""
        done = self.search(arguments)
        if done and done.failure:
            raise done.failure

    def search(self, arguments: list[str], says: bool = True) -> "parent.Sweep | None":
        """The sweep; None where an earlier one has reported on the whole study; `says`: print the report."""
        assert self.config is not None
        assert self.hydra_context is not None
        launch, loader = launch_of(self.config.hydra.launcher), self.hydra_context.config_loader
        parse = OverridesParser.create(config_loader=loader).parse_overrides
        given = parse(arguments)
        fixed = [override.input_line or "" for override in given if not override.is_sweep_override()]
        named = {override.get_key_element() for override in given}
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        hidden = as_written(functools.partial(looked_up, self._compose(fixed)))
        with hidden, Screen(self._about(fixed), says) as screen:
            with screen.stage("importing torch and Optuna"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "IProgress not found")  # by tqdm, which Optuna imports, in a notebook
                from manyfit.sweeps import rounds, settings

            space = settings.settings(self.config).space
            swept = [o for o in given if o.is_sweep_override()]
            swept += parse([f"{key}={text}" for key, text in space.items() if key not in named])
            jobs = Composer(loader, self.config).jobs
            return rounds.run(self._compose, swept, fixed, jobs, screen, launch)

    def _about(self, fixed: Sequence[str]) -> str:
        """What is searched, in a line."""
        cfg = self._compose(fixed)
        config = schema.parse(cfg, cfg.hydra.runtime.choices, cfg.hydra.overrides.task)
        option = config.choices.get("sweep", "none")
        name = "a space of your own" if option == "none" else option
        return f"search {name} on {config.experiment}, {cfg.sweep.n_trials} trials"

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
