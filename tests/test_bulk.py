"""Values straight into MLflow's tables: what is there afterwards is what MLflow's own log_batch leaves."""

import math
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlTag

from manyfit.tracking import bulk
from manyfit.tracking.store import RefusedError, Store, Values

BATCHES = [
    [("loss", 0.5, 100, 0), ("loss", 0.25, 101, 1), ("gap", math.nan, 100, 0), ("lr", math.inf, 100, 0)],
    [("loss", 0.25, 101, 1), ("loss", 0.125, 102, 2), ("lr", -math.inf, 103, 1)],  # the first a second time
    [("loss", 1.0, 90, 1), ("gap", 2.0, 100, 0), ("gap", 2.0, 100, 0)],  # late, and twice in one
    [],
]
PARAMS = [[("lr", "0.1"), ("depth", "2")], [("lr", "0.1")], [], [("width", "w" * 6001)]]  # one again, one too long
TAGS = [[("a", "1"), ("b", "2")], [], [("a", "3")], [("c", "1"), ("c", "2")]]  # one changed, one twice in one


def rows(client: object, run_id: str) -> list[list[tuple[object, ...]]]:
    engine = client._tracking_client.store.engine  # type: ignore[attr-defined]
    found = []
    with engine.connect() as connection:
        for table in (SqlMetric, SqlLatestMetric):
            columns = (table.key, table.value, table.timestamp, table.step, table.is_nan)
            where = sqlalchemy.select(*columns).where(table.run_uuid == run_id)
            found.append(sorted(map(tuple, connection.execute(where))))
        for table in (SqlParam, SqlTag):
            where = sqlalchemy.select(table.key, table.value).where(table.run_uuid == run_id)
            found.append(sorted(row for row in map(tuple, connection.execute(where)) if row[0] != "mlflow.runName"))
    return found


def both(uri: str, root: Path) -> None:
    store = Store(uri, root)
    client, experiment = store.client, store.experiment("e")
    ours, other, theirs = (client.create_run(experiment).info.run_id for _ in range(3))
    for metrics, params, tags in zip(BATCHES, PARAMS, TAGS, strict=True):
        batch = [Metric(*m) for m in metrics], [Param(*p) for p in params], [RunTag(*t) for t in tags]
        assert bulk.insert(client, {ours: batch, other: batch}) == {ours, other}
        client.log_batch(theirs, *batch)
        assert rows(client, ours) == rows(client, other) == rows(client, theirs)
    assert client.get_run(ours).data.metrics == client.get_run(theirs).data.metrics


def test_what_log_batch_leaves(tmp_path: Path) -> None:
    both(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


@pytest.mark.slow
def test_what_log_batch_leaves_in_postgresql(tmp_path: Path, database: str) -> None:
    both(database, tmp_path)


def test_what_mlflow_refuses_is_left_to_it(tmp_path: Path) -> None:
    """A run that is gone, a param that changes, a name that is not allowed; those beside it are written."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    deleted, changed, wrong, fine = (store.client.create_run(store.experiment("e")).info.run_id for _ in range(4))
    store.client.delete_run(deleted)
    store.log(changed, Values(params=[("lr", "0.1")]))
    values = {
        deleted: Values(points=[("loss", 1.0, 1, 0)]),
        "0" * 32: Values(points=[("loss", 1.0, 1, 0)]),
        changed: Values(params=[("lr", "0.2")]),
        wrong: Values(points=[("a?b", 1.0, 1, 0)]),
        fine: Values(points=[("loss", 1.0, 1, 0)], params=[("lr", "0.2")], tags=[("a", "b")]),
    }
    assert store.log_all(values) == {fine}
    assert store.client.get_run(fine).data.params == {"lr": "0.2"}
    for run_id, its in values.items():
        if run_id != fine:
            with pytest.raises(RefusedError):
                store.log(run_id, its)


def test_a_name_is_mlflows_to_change(tmp_path: Path) -> None:
    """It stands in two tables."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    run_id = store.client.create_run(store.experiment("e")).info.run_id
    renamed = Values(tags=[("mlflow.runName", "other")])
    assert not store.log_all({run_id: renamed})
    store.log(run_id, renamed)
    assert store.client.get_run(run_id).info.run_name == "other"
