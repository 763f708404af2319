"""Imports run downward only, and each outside library has one door."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

LEVELS = [
    {"credentials"},
    {
        "tables",
        "models",
        "dense",
        "dropout",
        "optimizers",
        "schedules",
        "curves",
        "config",
        "provenance",
        "screen",
        "manual",
        "statistics",
        "tracking",
    },
    {"sources", "data", "losses", "figures", "best", "cli", "checkpoints", "devices", "ranks", "captured", "kernels"},
    {"population"},
    {"jobs", "evaluation"},
    {"module", "recording", "grouping", "rank_process", "checking"},
    {"terminal", "probes", "claims", "distributed", "workers"},
    {"training"},
    {"reports"},
    {"experiments", "resume"},
    {"parent"},
    {"command"},
    {"sweeps"},
]
DOORS = {
    "mlflow": {"tracking"},
    "optuna": {"sweeps"},
    "hydra": {"reports", "sweeps"},
    "omegaconf": {"config", "command", "experiments", "reports", "resume", "sweeps"},
    "matplotlib": {"claims", "figures", "reports"},
}
SOURCE = ROOT / "src" / "manyfit"
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every imported module of a file, whole names, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_run_downward(path: Path) -> None:
    """A module imports only from levels below its own."""
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if name == "__init__":
        return
    assert name in level, f"{name} is on no level"
    others = {found.split(".")[1] for found in imports(path) if found.startswith("manyfit.")} - {name}
    assert not {other for other in others if level.get(other, -1) >= level[name]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_libraries_have_one_door(path: Path) -> None:
    """mlflow, hydra, omegaconf and matplotlib and optuna have one door each."""
    tops = {name.split(".")[0] for name in imports(path)}
    for library, doors in DOORS.items():
        assert library not in tops or path.relative_to(SOURCE).parts[0].removesuffix(".py") in doors
