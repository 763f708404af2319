"""What a LightningModule logs, and which curve of a run it is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger

from manyfit.config import schema

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SHORT = {"acc": "accuracy"}
LOSSES = ("loss/train", "loss/val")


def stored(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def curve(name: str) -> str:
    """What a logged name is called among the curves: `val_acc`, `acc/val` and `val/acc` are `accuracy/val`."""
    words = re.split(r"[/_.\-\s]+", name)
    for place in (0, -1):
        if len(words) > 1 and (split := SPLITS.get(words[place].lower())):
            rest = "_".join(words[1:] if place == 0 else words[:-1])
            return stored(f"{SHORT.get(rest.lower(), rest)}/{split}")
    return stored(name)


def named(logged: Mapping[str, float], said: schema.Curves) -> dict[str, float]:
    """Logged values by curve; `said` names the losses of train and val, where their names do not."""
    theirs = {name: f"loss/{split}" for split, name in said}
    found = {theirs.get(name, curve(name)): logged[name] for name in own_names(logged)}
    if "loss/train" not in found and "loss" in found:  # as logged in a training_step
        found["loss/train"] = found.pop("loss")
    return found


def own_names(logged: Iterable[str]) -> list[str]:
    """Without those that Lightning adds to a value of steps and epochs."""
    every = set(logged)
    return sorted(n for n in every if not (n.endswith(("_step", "_epoch")) and n.rpartition("_")[0] in every))


class Curves(Logger):
    """What a module hands to its logger itself, such as `self.logger.log_metrics({"norm": 1.0})`."""

    name, version = "manyfit", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: ARG002
        """The last value of an epoch counts."""
        self.values |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config has them."""

    def taken(self) -> dict[str, float]:
        """What was logged since it was last asked for."""
        values, self.values = self.values, {}
        return {name: value for name, value in values.items() if name != "epoch"}


class NoLossError(ValueError):
    """An epoch without a loss of training or validation that can be found.

    Args:
        measured: Curves that there are.
        logged: What was logged.
    """

    def __init__(self, measured: Mapping[str, float], logged: Sequence[str]) -> None:
        splits = [split for split in ("train", "val") if f"loss/{split}" not in measured]
        names = " and ".join(f"{split}_loss" for split in splits)
        there = f"only {', '.join(own_names(logged))}" if logged else "nothing"
        super().__init__(
            f"model must log {names}, or the like, but {there} was logged in an epoch. Call self.log in training_step "
            "and validation_step, or say what is meant: "
            f"{' '.join(f'model.curves.{split}=ITS_NAME' for split in splits)}."
        )
