"""Runs read back from MLflow."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.search_utils import SearchUtils

from manyfit.config.secrets import mask
from manyfit.tracking.bulk import LARGEST
from manyfit.tracking.journal import resolve_uri
from manyfit.tracking.packaging import SERVED
from manyfit.tracking.run import FINGERPRINT
from manyfit.tracking.store import OURS, PARENT, RefusedError, Store, explain
from manyfit.tracking.upkeep import settle

HIDDEN = ("mlflow.", "manyfit.tracking")  # tags that are no reader's business
KIND = "manyfit.kind"  # a tag of parent runs
PLAIN = ("seed", "batch_size", "epochs", "eval_train_size", "checkpoint", "probes")  # params whose key has no dot
METRICS = ("lr", "dead_units", "gradient_noise", "update_angle", "examples_per_second")  # without a slash
BARE = re.compile(  # quoted text; or a name that no kind stands before, what it is compared by, and a number
    r"""'[^']*'|"[^"]*"|`[^`]*`|(?<![.\w])(?!(?:params|tags|metrics|attributes)\.)"""
    r"([A-Za-z_][\w./]*)\s*((?:==|=|!=|<=?|>=?|(?i:I?LIKE)\b)(?:\s+(?=[-.\d]))?)([-+.\d][-+.\w]*)?"
)
COLUMNS = {"id": "run_id", "name": "run_name", "status": "status"}  # what MLflow calls them


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


def named(uri: str | None, root: Path, prefix: str) -> list[Named]:
    """The runs of ours of which MLflow's id, or our own, begins so; of any experiment.

    Args:
        uri: The store, None for the default (see `resolve_uri`).
        root: Folder that holds `mlruns/`.
        prefix: Hexadecimal digits.

    Raises:
        ValueError: The store does not answer.
    """
    with _asked(uri, root) as store:
        runs = [r for where in ("attributes.run_id", f"tags.`{OURS}`") for r in store.all(f"{where} LIKE '{prefix}%'")]
    return list(
        dict.fromkeys(
            Named(run.info.run_id, run.data.tags[OURS], run.info.status) for run in runs if OURS in run.data.tags
        )
    )


@dataclass(frozen=True)
class Kept:
    """What is stored of one run: its name, status, params, tags, its data's digest, its config as YAML, its last epoch.

    And the folder of its network, if it kept one that takes rows of a file.
    """

    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    digest: str
    config: str
    model: Path | None
    epochs: int


def kept(uri: str | None, root: Path, run_id: str) -> Kept:
    """A run by MLflow's id.

    Raises:
        ValueError: The store does not answer.
    """
    with _asked(uri, root) as store:
        run = store.client.get_run(run_id)
        trained = KIND not in run.data.tags
        config = Path(store.client.download_artifacts(run_id, "config.yaml")).read_text() if trained else ""
        has = run.outputs and run.outputs.model_outputs
        model = _model(store, has[-1].model_id) if has else None
        inputs = run.inputs.dataset_inputs if trained and run.inputs else []
        digest = inputs[0].dataset.digest if inputs else ""
        epochs = max([point.step for point in store.client.get_metric_history(run_id, "loss/val")], default=0)
        return Kept(run.info.run_name, run.info.status, run.data.params, run.data.tags, digest, config, model, epochs)


@dataclass(frozen=True)
class Stored:
    """A run of a sweep, or its parent: ids, status, tags, params, and its metrics, by name: (epochs + 1,) or (1,)."""

    run_id: str
    own_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, np.ndarray]


def children(uri: str | None, root: Path, parent: str) -> tuple[Stored | None, list[Stored], list[str]]:
    """The parent run that has this id of ours, None if there is none, and its runs that have a fingerprint.

    What killed sessions have left is delivered, or waited for, before; the last are sentences on what is held back.

    Raises:
        ValueError: The store does not answer.
    """
    with _asked(uri, root) as store:
        held = settle(store)
        found = store.all(f"tags.`{OURS}` = '{parent}'")
        if not found:
            return None, [], held
        run_id = found[0].info.run_id
        runs = store.among([found[0].info.experiment_id], f"tags.`{PARENT}` = '{run_id}'")
        runs = [run for run in runs if FINGERPRINT in run.data.tags]
        points = store.histories([run.info.run_id for run in runs if run.info.status == "FINISHED"])
    return _stored(found[0], {}), [_stored(run, points.get(run.info.run_id, {})) for run in runs], held


def stopped(uri: str | None, root: Path, own_id: str) -> str | None:
    """MLflow's id of the run that has this id of ours, once what killed sessions have left is there; None: of none.

    Raises:
        ValueError: The store does not answer.
    """
    with _asked(uri, root) as store:
        settle(store)
        found = store.all(f"tags.`{OURS}` = '{own_id}'")
    return str(found[0].info.run_id) if found else None


def _stored(run: Run, points: Mapping[str, Mapping[int, float]]) -> Stored:
    curves = {}
    for name, values in points.items():
        curves[name] = np.full(max(values) + 1, np.nan)
        curves[name][list(values)] = [np.copysign(np.inf, v) if abs(v) == LARGEST else v for v in values.values()]
    info, data = run.info, run.data
    return Stored(info.run_id, data.tags[OURS], info.status, data.tags, data.params, curves)


def _model(store: Store, model_id: str) -> Path | None:
    place = store.client.get_logged_model(model_id).artifact_location
    folder = Path(mlflow.artifacts.download_artifacts(place, tracking_uri=store.uri))
    loader = Model.load(str(folder)).flavors["python_function"]["loader_module"]
    return folder / "data" if loader == SERVED else None


def table(uri: str | None, root: Path, experiment: str | None, where: str) -> pd.DataFrame:
    """A row for each run of training: id, experiment, name, status, began, then tags, params and last metrics.

    Args:
        uri: The store, None for the default (see `resolve_uri`).
        root: Folder that holds `mlruns/`.
        experiment: Its name; None: of all.
        where: See `filtered`.

    Raises:
        ValueError: There is no such experiment, none of its runs has what `where` names, or the store does not answer.
    """
    try:
        SearchUtils.parse_search_filter(filtered(where))  # type: ignore[no-untyped-call]  # MLflow leaves it untyped
    except MlflowException as error:
        raise _not_understood(error) from None
    with _asked(uri, root) as store:
        names = {e.experiment_id: e.name for e in store.client.search_experiments()}
        if experiment is not None and experiment not in names.values():
            near = difflib.get_close_matches(experiment, names.values(), n=1)
            known = sorted(set(names.values()) - {"Default"})
            advice = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"experiment must be one of {', '.join(known)}, but got {experiment!r}.{advice}")
        chosen = [id_ for id_, name in names.items() if experiment in (None, name)]
        try:
            found = store.among(chosen, filtered(where))
        except RefusedError as error:
            raise _not_understood(error) from None
        if where and not found:
            _require_names(where, store.among(chosen, ""))
    rows = [
        {
            "id": run.info.run_id,
            "experiment": names[run.info.experiment_id],
            "name": run.info.run_name,
            "status": run.info.status,
            "began": pd.Timestamp(run.info.start_time, unit="ms"),
            **{key: value for key, value in run.data.tags.items() if not key.startswith(HIDDEN)},
            **{key: value for key, value in run.data.params.items() if key != "name"},  # of the experiment
            **run.data.metrics,
        }
        for run in found
        if OURS in run.data.tags and KIND not in run.data.tags
    ]
    return pd.DataFrame(rows, columns=None if rows else ["id", "experiment", "name", "status", "began"])


def filtered(where: str) -> str:
    """MLflow's filter from one with bare names: `optimizer.lr = '0.01' and accuracy/test > 0.9`.

    A name with a slash is a metric's, one with a dot a param's, any other but a few a tag's, as `optimizer = 'adam'`;
    what is compared with a number and is no param is a metric.

    Raises:
        ValueError: A param or a tag is compared by its size: both are text.
    """

    def full(match: re.Match[str]) -> str:
        name, comparison, number = match.groups()
        if name is None:
            return match[0]
        comparison = comparison.strip().replace("==", "=")
        kind = _kind(name, number)
        if kind in ("params", "tags") and comparison[0] in "<>":
            raise ValueError(
                f"where must compare what is stored as text by = or LIKE, but got {name} {comparison}. Filter the "
                f"frame: frame[frame[{name!r}].astype(float) {comparison} {number or 0}]."
            )
        value = "" if number is None else number if kind == "metrics" else f"'{_as_stored(number)}'"
        return f"{kind}.`{COLUMNS.get(name, name)}` {comparison} {value}"

    return BARE.sub(full, where)


def histories(uri: str | None, root: Path, ids: Sequence[str]) -> pd.DataFrame:
    """A row for each run and epoch, a column for each metric that has more than one value.

    Args:
        uri: The store, None for the default (see `resolve_uri`).
        root: Folder that holds `mlruns/`.
        ids: MLflow's, of runs.

    Raises:
        ValueError: The store does not answer.
    """
    frames = []
    with _asked(uri, root) as store:
        for run_id in ids:
            curves = Curves(store, run_id, tuple(store.client.get_run(run_id).data.metrics))
            frame = pd.DataFrame({name: pd.Series(curve) for name, curve in curves.items() if len(curve) > 1})
            frames.append(frame.rename_axis("epoch").reset_index().assign(id=run_id))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _not_understood(error: Exception) -> ValueError:
    return ValueError(f"where must be a filter that MLflow understands, but it says: {error}")


def _kind(name: str, number: str | None) -> str:
    """What MLflow calls what has this name, and is compared with a number or not."""
    if name in COLUMNS:
        return "attributes"
    if "/" in name or name in METRICS:
        return "metrics"
    return "params" if "." in name or name in PLAIN else "metrics" if number else "tags"


def _as_stored(number: str) -> str:
    """As a param is written: 1e-3 is 0.001."""
    try:
        return str(float(number)) if re.search("[.eE]", number) else number
    except ValueError:
        return number


def _require_names(where: str, runs: Sequence[Run]) -> None:
    """Raise ValueError if a filter that none of these runs has passed has a name that none has."""
    known = _names(runs)
    for name, _, number in BARE.findall(where) if runs else ():
        if not name or name in COLUMNS or name in known[_kind(name, number)]:
            continue
        if other := next((kind for kind, names in known.items() if name in names), None):
            raise ValueError(f"where must say what {name} is: write {other}.`{name}`.")
        near = difflib.get_close_matches(name, {*COLUMNS, *(name for names in known.values() for name in names)}, 3)
        advice = f"Did you mean {' or '.join(near)}?" if near else "Those of the columns of runs() can be asked for."
        raise ValueError(f"where must name what a run has, but no run here has {name!r}. {advice}")


def _names(runs: Sequence[Run]) -> dict[str, set[str]]:
    """What can be asked of these runs, by kind."""
    data = [run.data for run in runs]
    return {
        "tags": {name for one in data for name in one.tags if not name.startswith(HIDDEN)},
        "params": {name for one in data for name in one.params},
        "metrics": {name for one in data for name in one.metrics},
    }


@contextlib.contextmanager
def _asked(uri: str | None, root: Path) -> Iterator[Store]:
    """The store, to be asked something.

    Raises:
        ValueError: It does not answer.
    """
    uri = resolve_uri(uri, root)
    try:
        yield Store(uri, root)
    except ValueError:
        raise
    except Exception as error:  # MLflow's, and those of what it goes through
        raise ValueError(
            f"tracking.uri must be a store that answers, but {mask(uri)} does not: {explain(error)}"
        ) from None
