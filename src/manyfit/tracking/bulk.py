"""Metrics, params and tags of many runs at once, into the tables of MLflow's database.

MLflow's own `log_batch` makes an object of every value, asks for the run four times and commits twice: of a sweep's
values it takes ten times as long as of their training. What it leaves behind is the same, and tested to be.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import sqlalchemy
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.validation import _validate_batch_log_data
from sqlalchemy.dialects import postgresql, sqlite

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LARGEST = 1.7976931348623157e308  # stands for an infinite value, as MLflow has it

Batch = tuple[Sequence[Metric], Sequence[Param], Sequence[RunTag]]


def insert(client: mlflow.MlflowClient, batches: Mapping[str, Batch]) -> set[str]:
    """Write them by run, in one transaction; which were written.

    The others, of any store that is no such database, are for MLflow to write or to refuse: a run that is gone, a param
    that would change, a value that is not allowed, a new name.
    """
    store = client._tracking_client.store
    engine = getattr(store, "engine", None)
    if not batches or not isinstance(store, SqlAlchemyStore) or engine is None or engine.dialect.name not in INSERTS:
        return set()
    begin = INSERTS[engine.dialect.name]
    try:
        with engine.begin() as connection:
            known = _known(connection, list(batches))
            checked = {run: _checked(batch, known[run]) for run, batch in batches.items() if run in known}
            written = {run: batch for run, batch in checked.items() if batch is not None}
            rows = [_row(run, metric) for run, (metrics, _, _) in written.items() for metric in metrics]
            params = [_text(run, param) for run, (_, its, _) in written.items() for param in its]
            tags = [_text(run, tag) for run, (_, _, its) in written.items() for tag in its]
            if rows:
                connection.execute(begin(SqlMetric).on_conflict_do_nothing(), rows)
                latest = begin(SqlLatestMetric)
                connection.execute(_changing(latest, ("step", "timestamp", "value"), "is_nan"), _last(rows))
            if params:
                connection.execute(begin(SqlParam).on_conflict_do_nothing(), params)
            if tags:
                connection.execute(_changing(begin(SqlTag), (), "value"), tags)
    except (sqlalchemy.exc.DataError, sqlalchemy.exc.IntegrityError):  # one of all is at fault
        return set()
    return set(written)


def histories(client: mlflow.MlflowClient, runs: Sequence[str]) -> dict[str, dict[str, dict[int, float]]] | None:
    """Their metrics by run, by name, by step; None: the store is no such database."""
    engine = getattr(client._tracking_client.store, "engine", None)
    if engine is None:
        return None
    found: dict[str, dict[str, dict[int, float]]] = {run: {} for run in runs}
    columns = SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step, SqlMetric.value, SqlMetric.is_nan
    with engine.connect() as connection:
        for start in range(0, len(runs), 1000):
            some: Any = SqlMetric.run_uuid.in_(runs[start : start + 1000])
            asked = sqlalchemy.select(*columns).where(some).order_by(SqlMetric.timestamp)
            for run, name, step, value, is_nan in connection.execute(asked):
                found[run].setdefault(name, {})[step] = math.nan if is_nan else value
    return found


def _known(connection: sqlalchemy.Connection, runs: Sequence[str]) -> dict[str, dict[str, str]]:
    """The params of those that are there, and active."""
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(runs), 1000):  # databases have a limit on what a question holds
        some = runs[start : start + 1000]
        active = (SqlRun.run_uuid.in_(some), SqlRun.lifecycle_stage == "active")
        found |= {run: {} for (run,) in connection.execute(sqlalchemy.select(SqlRun.run_uuid).where(*active))}
        columns = SqlParam.run_uuid, SqlParam.key, SqlParam.value
        for run, key, value in connection.execute(sqlalchemy.select(*columns).where(SqlParam.run_uuid.in_(some))):
            if run in found:
                found[run][key] = value
    return found


def _checked(batch: Batch, params: Mapping[str, str]) -> Batch | None:
    """As MLflow would write it beside these params; None: it would not, or in more places than one."""
    try:
        metrics, new, tags = _validate_batch_log_data(*batch)  # type: ignore[no-untyped-call]  # MLflow's
    except MlflowException:
        return None
    changed = any(params.get(param.key, param.value) != param.value for param in new)
    return None if changed or any(tag.key == MLFLOW_RUN_NAME for tag in tags) else (metrics, new, tags)


def _changing(insert: Any, order: Sequence[str], *others: str) -> Any:
    """The same, which replaces a row that is there, if its own are later in the order of these columns."""
    new, old = insert.excluded, insert.table.c
    pairs = [sqlalchemy.tuple_(*(table[key] for key in order)) for table in (new, old)] if order else []
    return insert.on_conflict_do_update(
        index_elements=["key", "run_uuid"],
        set_={key: new[key] for key in (*order, *others)},
        where=pairs[0] > pairs[1] if pairs else None,
    )


def _text(run: str, value: Param | RunTag) -> dict[str, Any]:
    return {"key": value.key, "value": value.value, "run_uuid": run}


def _row(run: str, metric: Metric) -> dict[str, Any]:
    value = 0.0 if math.isnan(metric.value) else min(max(metric.value, -LARGEST), LARGEST)
    known = {"key": metric.key, "value": value, "timestamp": metric.timestamp, "step": metric.step}
    return {**known, "is_nan": math.isnan(metric.value), "run_uuid": run}


def _last(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of every metric of every run."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        known = found.setdefault((row["run_uuid"], row["key"]), row)
        if (row["step"], row["timestamp"], row["value"]) > (known["step"], known["timestamp"], known["value"]):
            found[row["run_uuid"], row["key"]] = row
    return list(found.values())
