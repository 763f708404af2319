"""From the spool to MLflow: the only module that imports it.

Run as `python -m manyfit.delivery <session folder> <pid>` this is the courier of a living session: it delivers while
training goes on, and when the session's process is gone, killed or not, it delivers the rest and ends the runs
truthfully. `sync` does the same for sessions whose courier is gone too.

Everything may be delivered twice without doubling anything: points carry the time they were recorded (MLflow drops
equal ones), a run carries our id in a tag and is looked up before it is created again.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

for name, value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we retry ourselves, and look first whether it arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(name, value)

import mlflow
import sqlalchemy
from filelock import FileLock
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec

from manyfit import spool
from manyfit.spool import Record, SyncReport, mask

# MLflow's limits (mlflow/utils/validation.py)
MAX_ENTITIES, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # of one log_batch; entities: metrics, params and tags together
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_DATASET, MAX_DIGEST = 250, 6000, 8000, 500, 36  # characters
CUT = " ... [cut]"

# Answers that another try cannot change; whatever else goes wrong is an outage, and waits.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
POLL = 0.1  # seconds between looks at the journal
PAUSE = 1.0  # seconds between deliveries while training runs, at least; and at least SHARE times what one took
SHARE = 4.0
LONGEST_WAIT = 30.0  # seconds between tries in an outage
NICENESS = 5
OURS, SESSION, HOME, PARENT = "manyfit.id", "manyfit.session", "manyfit.spool", "mlflow.parentRunId"
REMOTE_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p"}


class Store:
    """An MLflow store, made when it is not there, and what we ask of it.

    Args:
        uri: Where; with credentials if it needs them.
        root: Folder that holds `mlruns/`.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.uri = uri
        self.root = root
        folder = spool.mlruns(root)
        folder.mkdir(parents=True, exist_ok=True)
        if uri == spool.default_uri(root) and not _remote(folder):
            sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _write_ahead)
        try:
            # Two processes that open a new database at once both create its tables, and both fail.
            with FileLock(folder / ".lock"):
                self.client = mlflow.MlflowClient(uri)
                self.client.search_experiments(max_results=1)
        finally:
            if sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _write_ahead):
                sqlalchemy.event.remove(sqlalchemy.Engine, "connect", _write_ahead)
        self._experiments: dict[str, str] = {}

    @property
    def local(self) -> bool:
        """Whether artifacts are ours to place (a database), and not a server's."""
        return not self.uri.startswith(("http", "databricks"))

    def experiment(self, name: str) -> str:
        """The id of the experiment, created or restored when it must be; safe against others doing the same."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                location = str(spool.mlruns(self.root) / "artifacts") if self.local else None
                try:
                    self._experiments[name] = self.client.create_experiment(name, artifact_location=location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = self.client.get_experiment_by_name(name)
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def runs(self, experiments: list[str], where: str) -> Iterator[Run]:
        """All runs that match a filter, page by page."""
        token = None
        while experiments:
            page = self.client.search_runs(experiments, where, ViewType.ALL, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _write_ahead(connection: Any, _: Any) -> None:
    """SQLite's write-ahead log: one flush to disk per commit instead of three, and readers do not block writers."""
    connection.execute("PRAGMA journal_mode=WAL")


def _remote(folder: Path) -> bool:
    """Whether a folder lies on a network file system, where the write-ahead log does not work."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return False
    points = {PurePosixPath(point): kind for _, point, kind, *_ in map(str.split, mounts.read_text().splitlines())}
    nearest = next((points[p] for p in (folder, *folder.parents) if p in points), "")
    return nearest in REMOTE_FILE_SYSTEMS


@dataclass
class Parcel:
    """What is still to be delivered of one run; what has arrived is taken out."""

    start: Record | None = None
    dataset: Record | None = None
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[Record] = field(default_factory=list)
    model: Record | None = None
    end: Record | None = None

    def add(self, record: Record) -> None:
        """Put a record of the journal in."""
        op = record["op"]
        if op == "start":
            self.start, self.dataset = record, record["dataset"]
            self.params |= record["params"]
            self.tags |= record["tags"]
        elif op == "metrics":
            self.metrics += [Metric(_key(key), value, record["time"], step) for key, value, step in record["rows"]]
        elif op == "tags":
            self.tags |= record["tags"]
        elif op == "file":
            self.files.append(record)
        elif op == "model":
            self.model = record
        elif op == "end":
            self.end = record

    def batch(self) -> tuple[list[Metric], list[Param], list[RunTag]]:
        """As much as one call may carry."""
        params = [Param(_key(k), _cut(v, MAX_PARAM)) for k, v in list(self.params.items())[:MAX_PARAMS]]
        tags = [RunTag(_key(k), _cut(v, MAX_TAG)) for k, v in list(self.tags.items())[:MAX_TAGS]]
        return self.metrics[: MAX_ENTITIES - len(params) - len(tags)], params, tags

    def drop(self, metrics: int, params: int, tags: int) -> None:
        """Take out what a call has carried."""
        del self.metrics[:metrics]
        self.params = dict(list(self.params.items())[params:])
        self.tags = dict(list(self.tags.items())[tags:])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT)] + CUT


def _key(key: str) -> str:
    return _cut(key, MAX_KEY)


class Session:
    """A session's folder on its way to a store.

    Args:
        store: Where to.
        folder: The session.
        first: Nobody has tried to deliver this session before, so that there is nothing to look for in the store.
    """

    def __init__(self, store: Store, folder: Path, first: bool = False) -> None:
        self.store = store
        self.folder = folder
        known = spool.acks(folder)
        self.ids = known.ids
        self.acknowledged = known.offset
        self.offset = 0
        self.closed = False
        self.open: dict[str, None] = {}  # runs without an end, in the order of their starts
        self.unreadable = 0
        self.refused = 0
        self.runs = 0
        self._look_first = not first
        self._lost: set[str] = set()  # runs that the store refused to create
        self._artifacts: dict[str, str] = {}  # where a run keeps them
        self._present: dict[str, set[tuple[str, int]]] = {}  # points that a resumed run already has
        self._reopened: set[str] = set()
        self._parcels: dict[str, Parcel] = {}

    def collect(self) -> None:
        """Read on in the journal."""
        path = self.folder / spool.JOURNAL
        if path.exists() and path.stat().st_size == self.offset:
            return
        # Up to what was acknowledged the records are read for what they tell, but not delivered again.
        if self.offset < self.acknowledged:
            records, self.offset = spool.read(path, 0)
            known = len(path.read_bytes()[: self.acknowledged].splitlines())
        else:
            records, self.offset = spool.read(path, self.offset)
            known = 0
        for index, record in enumerate(records):
            self._take(record, deliver=index >= known)

    def _take(self, record: Record, deliver: bool) -> None:
        op, run = record["op"], record.get("run")
        self.unreadable += op == "unreadable"
        self.closed |= op == "close"
        if run is None:
            return
        if op == "start":
            self.open[run] = None
            self.runs += 1
            if record["run_id"]:
                self._reopened.add(run)
        elif op == "end":
            self.open.pop(run, None)
        if deliver:
            self._parcels.setdefault(run, Parcel()).add(record)

    def kill(self) -> None:
        """The session's process is gone: its open runs were KILLED, at the time of its last word."""
        journal = self.folder / spool.JOURNAL
        when = int(journal.stat().st_mtime * 1000) if journal.exists() else spool.now()
        for run in self.open:
            self._parcels.setdefault(run, Parcel()).end = {"op": "end", "time": when, "status": "KILLED"}
        self.open.clear()

    @property
    def pending(self) -> bool:
        """Whether something is left to deliver."""
        return bool(self._parcels)

    def deliver(self) -> None:
        """Deliver what was collected; on an outage what has arrived is out of the parcels, and the rest stays."""
        for run, parcel in list(self._parcels.items()):
            self._deliver(run, parcel)
            del self._parcels[run]
        if self.offset > self.acknowledged:
            self.acknowledged = self.offset
            spool.note(self.folder / spool.ACKS, {"offset": self.offset, "error": None})

    def _deliver(self, run: str, parcel: Parcel) -> None:
        if parcel.start is not None:
            start = parcel.start
            if not self._attempt(run, start, lambda: self._begin(run, start, parcel)):
                self._lost.add(run)
            parcel.start = None
        if run in self._lost:
            return
        run_id = self.ids[run]
        if parcel.dataset is not None:
            record = _dataset(parcel.dataset)
            self._attempt(run, parcel.dataset, lambda: self.store.client.log_inputs(run_id, [record]))
            parcel.dataset = None
        self._values(run, run_id, parcel)
        while parcel.files:
            item = parcel.files[0]
            self._attempt(run, item, lambda item=item: self._file(run, run_id, item))  # type: ignore[misc]
            del parcel.files[0]
        if parcel.model is not None:
            model = parcel.model
            self._attempt(run, model, lambda: self._model(run_id, model))
            parcel.model = None
        if parcel.end is not None:
            end = parcel.end
            client = self.store.client
            self._attempt(run, end, lambda: client.set_terminated(run_id, end["status"], end["time"]))

    def _attempt(self, run: str, payload: Any, send: Callable[[], Any]) -> bool:
        """Send; what the store refuses for good is kept in `mlruns/rejected/`, so that the rest can go on."""
        try:
            send()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            folder = self.folder.parents[1] / "rejected"
            folder.mkdir(exist_ok=True)
            reason = mask(str(error))[:2000]
            spool.note(folder / f"{self.folder.name}.jsonl", {"run": run, "reason": reason, "refused": payload})
            self.refused += 1
            return False
        return True

    def _begin(self, run: str, start: Record, parcel: Parcel) -> None:
        """Create the run, or find it, or take an earlier one up again; tags travel with its creation."""
        reopened = start["run_id"] and self._reopen(run, start["run_id"], parcel)
        if not reopened:
            experiment = self.store.experiment(start["experiment"])
            found = self._find(run, experiment) if self._look_first else None
            if found is None:
                found = self._create(run, experiment, start, parcel)
            self.ids[run] = found.info.run_id
            self._artifacts[run] = found.info.artifact_uri
        spool.note(self.folder / spool.ACKS, {"run": run, "run_id": self.ids[run]})

    def _create(self, run: str, experiment: str, start: Record, parcel: Parcel) -> Run:
        ours = {OURS: run, SESSION: self.folder.name, HOME: _home(self.folder)}
        if start["parent"] in self.ids:
            ours[PARENT] = self.ids[start["parent"]]
        tags = {_key(key): _cut(value, MAX_TAG) for key, value in parcel.tags.items()}
        try:
            created = self.store.client.create_run(experiment, start["time"], ours | tags, start["name"])
        except Exception:
            self._look_first = True  # it may have been created all the same
            raise
        parcel.tags.clear()
        return created

    def _find(self, run: str, experiment: str) -> Run | None:
        where = f"tags.`{SESSION}` = '{self.folder.name}' and tags.`{OURS}` = '{run}'"
        return next(self.store.runs([experiment], where), None)

    def _reopen(self, run: str, run_id: str, parcel: Parcel) -> bool:
        """Set an earlier run RUNNING; False when it does not exist any more."""
        client = self.store.client
        try:
            before = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if before.info.lifecycle_stage == "deleted":
            client.restore_run(run_id)
        client.update_run(run_id, "RUNNING")
        self.ids[run] = run_id
        parcel.tags |= {SESSION: self.folder.name, HOME: _home(self.folder)}
        for key, value in list(parcel.params.items()):
            if before.data.params.get(_key(key), value) != _cut(value, MAX_PARAM):
                parcel.tags[f"resumed/{key}"] = parcel.params.pop(key)
        return True

    def _values(self, run: str, run_id: str, parcel: Parcel) -> None:
        """Metrics, params and tags, in as few calls as the limits allow; usually one."""
        if run in self._reopened and parcel.metrics:
            self._skip_present(run, run_id, parcel)
        while parcel.metrics or parcel.params or parcel.tags:
            metrics, params, tags = parcel.batch()
            payload = {
                "metrics": [(m.key, m.value, m.timestamp, m.step) for m in metrics],
                "params": {p.key: p.value for p in params},
                "tags": {t.key: t.value for t in tags},
            }
            self._attempt(
                run,
                payload,
                lambda metrics=metrics, params=params, tags=tags: self.store.client.log_batch(  # type: ignore[misc]
                    run_id, metrics, params, tags
                ),
            )
            parcel.drop(len(metrics), len(params), len(tags))

    def _skip_present(self, run: str, run_id: str, parcel: Parcel) -> None:
        """A run that was resumed from a checkpoint repeats epochs: one value per (metric, step > 0) stays, the first."""
        if run not in self._present:
            names = {m.key for m in parcel.metrics} | set(self.store.client.get_run(run_id).data.metrics)
            history = [m for name in names for m in self.store.client.get_metric_history(run_id, name)]
            self._present[run] = {(m.key, m.step) for m in history if m.step > 0}
        present = self._present[run]
        parcel.metrics = [m for m in parcel.metrics if (m.key, m.step) not in present]

    def _file(self, run: str, run_id: str, item: Record) -> None:
        path = self.folder / item["path"]
        if not path.exists():
            return  # delivered before, and not acknowledged
        if run not in self._artifacts:
            self._artifacts[run] = self.store.client.get_run(run_id).info.artifact_uri
        get_artifact_repository(self._artifacts[run], self.store.uri).log_artifact(str(path), item["folder"])
        path.unlink()

    def _model(self, run_id: str, item: Record) -> None:
        """One MLflow model named `model` per run, also after a second try; an earlier one of a resumed run is replaced."""
        client = self.store.client
        if not (self.folder / item["path"]).exists():
            return
        run = client.get_run(run_id)
        linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        tag = {OURS: item["path"] + "@" + self.folder.name}
        model = None
        for earlier in _models(client, run):
            if earlier.tags.get(OURS) == tag[OURS]:
                model = earlier
            else:
                client.delete_logged_model(earlier.model_id)
        if model is None:
            model = client.create_logged_model(run.info.experiment_id, "model", run_id, tag)
        client.log_model_artifacts(model.model_id, str(_assemble(self.folder / item["path"], item, run_id, model)))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if model.model_id not in linked:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        (self.folder / item["path"]).unlink(missing_ok=True)


def _home(folder: Path) -> str:
    """Where a session's spool is: on which machine, and there."""
    return f"{os.uname().nodename}:{folder}"


def _models(client: mlflow.MlflowClient, run: Run) -> list[LoggedModel]:
    where = f"source_run_id = '{run.info.run_id}' and name = 'model'"
    return list(client.search_logged_models([run.info.experiment_id], where))


def _dataset(record: Record) -> DatasetInput:
    features = Schema([TensorSpec(_dtype("float32"), (-1, record["features"]))])
    dataset = Dataset(
        name=record["name"][:MAX_DATASET],
        digest=record["digest"][:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": mask(record["source"])}),
        schema=json.dumps({"mlflow_tensorspec": {"features": features.to_json(), "targets": None}}),
        profile=json.dumps({"num_rows": record["rows"], "targets": record["targets"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _assemble(program: Path, item: Record, run_id: str, model: LoggedModel) -> Path:
    """The folder of an MLflow model in its pytorch flavor, around an exported program.

    What `mlflow.pytorch.save_model` writes, without tracing the module again (and without importing torch).
    """
    folder = program.parent / "model"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    target = folder / "data" / "model.pt2"
    target.unlink(missing_ok=True)
    os.link(program, target)
    specs = [Schema([TensorSpec(_dtype(kind), (-1, *shape))]) for kind, shape in (item["inputs"], item["outputs"])]
    made = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=ModelSignature(*specs),
    )
    made.add_flavor("pytorch", model_data="data", pytorch_version=item["versions"]["torch"], code=None)
    mlflow.pyfunc.add_to_model(  # type: ignore[no-untyped-call]
        made, "mlflow.pytorch", data="data", conda_env="conda.yaml", python_env="python_env.yaml"
    )
    made.save(str(folder / "MLmodel"))  # type: ignore[no-untyped-call]
    python = ".".join(map(str, sys.version_info[:3]))
    pins = [f"{name}=={version.split('+')[0]}" for name, version in item["versions"].items()]
    pins.insert(0, f"mlflow=={mlflow.__version__}")
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pins}],
    }
    (folder / "requirements.txt").write_text("\n".join(pins))
    (folder / "conda.yaml").write_text(json.dumps(conda, indent=2))  # JSON is YAML
    (folder / "python_env.yaml").write_text(
        json.dumps({"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}, indent=2)
    )
    return folder


def courier(folder: Path, owner: int) -> bool:
    """Deliver a living session until it closes or its process `owner` is gone; whether everything arrived."""
    os.nice(NICENESS)
    lock = spool.claim(folder / spool.COURIER_LOCK)
    if lock is None:
        return False
    root, uri = folder.parents[2], os.environ["MLFLOW_TRACKING_URI"]
    session: Session | None = None
    next_time, wait, failing = 0.0, PAUSE, False
    while True:
        gone = os.getppid() != owner
        last = gone or _closed(folder)
        if not last and time.monotonic() < next_time:
            time.sleep(POLL)
            continue
        began = time.monotonic()
        try:
            if session is None:
                session = _embark(Store(uri, root), folder)
            session.collect()
            if gone and not session.closed:
                session.kill()
            if session.pending or session.offset > session.acknowledged:
                session.deliver()
            failing = False
        except Exception as error:  # an outage of whatever kind: all stays in the spool
            failing = True
            logging.getLogger(__name__).warning("held back: %s", mask(repr(error)))
            spool.note(folder / spool.ACKS, {"error": explain(error)})
        if last:
            break
        wait = min(2 * wait, LONGEST_WAIT) if failing else max(PAUSE, SHARE * (time.monotonic() - began))
        next_time = time.monotonic() + wait
    if gone and not failing:
        spool.discard(folder)
    return not failing


def _embark(store: Store, folder: Path) -> Session:
    """First what earlier sessions left here (a run this session goes on with may be among it), then this one."""
    root = folder.parents[2]
    for orphan in spool.orphans(root):
        if _target(orphan, root, None) == store.uri:
            try:
                _replay(store, orphan)
            except Exception as error:
                logging.getLogger(__name__).warning("%s is held back: %s", orphan.name, mask(repr(error)))
    return Session(store, folder, first=not (folder / spool.ACKS).exists())


def _closed(folder: Path) -> bool:
    """Whether the journal's last record says that nothing follows."""
    with (folder / spool.JOURNAL).open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
        return file.read().endswith(b'{"op":"close"}\n')


def explain(error: Exception) -> str:
    """An obstacle in one line, without credentials."""
    text = str(error).strip() or repr(error)
    return mask(text.splitlines()[0])[:500]


def _replay(store: Store, folder: Path) -> Session:
    """Deliver a session whose process is gone, and remove it."""
    session = Session(store, folder)
    session.collect()
    if not session.closed:
        session.kill()
    session.deliver()
    spool.discard(folder)
    return session


def _target(folder: Path, root: Path, uri: str | None) -> str | None:
    """The store a session was meant for; None when its credentials, which are not kept, are not at hand."""
    if uri is not None:
        return spool.resolve_uri(uri, root)
    header = next((r for r in spool.read(folder / spool.JOURNAL)[0] if r["op"] == "session"), {"uri": None})
    recorded = header["uri"]
    if recorded is None:
        return spool.default_uri(root)
    here = spool.resolve_uri(None, root)
    if mask(here) == recorded:
        return here
    return None if "***@" in recorded else str(recorded)


def sync(root: Path, uri: str | None = None) -> SyncReport:
    """See tracking.sync."""
    _quiet()
    stores: dict[str, Store] = {}
    held, delivered, runs, refused = [], 0, 0, 0
    for folder in spool.orphans(root):
        try:
            target = _target(folder, root, uri)
            if target is None:
                raise ValueError("MLFLOW_TRACKING_URI must be set: the address held a password, which is not kept")
            if target not in stores:
                stores[target] = Store(target, root)
            session = _replay(stores[target], folder)
            delivered, runs, refused = delivered + 1, runs + session.runs, refused + session.refused
        except Exception as error:
            held.append(f"{folder.name}: {explain(error)}")
    if refused:
        held.append(f"{refused} values were refused by the store and kept in {spool.mlruns(root) / 'rejected'}")
    return SyncReport(delivered, runs, tuple(held), sum(map(spool.alive, spool.sessions(root))))


def doctor(root: Path, uri: str | None = None) -> list[str]:
    """See tracking.doctor."""
    _quiet()
    target = spool.resolve_uri(uri, root)
    damaged = [
        f.name for f in spool.sessions(root) if any(r["op"] == "unreadable" for r in spool.read(f / spool.JOURNAL)[0])
    ]
    findings = [f"problem: spool {name} has damaged records; the others are delivered" for name in damaged]
    try:
        store = Store(target, root)
        findings.append(f"ok: store {mask(target)} answers{_size(target)}")
    except Exception as error:
        return [*findings, f"problem: store {mask(target)} does not answer: {explain(error)}"]
    report = sync(root, None if uri is None else uri)
    if report.sessions:
        findings.append(f"repaired: delivered {report.sessions} sessions ({report.runs} runs) from the spool")
    findings += [f"problem: held back: {reason}" for reason in report.held]
    killed = _bury(store, root)
    if killed:
        findings.append(f"repaired: {killed} runs were left RUNNING by sessions that are gone; now KILLED")
    rejected = sorted((spool.mlruns(root) / "rejected").glob("*.jsonl"))
    findings += [f"problem: {path} holds values that the store refused; delete it when read" for path in rejected]
    if report.living:
        findings.append(f"ok: {report.living} sessions are running")
    return findings


def _bury(store: Store, root: Path) -> int:
    """Set runs of this machine and root KILLED that are RUNNING while their session is gone."""
    parent = f"{os.uname().nodename}:{spool.mlruns(root) / 'spool'}/"
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    count = 0
    for run in store.runs(experiments, "attributes.status = 'RUNNING'"):
        home = run.data.tags.get(HOME, "")
        # A session with a folder is running, or is held back and will be ended when it is delivered.
        if home.startswith(parent) and not Path(home.removeprefix(parent.split(":")[0] + ":")).exists():
            store.client.set_terminated(run.info.run_id, "KILLED")
            count += 1
    return count


def _size(uri: str) -> str:
    path = Path(unquote(urlparse(uri).path)[1:]) if uri.startswith("sqlite:") else None
    return f" ({path.stat().st_size / 1e6:.1f} MB)" if path is not None and path.exists() else ""


def _quiet() -> None:
    """MLflow and alembic tell a terminal about every table they make."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(0 if courier(Path(sys.argv[1]), int(sys.argv[2])) else 1)
