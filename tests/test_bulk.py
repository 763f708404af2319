"""Values straight into MLflow's tables: what is there afterwards is what MLflow's own log_batch leaves."""

import math
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.entities import Metric
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric

from manyfit.tracking import points
from manyfit.tracking.store import RefusedError, Store, Values

BATCHES = [
    [("loss", 0.5, 100, 0), ("loss", 0.25, 101, 1), ("gap", math.nan, 100, 0), ("lr", math.inf, 100, 0)],
    [("loss", 0.25, 101, 1), ("loss", 0.125, 102, 2), ("lr", -math.inf, 103, 1)],  # the first a second time
    [("loss", 1.0, 90, 1), ("gap", 2.0, 100, 0), ("gap", 2.0, 100, 0)],  # late, and twice in one
]


def rows(client: object, run_id: str) -> list[list[tuple[object, ...]]]:
    engine = client._tracking_client.store.engine  # type: ignore[attr-defined]
    found = []
    with engine.connect() as connection:
        for table in (SqlMetric, SqlLatestMetric):
            columns = (table.key, table.value, table.timestamp, table.step, table.is_nan)
            where = sqlalchemy.select(*columns).where(table.run_uuid == run_id)
            found.append(sorted(map(tuple, connection.execute(where))))
    return found


def both(uri: str, root: Path) -> None:
    store = Store(uri, root)
    client, experiment = store.client, store.experiment("e")
    ours, theirs = (client.create_run(experiment).info.run_id for _ in range(2))
    for batch in BATCHES:
        metrics = [Metric(*point) for point in batch]
        assert points.insert(client, ours, metrics)
        client.log_batch(theirs, metrics)
        assert rows(client, ours) == rows(client, theirs)
    assert client.get_run(ours).data.metrics == client.get_run(theirs).data.metrics


def test_what_log_batch_leaves(tmp_path: Path) -> None:
    both(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


@pytest.mark.slow
def test_what_log_batch_leaves_in_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # pgserver's lock file; unset, there would be a warning
    import pgserver

    with pgserver.get_server(tmp_path / "pg") as server:
        both(server.get_uri().replace("postgresql://", "postgresql+psycopg://"), tmp_path)


def test_a_run_that_is_gone_is_refused(tmp_path: Path) -> None:
    """As MLflow refuses it."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    run_id = store.client.create_run(store.experiment("e")).info.run_id
    store.client.delete_run(run_id)
    for gone in (run_id, "0" * 32):
        assert not points.insert(store.client, gone, [Metric("loss", 1.0, 1, 0)])
        with pytest.raises(RefusedError):
            store.log(gone, Values(points=[("loss", 1.0, 1, 0)]))
