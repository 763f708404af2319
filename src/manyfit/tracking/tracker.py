"""What training sees of tracking: runs to hand values to. No run waits for MLflow.

Every value goes to the local journal (journal.py); a second process (uploader.py) takes it from there to
MLflow. A process and not a thread, because delivering is Python work: in a thread of this process it left training an
eighth of its speed while it lasted (measured), and MLflow's import would be paid at the start of every run.
"""

import getpass
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from manyfit.config import place
from manyfit.config.schema import Config
from manyfit.config.secrets import mask
from manyfit.displays import line, put
from manyfit.tracking import journal, limits
from manyfit.tracking.journal import resolve_uri
from manyfit.tracking.pulse import Pulse, patience
from manyfit.tracking.run import DatasetRecord, TrackedRun

Value = str | int | float | bool | None
STILL_AT_WORK = -1000  # stands for the exit code of a uploader that `close` did not wait for


class Tracker:
    """One command's door to MLflow; a context manager. Every method returns at once, whatever becomes of the store.

    Args:
        uri: The store, None for the default (see `resolve_uri`).
        root: Folder that holds `mlruns/`.
        left: Told, while `close` waits, how many runs are still to be delivered.

    Attributes:
        lost: After `close`, that some of what was recorded never reached the disk, or was refused, and why.

    Raises:
        ValueError: when `mlruns/` cannot be written, or the store is a file store.
    """

    def __init__(self, uri: str | None, root: Path, left: Callable[[int], None] = lambda _: None) -> None:
        self.root = Path(root).absolute()
        self.uri = resolve_uri(uri, self.root)
        # The default store is recorded as null, so that a folder that was moved finds its own store again.
        recorded = None if self.uri == journal.default_uri(self.root) else mask(self.uri)
        header = {"op": "session", "uri": recorded, "host": platform.node(), "pid": os.getpid(), "time": journal.now()}
        try:
            self._journal = journal.Journal(journal.mlruns(self.root) / "spool", header)
        except OSError as error:
            folder = journal.mlruns(self.root)
            raise ValueError(f"mlruns must be writable, but {folder} is not ({error}). Set its permissions.") from None
        self._runs: list[TrackedRun] = []
        self._left = left
        self._warned: set[str] = set()
        self._final: journal.Acks | None = None
        self._read: tuple[int, journal.Acks] | None = None  # at which size of the file
        self._delivered = False
        self._waited = 0.0  # seconds of silence, for ids: of the patience with a store that does not answer
        self.lost: str | None = None
        self._uploader = self._start_uploader()

    def start(
        self,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, Value],
        tags: Mapping[str, str],
        parent: "TrackedRun | None" = None,
        dataset: DatasetRecord | None = None,
        run_id: str | None = None,
    ) -> "TrackedRun":
        """Begin a run, or with `run_id` (MLflow's) go on with an earlier one.

        A run that goes on keeps the first value of each (metric, step > 0) and the first value of each param; a param
        that has changed becomes the tag `resumed/<param>`.

        Raises:
            ConfigError: A name that no store takes.
        """
        limits.check(experiment, [*params, *tags])
        run = TrackedRun(self, name)
        source = {"mlflow.user": _user(), "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
        self.append(
            {
                "op": "start",
                "run": run.id,
                "experiment": experiment,
                "name": name,
                "params": {key: mask(str(value)) for key, value in params.items()},
                "tags": {key: mask(str(value)) for key, value in (source | dict(tags)).items()},
                "parent": parent.id if parent else None,
                "dataset": asdict(dataset) if dataset else None,
                "run_id": run_id,
            }
        )
        self._runs.append(run)
        return run

    def append(self, record: journal.Record) -> None:
        """Put a record into the journal, with its time; the first that the disk refuses is told at once."""
        self._journal.append(record | {"time": self._journal.now()})
        if why := self._journal.refused:
            self._warn(why, "what is recorded waits in memory: make room there before the command ends")
        elif why := self._journal.unsure:
            self._warn(why, "it is written, but a power cut may cost what is recorded")

    def _warn(self, why: str, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            put(f"{why}; {what}")

    def page(self, path: str) -> str:
        """How a page of MLflow's UI is opened, in words; without credentials."""
        if self.uri.startswith("http"):
            return f"{mask(self.uri)}/{path}"
        return f"{self.elsewhere}manyfit ui, then http://127.0.0.1:5000/{path}"

    def where(self, run: TrackedRun, resume: str | None = None) -> str:
        """The last lines of a command, once this is closed: the run's id, and where its page and its pictures are.

        Args:
            run: The run; of a sweep, the parent.
            resume: What is to be said behind `resume=<id>`; None where the run cannot be gone on with.
        """
        said = [line("note", words) for words in self.acks().said]
        return "\n".join([*said, self._where(run, resume)])

    def _where(self, run: TrackedRun, resume: str | None) -> str:
        if self._journal.unwritten():
            return line("look", f"{self.sync}, once there is room, for what reached the disk")
        short = (run.run_id or run.id)[:8]
        command = " ".join(filter(None, [f"{self.elsewhere}{place.called()} resume={short}", resume]))
        again = "" if resume is None else f"  ({command} goes on with it)"
        if self._delivered and run.run_id is None:
            return line("look", f"mlruns/rejected: the store refused the run; {self.sync} --rejected delivers it")
        if self.last_error or run.run_id is None or run.place is None:
            why = self.last_error
            kept = f"held back in mlruns/spool ({why}); nothing is lost: {self.sync} delivers it{again}"
            return line("look", kept)
        experiment, artifacts = run.place
        lines = [line("id", f"{short}{again}")]
        lines += [line("page", self.page(f"#/experiments/{experiment}/runs/{run.run_id}"))]
        folder = Path(artifacts.removeprefix("file://"))
        if pictures := sorted(path.name for path in folder.glob("*.png")):
            shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
            lines += [line("pictures" if pictures[1:] else "picture", f"{shown}/{' '.join(pictures)}")]
        return "\n".join(lines)

    @property
    def elsewhere(self) -> str:
        """What a command must begin with to find this store, without credentials; nothing where it does by itself."""
        return "" if self.uri == resolve_uri(None, self.root) else f"MLFLOW_TRACKING_URI={mask(self.uri)} "

    @property
    def sync(self) -> str:
        """The command that delivers what is held back; of a store that is not in this folder it must be told."""
        return "manyfit sync" if journal.within(self.uri, self.root) else f"{self.elsewhere}manyfit sync"

    @property
    def last_error(self) -> str | None:
        """Why values are held back; None when nothing is."""
        return self._journal.refused or (None if self._delivered else self.acks().error)

    def acks(self) -> journal.Acks:
        """What is known to have arrived; read again when there is more, since each run of a sweep may ask."""
        if self._final is not None:
            return self._final
        path = self._journal.folder / journal.ACKS
        size = path.stat().st_size if path.exists() else 0
        if self._read is None or self._read[0] != size:
            self._read = size, journal.acks(self._journal.folder)
        return self._read[1]

    def wait_for_ids(self, timeout: float = 10.0) -> None:
        """Wait until every run exists in the store, unless that takes nothing for so many seconds."""
        pulse = Pulse(self._journal.folder)
        while (silence := pulse.silence()) < timeout:
            known = self.acks()
            if known.error or self._journal.refused or all(run.id in known.ids for run in self._runs):
                break
            time.sleep(0.05)
        self._waited = silence

    def close(self) -> bool:
        """End what was not ended (as KILLED), deliver, and wait for as long as the store takes something.

        Returns:
            True when everything arrived; else it stays in the spool, for the next start or `manyfit sync`.
        """
        if self._final is not None:
            return self._delivered
        self._end_open_runs("KILLED")
        self._journal.append({"op": "close"})
        if waiting := self._journal.unwritten():  # the uploader will not read that this is all
            self.lost = (
                f"mlruns must take what is recorded, but {self._journal.refused}: {_named(waiting)} is lost. What "
                f"came before is kept in mlruns/spool. Make room there; {self.sync} then delivers it."
            )
            self._uploader.returncode = STILL_AT_WORK
        try:
            self._delivered = not self.lost and self._wait()
        except KeyboardInterrupt:  # another Ctrl-C: the uploader goes on alone, and ends the runs
            done = self._uploader.poll() == 0
            self._uploader.returncode = STILL_AT_WORK
            self._final = journal.acks(self._journal.folder)
            if done:
                journal.discard(self._journal.folder)
            self._journal.release()
            raise
        self._final = journal.acks(self._journal.folder)
        if refused := self._final.refused:
            self.lost = self.lost or (
                f"the store must take what is recorded, but refused {len(refused)} deliveries ({refused[0]}). They are "
                f"kept in mlruns/rejected: {self.sync} --rejected delivers them into a new run."
            )
        if self._delivered:
            journal.discard(self._journal.folder)
        else:
            self._final = replace(self._final, error=self._why(self._final.error))
        self._journal.release()
        return self._delivered

    def __enter__(self) -> Self:
        """Nothing to do: the uploader is already on its way."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; runs still open are FAILED after an error, KILLED after an interrupt, which says what is lost."""
        if self._final is None and isinstance(error, Exception):
            self._end_open_runs("FAILED")
        self.close()
        if error is not None and self.lost:
            error.add_note(self.lost)

    def _end_open_runs(self, status: Literal["FAILED", "KILLED"]) -> None:
        for run in self._runs:
            if not run.ended:
                run.end(status)

    def _start_uploader(self) -> "subprocess.Popen[bytes]":
        """In a session of its own, so that Ctrl-C does not reach it; it watches this process by its id."""
        with (self._journal.folder / journal.LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "manyfit.tracking.uploader", str(self._journal.folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_TRACKING_URI": self.uri},  # not an argument: others can read those
                cwd=self.root,
                start_new_session=True,
            )

    def _wait(self) -> bool:
        """Wait for the uploader, which reads in the journal that this is all; if it was killed, send another."""
        if self._uploader.poll() is not None:
            self._uploader = self._start_uploader()
        pulse = Pulse(self._journal.folder, self._waited)
        while pulse.silence() < patience(self.uri):
            try:
                return self._uploader.wait(0.5) == 0
            except subprocess.TimeoutExpired:
                self._left(pulse.left)
        self._uploader.returncode = STILL_AT_WORK  # so that Python does not call the process abandoned
        return False

    def _why(self, obstacle: str | None) -> str:
        """Why something is held back: the obstacle the uploader noted, else the last it said."""
        if obstacle is None and self._uploader.returncode == STILL_AT_WORK:
            return f"{mask(self.uri)} has not answered yet; delivery goes on in the background"
        said = self._journal.folder / journal.LOG
        lines = said.read_text(errors="replace").strip().splitlines() if said.exists() else []
        return obstacle or (mask(lines[-1]) if lines else f"the uploader ended with code {self._uploader.returncode}")


class NoTracker:
    """The same door with nothing behind it (`tracking=off`)."""

    last_error: str | None = None
    lost: str | None = None

    def start(
        self,
        *,
        experiment: str,  # noqa: ARG002  (the signature is Tracker's)
        name: str,
        params: Mapping[str, Value],  # noqa: ARG002
        tags: Mapping[str, str],  # noqa: ARG002
        parent: TrackedRun | None = None,  # noqa: ARG002
        dataset: DatasetRecord | None = None,  # noqa: ARG002
        run_id: str | None = None,  # noqa: ARG002
    ) -> TrackedRun:
        """A run that forgets."""
        return TrackedRun(None, name)

    def where(self, run: TrackedRun, resume: str | None = None) -> str:  # noqa: ARG002
        """There is no page."""
        return line("look", "nowhere: tracking=off stores no run")

    def acks(self) -> journal.Acks:
        """Nothing ever arrives."""
        return journal.Acks({}, 0, None)

    def wait_for_ids(self, timeout: float = 10.0) -> None:
        """Nothing ever has an id."""

    def close(self) -> bool:
        """Nothing is left to deliver."""
        return True

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to do."""


def tracker_of(config: Config, left: Callable[[int], None]) -> Tracker | NoTracker:
    """Of the store that a config names; `left` as for `Tracker`."""
    return NoTracker() if config.tracking.kind == "off" else Tracker(config.tracking.uri, Path.cwd(), left)


def _named(records: Sequence[journal.Record]) -> str:
    """What is in them, in words."""
    steps = [step for record in records if record["op"] == "metrics" for _, _, step in record["rows"] if step]
    epochs = [f"epochs {min(steps)} to {max(steps)}"] if steps else []
    runs = len({record["run"] for record in records if "run" in record})
    return " and ".join([*epochs, "the end"]) + f" of {runs} run{'s' * (runs != 1)}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return str(os.getuid())
