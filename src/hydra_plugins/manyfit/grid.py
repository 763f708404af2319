"""The sweeper `grid`: every combination of the values given, as Hydra's own, with a parent run and a report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.manyfit.composing import Composer
from manyfit import command


@dataclass
class GridConfig:
    """As Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.manyfit.grid.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default=None)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConfig, provider="manyfit")


class GridSweeper(BasicSweeper):
    """Unlike Hydra's, it goes on after a failed job, and says at the end how many failed."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination, as children of one run, and report on them."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        batches = list(self.split_arguments(parsed, self.max_batch_size))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        shared = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
        first = self.hydra_context.config_loader.load_sweep_config(self.config, shared)
        returns: list[Sequence[JobReturn]] = []
        composer = Composer(self.hydra_context.config_loader, self.config)
        for batch in batches:  # what Hydra refuses is refused before there is a run
            for overrides in batch:
                composer.load(overrides, 0)
        with command.grid(first, arguments, sum(len(batch) for batch in batches)) as sweep:
            for batch in batches:
                number = sum(len(r) for r in returns)
                returns.append(self.launcher.launch(batch, initial_job_idx=number))
                for job, done in enumerate(returns[-1], number):  # what Hydra's own launcher could not even start
                    if done.status is JobStatus.FAILED and isinstance(done._return_value, Exception):
                        sweep.refuse(job, " ".join(done.overrides or []), done._return_value)
        return returns
