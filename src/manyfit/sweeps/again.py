"""A grid that was stopped, or in which runs failed, started again by the same command.

What is finished of it is kept, and the rest is trained.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from manyfit.config.schema import Config
from manyfit.displays import line
from manyfit.progress import Screen
from manyfit.tracking.run import FINGERPRINT
from manyfit.tracking.unfinished import Unfinished

if TYPE_CHECKING:
    from manyfit.experiments.experiment import Experiment
    from manyfit.sweeps.settings import Settings
    from manyfit.tracking.reading import Stored
    from manyfit.training.prepared import Job

COMMIT = "mlflow.source.git.commit"
SUMMARY = {"devices", "ended", "engine"}  # tags of a run whose summary could be stored


@dataclass
class Past:
    """What there is of a sweep.

    Attributes:
        parent: MLflow's id of its parent run, None of a new one.
        runs: By the fingerprint of what was trained, those that are finished, or were killed; each serves once.
    """

    parent: str | None = None
    runs: "dict[str, Stored]" = field(default_factory=dict)

    def finished(self, job: "Job") -> "Stored | None":
        """The finished run of such a job."""
        if self.runs and (known := self.runs.get(job.fingerprint)) and known.status == "FINISHED":
            return self.runs.pop(job.fingerprint)
        return None

    def begun(self, job: "Job") -> str | None:
        """MLflow's id of a run of such a job that was killed, to be trained anew."""
        known = self.runs.pop(job.fingerprint, None) if self.runs else None
        return known.run_id if known else None


def fingerprint_of(jobs: Iterable["Job"], sought: "Settings", experiment: "Experiment | None") -> str:
    """Of all jobs of a command, and of what is made of them."""
    asked = [str(sought)]
    if experiment:
        asked += [experiment.name, *experiment.tune, experiment.tune_by, str(experiment.seeds)]
        asked += [config.model_dump_json(by_alias=True) for config in experiment.beside]
    said = "\n".join([*(job.fingerprint for job in jobs), *asked])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def past(place: Unfinished, config: Config, screen: Screen) -> Past:
    """What the store has of a sweep that was stopped; where it does not answer, nothing, which is said."""
    if place.run is None or place.living or place.finished:
        return Past()
    with screen.stage("looking for what an earlier start has done, which takes MLflow"):
        from manyfit.tracking import reading

        try:
            parent, runs, held = reading.children(config.tracking.uri, Path.cwd(), place.run)
        except ValueError as error:
            screen.note(f"an earlier start of this was stopped, but what it has done cannot be read: {error}")
            return Past()
    if parent is None:
        why = f" ({held[0]})" if held else ""
        screen.note(f"an earlier start of this was stopped, but is not in the store{why}: all of it is trained anew")
        return Past()
    if held:
        screen.note(f"held back: {held[0]}; what it has done of this is trained again")
    runs = [run for run in runs if run.status == "KILLED" or (run.status == "FINISHED" and run.tags.keys() >= SUMMARY)]
    done = sum(run.status == "FINISHED" for run in runs)
    screen.say(line("going on", f"with run {parent.run_id[:8]}: {done} runs of it are finished, and kept"))
    _tell_commits(runs, screen)
    return Past(
        parent.run_id, {run.tags[FINGERPRINT]: run for run in sorted(runs, key=lambda run: run.status, reverse=True)}
    )


def _tell_commits(runs: "Iterable[Stored]", screen: Screen) -> None:
    """That some were trained by other code."""
    from manyfit.tracking import provenance

    now = provenance.tags().get(COMMIT)
    others = {run.tags.get(COMMIT) for run in runs if run.status == "FINISHED"} - {now}
    if others:
        names = ", ".join(sorted(str(other)[:8] for other in others))
        screen.note(f"some of them were trained by other code: commit {names}, now {str(now)[:8]}")
