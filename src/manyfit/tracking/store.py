"""What we ask of MLflow. Importing it takes seconds: only deliverers do."""

import contextlib
import errno
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we retry ourselves, and look first whether it arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; a command waits a little longer for a sign of its store
    "PGCONNECT_TIMEOUT": "10",  # PostgreSQL's client would wait for ever
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
os.environ |= DEFAULTS | dict(os.environ)  # MLflow reads some of them when it is imported

# ruff: noqa: E402
import mlflow
import numpy as np
import sqlalchemy
from alembic.script import ScriptDirectory
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
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import (
    _get_alembic_config,
    _get_latest_schema_revision,
    _upgrade_db,
    create_sqlalchemy_engine,
)
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.types import Schema, TensorSpec
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from manyfit.config import place
from manyfit.config.secrets import mask
from manyfit.tracking import bulk, journal, sqlite
from manyfit.tracking.journal import Record
from manyfit.tracking.limits import (
    MAX_DIGEST,
    MAX_ENTITIES,
    MAX_KEY,
    MAX_NAME,
    MAX_PARAM,
    MAX_PARAMS,
    MAX_RUN,
    MAX_TAG,
    MAX_TAGS,
    cut,
)
from manyfit.tracking.packaging import assemble

# Answers that another try cannot change. Whatever else goes wrong is an outage.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
NAMES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
OURS, SESSION, HOME, PARENT = "manyfit.id", "manyfit.session", "manyfit.tracking.spool", "mlflow.parentRunId"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # which of its two faces the UI shows first

Point = tuple[str, float, int, int]  # metric, value, milliseconds, step


class RefusedError(Exception):
    """The store has answered, and will answer the same when asked again."""


class GoneError(RefusedError):
    """And the run is there no more, for whatever is asked."""


@dataclass(frozen=True)
class Values:
    """What one log_batch carries."""

    points: Sequence[Point] = ()
    params: Sequence[tuple[str, str]] = ()
    tags: Sequence[tuple[str, str]] = ()

    def chunks(self) -> "Iterator[Values]":
        """The same in as few calls as the limits allow."""
        points, params, tags = list(self.points), list(self.params), list(self.tags)
        while points or params or tags:
            p, t = params[:MAX_PARAMS], tags[:MAX_TAGS]
            m = points[: MAX_ENTITIES - len(p) - len(t)]
            yield Values(m, p, t)
            del points[: len(m)], params[: len(p)], tags[: len(t)]

    def halves(self) -> "list[Values]":
        """Two smaller calls, to find what in this one is refused; none when it is a single value."""
        kinds = [Values(points=self.points), Values(params=self.params), Values(tags=self.tags)]
        filled = [kind for kind in kinds if kind.size]
        if len(filled) > 1:
            return filled
        h = self.size // 2
        first = Values(self.points[:h], self.params[:h], self.tags[:h])
        return [first, Values(self.points[h:], self.params[h:], self.tags[h:])] if h else []

    def batch(self) -> bulk.Batch:
        """As MLflow has them; texts are cut."""
        metrics = [Metric(cut(key, MAX_KEY), value, when, step) for key, value, when, step in self.points]
        params = [Param(cut(key, MAX_KEY), cut(value, MAX_PARAM)) for key, value in self.params]
        return metrics, params, [RunTag(cut(key, MAX_KEY), cut(value, MAX_TAG)) for key, value in self.tags]

    @property
    def size(self) -> int:
        """How many values."""
        return len(self.points) + len(self.params) + len(self.tags)


class Store:
    """An MLflow store, made when it is not there yet.

    Args:
        uri: Where; with credentials if it needs them.
        root: Folder that holds `mlruns/`.
        say: Told in a sentence what was done to the store before it could be opened; None: stderr.

    Every method raises RefusedError for an answer that is final, and anything else for an outage.
    """

    def __init__(self, uri: str, root: Path, say: Callable[[str], None] | None = None) -> None:
        self.uri = uri
        self.root = root
        self._experiments: dict[str, str] = {}
        self._say, self._warned = say or _on_stderr, set[str]()
        self._places: dict[str, tuple[str, str]] = {}  # see `place`
        journal.mlruns(root).mkdir(parents=True, exist_ok=True)
        file = journal.file_of(uri)
        opens = functools.partial(self._opened, file)
        lock = file.with_name(f".{file.name}.lock") if file else journal.mlruns(root) / ".lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that open a new database at once both create its tables, and both fail.
        # A server makes its own, and while it is silent others need not wait for whoever asked before.
        turn = contextlib.nullcontext() if uri.startswith(("http", "databricks")) else FileLock(lock)
        with turn, _answers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's use of SQLAlchemy is not ours to mend
            self.client = sqlite.opened(file, tables(), opens, self._say) if file else opens()

    def _opened(self, file: Path | None) -> mlflow.MlflowClient:
        if file:
            _renew(self.uri, file, self._say)
        try:
            client = mlflow.MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        except Exception:
            if engine := SqlAlchemyStore._engine_map.pop(self.uri, None):  # its connections are to this very file
                engine.dispose()
            raise
        return client

    def experiment(self, name: str) -> str:
        """The id of the experiment, created or restored when it must be; safe against others doing the same."""
        if name not in self._experiments:
            with _answers():
                self._experiments[name] = self._get_experiment(name) or self._create_experiment(name)
        return self._experiments[name]

    def _get_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _create_experiment(self, name: str) -> str:
        server = self.uri.startswith(("http", "databricks"))  # it decides itself where artifacts go
        location = None if server else journal.artifacts(self.root)
        try:
            return self.client.create_experiment(name, artifact_location=location, tags=KIND)
        except MlflowException as error:
            found = self._get_experiment(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
            return found

    def create(self, experiment: str, start: Record, tags: dict[str, str]) -> str:
        """Create a run with the tags; its id."""
        given = {cut(key, MAX_KEY): cut(value, MAX_TAG) for key, value in tags.items()}
        with _answers():
            run = self.client.create_run(self.experiment(experiment), start["time"], given, cut(start["name"], MAX_RUN))
        self._warn_of_a_folder(experiment, run.info.artifact_uri)
        self._places[run.info.run_id] = run.info.experiment_id, run.info.artifact_uri
        return str(run.info.run_id)

    def _warn_of_a_folder(self, experiment: str, artifacts: str) -> None:
        """Of a server that would have each client keep its artifacts to itself, say so, once for each experiment."""
        local = is_local_uri(artifacts)  # type: ignore[no-untyped-call]
        if local and self.uri.startswith("http") and experiment not in self._warned:
            self._warned.add(experiment)
            self._say(
                f"artifacts of experiment {experiment} go to {Path(artifacts).parents[1]}, a folder of this machine, "
                "since the experiment names it; those of another name=... go where the server keeps them if it was "
                "started with --artifacts-destination"
            )

    def find(self, experiment: str, own_id: str) -> str | None:
        """The id of the run that carries our id."""
        runs = self._search([self.experiment(experiment)], f"tags.`{OURS}` = '{own_id}'")
        return next((str(run.info.run_id) for run in runs), None)

    def search(self, experiment: str, where: str) -> list[Run]:
        """The runs of an experiment for which `where` (MLflow's filter) holds."""
        return list(self._search([self.experiment(experiment)], where, ViewType.ACTIVE_ONLY))

    def among(self, experiments: Sequence[str], where: str) -> list[Run]:
        """The runs of these experiments, by MLflow's ids, for which `where` holds."""
        return list(self._search(list(experiments), where, ViewType.ACTIVE_ONLY))

    def all(self, where: str) -> list[Run]:
        """The runs of all experiments for which `where` holds."""
        with _answers():
            experiments = [e.experiment_id for e in self.client.search_experiments()]
        return list(self._search(experiments, where, ViewType.ACTIVE_ONLY))

    def reopen(self, run_id: str) -> dict[str, str] | None:
        """Set an earlier run RUNNING; its params, or None when it does not exist."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in REFUSALS:
                return None
            raise
        with _answers():
            if run.info.lifecycle_stage == "deleted":
                self.client.restore_run(run_id)
            self.client.update_run(run_id, "RUNNING")
        return dict(run.data.params)

    def gone(self, run_id: str) -> bool:
        """Whether a run was deleted."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code in REFUSALS:
                return True
            raise

    def present(self, run_id: str) -> dict[tuple[str, int], int]:
        """Every (metric, step) that a run has, and its time in milliseconds."""
        with _answers():
            names = self.client.get_run(run_id).data.metrics
            points = [point for name in names for point in self.client.get_metric_history(run_id, name)]
        return {(p.key, p.step): p.timestamp for p in sorted(points, key=lambda point: int(point.timestamp))}

    def histories(self, run_ids: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
        """Every value of every metric of runs: by run, by name, by step."""
        with _answers():
            known = bulk.histories(self.client, run_ids)
            if known is not None:
                return known
            names = {run_id: self.client.get_run(run_id).data.metrics for run_id in run_ids}
            return {
                run_id: {name: {m.step: m.value for m in self.client.get_metric_history(run_id, name)} for name in its}
                for run_id, its in names.items()
            }

    def log(self, run_id: str, values: Values) -> None:
        """One log_batch; values must be within the limits of number (see `chunks`), texts are cut."""
        with _answers():
            self.client.log_batch(run_id, *values.batch())

    def log_all(self, values: Mapping[str, Values]) -> set[str]:
        """Of many runs, in one transaction where the store is a database; the runs that it was done of."""
        return bulk.insert(self.client, {run_id: its.batch() for run_id, its in values.items() if its.size})

    def dataset(self, run_id: str, record: Record) -> None:
        """Name the data that a run was trained on; `record` holds DatasetRecord's fields."""
        features = Schema([TensorSpec(np.dtype("float32"), (-1, record["features"]))])
        dataset = Dataset(
            name=record["name"][:MAX_NAME],
            digest=record["digest"][:MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": mask(record["source"])}),
            schema=json.dumps({"mlflow_tensorspec": {"features": features.to_json(), "targets": None}}),
            profile=json.dumps({"num_rows": record["rows"], "targets": record["targets"]}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        with _answers():
            try:
                self.client.log_inputs(run_id, inputs)
            except MlflowException as error:
                if not any(word in str(error).lower() for word in ("unique", "duplicate")):
                    raise
                self.client.log_inputs(run_id, inputs)  # another process named the same data between look and write

    def place(self, run_id: str) -> tuple[str, str]:
        """Where a run is: its experiment's id, and the address of its artifacts."""
        if run_id not in self._places:
            with _answers():
                info = self.client.get_run(run_id).info
            self._places[run_id] = info.experiment_id, info.artifact_uri
        return self._places[run_id]

    def file(self, run_id: str, path: Path, folder: str | None) -> None:
        """Store a file among the run's artifacts, in `folder`."""
        with _answers(), _room_for_names():
            repository = get_artifact_repository(self.place(run_id)[1], self.uri)
            repository.log_artifact(str(path), folder)  # type: ignore[no-untyped-call]

    def model(self, run_id: str, program: Path, item: Record, own_id: str) -> None:
        """Store the exported `program` as the run's one model; on a second try the first is completed or replaced."""
        client = self.client
        with _answers():
            run = client.get_run(run_id)
            model = None
            where = f"source_run_id = '{run_id}' and name = 'model'"
            for earlier in client.search_logged_models([run.info.experiment_id], where):
                if earlier.tags.get(OURS) == own_id:
                    model = earlier
                else:
                    client.delete_logged_model(earlier.model_id)
            model = model or client.create_logged_model(run.info.experiment_id, "model", run_id, {OURS: own_id})
            client.log_model_artifacts(model.model_id, str(packed(program, item, run_id, model)))
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            if model.model_id not in {o.model_id for o in (run.outputs.model_outputs if run.outputs else [])}:
                client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])

    def end(self, run_id: str, status: str, when: int | None = None) -> None:
        """End a run, at a time in milliseconds."""
        with _answers():
            self.client.set_terminated(run_id, status, when)

    def by_own_id(self, own_id: str) -> list[Run]:
        """The runs that carry our id, deleted ones too."""
        return list(self._search(self._everywhere(), f"tags.`{OURS}` = '{own_id}'"))

    def deleted(self) -> list[Run]:
        """Our runs that were deleted and can still be restored; none of a server's, which removes them itself."""
        if not hasattr(self.client._tracking_client.store, "_hard_delete_run"):
            return []
        found = self._search(self._everywhere(), "", ViewType.DELETED_ONLY)
        return [run for run in found if OURS in run.data.tags]

    def places(self, run: Run) -> dict[str, str]:
        """Where the artifacts of a run and its models are, by its id and theirs."""
        models = {model.model_id: model.artifact_location for model in self._models(run)}
        return {run.info.run_id: run.info.artifact_uri, **models}

    def folders(self, run: Run) -> list[Path]:
        """Those of them that are on this machine."""
        return [folder for place in self.places(run).values() if (folder := _folder(place))]

    def erase(self, run_id: str) -> None:
        """Remove a deleted run for good, with its artifacts and models.

        Raises:
            ValueError: The database names a place that is not the run's own; nothing is removed.
        """
        run, rows = self.client.get_run(run_id), self.client._tracking_client.store
        if foreign := [place for of, place in self.places(run).items() if not is_own(place, of)]:
            raise ValueError(f"artifacts must lie in a folder of their run, but {run_id} names {mask(foreign[0])}.")
        folders = self.folders(run)
        for model in self._models(run):
            self._remove(model.artifact_location)
            self.client.delete_logged_model(model.model_id)
            rows._hard_delete_logged_model(model.model_id)
        self._remove(run.info.artifact_uri)
        rows._hard_delete_run(run_id)
        for folder in folders:
            with contextlib.suppress(OSError):  # it was the last there, or not
                folder.parent.rmdir()

    def _remove(self, artifacts: str) -> None:
        with contextlib.suppress(InvalidUrlException):  # as `mlflow gc` does
            get_artifact_repository(artifacts, self.uri).delete_artifacts()  # type: ignore[no-untyped-call]

    def _models(self, run: Run) -> list[LoggedModel]:
        return list(self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"))

    def _everywhere(self) -> list[str]:
        return [experiment.experiment_id for experiment in self.client.search_experiments(ViewType.ALL)]

    def running(self) -> dict[str, str]:
        """Ids of the runs that are RUNNING and ours, with their tag `manyfit.tracking.spool`."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        runs = self._search(experiments, "attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY)
        return {run.info.run_id: run.data.tags[HOME] for run in runs if HOME in run.data.tags}

    def _search(self, experiments: list[str], where: str, view: int = ViewType.ALL) -> Iterator[Run]:
        token = None
        while experiments:
            with _answers():
                page = self.client.search_runs(experiments, where, view, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def is_own(place: str, its_id: str) -> bool:
    """Whether artifacts lie where a store puts them, in `<...>/<id>/artifacts`: a database may name any place."""
    folder = _folder(place)
    parts = (folder or PurePosixPath(unquote(urlsplit(place).path))).parts
    linked = folder and (folder.is_symlink() or folder.parent.is_symlink())
    return parts[-2:] == (its_id, "artifacts") and ".." not in parts and not linked


def _folder(place: str) -> Path | None:
    """None: it is elsewhere."""
    local = is_local_uri(place)  # type: ignore[no-untyped-call]
    return Path(local_file_uri_to_path(place)) if local else None  # type: ignore[no-untyped-call]


def _fill(path: Path) -> None:
    """Make MLflow's tables, but no experiment: its first one names a folder."""
    store = mlflow.MlflowClient(f"sqlite:///{path}")._tracking_client.store
    with store.engine.begin() as connection:
        connection.execute(sqlalchemy.delete(SqlExperiment))
    store.engine.dispose()


def tables() -> sqlite.Tables:
    """MLflow's."""
    kept = place.cache() / f"mlflow-{mlflow.__version__}.db"
    own = {"experiments": "name = 'Default'", "workspaces": "name = 'default'"}
    return sqlite.Tables(_fill, kept, Base.metadata.tables.keys(), own)


def older(file: Path) -> str | None:
    """The revision of a store of an older MLflow; None: it is of this one, or not known to it."""
    found = sqlite.revision(file)
    if found is None or found == _get_latest_schema_revision():  # type: ignore[no-untyped-call]
        return None
    known = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    return found if found in {script.revision for script in known.walk_revisions()} else None


def _renew(uri: str, file: Path, say: Callable[[str], None]) -> None:
    """Bring a store of an older MLflow to this one's tables, with a copy beside it for the older one."""
    found = older(file)
    if not found:
        return
    copy = sqlite.copied(file, f"{file.stem}.{found}")
    say(f"{file} is of an older MLflow and is brought to {mlflow.__version__}; as it was it is kept as {copy.name}")
    engine = create_sqlalchemy_engine(uri)  # type: ignore[no-untyped-call]
    _upgrade_db(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


def _on_stderr(words: str) -> None:
    print(words, file=sys.stderr)


def packed(program: Path, item: Record, run_id: str, model: LoggedModel) -> Path:
    """See `assemble`, of whose refusals none is an outage."""
    try:
        with _room_for_names():
            return assemble(program, item, run_id, model)
    except (LookupError, TypeError, ValueError) as error:
        raise RefusedError(f"a model must be one that MLflow takes, but {error!r}") from error


def explain(error: Exception) -> str:
    """An obstacle in one line, without credentials."""
    return mask((str(error).strip() or repr(error)).splitlines()[0])[:500]


@contextmanager
def _room_for_names() -> Iterator[None]:
    """A name that cannot be, or that another file has, is no outage: it would hold back a session for ever."""
    try:
        yield
    except OSError as error:
        if error.errno in NAMES:
            raise RefusedError(f"a file must have a name that there is room for, but {error}") from error
        raise


@contextmanager
def _answers() -> Iterator[None]:
    """Tell a final answer from an outage."""
    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise RefusedError(mask(str(error))) from error
        raise
