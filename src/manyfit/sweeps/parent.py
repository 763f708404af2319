"""A parent run and its children: the runs of one command, trained as populations, here or side by side in workers."""

import functools
import gc
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.place import spare_addresses
from manyfit.config.schema import Config
from manyfit.config.secrets import mask
from manyfit.parallel.launch import Launch
from manyfit.parallel.signals import sigterm_exits
from manyfit.progress import Screen
from manyfit.sweeps.again import Past
from manyfit.tracking.run import TrackedRun
from manyfit.tracking.tracker import NoTracker, tracker_of

if TYPE_CHECKING:
    from manyfit.experiments.verdict import Verdict
    from manyfit.parallel.ray_cluster import Cluster
    from manyfit.parallel.workers import Pool, Worker
    from manyfit.sweeps.report import Report
    from manyfit.tracking.unfinished import Unfinished
    from manyfit.training.fitting import Place
    from manyfit.training.prepared import Job, Preparation
    from manyfit.training.recording import Recorder
    from manyfit.training.trained import Result

KEPT = 8  # networks: the best setting's best run, whose model is stored, is hardly ever behind more runs than that


class Proposed(Protocol):
    """A job of a sweep: its number, what it was asked for, and its config, which may be refused."""

    @property
    def number(self) -> int:
        """Counted over the sweep."""

    @property
    def overrides(self) -> Sequence[str]:
        """Its own."""

    def config(self) -> Config:
        """Raises ConfigError."""


@dataclass(frozen=True)
class Child:
    """A run of a sweep: its job number, and what came of it; `error` stands in the place of a result.

    One that is `kept` was trained by an earlier start of the same command.
    """

    number: int
    config: Config
    run: TrackedRun
    result: "Result | None" = None
    error: Exception | None = None
    kept: bool = False


@dataclass
class Sweep:
    """The runs of one command under one parent run; a context manager. Within it, `run` too makes children.

    Attributes:
        name: Of the parent run.
        config: The default config of the sweep: experiment and tracking are its.
        total: Runs expected.
        launch: How its populations are trained.
        together: So many jobs, one after the other, share a population if any do.
        prune: Asked after every epoch of a population, by its job numbers, the epoch and the metrics of those that are
            to go on, which of them are to stop.
        tags: More tags for the child of a job number.
        networks: How many of the best children keep theirs; None: all.
        children: Everything that was run, by job number.
        refused: Jobs, of a search, whose config was refused, and why.
        status: Of the parent run at its end.
        failure: What the command ends with, if runs failed.
        verdict: On the claim of an experiment.
        report: What was found, once it is known.
        screen: What a person sees.
        again: What the same command does after an interrupt.
        noted: Where it is, until all of it has come to a good end; None: it cannot be gone on with.
        tells: Whether the same command is to hear that it is finished.
        past: What an earlier start of it has done.
    """

    name: str
    config: Config
    total: int = 0
    launch: Launch = field(default_factory=Launch)
    together: int = 1
    prune: Callable[[Sequence[int], int, Mapping[int, Mapping[str, float]]], Collection[int]] | None = None
    tags: dict[int, dict[str, str]] = field(default_factory=dict)
    networks: int | None = KEPT
    children: dict[int, Child] = field(default_factory=dict)
    refused: dict[int, Exception] = field(default_factory=dict)
    status: str = "FINISHED"
    failure: TrainingError | None = None
    verdict: "Verdict | None" = None
    report: "Report | None" = None
    screen: Screen = field(default_factory=lambda: Screen(""))  # which says nothing until it is entered
    again: str = "The same command starts all of them again, as a sweep of its own."
    noted: "Unfinished | None" = None
    tells: bool = False
    past: Past = field(default_factory=Past)

    @functools.cached_property
    def preparation(self) -> "Preparation":
        """Of its jobs; a command that has prepared some already hands over its own."""
        from manyfit.training.prepared import Preparation

        return Preparation()

    def __enter__(self) -> Self:
        """Start the parent run."""
        self.pool: Pool | None = None
        self.cluster = self._joined()  # which may not answer: before there is a run
        self.tracker = tracker_of(self.config, self.screen.left)
        self.parent = self.tracker.start(
            experiment=self.config.experiment,
            name=self.name,
            params={},
            tags={"manyfit.kind": "sweep"},
            run_id=self.past.parent,
        )
        if self.noted and not self.past.parent:
            self.noted.begin(self.parent.id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the parent run truthfully, and deliver."""
        for those in (self.pool, self.cluster):
            if those:
                those.__exit__(kind, error, trace)
        if error is None:
            self.parent.end(self.status)
        elif not isinstance(error, Exception):
            error.add_note(self._kept())
        with self.screen.stage("delivering to the store"):
            self.tracker.__exit__(kind, error, trace)
        self.screen.say(self.tracker.where(self.parent))
        if error is None and self.tracker.lost:
            raise TrainingError(self.tracker.lost)
        if error is None and self.noted and not self.failure:  # else the same command tries again what failed
            self.noted.end(self.tells)

    def _kept(self) -> str:
        """What an interrupt leaves."""
        done = sum(child.result is not None for child in self.children.values())
        if isinstance(self.tracker, NoTracker):
            return f"{done} of {self.total} runs were done; nothing of them is kept: tracking=off. {self.again}"
        training = "those in training are KILLED and keep their epochs"
        return f"{done} of {self.total} runs are done and kept, {training}. {self.again}"

    def run(self, jobs: Sequence[Proposed]) -> list[Child]:
        """Train the jobs that are accepted; each of the others gets a run that says why not."""
        accepted: dict[int, Config] = {}
        for job in jobs:
            try:
                accepted[job.number] = job.config()
            except ConfigError as error:
                self.refuse(job.number, " ".join(job.overrides), error)
        return self.train(accepted)

    def train(self, configs: Mapping[int, Config]) -> list[Child]:
        """Train configs, by job number, as populations; their runs are children of the parent run.

        Returns:
            A child for each config, in the order of job numbers; one that cannot be used has its error. Networks have
            the best of all and the population that was trained last.
        """
        with self.screen.stage("importing torch"):  # seconds, in which the tracker's uploader starts as well
            from manyfit.training.grouping import grouped
        spare_addresses()
        self.total = max(self.total, len(self.children) + len(configs))
        with self.screen.stage("checking jobs"):
            jobs = self._still_to_train(self._prepared(configs))
        pool = self._workers(list(jobs.values())) if jobs else None
        count = len(pool.workers) if pool else 1
        beside = self.cluster.beside if self.cluster else count
        groups = grouped(jobs, self.launch.max_members, count, self.together, beside)
        for reason in {group.alone: None for group in groups if group.alone}:
            numbers = [str(n) for group in groups if group.alone == reason for n in group.numbers]
            print(f"one by one: {reason} (jobs {', '.join(numbers)})", file=sys.stderr)
        with self.screen.stage("importing Lightning"):
            from manyfit.training import fitting  # noqa: F401  (seconds)

        collect_garbage()
        populations = [{number: jobs[number] for number in group.numbers} for group in groups]
        with self.screen.training(len(configs), sum(self.children[n].kept for n in configs if n in self.children)):
            if pool:
                self._side_by_side(populations, pool)
            else:
                for members in populations:
                    self._population(members)
        children = [self.children[number] for number in sorted(configs)]
        self._let_go()
        return children

    def _prepared(self, configs: Mapping[int, Config]) -> "dict[int, Job]":
        """The jobs of these configs; one that cannot be used becomes a child with its error."""
        jobs: dict[int, Job] = {}
        for number, config in configs.items():
            try:
                jobs[number] = self.preparation.job(config)
            except ValueError as error:
                run = self.refuse(number, config.title(), error, config.flat())
                self.children[number] = Child(number, config, run, error=error)
        self.preparation.close()
        return jobs

    def _still_to_train(self, jobs: "Mapping[int, Job]") -> "dict[int, Job]":
        """Those of which an earlier start left no finished run; of the others that is the child."""
        from manyfit.training.trained import restored

        left: dict[int, Job] = {}
        for number, job in jobs.items():
            if (known := self.past.finished(job)) is None:
                left[number] = job
                continue
            run = TrackedRun(None, job.config.title(), (known.own_id, known.run_id))
            result = restored(job, known.metrics, known.tags)
            self.children[number] = Child(number, job.config, run, result, kept=True)
        return left

    def _joined(self) -> "Cluster | None":
        """The cluster that is to train, if one is."""
        if not self.launch.ray:
            return None
        with self.screen.stage("joining Ray"):
            from manyfit.parallel.ray_cluster import Cluster

            return Cluster(self.launch)

    def _workers(self, jobs: "Sequence[Job]") -> "Pool | None":
        """Who trains them side by side, hired once; None: this process, or the devices that share each batch."""
        from manyfit.parallel import devices

        if any(devices.world(job.config.trainer) > 1 for job in jobs):
            if self.cluster:
                raise ConfigError("hydra/launcher must be fused with trainer.devices > 1, but got ray. Leave it out.")
            if (self.launch.workers or 1) > 1:
                raise ConfigError(
                    f"hydra.launcher.workers must be 1 or auto with trainer.devices > 1, but got {self.launch.workers}."
                )
            return None
        gpus = max((devices.gpus(job.config.trainer) for job in jobs), default=0)
        if not self.pool and (hired := self._hired(gpus)):
            from manyfit.parallel.workers import Pool

            self.pool = Pool(hired)
        return self.pool

    def _hired(self, gpus: int) -> "Sequence[Worker]":
        """Workers for what trains on so many GPUs of this machine."""
        if self.cluster:
            return self.cluster.workers(gpus > 0)
        from manyfit.parallel.workers import processes

        count = self.launch.workers or gpus or 1
        return processes(count) if count > 1 else ()

    def _side_by_side(self, populations: Sequence[Mapping[int, "Job"]], pool: "Pool") -> None:
        """Each population has a thread that looks after it, and goes to the next free worker."""
        with self.screen.stage("waiting for room on the cluster" if self.cluster else "starting workers"):
            pool.ready()

        def look_after(members: "Mapping[int, Job]") -> None:
            with pool.turn:
                self._population(members, place=pool.train)

        with sigterm_exits(), ThreadPoolExecutor(len(pool.workers)) as threads:
            futures = [threads.submit(look_after, members) for members in populations]
            try:
                for future in futures:
                    future.result()
            except BaseException as error:
                threads.shutdown(wait=False, cancel_futures=True)
                pool.stop(error)
                raise

    def _population(
        self, jobs: "Mapping[int, Job]", recorder: "Recorder | None" = None, place: "Place | None" = None
    ) -> None:
        """Train and record; what fails together is taken apart."""
        from manyfit.training.recording import Recorder

        if recorder is None:
            tags = [self.tags.get(number, {}) for number in jobs]
            begun = [self.past.begun(job) for job in jobs.values()]
            recorder = Recorder(self.tracker, list(jobs.values()), self.parent, tags, begun)
        if error := self._fit(jobs, recorder, place):
            self._apart(jobs, recorder, place, error)

    def _apart(self, jobs: "Mapping[int, Job]", recorder: "Recorder", place: "Place | None", error: Exception) -> None:
        """An exception may be one member's alone: each half is trained by itself, unless both say the same.

        Out of memory they may: then a half of a half may fit.
        """
        from manyfit.parallel.devices import out_of_memory

        if len(jobs) == 1:
            self._failed(jobs, recorder, error)
            return
        said = f"{len(jobs)} runs failed together ({mask(str(error))})"
        print(f"{said}; each half is trained by itself", file=sys.stderr)
        left = []
        for half in (range(len(jobs) // 2), range(len(jobs) // 2, len(jobs))):
            part, its = dict([*jobs.items()][half.start : half.stop]), recorder.part(half)
            if found := self._fit(part, its, place):
                left.append((part, its, found))
        if len(left) == 2 and str(left[0][2]) == str(left[1][2]) and not out_of_memory(left[0][2]):
            print(f"{said}, and each half with the same words: they are all taken for failed", file=sys.stderr)
            for part, its, found in left:
                self._failed(part, its, found)
            return
        for part, its, found in left:
            self._apart(part, its, place, found)

    def _failed(self, jobs: "Mapping[int, Job]", recorder: "Recorder", error: Exception) -> None:
        """These runs are, with this error."""
        recorder.fail(error)
        for (number, job), run in zip(jobs.items(), recorder.runs, strict=True):
            self.children[number] = Child(number, job.config, run, error=error)

    def _fit(self, jobs: "Mapping[int, Job]", recorder: "Recorder", place: "Place | None") -> Exception | None:
        """Train and record; what went wrong for all, once its memory is given back: others may need it."""
        from manyfit.parallel import devices
        from manyfit.training import fitting
        from manyfit.training.faults import MembersError

        self._let_go()
        prune, numbers = self.prune, list(jobs)

        def stops(epoch: int, going: Mapping[int, Mapping[str, float]]) -> list[int]:
            assert prune is not None
            stopped = prune(numbers, epoch, {numbers[member]: values for member, values in going.items()})
            return [numbers.index(number) for number in stopped]

        failed: Mapping[int, Exception] = {}
        try:
            fitted = fitting.fit(
                list(jobs.values()),
                recorder,
                artifacts=self.config.tracking.artifacts == "all",
                stops=stops if prune else None,
                screen=self.screen,
                place=place,
            )
            results = dict(enumerate(fitted))
        except MembersError as error:
            failed, results = error.errors, dict(error.results)
        except Exception as error:
            devices.give_back(error)
            if self.networks and devices.out_of_memory(error):
                self.networks = 1
            return error
        for member, number in enumerate(numbers):
            one = {number: jobs[number]}
            if member in failed:
                self._failed(one, recorder.part([member]), failed[member])
            elif member in results:
                self.children[number] = Child(number, one[number].config, recorder.runs[member], results[member])
        if rest := [member for member in range(len(jobs)) if member not in failed and member not in results]:
            self._population({numbers[member]: jobs[numbers[member]] for member in rest}, recorder.part(rest), place)
        return None

    def _let_go(self) -> None:
        """Of all networks but the best: a model that is asked for later is trained again to the same bits."""
        losses = {
            number: child.result.summary.best_loss_val
            for number, child in self.children.items()
            if child.result and child.result.predictor
        }
        ranked = sorted(losses, key=lambda number: (math.isnan(losses[number]), losses[number]))
        for number in ranked[self.networks :] if self.networks is not None else ():
            child = self.children[number]
            assert child.result is not None
            self.children[number] = replace(child, result=child.result.without_network())

    def refuse(self, number: int, name: str, error: Exception, params: Mapping[str, Any] | None = None) -> TrackedRun:
        """A job of a search whose config cannot be used gets a run that says why."""
        self.refused[number] = error
        tags = {"error": str(error), "ended": "refused", **self.tags.get(number, {})}
        run = self.tracker.start(
            experiment=self.config.experiment, name=name, params=params or {}, tags=tags, parent=self.parent
        )
        run.end("FAILED")
        return run

    def errors(self) -> dict[int, Exception]:
        """What went wrong, by job number."""
        found = dict(self.refused)
        for number, child in self.children.items():
            try:
                objective(child)
            except Exception as error:
                found[number] = error
        return dict(sorted(found.items()))


def collect_garbage() -> None:
    """From here on, in a command that did not while it imported: what imports make is not looked through for any."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def objective(child: Child) -> float:
    """A child's best validation loss, or its error."""
    if child.error is not None:
        raise child.error
    assert child.result is not None
    return best_loss(child.result)


def best_loss(result: "Result") -> float:
    """A run's best validation loss; raises TrainingError if it came to a bad end."""
    if result.status == "FAILED":
        raise TrainingError(f"the run {result.reason}: {result.config.title()}")
    return result.summary.best_loss_val
