"""One session's way from the spool to MLflow.

Everything may be delivered twice without doubling anything: points carry the time they were recorded (MLflow drops
equal ones), a run carries our id in a tag and is looked up before it is created again.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from manyfit.tracking import journal
from manyfit.tracking.journal import Record
from manyfit.tracking.store import HOME, OURS, PARENT, SESSION, Point, RefusedError, Store, Values

TOGETHER = 100_000  # values in one transaction, or little more: others wait for it


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

    def values(self) -> tuple[list[Point], list[tuple[str, str]], list[tuple[str, str]]]:
        """Points, params and tags."""
        return self.points, list(self.params.items()), list(self.tags.items())

    def add(self, record: Record) -> None:
        """Put a record of the journal in."""
        match record.get("op"):
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

    Attributes:
        closed: Whether the session said that nothing follows.
        runs: Runs begun.
        refused: Deliveries that the store refused for good.
    """

    def __init__(self, store: Store, folder: Path, first: bool = False) -> None:
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
        self._open: dict[str, None] = {}  # runs without an end, in the order of their starts
        self._resumed: set[str] = set()
        self._present: dict[str, set[tuple[str, int]]] = {}  # points that a resumed run had before
        self._parcels: dict[str, Parcel] = {}

    def advance(self, abandoned: bool) -> None:
        """Read on and deliver. If the session's process is gone without a word, its open runs were KILLED."""
        self._collect()
        if abandoned and not self.closed:
            self._kill()
        for run, parcel in list(self._parcels.items()):
            self._open_run(run, parcel)
        self._log_all()
        for run, parcel in list(self._parcels.items()):
            self._close_run(run, parcel)
            del self._parcels[run]
        if self._offset > self._acknowledged:
            self._acknowledged = self._offset
            journal.note(self.folder / journal.ACKS, {"offset": self._offset, "error": None})

    def _collect(self) -> None:
        """Records before the acknowledged byte are read for what they tell, and not delivered again."""
        path = self.folder / journal.JOURNAL
        known: list[Record] = []
        if self._offset == 0 < self._acknowledged:
            known, self._offset = journal.read(path, 0, self._acknowledged)
        fresh, self._offset = journal.read(path, self._offset)
        for record in known + fresh:
            self._observe(record)
        for record in fresh:
            if "run" in record:
                self._parcels.setdefault(record["run"], Parcel()).add(record)

    def _observe(self, record: Record) -> None:
        match record.get("op"):
            case "start":
                self.runs += 1
                self._open[record["run"]] = None
                if record["run_id"]:
                    self._resumed.add(record["run"])
            case "end":
                self._open.pop(record["run"], None)
            case "close":
                self.closed = True

    def _kill(self) -> None:
        path = self.folder / journal.JOURNAL
        last_word = int(path.stat().st_mtime * 1000) if path.exists() else journal.now()
        for run in self._open:
            end = {"op": "end", "run": run, "time": last_word, "status": "KILLED"}
            self._parcels.setdefault(run, Parcel()).end = end
        self._open.clear()

    def _open_run(self, run: str, parcel: Parcel) -> None:
        """Its start and its data; an outage leaves in the parcel what has not arrived."""
        if start := parcel.start:
            self._attempt(run, start, lambda: self._begin(run, start, parcel))
            parcel.start = None
        run_id = self._ids.get(run)
        if run_id is None:  # the store refused to create it
            self._reject(run, "its run was refused", asdict(parcel))
            del self._parcels[run]
            return
        if dataset := parcel.dataset:
            self._attempt(run, dataset, lambda: self.store.dataset(run_id, dataset))
            parcel.dataset = None

    def _close_run(self, run: str, parcel: Parcel) -> None:
        """Its files, its model and its end, likewise."""
        run_id = self._ids[run]
        while parcel.files:
            self._attempt(run, parcel.files[0], lambda: self._file(run_id, parcel.files[0]))
            del parcel.files[0]
        if model := parcel.model:
            self._attempt(run, model, lambda: self._model(run_id, model))
            parcel.model = None
        if end := parcel.end:
            self._attempt(run, end, lambda: self.store.end(run_id, end["status"], end["time"]))

    def _attempt(self, run: str, payload: Any, send: Callable[[], None]) -> None:
        try:
            send()
        except RefusedError as error:
            self._reject(run, str(error), payload)

    def _reject(self, run: str, reason: str, payload: Any) -> None:
        """Keep what the store refuses for good in `mlruns/rejected/`, so that the rest can go on."""
        folder = self.folder.parents[1] / "rejected"
        folder.mkdir(exist_ok=True)
        journal.note(folder / f"{self.folder.name}.jsonl", {"run": run, "reason": reason[:2000], "refused": payload})
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

    def _log_all(self) -> None:
        """Metrics, params and tags of all runs; of one that the store does not take among them, by itself."""
        waiting, some, size = list(self._parcels), dict[str, Values](), 0
        while waiting or some:
            if waiting and size < TOGETHER:
                run = waiting.pop(0)
                self._attempt(run, None, functools.partial(self._leave_out_known, run))
                some[run] = Values(*self._parcels[run].values())
                size += some[run].size
                continue
            written = self.store.log_all({self._ids[run]: its for run, its in some.items()})
            for run, its in some.items():
                for chunk in its.chunks() if self._ids[run] not in written else ():
                    self._log(run, self._ids[run], chunk)
                parcel = self._parcels[run]
                parcel.points, parcel.params, parcel.tags = [], {}, {}
            some, size = {}, 0

    def _leave_out_known(self, run: str) -> None:
        """Resumed from a checkpoint it repeats epochs. Step 0 stays: what is measured once may be renewed."""
        parcel = self._parcels[run]
        if run in self._resumed and parcel.points:
            if run not in self._present:
                self._present[run] = self.store.present(self._ids[run])
            parcel.points = [p for p in parcel.points if p[3] == 0 or (p[0], p[3]) not in self._present[run]]

    def _log(self, run: str, run_id: str, values: Values) -> None:
        """One refused value refuses its whole call: halve, until it is alone."""
        try:
            self.store.log(run_id, values)
        except RefusedError as error:
            halves = values.halves()
            for half in halves:
                self._log(run, run_id, half)
            if not halves:
                self._reject(run, str(error), asdict(values))

    def _file(self, run_id: str, item: Record) -> None:
        path = self.folder / item["path"]
        if path.exists():  # else it was delivered before, and not acknowledged
            self.store.file(run_id, path, item["folder"])
            path.unlink()

    def _model(self, run_id: str, item: Record) -> None:
        path = self.folder / item["path"]
        if path.exists():
            self.store.model(run_id, path, item, f"{item['run']}/{item['path']}")
            path.unlink()
