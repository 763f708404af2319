"""Searches: Optuna proposes, populations are trained, and one study remembers it over sessions and processes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState

from manyfit import config as configuration
from manyfit import parent
from manyfit.config import Config, ConfigError
from manyfit.jobs import prepare
from manyfit.losses import CLASSIFICATION
from manyfit.parent import Child
from manyfit.sweeps import space as spaces
from manyfit.sweeps.ledger import lost
from manyfit.sweeps.pruning import DIVERGED, Judge
from manyfit.sweeps.search import Objective, Search, Settings, settings

__all__ = ["Objective", "Search", "Session", "Settings", "finish", "run", "settings"]

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Any]]
Compose = Callable[[Sequence[str]], DictConfig]


def run(compose: Compose, swept: Sequence[Override], fixed: Sequence[str], launch: Launch) -> None:
    """Search until the study has its total, and report.

    Args:
        compose: From overrides to the composed config, with the groups sweep, sampler and pruner.
        swept: The space.
        fixed: What every job is given besides.
        launch: Hydra's launcher: the jobs' overrides and the first job's number -> their returns.

    Raises:
        ConfigError: Something cannot be used; no trial was made then.
        SystemExit: Trials failed; says how many, and why the first did.
    """
    cfg = compose(fixed)
    default = configuration.parse(cfg, cfg.hydra.runtime.choices)
    _check_metric(settings(cfg).objective.metric, default)
    space = spaces.space(swept)
    _check_batch_sizes(space, default)
    search = Search.of(cfg, settings(cfg), default, space)
    with search.ledger:
        with parent.Sweep(search.name, default, search.ledger.total) as sweep:
            session = Session(search, sweep, launch, tuple(fixed))
            session.go()
            finish(search, sweep, lambda params: _config(compose, (*fixed, *spaces.overrides(params))))
        search.note_run_ids(sweep.children.values())
    session.complain()


def _check_metric(metric: str, default: Config) -> None:
    """Before a study exists: the data can be used, and the objective is a curve of a run on them."""
    try:
        task = prepare(default).data.task
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scores = ["accuracy"] if task == CLASSIFICATION else ["rmse", "r2"]
    names = [f"{name}/{split}" for name in ("loss", *scores) for split in ("train", "val")]
    names += ["loss/gap", "loss/train_running"]
    if metric not in names:
        raise ConfigError(f"sweep.objective.metric must be one of {', '.join(names)}, but got {metric!r}.")


def _check_batch_sizes(space: Mapping[str, Any], default: Config) -> None:
    """Before a study exists: no batch is larger than the training set."""
    n = len(prepare(default).data.x_train)
    searched = space.get("batch_size")
    sizes = getattr(searched, "choices", None) or [getattr(searched, "high", 0)]
    if (largest := max((size for size in sizes if isinstance(size, int)), default=0)) > n:
        raise ConfigError(f"batch_size must be <= {n}, the training examples, in all of its space, but got {largest}.")


@dataclass
class Session:
    """The trials that this process runs."""

    search: Search
    sweep: parent.Sweep
    launch: Launch
    fixed: tuple[str, ...]
    trials: dict[int, Trial] = field(default_factory=dict)  # by job number
    failed: dict[int, str] = field(default_factory=dict)  # reasons, by trial number

    def go(self) -> None:
        """Rounds, until there is nothing to claim."""
        total, wanted, judge = self.search.ledger.total, self.search.settings.n_trials, None
        if total < wanted:
            print(f"{'note':>11}  the space has only {total} settings: each is tried once, instead of {wanted} trials")
        if self.search.pruner is not None:
            judge = Judge(self.search.ledger.study, self.search.pruner)
            metric = self.search.settings.objective.metric
            self.sweep.prune = lambda job, epoch, values: judge.stops(self.trials[job].number, epoch, values[metric])
        while claimed := self.search.ledger.claim(self.search.round):
            if judge:
                judge.refresh(self.search.ledger.trials(), _curves(self.search.ledger.trials()))
            self._round({len(self.trials) + i: trial for i, trial in enumerate(claimed)})
        if not self.trials:
            print(f"study {self.search.name} has its {total} trials: none was made now.")

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
            self.sweep.tracker.wait_for_ids()  # a finished trial takes no more attributes
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
        if (objective.reducer, objective.metric, self.search.settings.direction) == ("best", "loss/val", "minimize"):
            value = result.summary.best_loss_val  # of the epoch whose weights are kept
        if result.reason == "pruned":
            trial.report(float(curve[-1]), len(curve) - 1)  # which becomes the trial's value
            self.search.ledger.tell(trial, TrialState.PRUNED, None, known)
        elif result.reason == "diverged" or np.isnan(value):  # a FAIL would teach no sampler
            worst = float("inf" if self.search.settings.direction == "minimize" else "-inf")
            self.search.ledger.tell(trial, TrialState.COMPLETE, worst, {**known, "ended": DIVERGED})
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


def finish(search: Search, sweep: parent.Sweep, config_of: Callable[[Mapping[str, Any]], Config]) -> None:
    """Hand all trials of the study, of every session, to the report, unless another process still runs some."""
    from manyfit import reports

    trials = [trial for trial in search.ledger.trials() if not lost(trial)]
    if running := sum(not trial.state.is_finished() for trial in trials):
        print(f"{running} trials of study {search.name} still run elsewhere; who ends last reports on the study.")
        return
    children = {child.run.id: child for child in sweep.children.values()}
    seed = search.default.seed
    ids = search.run_ids()
    rows = [_row(trial, children.get(trial.user_attrs.get("manyfit_run", "")), ids, seed) for trial in trials]
    rows = [
        row if row["config"] or row["state"] != "finished" else row | {"config": config_of(trial.params)}
        for row, trial in zip(rows, trials, strict=True)
    ]
    reports.conclude(
        sweep,
        [reports.Row(**row) for row in rows],
        objective=f"{search.settings.objective.reducer} {search.settings.objective.metric}",
        direction=search.settings.direction,
        default=search.default,
        space=spaces.extent(search.space),
        confirm_seeds=search.settings.confirm_seeds,
    )


def _config(compose: Compose, overrides: Sequence[str]) -> Config:
    cfg = compose(overrides)
    return configuration.parse(cfg, cfg.hydra.runtime.choices)


def _row(trial: FrozenTrial, child: Child | None, ids: Mapping[str, str], seed: int) -> dict[str, Any]:
    attributes = trial.user_attrs
    ended = attributes.get("ended", "failed")
    curve = attributes.get("loss_val", attributes.get("curve"))
    return {
        "number": trial.number,
        "params": {key: value for key, value in trial.params.items() if key != "seed"},
        "value": float("nan") if trial.value is None or ended == DIVERGED else trial.value,
        "state": "finished" if ended == "stopped early" else ended,
        "seed": attributes.get("seed", trial.params.get("seed", seed)),
        "loss_val": None if curve is None else np.array(curve, dtype=float),
        "run": child.run if child else None,
        "run_id": (child.run.run_id if child else None) or ids.get(attributes.get("manyfit_run", "")),
        "config": child.config if child else None,
        "result": child.result if child else None,
    }


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
