"""Searches: Optuna proposes, populations are trained, and one study remembers it over sessions and processes."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, ValidationError

from manyfit import command
from manyfit import config as configuration
from manyfit.command import Child
from manyfit.config import Component, Config, ConfigError, Count, Node
from manyfit.sweeps import space as spaces
from manyfit.sweeps.ledger import Ledger, derived_seed, lost
from manyfit.sweeps.pruning import Judge

ROUND = 16  # trials asked at once from a sampler that learns: most of a population's gain, and it still learns

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Any]]


class Objective(Node):
    """What is searched for: a curve, and the value of it that counts."""

    metric: str = "loss/val"
    reducer: Literal["best", "last"] = "best"

    def value(self, curve: np.ndarray, direction: str) -> float:
        """The best or the last of the measured epochs; NaN when none was."""
        finite = curve[np.isfinite(curve)]
        if not len(finite):
            return float("nan")
        if self.reducer == "last":
            return float(finite[-1])
        return float(finite.min() if direction == "minimize" else finite.max())


class Settings(Node):
    """The group `sweep`."""

    space: Mapping[str, str] = Field(default_factory=dict)
    n_trials: Count = 64
    objective: Objective = Objective()
    direction: Literal["minimize", "maximize"] = "minimize"
    study: str | None = None
    storage: str = "sqlite:///mlruns/optuna.db"
    round: Count | None = None
    confirm_seeds: int = Field(8, ge=0)


def settings(cfg: DictConfig) -> Settings:
    """Check the group `sweep`.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names its full key.
    """
    try:
        return Settings.model_validate(OmegaConf.to_container(cfg.get("sweep") or OmegaConf.create(), resolve=True))
    except ValidationError as error:
        lines = {configuration._sentence({**e, "loc": ("sweep", *e["loc"])}) for e in error.errors()}
        raise ConfigError("\n".join(sorted(lines))) from None


def run(cfg: DictConfig, swept: Sequence[Override], fixed: Sequence[str], launch: Launch) -> None:
    """Search until the study has its total, and report.

    Args:
        cfg: The composed default config, with the groups sweep, sampler and pruner.
        swept: The space.
        fixed: What every job is given besides.
        launch: Hydra's launcher: the jobs' overrides and the first job's number -> their returns.

    Raises:
        ConfigError: Something cannot be used; no trial was made then.
        SystemExit: Trials failed; says how many, and why the first did.
    """
    choices = cfg.hydra.runtime.choices
    default = configuration.parse(cfg, choices)
    search = Search.of(cfg, settings(cfg), default, spaces.space(swept))
    with search.ledger, command.Sweep(search.name, default, search.settings.n_trials) as sweep:
        session = Session(search, sweep, launch, tuple(fixed))
        session.go()
        finish(search, sweep)
    session.complain()


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
    def of(cls, cfg: DictConfig, settings: Settings, default: Config, space: spaces.Space) -> "Search":
        """Check everything and open the study.

        Raises:
            ConfigError: Something cannot be used.
        """
        if not space:
            raise ConfigError(
                "sweep.space must have a key, but got none. "
                "Choose sweep=lr, or say 'optimizer.lr=tag(log,interval(1e-5,1e-1))'."
            )
        described = spaces.described(space)
        option = default.choices.get("sweep", "none")
        name = settings.study or "-".join(
            [default.experiment, "search" if option == "none" else option, _short(described)]
        )
        sampler = _component(cfg, "sampler")
        kind = configuration.target_of(sampler, "sampler", BaseSampler)
        points = spaces.grid(space) if kind is GridSampler else None
        total = settings.n_trials if points is None else min(settings.n_trials, len(points))
        at_once = kind in (RandomSampler, QMCSampler, GridSampler)

        def sampler_of(trials: int) -> tuple[BaseSampler, int]:
            return _sampler(sampler, default.seed, trials)

        sampler_of(0)  # what it refuses is refused now
        ledger = Ledger(
            settings.storage,
            name,
            settings.direction,
            _fingerprint(settings, default, described),
            space,
            total,
            sampler_of,
            points,
            Path("mlruns/locks"),
        )
        return cls(
            settings, name, default, space, ledger, _pruner(cfg), settings.round or (total if at_once else ROUND)
        )


@dataclass
class Session:
    """The trials that this process runs."""

    search: Search
    sweep: command.Sweep
    launch: Launch
    fixed: tuple[str, ...]
    trials: dict[int, Trial] = field(default_factory=dict)  # by job number
    failed: dict[int, str] = field(default_factory=dict)  # reasons, by trial number

    def go(self) -> None:
        """Rounds, until there is nothing to claim."""
        judge = None
        if self.search.pruner is not None:
            judge = Judge(self.search.ledger.study, self.search.pruner)
            metric = self.search.settings.objective.metric
            self.sweep.prune = lambda job, epoch, values: judge.stops(self.trials[job].number, epoch, values[metric])
        while claimed := self.search.ledger.claim(self.search.round):
            if judge:
                judge.refresh(self.search.ledger.trials(), _curves(self.search.ledger.trials()))
            self._round({len(self.trials) + i: trial for i, trial in enumerate(claimed)})

    def _round(self, jobs: Mapping[int, Trial]) -> None:
        """Train trials, by job number, and tell what came of each, also of those that ended before an interrupt."""
        first = len(self.trials)
        self.trials |= jobs
        for job, trial in jobs.items():
            self.sweep.tags[job] = {"optuna.study": self.search.name, "optuna.trial": str(trial.number)}
        try:
            self.launch([(*self.fixed, *spaces.overrides(trial.params)) for trial in jobs.values()], first)
        finally:
            done = [job for job in jobs if job in self.sweep.children]
            for job in done:
                self._tell(jobs[job], self.sweep.children[job])
        for job in jobs.keys() - set(done):
            self._fail(jobs[job], str(self.sweep.refused.get(job, "it made no run")), {})

    def _tell(self, trial: Trial, child: Child) -> None:
        """From a child to its trial."""
        known: dict[str, Any] = {"manyfit_run": child.run.id, "mlflow_run_id": child.run.run_id}
        if child.result is None:
            self._fail(trial, str(child.error), known)
            return
        result, objective = child.result, self.search.settings.objective
        if objective.metric not in result.metrics:
            names = " ".join(name for name in result.metrics if "/" in name)
            raise ConfigError(f"sweep.objective.metric must be one of {names}, but got {objective.metric!r}.")
        curve = result.metrics[objective.metric]
        known |= {"ended": result.reason, "test": dict(result.test), "best_epoch": result.summary.best_epoch}
        known |= {"curve": listed(curve), "seed": result.config.seed}
        if objective.metric != "loss/val":
            known["loss_val"] = listed(result.metrics["loss/val"])
        value = objective.value(curve, self.search.settings.direction)
        if result.reason == "pruned":
            trial.report(float(curve[-1]), len(curve) - 1)  # which becomes the trial's value
            self.search.ledger.tell(trial, TrialState.PRUNED, None, known)
        elif result.reason == "diverged" or np.isnan(value):
            self.search.ledger.tell(trial, TrialState.FAIL, None, {**known, "ended": "diverged", "value": "inf"})
        else:
            self.search.ledger.tell(trial, TrialState.COMPLETE, value, known)

    def _fail(self, trial: Trial, reason: str, known: Mapping[str, Any]) -> None:
        self.failed[trial.number] = reason
        self.search.ledger.tell(trial, TrialState.FAIL, None, {**known, "ended": "failed", "error": reason[:2000]})

    def complain(self) -> None:
        """Raise SystemExit if trials failed; a diverged one is an answer, not a failure."""
        if self.failed:
            number, reason = next(iter(self.failed.items()))
            sys.exit(f"error: {len(self.failed)} of {len(self.trials)} trials failed; the first is {number}: {reason}")


def finish(search: Search, sweep: command.Sweep) -> None:
    """Hand all trials of the study, of every session, to the report, unless another process still runs some."""
    from manyfit import reports

    trials = [trial for trial in search.ledger.trials() if not lost(trial)]
    if running := sum(not trial.state.is_finished() for trial in trials):
        print(f"{running} trials of study {search.name} still run elsewhere; who ends last reports on the study.")
        return
    children = {child.run.id: child for child in sweep.children.values()}
    seed = search.default.seed
    rows = [_row(trial, children.get(trial.user_attrs.get("manyfit_run", "")), seed) for trial in trials]
    reports.conclude(
        sweep,
        [reports.Row(**row) for row in rows],
        objective=search.settings.objective,
        direction=search.settings.direction,
        default=search.default,
        space=search.space,
        confirm_seeds=search.settings.confirm_seeds,
    )
    _note_run_ids(search, sweep)


def _row(trial: FrozenTrial, child: Child | None, seed: int) -> dict[str, Any]:
    attributes = trial.user_attrs
    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    curve = attributes.get("loss_val", attributes.get("curve"))
    return {
        "number": trial.number,
        "params": trial.params,
        "value": float("nan") if trial.value is None else trial.value,
        "state": states.get(trial.state, attributes.get("ended", "failed")),
        "seed": attributes.get("seed", trial.params.get("seed", seed)),
        "loss_val": None if curve is None else np.array(curve, dtype=float),
        "run": child.run if child else None,
        "run_id": (child.run.run_id if child else None) or attributes.get("mlflow_run_id"),
        "config": child.config if child else None,
        "result": child.result if child else None,
    }


def _note_run_ids(search: Search, sweep: command.Sweep) -> None:
    """MLflow's ids that were not known when their trials were told: an ended trial takes no attribute any more."""
    late = {child.run.id: child.run.run_id for child in sweep.children.values()}
    known = {
        trial.user_attrs.get("manyfit_run") for trial in search.ledger.trials() if trial.user_attrs.get("mlflow_run_id")
    }
    if missing := {own: run for own, run in late.items() if run and own not in known}:
        study = search.ledger.study
        study.set_user_attr("mlflow_run_ids", {**study.user_attrs.get("mlflow_run_ids", {}), **missing})


def listed(curve: np.ndarray) -> list[float | None]:
    """A curve as JSON, which knows no NaN."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in curve]


def _curves(trials: Sequence[FrozenTrial]) -> dict[int, dict[int, float]]:
    """The measured values of finished trials, by number and epoch; epoch 0 is before training."""
    return {
        trial.number: {
            epoch: value for epoch, value in enumerate(trial.user_attrs.get("curve", ())) if epoch and value is not None
        }
        for trial in trials
        if trial.state.is_finished()
    }


def _fingerprint(settings: Settings, default: Config, space: Mapping[str, str]) -> dict[str, Any]:
    """What makes values of two sessions comparable: space, objective, and every setting but where it runs."""
    flat = default.flat().items()
    kept = {k: v for k, v in flat if k not in space and not k.startswith(("tracking.", "trainer.accelerator"))}
    objective = {"sweep.objective": settings.objective.model_dump(), "sweep.direction": settings.direction}
    return {**kept, **objective, **{f"sweep.space.{key}": text for key, text in space.items()}}


def _component(cfg: DictConfig, group: str) -> Component:
    """The sampler or pruner; only Optuna's own are let through."""
    node = OmegaConf.to_container(cfg[group], resolve=True)
    component = Component.model_validate(node)
    if not component.target.startswith(f"optuna.{group}s."):
        raise ConfigError(f"{group}._target_ must be one of optuna.{group}s, but got {component.target!r}.")
    return component


def _build(component: Component, group: str, kind: type[Any], **available: Any) -> Any:
    try:
        return configuration.build(component, group, kind, **available)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{group} must be buildable: {component.target} says: {error}") from error


def _sampler(component: Component, seed: int, trials: int) -> tuple[BaseSampler, int]:
    """The sampler of a claim and its seed. A low-discrepancy sequence goes on, so its seed stays."""
    kind = configuration.target_of(component, "sampler", BaseSampler)
    if kind is GridSampler:  # its points are enqueued: it would forget the one that a dead process had begun
        return RandomSampler(seed=seed), seed
    derived = seed if kind is QMCSampler else derived_seed(seed, trials)
    return _build(component, "sampler", BaseSampler, seed=derived), derived


def _pruner(cfg: DictConfig) -> BasePruner | None:
    pruner: BasePruner = _build(_component(cfg, "pruner"), "pruner", BasePruner)
    return None if isinstance(pruner, NopPruner) else pruner


def _short(described: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:6]
