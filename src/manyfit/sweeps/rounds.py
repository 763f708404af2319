"""The course of a search: Optuna proposes, populations are trained, one study remembers it over all sessions."""

import functools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from manyfit.config import schema
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.guest import require_left_out
from manyfit.config.schema import Config, with_seed
from manyfit.config.secrets import mask
from manyfit.displays import line
from manyfit.losses import CLASSIFICATION
from manyfit.measures import better, called
from manyfit.parallel.launch import Launch
from manyfit.progress import Screen
from manyfit.sweeps import parent
from manyfit.sweeps import space as spaces
from manyfit.sweeps.outcomes import Outcome, outcome, rows
from manyfit.sweeps.pruning import Judge
from manyfit.sweeps.search import Search
from manyfit.sweeps.settings import Settings, settings
from manyfit.sweeps.study import Told, quiet
from manyfit.training.prepared import Job, Preparation

Jobs = Callable[[Sequence[Sequence[str]], int], Sequence[parent.Proposed]]
Compose = Callable[[Sequence[str]], DictConfig]

AGAIN = "The study remembers them: the same command goes on with the trials that are left."
REPORTS = "The study has all its trials: the same command confirms the best anew, and reports."


@quiet()
def run(
    compose: Compose,
    swept: Sequence[Override],
    fixed: Sequence[str],
    jobs: Jobs,
    screen: Screen,
    launch: Launch | None = None,
) -> parent.Sweep | None:
    """Search until the study has its total, and report.

    Args:
        compose: From overrides to the composed config, with the groups sweep, sampler and pruner.
        swept: The space.
        fixed: What every job is given besides.
        jobs: From the overrides of jobs and the first one's number to what is trained.
        screen: What a person sees.
        launch: How populations are trained; None: as pays.

    Returns:
        The sweep, whose `failure` says how many trials failed, and why the first did; None where an earlier one has
        reported on the whole study.

    Raises:
        ConfigError: Something cannot be used; no trial was made then.
    """
    cfg = compose(fixed)
    default = schema.parse(cfg, cfg.hydra.runtime.choices, cfg.hydra.overrides.task)
    preparation = Preparation()
    with screen.stage("loading data"):
        try:
            job = preparation.job(default)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        space = spaces.space(swept)
        require_left_out(list(space), default.guests.decided)
        check_objective(settings(cfg), job)
        _check_batch_sizes(space, job)
    if job.data.note:
        screen.note(job.data.note)
    with screen.stage("opening the study"):
        search = Search.of(cfg, settings(cfg), job, space, screen.note)
    if strange := search.ledger.strangers():
        screen.note(
            f"{strange} trials of study {search.name} are left out: they are not of this search, with just its keys, "
            "values within its space, and runs that it knows of"
        )
    if run_id := search.reported():
        done = search.ledger.done()
        _say_who_reports(search, screen, f"run {run_id[:8]}")
        more = "" if spaces.size(space) in range(done + 1) else f"sweep.n_trials={2 * done} goes on, "
        screen.say(line("further", f"{more}sweep.study=NAME begins anew"))
        return None
    composed = functools.cache(functools.partial(_config, compose))
    left = (search.ledger.total - search.ledger.done()) * len(search.seeds)
    began = parent.Sweep(search.name, default, left, launch=launch or Launch(), screen=screen, again=AGAIN)
    with search.ledger, began as sweep:
        sweep.preparation = preparation
        rounds = Rounds(search, sweep, jobs, tuple(fixed))
        rounds.go()
        try:
            with screen.stage("reading the study"):
                finish(
                    search, sweep, lambda params, seed: with_seed(composed((*fixed, *spaces.overrides(params))), seed)
                )
        finally:
            search.note_run_ids(sweep.children.values())
    sweep.failure = rounds.failure()
    return sweep


def check_objective(sought: Settings, job: Job) -> None:
    """Before a study exists: the objective is a curve of a run on these data, to be had best."""
    metric = sought.objective.metric
    if job.engine == "lightning":
        if metric not in job.curves:
            theirs = ", ".join(name for name in job.curves if "/" in name and not name.startswith(("time", "progress")))
            raise ConfigError(f"sweep.objective.metric must be one of {theirs}, but got {metric!r}.")
        return
    scores = ["accuracy"] if job.data.task == CLASSIFICATION else ["rmse", "r2"]
    asked = job.config.metrics if job.config.metrics_at == "epochs" else ()
    known = {called(name): better(name) for name in asked}
    names = [f"{name}/{split}" for name in ("loss", *scores, *known) for split in ("train", "val")]
    names += ["loss/gap", "loss/train_running"]
    if metric not in names:
        raise ConfigError(
            f"sweep.objective.metric must be one of {', '.join(names)}, or of metrics=[...], but got {metric!r}."
        )
    kind = metric.split("/")[0]
    wanted = known.get(kind, "maximize" if kind in ("accuracy", "r2") else "minimize")
    if wanted is not None and sought.direction != wanted:
        raise ConfigError(
            f"sweep.direction must be {wanted} with sweep.objective.metric={metric}, but got {sought.direction}: the "
            f"worst would win. Add sweep.direction={wanted}."
        )


def _check_batch_sizes(space: Mapping[str, Any], job: Job) -> None:
    """Before a study exists: no batch is larger than the training set."""
    if job.config.guests.data:  # nobody knows how many there are
        return
    n = len(job.data.x_train)
    searched = space.get("batch_size")
    sizes = getattr(searched, "choices", None) or [getattr(searched, "high", 0)]
    if (largest := max((size for size in sizes if isinstance(size, int)), default=0)) > n:
        raise ConfigError(
            f"batch_size must be <= {n}, the training examples, in all of its space, but got {largest}. Search less: "
            "'batch_size=choice(16,32)'."
        )


@dataclass
class Rounds:
    """The trials that this process runs: each has a job for every seed, one after the other."""

    search: Search
    sweep: parent.Sweep
    compose: Jobs
    fixed: tuple[str, ...]
    trials: dict[int, Trial] = field(default_factory=dict)  # by job number
    jobs: dict[int, range] = field(default_factory=dict)  # by trial number
    failed: dict[int, str] = field(default_factory=dict)  # reasons, by trial number
    seen: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))  # by job number and epoch
    stopped: set[int] = field(default_factory=set)  # trial numbers
    short: int = 0  # trials that the study lacks in the end

    def go(self) -> None:
        """Rounds, until there is nothing to claim."""
        total, wanted, ledger = self.search.ledger.total, self.search.settings.n_trials, self.search.ledger
        if total < wanted:
            said = f"the space has only {total} settings: each is tried once, instead of {wanted} trials"
            self.sweep.screen.note(said)
        judge = None if self.search.pruner is None else Judge(ledger.study, self.search.pruner, ledger.is_ours)
        self.sweep.together = len(self.search.seeds)
        self.sweep.prune = functools.partial(self._stopped, judge) if judge else None
        number = 1
        while len(self.failed) < self.search.settings.max_failures:
            with self.sweep.screen.stage(*self._progress(number)):
                with self.sweep.screen.stage("asking Optuna"):
                    claimed = ledger.claim(self.search.round)
                if claimed:
                    if judge:
                        judge.refresh(ledger.trials())
                    self._round(claimed)
                    number += 1
                elif running := ledger.elsewhere():
                    with self.sweep.screen.stage(f"waiting for {len(running)} trials that others run"):
                        ledger.wait(running)
                else:
                    break
        self.short = total - ledger.done()
        if not self.trials:
            self.sweep.screen.say(f"study {self.search.name} has its {total} trials: none was made now.")

    def _progress(self, number: int) -> tuple[str, int, int]:
        """A round's name, the runs of the study in all, and of them those that are done, by whomever."""
        total, done, seeds = self.search.ledger.total, self.search.ledger.done(), len(self.search.seeds)
        rounds = max(1, number - 1 + math.ceil((total - done) / self.search.round))
        return f"round {min(number, rounds)} of {rounds}", total * seeds, done * seeds

    def _round(self, claimed: Sequence[Trial]) -> None:
        """Train trials and tell what came of each, also of those that ended before an interrupt."""
        first, seeds = len(self.trials), self.search.seeds
        given: list[tuple[str, ...]] = []
        for trial in claimed:
            self.jobs[trial.number] = range(len(self.trials), len(self.trials) + len(seeds))
            for job, seed in zip(self.jobs[trial.number], seeds, strict=True):
                self.trials[job] = trial
                self.sweep.tags[job] = {"optuna.study": self.search.name, "optuna.trial": str(trial.number)}
                seeded = (f"seed={seed}",) if len(seeds) > 1 else ()
                given.append((*self.fixed, *spaces.overrides(trial.params), *seeded))
        try:
            self.sweep.run(self.compose(given, first))
        finally:
            with self.sweep.screen.stage("telling Optuna"):
                done = [t for t in claimed if all(job in self.sweep.children for job in self.jobs[t.number])]
                for trial in done:
                    children = [self.sweep.children[job] for job in self.jobs[trial.number]]
                    self._tell(trial, outcome(children, self.search.settings))
                self.search.note_run_ids(self.sweep.children.values())  # those that are known by now
        for trial in claimed:
            if trial not in done:
                reasons = [self.sweep.refused[job] for job in self.jobs[trial.number] if job in self.sweep.refused]
                self._fail(trial, str(next(iter(reasons), "it made no run")), [])

    def _stopped(
        self, judge: Judge, population: Sequence[int], epoch: int, going: Mapping[int, Mapping[str, float]]
    ) -> list[int]:
        """The jobs whose trials are to stop, judged by the mean over seeds; asked once all of these came so far.

        A seed that left its population before keeps the value it had; one that trains apart stops when next seen.
        """
        for job, values in going.items():
            self.seen[job][epoch] = values[self.search.settings.objective.metric]
        for number in dict.fromkeys(self.trials[job].number for job in going):
            jobs = self.jobs[number]
            for job in jobs:
                if job in population and job not in going and self.seen[job]:
                    self.seen[job].setdefault(epoch, self.seen[job][max(self.seen[job])])
            known = [self.seen[job][epoch] for job in jobs if epoch in self.seen[job]]
            if len(known) == len(jobs) and judge.stops(number, epoch, sum(known) / len(known)):
                self.stopped.add(number)
        return [job for job in going if self.trials[job].number in self.stopped]

    def _tell(self, trial: Trial, found: Outcome) -> None:
        if found.error is not None:
            self._fail(trial, found.error, found.runs)
            return
        state = TrialState.PRUNED if found.ended == "pruned" else TrialState.COMPLETE
        value = None if found.ended == "pruned" else found.value
        known = {"ended": found.ended, "runs": found.runs}
        self._hand_in(trial, state, value, known, found.curve.tolist())

    def _fail(self, trial: Trial, reason: str, runs: Sequence[Mapping[str, Any]]) -> None:
        self.failed[trial.number] = reason
        known = {"ended": "failed", "error": reason[:2000], "runs": runs}
        self._hand_in(trial, TrialState.FAIL, None, known)

    def _hand_in(
        self,
        trial: Trial,
        state: TrialState,
        value: float | None,
        known: Mapping[str, Any],
        curve: Sequence[float] = (),
    ) -> None:
        if not self.search.ledger.tell(Told(trial.number, state.name, value, known, curve)):
            self.sweep.screen.note(
                f"trial {trial.number} was given to another process, since this one was not heard of"
            )

    def failure(self) -> TrainingError | None:
        """That trials failed, if any did, here or elsewhere; a diverged one is an answer, not a failure."""
        if not self.failed and self.short > 0:
            return TrainingError(f"{self.short} trials failed elsewhere. The same command tries them again.")
        if not self.failed:
            return None
        number, reason = next(iter(self.failed.items()))
        most = self.search.settings.max_failures
        given_up = f" sweep.max_failures={most} ended the search." if len(self.failed) >= most else ""
        return TrainingError(
            f"{len(self.failed)} of {len(self.jobs)} trials failed; the first is {number}: {mask(reason)}{given_up}"
        )


def finish(search: Search, sweep: parent.Sweep, config_of: Callable[[Mapping[str, Any], int], Config]) -> None:
    """Hand all trials of the study, of every session, to the report; of several processes one does."""
    from manyfit.sweeps import conclusion, findings

    if running := search.ledger.elsewhere():  # we gave up
        sweep.screen.say(
            line("study", f"{search.name}: {len(running)} trials still run elsewhere; who ends last reports")
        )
        return
    if who := search.claim_report():
        _say_who_reports(search, sweep.screen, who)
        return
    sweep.again = REPORTS
    ended = search.ledger.ended()
    children = {child.run.id: child for child in sweep.children.values()}
    ids, seed = search.run_ids(), search.default.seed
    found = [findings.Row(**row) for trial in ended for row in rows(trial, children, ids, seed, config_of)]
    try:
        sweep.report = conclusion.conclude(
            sweep,
            found,
            objective=str(search.settings.objective),
            direction=search.settings.direction,
            default=search.default,
            space=spaces.extent(search.space),
            confirm_seeds=search.settings.confirm_seeds,
        )
    except Exception:
        print(
            f"the report failed; the {len(ended)} trials of study {search.name} are kept, and so are their runs: "
            "the same command reports again.",
            file=sys.stderr,
        )
        raise
    sweep.tracker.wait_for_ids()
    search.note_report(sweep.parent)


def _say_who_reports(search: Search, screen: Screen, who: str) -> None:
    screen.say(line("study", f"{search.name} has its {search.ledger.done()} trials; {who} reports on them"))


def _config(compose: Compose, overrides: Sequence[str]) -> Config:
    cfg = compose(overrides)
    return schema.parse(cfg, cfg.hydra.runtime.choices, cfg.hydra.overrides.task)
