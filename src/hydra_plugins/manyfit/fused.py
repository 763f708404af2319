"""The launcher `fused`: Hydra's jobs, trained together where they fit together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.manyfit.composing import Composer


@dataclass
class FusedConfig:
    """hydra.launcher.max_members: largest population; null: as large as pays."""

    _target_: str = "hydra_plugins.manyfit.fused.FusedLauncher"
    max_members: int | None = None


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedConfig, provider="manyfit")


class FusedLauncher(Launcher):
    """Composes every job as Hydra's basic launcher does, and trains them as populations instead of one by one."""

    def __init__(self, max_members: int | None = None) -> None:
        if max_members is not None and max_members < 1:
            raise ValueError(f"hydra.launcher.max_members must be >= 1 or null, but got {max_members}.")
        self.max_members = max_members

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra hands over what is needed to compose jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train these jobs; each return value is the job's best validation loss, or its error."""
        from manyfit import command  # torch: seconds

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs, cfgs = {}, {}
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            cfgs[number] = self._compose(list(overrides), number)
            jobs[number] = self._job(list(overrides), cfgs[number])
        outcomes = command.train_jobs(cfgs, self.max_members)
        for number, job in jobs.items():
            outcome = outcomes[number]
            job.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
            job.return_value = outcome
        return list(jobs.values())

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        """One job's config; its folder with `.hydra/` is as Hydra's own launchers leave it."""
        cfg = self.composer.load(overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        state = Singleton.get_state()
        HydraConfig.instance().set_config(cfg)
        folder = Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir
        if cfg.hydra.output_subdir is not None:
            _save(folder / cfg.hydra.output_subdir, cfg)
        Singleton.set_state(state)
        return cfg

    def _job(self, overrides: list[str], cfg: DictConfig) -> JobReturn:
        folder = str(Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir)
        return JobReturn(filter_overrides(overrides), cfg, cfg, folder, cfg.hydra.job.name)


def _save(folder: Path, cfg: DictConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {
        "config.yaml": OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]),
        "hydra.yaml": OmegaConf.masked_copy(cfg, ["hydra"]),
        "overrides.yaml": cfg.hydra.overrides.task,
    }
    for name, part in parts.items():
        (folder / name).write_text(OmegaConf.to_yaml(part))
