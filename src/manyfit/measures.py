"""What outputs are measured by besides the loss: torchmetrics' functions by name, or a function of one's own."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manyfit.config.build import place_of
from manyfit.config.errors import ConfigError
from manyfit.config.trust import require_trusted, resolved
from manyfit.losses import CLASSIFICATION

Function = Callable[[Tensor, Tensor], Any]
"""From outputs and targets to a number: probabilities (n, classes) and class numbers (n,), or values (n,) and (n,)."""


@dataclass(frozen=True)
class Known:
    """A function of torchmetrics.functional, with its options."""

    function: str
    better: str
    options: Mapping[str, Any]


MACRO = {"average": "macro"}
OF_CLASSES = {
    "auc": Known("classification.multiclass_auroc", "maximize", MACRO),  # one class against the rest, their mean
    "f1": Known("classification.multiclass_f1_score", "maximize", MACRO),
    "precision": Known("classification.multiclass_precision", "maximize", MACRO),
    "recall": Known("classification.multiclass_recall", "maximize", MACRO),
    "balanced_accuracy": Known("classification.multiclass_accuracy", "maximize", MACRO),  # mean recall of the classes
    "mcc": Known("classification.multiclass_matthews_corrcoef", "maximize", {}),
    "ece": Known("classification.multiclass_calibration_error", "minimize", {"n_bins": 15}),  # Guo et al. 2017, eq. 3
}
OF_VALUES = {
    "mae": Known("mean_absolute_error", "minimize", {}),
    "mape": Known("mean_absolute_percentage_error", "minimize", {}),
    "spearman": Known("spearman_corrcoef", "maximize", {}),
}


def better(name: str) -> str | None:
    """Whether a measure is to be had large, `maximize`, or small; None: of a function of one's own nobody knows."""
    known = (OF_CLASSES | OF_VALUES).get(name)
    return known.better if known else None


def called(name: str) -> str:
    """What a measure is called in curves: `mychecks.top5` is `top5`."""
    return name.rpartition(".")[2]


def measure(name: str, task: str, classes: int, trusted: Sequence[str] = ()) -> Function:
    """The function of a name.

    Raises:
        ConfigError: There is none, or it is not for this task.
    """
    ours, theirs = (OF_CLASSES, OF_VALUES) if task == CLASSIFICATION else (OF_VALUES, OF_CLASSES)
    if name in ours:
        known = ours[name]
        module, _, function = f"torchmetrics.functional.{known.function}".rpartition(".")
        options = {"num_classes": classes, "validate_args": False} if task == CLASSIFICATION else {}
        return functools.partial(getattr(import_module(module), function), **options, **known.options)
    usual = f"one of {', '.join(ours)}, or a function of yours by its dotted name"
    if "." not in name:
        other = ", which is for the other task" if name in theirs else ""
        near = difflib.get_close_matches(name, ours, n=1)
        advice = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"metrics must hold {usual}, but got {name!r}{other}.{advice}")
    return function_of(name, "metrics", trusted)


def function_of(name: str, key: str, trusted: Sequence[str] = ()) -> Callable[..., Any]:
    """The function of a dotted name, which stands under a key.

    Raises:
        ConfigError: It is not trusted, there is none, or it is no function.
    """
    require_trusted(name, key, trusted)
    try:
        function = resolved(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key} must hold functions that can be imported, but got {name!r} ({error}).") from None
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{key} must hold functions, but got {name!r}, which is none.")
    return function  # type: ignore[no-any-return]


def tried(name: str, function: Function, outputs: Tensor, targets: Tensor) -> None:
    """Raise ConfigError unless a measure makes one number of such outputs and targets."""
    shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
    try:
        got = function(outputs, targets)
    except Exception as error:
        raise ConfigError(f"metrics: {name} must take {shapes}, but says: {error}{place_of(error)}.") from error
    size = np.size(got.detach().cpu().numpy() if isinstance(got, Tensor) else got)
    if size != 1 or not isinstance(got, Tensor | int | float | np.number):
        shape = tuple(got.shape) if hasattr(got, "shape") else type(got).__name__
        raise ConfigError(f"metrics: {name} must make one number of {shapes}, but made {shape}.")


def numbers(name: str, function: Callable[..., Any], network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """What a function of the user's says of a network, by metric."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        said = function(network, x, y)
    parts = {f"{name}/{part}": value for part, value in said.items()} if isinstance(said, Mapping) else {name: said}
    return {re.sub(r"[^\w\-./: ]", "_", part): float(value) for part, value in parts.items()}  # as MLflow takes it
