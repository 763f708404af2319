"""The launchers `fused` and `ray`: Hydra's jobs, trained together where they fit together, here or on a cluster."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.manyfit.composing import Composed, Composer
from manyfit.config.errors import ConfigError
from manyfit.parallel.launch import Launch


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


@dataclass
class RayConfig(FusedConfig):
    """The same on a cluster: populations go to Ray.

    Attributes:
        workers: Of Ray; auto: as many as the cluster has room for.
        address: auto, of the cluster that this machine belongs to, or HOST:PORT; null: Ray is started here.
        cpus_per_worker: Cores that each asks for; auto: all of a machine, or its share of them for each GPU.
    """

    _target_: str = "hydra_plugins.manyfit.fused.RayLauncher"
    address: str | None = None
    cpus_per_worker: Any = "auto"


def store() -> None:
    """Have Hydra know them: a plugin of somebody else's may have a launcher `ray`, too, and come later."""
    for name, node in (("fused", FusedConfig), ("ray", RayConfig)):
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="manyfit")


store()


class FusedLauncher(Launcher):
    """For Hydra's own sweeper: composes every job as its basic launcher does, and trains them as populations.

    Our sweepers have no use for it but for what it is set to, `launch_of`.
    """

    def __init__(self, **settings: Any) -> None:
        self.launching = _launch(settings)

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

        outcomes = app.unreported({job.number: job for job in jobs}, self.launching)
        return [_returned(job, outcomes[job.number]) for job in jobs]


class RayLauncher(FusedLauncher):
    """The same, with what `RayConfig` adds."""


def launch_of(launcher: DictConfig) -> Launch:
    """What hydra.launcher says; Hydra's basic one trains one by one.

    Raises:
        ConfigError: Names the key.
    """
    if launcher._target_ not in (FusedConfig._target_, RayConfig._target_):
        return Launch(max_members=1, workers=1)
    return _launch({str(key): value for key, value in launcher.items() if key != "_target_"})


def _launch(settings: Mapping[str, Any]) -> Launch:
    ray = "address" in settings
    if ray and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "hydra/launcher must be fused where Ray is not installed, but got ray. pip install 'ray>=2.50,<3'"
        )
    return Launch(
        ray=ray, **{key: None if value == "auto" and key != "address" else value for key, value in settings.items()}
    )


def _returned(job: Composed, outcome: float | Exception) -> JobReturn:
    done = JobReturn(job.overrides, working_dir=str(job.folder), task_name=job.hydra["job"]["name"])
    done.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    done.return_value = outcome
    return done
