"""The sweeper `grid`: every combination of the values given, as Hydra's own, with a parent run and a report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.manyfit.composing import Composer
from hydra_plugins.manyfit.fused import launch_of
from hydra_plugins.manyfit.harmless import require_vouched
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config, DataConfig
from manyfit.sweeps.checking import SIZE

if TYPE_CHECKING:
    from manyfit.experiments.verdict import Verdict
    from manyfit.sweeps.parent import Sweep

OF_ALL_DATA = {f"data.{key}" for key in DataConfig.model_fields} - {"data.target"}


@dataclass
class GridConfig:
    """As Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.manyfit.grid.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default=None)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConfig, provider="manyfit")


class GridSweeper(BasicSweeper):
    """Unlike Hydra's, it goes on after a failed job, and says at the end how many failed."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over; no launcher is made."""
        del task_function
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Train every combination, as children of one run, and report on them; experiment=all: every experiment."""
        assert self.config is not None
        assert self.hydra_context is not None
        if self.config.hydra.runtime.choices.get("experiment") != "all":
            if failure := self.train(self.config, arguments, 0).failure:
                raise failure
            return
        rest = [argument for argument in arguments if not argument.startswith("experiment=")]
        found: list[tuple[str, Verdict]] = []
        failed: dict[str, str] = {}
        apart: list[str] = []
        start, number, loader = time.monotonic(), 0, self.hydra_context.config_loader
        for name in loader.get_group_options("experiment"):
            if name != "all":
                given = [f"experiment={name}", *rest]
                cfg = loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)
                if cfg.apart:
                    apart.append(name)
                    continue
                try:
                    done = self.train(cfg, given, number)
                except ConfigError as error:
                    failed[name] = str(error)
                    continue
                number += len(done.children)
                found += [(name, done.verdict)] if done.verdict else []
                failed |= {name: str(done.failure)} if done.failure else {}
        from manyfit.experiments import charts

        print(f"\n{charts.verdicts(found)}\n\n{len(found)} experiments in {time.monotonic() - start:.0f} s")
        if apart:
            print(f"by themselves, since they take long: {', '.join(f'experiment={name}' for name in apart)}")
        if failed:
            raise TrainingError("\n".join(f"{name}: {reason}" for name, reason in failed.items()))

    def train(self, cfg: DictConfig, arguments: list[str], number: int, says: bool = True) -> "Sweep":
        """One sweep; its first job has this number; `says` whether its report is printed."""
        from manyfit import app

        assert self.hydra_context is not None
        launch = launch_of(cfg.hydra.launcher)
        folder = Path(cfg.hydra.sweep.dir)  # with the time in it: what is composed from here on has the same
        loader = self.hydra_context.config_loader
        if any(argument.startswith("experiment=") and "," in argument for argument in arguments):
            raise ConfigError("experiment must be one of them, or all, but got several: each is a sweep of its own.")
        given = OverridesParser.create().parse_overrides(arguments)
        require_vouched(cfg, [override for override in given if not override.is_sweep_override()])
        first = loader.load_sweep_config(cfg, [o.input_line or "" for o in given if not o.is_sweep_override()])
        always = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        jobs = jobs_of(cfg, cfg.grids or [{}], arguments, always)
        seedless = [o.input_line or "" for o in given if o.key_or_group != "seed"]
        beside = jobs_of(cfg, cfg.tune_beside, seedless, always)
        composer = Composer(loader, cfg)
        wish = cfg.hydra.runtime.choices.get("experiment") and SIZE not in {o.key_or_group for o in given}

        def compose(job: Sequence[str]) -> Config:
            return composer.load(job, 0).config()

        def train(sweep: "Sweep", accepted: list[list[str]]) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            size = self.max_batch_size or max(1, len(accepted))
            for start in range(0, len(accepted), size):
                sweep.run(composer.jobs(accepted[start : start + size], number + start))

        return app.grid(first, arguments, jobs, compose, train, launch, beside=beside, wish=bool(wish), says=says)


def jobs_of(
    cfg: DictConfig, grids: Sequence[Mapping[str, Any]], arguments: list[str], always: list[str]
) -> list[list[str]]:
    """The overrides of each job: of the command line, and of the grids where that does not name their keys.

    Args:
        cfg: With quick and epochs.
        grids: Their values by key.
        arguments: Of the command line.
        always: What every job has besides.
    """
    parser = OverridesParser.create()
    named = {parser.parse_override(argument).get_key_element() for argument in arguments}
    if "data" in named:  # what only the experiment's own data know goes with them
        named |= {key for grid in grids for key in grid if key.startswith("data.") and key not in OF_ALL_DATA}
    jobs: list[list[str]] = []
    for grid in grids:
        own = {key: values for key, values in grid.items() if key not in named}
        draws = own.pop("draws", None)
        overrides = parser.parse_overrides([f"{key}={values}" for key, values in own.items()])
        listed = [str(o.input_line) for o in overrides if not o.is_interval_sweep()]
        found = []
        for point in _drawn([o for o in overrides if o.is_interval_sweep()], draws):
            parsed = parser.parse_overrides([*always, *listed, *point, *arguments])
            found += [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        jobs += _quick(found, cfg.epochs) if cfg.quick else found
    return jobs


def _drawn(intervals: list[Override], draws: Any) -> list[tuple[str, ...]]:
    """Points of these intervals as overrides; of none, one point."""
    if not intervals and draws is None:
        return [()]
    from manyfit.sweeps.space import overrides, quasi_random, space

    if not intervals or not isinstance(draws, int) or draws < 1:
        keys = ", ".join(one.get_key_element() for one in intervals) or "no key"
        raise ConfigError(
            f"grids: draws must say how many points of its intervals to draw, but got {draws} for {keys}."
        )
    return [overrides(point) for point in quasi_random(space(intervals), draws)]


def _quick(jobs: list[list[str]], epochs: int) -> list[list[str]]:
    """A small version of the same: two seeds, the first and last of every other range, a tenth of the epochs."""
    values: dict[str, list[str]] = {}
    for job in jobs:
        for key, value in (override.split("=", 1) for override in job):
            if value not in values.setdefault(key, []):
                values[key].append(value)
    kept = {key: {*found[:2]} if key == "seed" else {found[0], found[-1]} for key, found in values.items()}
    small = [job for job in jobs if all(value in kept[key] for key, value in (o.split("=", 1) for o in job))]
    return [[*(o for o in job if not o.startswith("epochs=")), f"epochs={_tenth(job, epochs)}"] for job in small]


def _tenth(job: list[str], epochs: int) -> int:
    given = [int(override.split("=", 1)[1]) for override in job if override.startswith("epochs=")]
    return max(2, (given[-1] if given else epochs) // 10)
