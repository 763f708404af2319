"""Runs read back from MLflow: what a claim is judged by is what the user sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyfit.tracking.store import OURS, PARENT, Store


@dataclass(frozen=True)
class StoredRun:
    """A run as the store has it.

    Attributes:
        params: As logged.
        tags: Ours and MLflow's.
        last: The last value of each metric; those measured once, such as `accuracy/test`, are complete.
        metrics: (epochs + 1,) curves by name, read when asked for; epochs without a value are NaN.
        status: FINISHED, FAILED or KILLED.
    """

    params: Mapping[str, str]
    tags: Mapping[str, str]
    last: Mapping[str, float]
    metrics: Mapping[str, np.ndarray]
    status: str = "FINISHED"


@dataclass(frozen=True)
class Named:
    """A run by MLflow's id and by ours, and its status."""

    run_id: str
    own_id: str
    status: str


class Curves(Mapping[str, np.ndarray]):
    """The metric histories of one run, each read once."""

    def __init__(self, store: Store, run_id: str, names: tuple[str, ...]) -> None:
        self.store, self.run_id, self.names = store, run_id, names
        self.read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """The curve by epoch."""
        if name not in self.read:
            if name not in self.names:
                raise KeyError(name)
            points = self.store.client.get_metric_history(self.run_id, name)
            curve = np.full(max(point.step for point in points) + 1, np.nan)
            for point in points:
                curve[point.step] = point.value
            self.read[name] = curve
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the metrics."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many metrics."""
        return len(self.names)


def children(uri: str, root: Path, experiment: str, parent: str) -> list[StoredRun]:
    """The runs under a parent run (MLflow's id), in the order of their start.

    Args:
        uri: The store.
        root: Folder that holds `mlruns/`.
        experiment: Its name.
        parent: MLflow's id of the parent run.
    """
    store = Store(uri, root)
    found = store.search(experiment, f"tags.`{PARENT}` = '{parent}'")
    return [
        StoredRun(
            run.data.params,
            run.data.tags,
            run.data.metrics,
            Curves(store, run.info.run_id, tuple(run.data.metrics)),
            run.info.status,
        )
        for run in sorted(found, key=lambda run: run.info.start_time)
    ]


def named(uri: str, root: Path, prefix: str) -> list[Named]:
    """The runs of ours of which MLflow's id, or our own, begins so; of any experiment.

    Args:
        uri: The store.
        root: Folder that holds `mlruns/`.
        prefix: Hexadecimal digits.
    """
    store = Store(uri, root)
    runs = [run for where in ("attributes.run_id", f"tags.`{OURS}`") for run in store.all(f"{where} LIKE '{prefix}%'")]
    return list(
        dict.fromkeys(
            Named(run.info.run_id, run.data.tags[OURS], run.info.status) for run in runs if OURS in run.data.tags
        )
    )
