"""What a search is, settled and checked before its first trial: settings, space, study, sampler and pruner."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler

from manyfit.config.build import build, target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Component, Config
from manyfit.config.secrets import mask
from manyfit.losses import CLASSIFICATION
from manyfit.sweeps import space as spaces
from manyfit.sweeps.cmaes import replayed
from manyfit.sweeps.findings import incomparable
from manyfit.sweeps.fingerprint import fingerprint_of
from manyfit.sweeps.locks import lives
from manyfit.sweeps.outcomes import runs_of
from manyfit.sweeps.parent import Child
from manyfit.sweeps.settings import Settings
from manyfit.sweeps.study import Ledger, derived_seed
from manyfit.tracking import journal
from manyfit.tracking.run import TrackedRun
from manyfit.training.prepared import Job

ROUND = 16  # trials asked at once from a sampler that learns: most of a population's gain, and it still learns


@dataclass(frozen=True)
class Search:
    """All that is settled before the first trial."""

    settings: Settings
    name: str
    default: Config
    space: spaces.Space
    ledger: Ledger
    pruner: BasePruner | None
    round: int

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        settings: Settings,
        job: Job,
        space: spaces.Space,
        waits: Callable[[str], None] = print,
    ) -> "Search":
        """Check everything and open the study; `job` is of the default config, `waits` as for Ledger.

        Raises:
            ConfigError: Something cannot be used.
        """
        if not space:
            if settings.space:
                fixed = " and ".join(settings.space)
                raise ConfigError(
                    f"{fixed} must be left to the search, but the command says what to take. Leave it out."
                )
            raise ConfigError(
                "sweep.space must have a key, but got none. "
                "Choose sweep=lr, or say 'optimizer.lr=tag(log,interval(1e-5,1e-1))'."
            )
        default = job.config
        if apart := incomparable(space, str(settings.objective), job.data.task == CLASSIFICATION):
            raise ConfigError(
                f"{' and '.join(apart)} must not be searched: runs that differ in it cannot be compared by "
                f"{settings.objective}. Search on each by itself."
            )
        if settings.seeds > 1 and "seed" in space:
            raise ConfigError(
                f"sweep.seeds must be 1 where seed is searched, but got {settings.seeds}. Add sweep.seeds=1."
            )
        described = spaces.described(space)
        option = default.choices.get("sweep", "none")
        name = settings.study or "-".join(
            [default.experiment, "search" if option == "none" else option, _short(described)]
        )
        sampler = _component(cfg, "sampler")
        kind = target_of(sampler, "sampler", BaseSampler)
        points = spaces.grid(space) if kind is GridSampler else None
        at_once = kind in (RandomSampler, QMCSampler, GridSampler)

        def sampler_of(trials: int) -> tuple[BaseSampler, int]:
            return _sampler(sampler, default.seed, trials)

        sampler_of(0)  # what it refuses is refused now
        ledger = Ledger(
            settings.storage,
            name,
            settings.direction,
            fingerprint_of(settings, job, described),
            space,
            settings.n_trials,
            sampler_of,
            points,
            Path("mlruns/untold"),
            waits,
        )
        return cls(
            settings, name, default, space, ledger, _pruner(cfg), settings.round or (ledger.total if at_once else ROUND)
        )

    @property
    def seeds(self) -> range:
        """Those that every trial trains; their mean is its value."""
        return range(self.default.seed, self.default.seed + self.settings.seeds)

    def run_ids(self) -> dict[str, str]:
        """MLflow's ids by our own, as far as they are known."""
        noted = self.ledger.notes("mlflow_run_ids").values()
        late = {own: id_ for ids in noted for own, id_ in ids.items() if isinstance(id_, str)}
        told = [run for trial in self.ledger.ours() for run in runs_of(trial) if run["mlflow_run_id"]]
        return late | {run["manyfit_run"]: run["mlflow_run_id"] for run in told}

    def note_run_ids(self, children: Iterable[Child]) -> None:
        """Keep what was not known when the trials were told: an ended trial takes no attribute any more."""
        known = self.run_ids()
        new = {c.run.id: c.run.run_id for c in children if c.run.run_id and c.run.id not in known}
        if new:
            own = self.ledger.notes("mlflow_run_ids").get(self.ledger.locks.owner, {})
            self.ledger.note("mlflow_run_ids", lambda: own | new)

    def reported(self) -> str | None:
        """The id of the parent run that reports on just these trials, if the study has them all.

        MLflow's, or our own where that had not come back.
        """
        ledger, done = self.ledger, self.ledger.done()
        same = [note for note in ledger.notes("report").values() if note.items() >= self._report(done).items()]
        return str(same[0].get("run_id") or same[0].get("run")) if same and done >= ledger.total else None

    def claim_report(self) -> str | None:
        """Who has reported on these trials, or does, still living; None: from now on we do."""
        locks, ours = self.ledger.locks, self._report(self.ledger.done())
        others: list[str] = []

        def claimed() -> dict[str, Any] | None:
            others[:] = [f"run {run[:8]}"] if (run := self.reported()) else []
            for owner, theirs in self.ledger.notes("reporter").items():
                if theirs == ours and owner != locks.owner and lives(locks, owner):
                    others.append(f"process {owner}")
            return None if others else ours

        self.ledger.note("reporter", claimed)
        return others[0] if others else None

    def note_report(self, parent: TrackedRun) -> None:
        """This parent run reports on what is done; where nothing is stored there is none to look at."""
        if self.default.tracking.kind != "off":
            report = self._report(self.ledger.done()) | {"run": parent.id, "run_id": parent.run_id}
            self.ledger.note("report", lambda: report)

    def _report(self, trials: int) -> dict[str, Any]:
        """What a report is the same with."""
        store = mask(journal.resolve_uri(self.default.tracking.uri, Path.cwd()))
        return {"trials": trials, "confirm_seeds": self.settings.confirm_seeds, "store": store}


def _component(cfg: DictConfig, group: str) -> Component:
    """The sampler or pruner; only Optuna's own are let through."""
    node = OmegaConf.to_container(cfg[group], resolve=True)
    component = Component.model_validate(node)
    if not component.target.startswith(f"optuna.{group}s."):
        raise ConfigError(f"{group}._target_ must be one of optuna.{group}s, but got {component.target!r}.")
    return component


def _build(component: Component, group: str, kind: type[Any], **available: Any) -> Any:
    try:
        with warnings.catch_warnings():  # QMC is experimental: who chose it need not hear it each round
            warnings.simplefilter("ignore", ExperimentalWarning)
            return build(component, group, kind, **available)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{group} must be buildable: {component.target} says: {error}") from error


def _sampler(component: Component, seed: int, trials: int) -> tuple[BaseSampler, int]:
    """The sampler of a claim and its seed. A low-discrepancy sequence goes on, so its seed stays."""
    kind = target_of(component, "sampler", BaseSampler)
    if kind is GridSampler:  # its points are enqueued: it would forget the one that a dead process had begun
        return RandomSampler(seed=seed), seed
    derived = seed if kind is QMCSampler else derived_seed(seed, trials)
    return replayed(_build(component, "sampler", BaseSampler, seed=derived)), derived


def _pruner(cfg: DictConfig) -> BasePruner | None:
    pruner: BasePruner = _build(_component(cfg, "pruner"), "pruner", BasePruner)
    return None if isinstance(pruner, NopPruner) else pruner


def _short(described: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:6]
