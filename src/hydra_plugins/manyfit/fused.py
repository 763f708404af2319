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
from manyfit.config.errors import ConfigError


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
    """For Hydra's own sweeper: composes every job as its basic launcher does, and trains them as populations.

    Our sweepers have no use for it but for what it is set to, `limits`.
    """

    def __init__(self, max_members: int | None = None, workers: int | str = "auto") -> None:
        self.max_members, self.workers = _checked(max_members, workers)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra hands over what is needed to compose jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train these jobs; each return value is the job's best validation loss, or its error."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = self.composer.jobs(job_overrides, initial_job_idx)
        from manyfit import app

        outcomes = app.unreported({job.number: job for job in jobs}, self.max_members, self.workers)
        return [_returned(job, outcomes[job.number]) for job in jobs]


def limits(launcher: DictConfig) -> tuple[int | None, int | None]:
    """The largest population, and how many processes train them side by side, None being what pays.

    Args:
        launcher: hydra.launcher; Hydra's basic one trains one by one.

    Raises:
        ValueError: Names the key.
    """
    if launcher._target_ != FusedConfig._target_:
        return 1, 1
    return _checked(launcher.max_members, launcher.workers)


def _checked(max_members: int | None, workers: int | str) -> tuple[int | None, int | None]:
    if max_members is not None and max_members < 1:
        raise ConfigError(f"hydra.launcher.max_members must be >= 1 or null, but got {max_members}.")
    if workers != "auto" and not (isinstance(workers, int) and workers >= 1):
        raise ConfigError(f"hydra.launcher.workers must be >= 1 or auto, but got {workers}.")
    return max_members, None if workers == "auto" else int(workers)


def _returned(job: Composed, outcome: float | Exception) -> JobReturn:
    done = JobReturn(job.overrides, working_dir=str(job.folder), task_name=job.hydra["job"]["name"])
    done.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    done.return_value = outcome
    return done
