"""What trials come to: the mean over the runs of their seeds; what a study keeps of them; the rows of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from manyfit.config.schema import Config
from manyfit.sweeps.findings import value_of
from manyfit.sweeps.parent import Child
from manyfit.sweeps.settings import Settings

Ended = Literal["finished", "pruned", "diverged", "failed"]
CURVE = TypeAdapter[list[float | None] | None](list[float | None] | None, config=ConfigDict(strict=True))
LOSS = "loss/val"
DIVERGED: Literal["diverged"] = "diverged"


class Kept(BaseModel):
    """What a study keeps of a run, as far as it is read again."""

    model_config = ConfigDict(strict=True)

    ended: Literal[Ended, "stopped early"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    value: float | None = None
    loss_val: list[float | None] | None = None
    manyfit_run: str = ""
    mlflow_run_id: str | None = None


RUNS = TypeAdapter(list[Kept])


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        ended: One run that failed or diverged speaks for all; pruned are all or none.
        value: The mean of its runs' objectives; infinitely bad where one diverged, for samplers to learn from; NaN
            where one failed.
        curve: The mean of the objective's metric (epochs + 1,); a run that stopped early keeps its last value.
        runs: What the study keeps of each.
        error: Why one failed.
    """

    ended: Ended
    value: float
    curve: np.ndarray
    runs: list[dict[str, Any]]
    error: str | None = None


def outcome(children: Sequence[Child], settings: Settings) -> Outcome:
    """From the runs of a trial, one for each seed."""
    runs = [_kept(child, settings, alone=len(children) == 1) for child in children]
    results = [child.result for child in children if child.result]
    if len(results) < len(children):
        error = next(str(child.error) for child in children if not child.result)
        return Outcome("failed", float("nan"), np.array([]), runs, error)
    curve = _mean([result.metrics[settings.objective.metric] for result in results])
    value = float(np.mean([value_of(result, str(settings.objective), settings.direction) for result in results]))
    reasons = {result.reason for result in results}
    if DIVERGED in reasons or np.isnan(value):
        return Outcome(DIVERGED, float("inf" if settings.direction == "minimize" else "-inf"), curve, runs)
    return Outcome("pruned" if "pruned" in reasons else "finished", value, curve, runs)


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """The objective's metric by epoch, 0 being before training; an earlier version kept it in an attribute."""
    kept = CURVE.validate_python(trial.user_attrs.get("curve"))
    found = trial.intermediate_values if kept is None else dict(enumerate(kept))
    return {epoch: float("nan") if value is None else value for epoch, value in sorted(found.items())}


def runs_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """What was kept of a trial's runs; an earlier version had one, and its parts in attributes of their own.

    Raises:
        ValueError: It is not what a search keeps, see `readable`.
    """
    attributes = trial.user_attrs
    found = attributes.get("runs", [])
    if "runs" not in attributes and "manyfit_run" in attributes:
        keys = "manyfit_run", "mlflow_run_id", "seed", "ended"
        loss = attributes.get("loss_val", attributes.get("curve"))
        found = [{key: attributes.get(key) for key in keys} | {"value": trial.value, "loss_val": loss}]
    return [run.model_dump() for run in RUNS.validate_python(found)]


def readable(trial: FrozenTrial) -> bool:
    """Whether what a study keeps of a trial is what a search would have written: anybody may have."""
    try:
        _ = runs_of(trial), curve_of(trial), trial.value
    except (RuntimeError, ValueError):  # Optuna's, where it has several values
        return False
    return True


def rows(
    trial: FrozenTrial,
    children: Mapping[str, Child],
    ids: Mapping[str, str],
    seed: int,
    config_of: Callable[[Mapping[str, Any], int], Config],
) -> list[dict[str, Any]]:
    """A trial's runs as arguments of findings.Row.

    Args:
        trial: Of this session or an earlier one.
        children: Of this session, by our own id.
        ids: MLflow's, by our own.
        seed: Where a trial says none.
        config_of: The config of a trial's values and a seed.
    """
    found = runs_of(trial) or [Kept(ended="failed").model_dump()]
    return [_row(trial, run, children.get(run["manyfit_run"]), ids, seed, config_of) for run in found]


def _row(
    trial: FrozenTrial,
    run: Mapping[str, Any],
    child: Child | None,
    ids: Mapping[str, str],
    default_seed: int,
    config_of: Callable[[Mapping[str, Any], int], Config],
) -> dict[str, Any]:
    state = "finished" if run["ended"] == "stopped early" else run["ended"]
    if trial.user_attrs.get("ended") == "pruned" and state == "finished":  # it had stopped early by itself
        state = "pruned"
    seed = trial.params.get("seed", default_seed) if run["seed"] is None else run["seed"]
    loss = run["loss_val"] or list(curve_of(trial).values())
    config = child.config if child else config_of(trial.params, seed) if state == "finished" else None
    return {
        "number": trial.number,
        "params": {key: value for key, value in trial.params.items() if key != "seed"},
        "value": float("nan") if run["value"] is None or state == DIVERGED else run["value"],
        "state": state,
        "seed": seed,
        "loss_val": np.array(loss, dtype=float) if loss else None,
        "run": child.run if child else None,
        "run_id": (child.run.run_id if child else None) or ids.get(run["manyfit_run"]),
        "config": config,
        "result": child.result if child else None,
    }


def _kept(child: Child, settings: Settings, alone: bool) -> dict[str, Any]:
    """What the study keeps of a run; its curve, where it is not that of the trial."""
    known: dict[str, Any] = {"manyfit_run": child.run.id, "mlflow_run_id": child.run.run_id, "seed": child.config.seed}
    if child.result is None:
        return {**known, "ended": "failed", "error": str(child.error)[:2000]}
    result, value = child.result, value_of(child.result, str(settings.objective), settings.direction)
    known |= {"ended": result.reason if np.isfinite(value) else DIVERGED, "test": dict(result.test)}
    known["value"] = value if np.isfinite(value) else None
    if not alone or settings.objective.metric != LOSS:
        known["loss_val"] = [float(f"{v:.7g}") if np.isfinite(v) else None for v in result.metrics[LOSS]]
    return known  # as JSON, which knows no NaN


def _mean(curves: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(len(curve) for curve in curves)
    padded = [np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in curves]
    return np.asarray(np.mean(padded, axis=0))
