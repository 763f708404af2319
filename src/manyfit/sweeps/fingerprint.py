"""What makes the trials of two sessions comparable, and that a study goes on with nothing else."""

import json
from collections.abc import Mapping
from typing import Any

import optuna

from manyfit.config.earlier import DROPPED, today
from manyfit.config.errors import ConfigError
from manyfit.sweeps import space as spaces
from manyfit.sweeps.settings import Settings
from manyfit.training.prepared import Job

EARLIER: dict[str, Any] = {
    "sweep.seeds": 1,
    "data.drop": [],
    "data.keep": [],
    "data.categories": 50,
    "data.decimal": ".",
    "data.groups": None,
    "data.time": None,
    "data.target_scale": None,
    "data.folds": None,
    "data.fold": None,
    "data.shuffled": False,
    "model.weights": None,
    "model.curves.train": None,
    "model.curves.val": None,
    "loss.label_smoothing": 0.0,
    "metrics": [],
    "metrics_at": "epochs",
    "trainer.engine": "auto",
    "trainer.accumulate": 1,
}  # of studies that are older than the key
WHERE = ("trainer.cuda_graph",)  # how it runs, not what: part of older studies' fingerprints
DATA = "data, by their digest,"  # which older studies do not know


def fingerprint_of(settings: Settings, job: Job, space: Mapping[str, str]) -> dict[str, Any]:
    """What makes values of two sessions comparable: space, objective, and every setting but where it runs."""
    flat = job.config.flat().items()
    kept = {k: v for k, v in flat if k not in space and not k.startswith(("tracking.", "trainer.accelerator", *WHERE))}
    sought = {"objective": settings.objective.model_dump(), "direction": settings.direction, "seeds": settings.seeds}
    return {
        **kept,
        DATA: job.data.digest[:8],
        **{f"sweep.{key}": value for key, value in sought.items()},
        **{f"sweep.space.{key}": text for key, text in space.items()},
    }


def searched(study: optuna.Study) -> spaces.Space:
    """The space of a study, by its fingerprint; of one without by its trials."""
    known, prefix = study.user_attrs.get("fingerprint"), "sweep.space."
    told = known.items() if isinstance(known, dict) else ()
    if described := {key.removeprefix(prefix): text for key, text in told if key.startswith(prefix)}:
        return spaces.of_words(described)
    return {key: of for trial in study.get_trials(deepcopy=False) for key, of in trial.distributions.items()}


def require_same(study: optuna.Study, fingerprint: Mapping[str, Any]) -> None:
    """Note the fingerprint of a new study; refuse to go on with another one's."""
    now = json.loads(json.dumps(fingerprint, sort_keys=True, default=str))
    before = study.user_attrs.get("fingerprint")
    if before is None:
        study.set_user_attr("fingerprint", now)
        return
    if not isinstance(before, dict):
        raise ConfigError(
            f"sweep.study must be of a search, but nothing says what {study.study_name} is of. Give it another name."
        )
    before = {
        key: today(str(value)) if key.endswith("_target_") else value
        for key, value in before.items()
        if key not in (*DROPPED, *WHERE)
    }
    now = {key: value for key, value in now.items() if key not in WHERE}
    before = {key: EARLIER.get(key, value) for key, value in now.items() if key in (*EARLIER, DATA)} | before
    changed = [
        f"{key} must be {before.get(key, 'left out')} as in study {study.study_name}, but got {now.get(key, 'none')}."
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError("\n".join([*changed, "Set them back, or give sweep.study another name."]))
