"""One session's way from the spool to MLflow.

Everything may be delivered twice without doubling anything: points carry the time they were recorded (MLflow drops
equal ones), a run carries our id in a tag and is looked up before it is created again. A journal is not trusted: a line
that is no record, or points to a file that is not the session's own, is set aside with its reason (rejected.py).
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from manyfit.tracking import journal, pulse, records, rejected
from manyfit.tracking.journal import Record
from manyfit.tracking.store import HOME, OURS, PARENT, SESSION, GoneError, Point, RefusedError, Store, Values

TOGETHER = 20_000  # values in one transaction, or little more: others wait for it


@dataclass
class Parcel:
    """What is still to be delivered of one run; what has arrived is taken out."""

    start: Record | None = None
    dataset: Record | None = None
    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[Record] = field(default_factory=list)
    model: Record | None = None
    end: Record | None = None

    def values(self) -> Values:
        """Points, params and tags."""
        return Values(self.points, list(self.params.items()), list(self.tags.items()))

    def records(self) -> list[Record]:
        """All of it, as a journal would have it."""
        whole = [self.start, *_records(self.values()), *self.files, self.model, self.end]
        return [record for record in whole if record]

    def add(self, record: Record) -> None:
        """Put a record of the journal in."""
        match record["op"]:
            case "start":
                self.start, self.dataset = record, record["dataset"]
                self.params |= record["params"]
                self.tags |= record["tags"]
            case "metrics":
                self.points += [(key, value, record["time"], step) for key, value, step in record["rows"]]
            case "tags":
                self.tags |= record["tags"]
            case "file":
                self.files.append(record)
            case "model":
                self.model = record
            case "end":
                self.end = record


class Session:
    """A session's folder on its way to a store.

    Args:
        store: Where to.
        folder: The session.
        first: Nobody has tried to deliver this session before, so that there is nothing to look for in the store.
        courier: The session of who delivers this one, if that is another.

    Attributes:
        closed: Whether the session said that nothing follows.
        runs: Runs begun.
        refused: Deliveries that were set aside: the store refused them for good, or they were no records.
    """

    def __init__(self, store: Store, folder: Path, first: bool = False, courier: Path | None = None) -> None:
        known = journal.acks(folder)
        self.store = store
        self.folder = folder
        self.closed = False
        self.runs = 0
        self.refused = 0
        self._ids = known.ids
        self._acknowledged = known.offset  # bytes of the journal
        self._offset = 0
        self._first = first
        self._courier = courier
        self._last = False  # whether nothing follows what is being delivered
        self._uri: str | None = None  # the store that the session named
        self._starts: dict[str, Record] = {}  # of every run that began
        self._open: dict[str, None] = {}  # runs without an end, in the order of their starts
        self._present: dict[
            str, dict[tuple[str, int], int]
        ] = {}  # points that a resumed run had before, and their times
        self._parcels: dict[str, Parcel] = {}
        self._damaged: list[tuple[bytes, str]] = []  # lines that are no records, and why

    def advance(self, abandoned: bool) -> None:
        """Read on and deliver. If the session's process is gone without a word, its open runs were KILLED."""
        self._collect()
        if abandoned and not self.closed:
            self._kill()
        self._last = abandoned or self.closed
        while self._damaged:
            line, why = self._damaged[0]
            self._reject(None, f"it is no record: {why}", line=line)
            del self._damaged[0]
        parents = {start["parent"] for start in self._starts.values()}
        waiting = list(self._parcels)
        while waiting:
            for run in self._log_next(waiting):
                if run not in parents:
                    self._close_run(run)
        for run in list(self._parcels):  # parents, after what they are made of
            self._close_run(run)
        if self._offset > self._acknowledged:
            self._acknowledged = self._offset
            journal.note(self.folder / journal.ACKS, {"offset": self._offset, "error": None})

    def _collect(self) -> None:
        """Records before the acknowledged byte are read for what they tell, and not delivered again."""
        path = self.folder / journal.JOURNAL
        known: list[bytes] = []
        if self._offset == 0 < self._acknowledged:
            known, self._offset = journal.lines(path, 0, self._acknowledged)
        fresh, self._offset = journal.lines(path, self._offset)
        for line in known:
            if record := self._record(line)[0]:
                self._observe(record)
        for line in fresh:
            record, why = self._record(line)
            if record is None:
                self._damaged.append((line, why))
                continue
            self._observe(record)
            if "run" in record:
                self._parcels.setdefault(record["run"], Parcel()).add(record)

    def _record(self, line: bytes) -> tuple[Record | None, str]:
        record, why = records.parse(line)
        if record and record["op"] == "start" and record["run"] in self._starts:
            return None, "its run has begun before"
        return record, why

    def _observe(self, record: Record) -> None:
        match record["op"]:
            case "session":
                self._uri = record["uri"]
            case "start":
                self.runs += 1
                self._open[record["run"]] = None
                self._starts[record["run"]] = record
            case "end":
                self._open.pop(record["run"], None)
            case "close":
                self.closed = True

    def _kill(self) -> None:
        path = self.folder / journal.JOURNAL
        last_word = int(path.stat().st_mtime * 1000) if path.exists() else journal.now()
        for run in self._open:
            time = max(last_word, self._starts[run]["time"])  # a clock may have been set back
            end = {"op": "end", "run": run, "time": time, "status": "KILLED"}
            self._parcels.setdefault(run, Parcel()).end = end
        self._open.clear()

    def _open_run(self, run: str, parcel: Parcel) -> None:
        """Its start and its data; an outage leaves in the parcel what has not arrived."""
        try:
            if start := parcel.start:
                self._begin(run, start, parcel)
                parcel.start = None
            if run not in self._ids:
                raise RefusedError("its run never began")
        except RefusedError as error:
            self._reject(run, f"its run was refused: {error}", parcel.records())
            del self._parcels[run]
            return
        if dataset := parcel.dataset:
            told = {"op": "dataset", "dataset": dataset}
            self._attempt(run, told, lambda: self.store.dataset(self._ids[run], dataset))
            parcel.dataset = None

    def _beat(self) -> None:
        """The store has answered."""
        pulse.beat(self.folder, len(self._parcels) if self._last else 0)
        if self._courier:
            pulse.beat(self._courier)

    def _close_run(self, run: str) -> None:
        """Its files, its model and its end, likewise; then all of it has arrived."""
        if (parcel := self._parcels.get(run)) is None:  # it was refused
            return
        run_id = self._ids[run]
        while parcel.files:
            self._attempt(run, parcel.files[0], lambda: self._file(run_id, parcel.files[0]))
            del parcel.files[0]
            self._beat()
        if model := parcel.model:
            self._attempt(run, model, lambda: self._model(run_id, model))
            parcel.model = None
        if end := parcel.end:
            self._attempt(run, end, lambda: self.store.end(run_id, end["status"], end["time"]))
        del self._parcels[run]
        self._beat()

    def _attempt(self, run: str, record: Record | None, send: Callable[[], None]) -> None:
        try:
            send()
        except RefusedError as error:
            self._reject(run, str(error), [record] if record else [])

    def _reject(self, run: str | None, reason: str, refused: Sequence[Record] = (), line: bytes = b"") -> None:
        """Set aside what is refused for good, so that the rest can go on."""
        start = self._starts.get(run or "", {})
        known = {"id": run, "run_id": self._ids.get(run or ""), "uri": self._uri}
        known |= {key: start.get(key) for key in ("experiment", "name")}
        rejected.keep(self.folder, known, reason, refused, line)
        journal.note(self.folder / journal.ACKS, {"refused": reason[:300]})
        self.refused += 1

    def _begin(self, run: str, start: Record, parcel: Parcel) -> None:
        """Go on with an earlier run, or find the run, or create it; tags travel with its creation."""
        run_id = self._resume(start["run_id"], parcel) if start["run_id"] else None
        if run_id is None and not self._first:
            run_id = self.store.find(start["experiment"], run)
        if run_id is None:
            parent = self._ids.get(start["parent"])
            ours = self._tags() | {OURS: run} | ({PARENT: parent} if parent else {})
            try:
                run_id = self.store.create(start["experiment"], start, parcel.tags | ours)
            except Exception:
                self._first = False  # it may have been created all the same: look next time
                raise
            parcel.tags.clear()
        self._ids[run] = run_id
        place = self.store.place(run_id)
        journal.note(self.folder / journal.ACKS, {"run": run, "run_id": run_id, "place": place})

    def _resume(self, run_id: str, parcel: Parcel) -> str | None:
        """Params cannot change in MLflow: a new value becomes the tag `resumed/<param>`."""
        params = self.store.reopen(run_id)
        if params is None:
            return None
        for key in [key for key, value in parcel.params.items() if params.get(key, value) != value]:
            parcel.tags[f"resumed/{key}"] = parcel.params.pop(key)
        parcel.tags |= self._tags()
        return run_id

    def _tags(self) -> dict[str, str]:
        return {SESSION: self.folder.name, HOME: f"{os.uname().nodename}:{self.folder}"}

    def _log_next(self, waiting: list[str]) -> list[str]:
        """Begin some of the runs that wait, and log their metrics, params and tags together; which they are.

        What the store does not take among them is logged by itself.
        """
        some, size = dict[str, Values](), 0
        while waiting and size < TOGETHER:
            run = waiting[0]
            self._open_run(run, self._parcels[run])
            self._beat()
            if run in self._parcels:
                self._attempt(run, None, functools.partial(self._leave_out_known, run))
                some[run] = self._parcels[run].values()
                size += some[run].size
            del waiting[0]
        written = self.store.log_all({self._ids[run]: its for run, its in some.items()})
        self._beat()
        for run, its in some.items():
            if self._ids[run] not in written:
                self._log_one(run, its)
            if parcel := self._parcels.get(run):
                parcel.points, parcel.params, parcel.tags = [], {}, {}
        return list(some)

    def _log_one(self, run: str, values: Values) -> None:
        """Of a run that is gone all that is left is set aside together."""
        try:
            for chunk in values.chunks():
                self._log(run, self._ids[run], chunk)
        except GoneError as error:
            self._reject(run, str(error), self._parcels[run].records())
            del self._parcels[run]

    def _leave_out_known(self, run: str) -> None:
        """From a checkpoint it repeats epochs. Step 0, of what is measured once, may be renewed, as the last."""
        parcel = self._parcels[run]
        if self._starts.get(run, {}).get("run_id") and parcel.points:
            if run not in self._present:
                self._present[run] = self.store.present(self._ids[run])
            before = self._present[run]
            parcel.points = [
                (key, value, max(time, before.get((key, step), -1) + 1), step)
                for key, value, time, step in parcel.points
                if step == 0 or (key, step) not in before
            ]

    def _log(self, run: str, run_id: str, values: Values) -> None:
        """One refused value refuses its whole call: halve, until it is alone."""
        try:
            self.store.log(run_id, values)
            self._beat()
        except RefusedError as error:
            if self.store.gone(run_id):
                raise GoneError(f"the run was deleted: {error}") from error
            halves = values.halves()
            for half in halves:
                self._log(run, run_id, half)
            if not halves:
                self._reject(run, str(error), _records(values))

    def _file(self, run_id: str, item: Record) -> None:
        folder = PurePosixPath(item["folder"] or ".")
        if folder.is_absolute() or ".." in folder.parts:
            raise RefusedError(f"the folder of an artifact must be one of the run's own, but got {item['folder']}")
        if path := self._own(item):
            self.store.file(run_id, path, item["folder"])
            path.unlink()

    def _model(self, run_id: str, item: Record) -> None:
        if path := self._own(item):
            self.store.model(run_id, path, item, f"{item['run']}/{item['path']}")
            path.unlink()

    def _own(self, item: Record) -> Path | None:
        """The file that a record points to; None: it was delivered before, and not acknowledged."""
        path = journal.own_file(self.folder, item["path"])
        if path is None:
            raise RefusedError(f"a file must be one of the session's own, but got {item['path']}")
        return path if path.exists() else None


def _records(values: Values) -> list[Record]:
    """As a journal would have them; params have a record of their own only here."""
    times: dict[int, list[Any]] = {}
    for key, value, time, step in values.points:
        times.setdefault(time, []).append((key, value, step))
    found: Iterable[Record] = ({"op": "metrics", "time": time, "rows": rows} for time, rows in times.items())
    params: Iterable[Record] = [{"op": "params", "params": dict(values.params)}] if values.params else []
    tags: Iterable[Record] = [{"op": "tags", "tags": dict(values.tags)}] if values.tags else []
    return [*found, *params, *tags]
