"""Fit many networks as one, and watch each of them overfit: `manyfit.fit`, `grid`, `search`; `runs` and `histories`."""

import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from manyfit.config.errors import ConfigError, TrainingError
    from manyfit.library import fit, grid, histories, runs, search
    from manyfit.results import Run, Runs

HOMES = {
    "manyfit.library": ("fit", "grid", "search", "runs", "histories"),
    "manyfit.results": ("Run", "Runs"),
    "manyfit.config.errors": ("ConfigError", "TrainingError"),
}
__all__ = ["ConfigError", "Run", "Runs", "TrainingError", "fit", "grid", "histories", "runs", "search"]


def __getattr__(name: str) -> Any:
    """What is public, once it is asked for: a command has other things to import first."""
    if name not in __all__:
        raise AttributeError(f"module 'manyfit' has no attribute {name!r}")
    home = next(home for home, names in HOMES.items() if name in names)
    return getattr(importlib.import_module(home), name)
