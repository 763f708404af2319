"""From the epochs and results of a population to tracked runs."""

import copy
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from manyfit.config.schema import Config
from manyfit.data import served
from manyfit.measures import called
from manyfit.plots import overfitting
from manyfit.plots.style import png
from manyfit.tracking import provenance
from manyfit.tracking.run import FINGERPRINT, DatasetRecord, TrackedRun
from manyfit.tracking.tracker import NoTracker, Tracker
from manyfit.training.prepared import Job, prepared
from manyfit.training.trained import Result
from manyfit.training.words import devices, note

CHOSEN = ("data", "model", "loss", "optimizer", "schedule")  # groups whose option is a tag


class Recorder:
    """Writes every epoch of every member to its own tracked run, and closes the runs truthfully.

    Args:
        tracker: Where to.
        given: What is being trained.
        parent: The sweep they belong to.
        tags: More tags for each run.
        run_ids: MLflow's, of earlier runs to go on with.
    """

    def __init__(
        self,
        tracker: Tracker | NoTracker,
        given: Sequence[Config | Job],
        parent: TrackedRun | None = None,
        tags: Sequence[Mapping[str, str]] | None = None,
        run_ids: Sequence[str | None] | None = None,
    ) -> None:
        jobs = prepared(given)
        more: Sequence[Mapping[str, str]] = tags or [{}] * len(jobs)
        ids: Sequence[str | None] = run_ids or [None] * len(jobs)
        self.runs = [_start(tracker, *each, parent) for each in zip(jobs, more, ids, strict=True)]
        self.open = set(range(len(self.runs)))
        self.recorded = [-1] * len(self.runs)  # last epoch
        self.stores = isinstance(tracker, Tracker)

    def epoch(self, epoch: int, members: np.ndarray, measured: Mapping[str, np.ndarray]) -> None:
        """All values of an epoch, one append per member; an epoch that a run has is the same again."""
        for here, member in enumerate(members if self.stores else []):
            if epoch > self.recorded[member]:
                run = self.runs[member]
                with run.storing("curves"):
                    run.metrics([(name, float(values[here]), epoch) for name, values in measured.items()])
                self.recorded[member] = epoch

    def part(self, members: Sequence[int]) -> "Recorder":
        """The recorder of some of the members, to train them again with the same runs."""
        part = copy.copy(self)
        part.runs = [self.runs[member] for member in members]
        part.recorded = [self.recorded[member] for member in members]
        part.open = {place for place, member in enumerate(members) if member in self.open}
        return part

    def finish(self, results: Mapping[int, Result], artifacts: bool) -> None:
        """Summary, verdict, note and status of runs, by place; with artifacts, their picture and model as well."""
        for member, result in results.items():
            run = self.runs[member]
            with run.storing("summary"):
                _summarise(run, result)
            if artifacts and self.stores:
                store_artifacts(run, result)
            run.end(result.status)
            self.open.discard(member)

    def fail(self, error: BaseException, members: Sequence[int] | None = None) -> None:
        """End runs that are open, all or some: KILLED by an interrupt, else FAILED with the exception as a tag."""
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        for member in self.open.intersection(self.open if members is None else members):
            self.runs[member].tags({"error": f"{type(error).__name__}: {error}"[:2000]})
            self.runs[member].end("KILLED" if interrupted else "FAILED")
            self.open.discard(member)


def _start(
    tracker: Tracker | NoTracker, job: Job, tags: Mapping[str, str], run_id: str | None, parent: TrackedRun | None
) -> TrackedRun:
    run = tracker.start(
        experiment=job.config.experiment,
        name=job.config.title(),
        params=dict(job.config.guests.defaults) | job.config.flat(),
        tags=provenance.tags() | _chosen(job.config) | {FINGERPRINT: job.fingerprint} | dict(tags),
        parent=parent,
        dataset=None if job.config.guests.data else _dataset(job),
        run_id=run_id,
    )
    if isinstance(tracker, Tracker):  # of a thousand runs it takes seconds
        run.file("config.yaml", job.config.yaml().encode())
    return run


def _dataset(job: Job) -> DatasetRecord:
    data = job.data
    return DatasetRecord(
        name=data.name,
        digest=data.digest,
        source=job.config.data.target,
        rows=len(data.x_train),
        features=data.x_train.shape[1],
        targets=max(len(data.classes), 1),
    )


def _chosen(config: Config) -> dict[str, str]:
    """What a search of runs asks for: `tags.optimizer = 'adam'`."""
    chosen = {group: option for group in CHOSEN if (option := config.choices.get(group))}
    names = {"model": config.network, "data": config.dataset if config.guests.data else chosen.get("data", "")}
    return chosen | {group: name for group, name in names.items() if group in chosen}


def _summarise(run: TrackedRun, result: Result) -> None:
    s = result.summary
    run.metrics([(name, float(value), 0) for name, value in result.once.items()])
    tags = {"fit": str(s.verdict), "ended": result.reason, "mlflow.note.content": note(result)}
    tags |= {"world_size": str(len(result.devices)), "devices": devices(result), "engine": result.engine}
    if result.reason == "pruned":
        tags["pruned_at"] = str(len(result.metrics["loss/val"]) - 1)
    run.tags(tags)


def store_artifacts(run: TrackedRun, result: Result) -> None:
    """The picture, the environment, the model of the best epoch and the names of its columns."""
    with run.storing("overfitting.png"):
        run.file("overfitting.png", picture(result))
    run.file("environment.txt", provenance.environment().encode())
    if not result.config.guests.data:
        names = {"features": result.features, "classes": result.classes, "columns": result.encoding.what}
        run.file("columns.json", json.dumps(names, indent=1).encode())  # of the model
    assert result.predictor is not None
    with run.storing("model"), torch.no_grad():
        if result.example is None:
            raise ValueError("its batches begin with no tensor, whose shape the model would be stored for")
        outputs = result.predictor(torch.from_numpy(result.example)).numpy()
        served_rows = result.encoding.target and not result.config.guests.model  # else nobody knows what comes out
        rows = served.written(result.encoding, result.classes) if served_rows else None
        run.model(result.predictor, result.example, outputs, rows)


def picture(result: Result) -> bytes:
    """The overfitting curve as a PNG."""
    title = f"{result.config.experiment}: {result.config.title()}"
    more = [called(name) for name in result.config.metrics if f"{called(name)}/val" in result.metrics]
    if result.config.guests.model:
        shown = ("loss", *overfitting.SCORES)
        more = [name.removesuffix("/val") for name in result.metrics if name.endswith("/val")]
        more = [name for name in more if name not in shown]
    return png(overfitting.overfitting(result.metrics, result.summary, title, more))
