"""The launcher `fused`: Hydra's jobs, trained together where they fit together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.manyfit.composing import Composed, Composer
from manyfit.config.schema import Config, ConfigError


@dataclass
class FusedConfig:
    """hydra.launcher.max_members and .workers.

    Attributes:
        max_members: Largest population; null: as large as pays.
        workers: Processes that train populations side by side; auto: one for each GPU.
    """

    _target_: str = "hydra_plugins.manyfit.fused.FusedLauncher"
    max_members: int | None = None
    workers: Any = "auto"


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedConfig, provider="manyfit")


class FusedLauncher(Launcher):
    """Composes every job as Hydra's basic launcher does, and trains them as populations instead of one by one."""

    def __init__(self, max_members: int | None = None, workers: int | str = "auto") -> None:
        if max_members is not None and max_members < 1:
            raise ValueError(f"hydra.launcher.max_members must be >= 1 or null, but got {max_members}.")
        if workers != "auto" and not (isinstance(workers, int) and workers >= 1):
            raise ValueError(f"hydra.launcher.workers must be >= 1 or auto, but got {workers}.")
        self.max_members, self.workers = max_members, None if workers == "auto" else int(workers)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra hands over what is needed to compose jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train these jobs; each return value is the job's best validation loss, or its error."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs: list[Composed] = []
        configs: dict[int, Config | ConfigError] = {}
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            job = self.composer.load(overrides, number)
            job.save()
            jobs.append(job)
            try:
                configs[number] = job.config()
            except ConfigError as error:
                configs[number] = error
        names = {job.number: " ".join(job.overrides) for job in jobs}
        from manyfit import app

        outcomes = app.train_jobs(configs, names, self.max_members, self.workers)
        return [_returned(job, outcomes[job.number]) for job in jobs]


def _returned(job: Composed, outcome: float | Exception) -> JobReturn:
    done = JobReturn(job.overrides, working_dir=str(job.folder), task_name=job.hydra["job"]["name"])
    done.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    done.return_value = outcome
    return done
