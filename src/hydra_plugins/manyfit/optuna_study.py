"""The sweeper `optuna_study`: asks Optuna for the jobs. Hydra imports this at every start, so nothing heavy here."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from manyfit.config import schema as configuration
from manyfit.config.schema import ConfigError
from manyfit.progress import Screen


@dataclass
class OptunaStudyConfig:
    """All settings are in the group `sweep`."""

    _target_: str = "hydra_plugins.manyfit.optuna_study.OptunaStudy"


ConfigStore.instance().store(group="hydra/sweeper", name="optuna_study", node=OptunaStudyConfig, provider="manyfit")


class OptunaStudy(Sweeper):
    """Composes the space and leaves the search to `manyfit.sweeps.rounds`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search the space of `sweep.space` and of the command line, which wins."""
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parse = OverridesParser.create(config_loader=loader).parse_overrides
        given = parse(arguments)
        fixed = [override.input_line or "" for override in given if not override.is_sweep_override()]
        named = {override.get_key_element() for override in given}
        try:
            folder = Path(self.config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            with Screen(self._about(fixed)) as screen:
                with screen.stage("importing torch and Optuna"):
                    from manyfit.sweeps import rounds

                space = rounds.settings(self.config).space
                swept = [o for o in given if o.is_sweep_override()]
                swept += parse([f"{key}={text}" for key, text in space.items() if key not in named])
                rounds.run(self._compose, swept, fixed, self._launch, screen)
        except ConfigError as error:
            sys.exit(f"error: {error}")

    def _about(self, fixed: Sequence[str]) -> str:
        """What is searched, in a line."""
        cfg = self._compose(fixed)
        config = configuration.parse(cfg, cfg.hydra.runtime.choices)
        option = config.choices.get("sweep", "none")
        name = "a space of your own" if option == "none" else option
        return f"search {name} on {config.experiment}, {cfg.sweep.n_trials} trials"

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        return self.launcher.launch([list(job) for job in jobs], initial_job_idx=first)
