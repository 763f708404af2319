"""Imports run downward only, and each outside library has one door."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

LEVELS = [
    {"models", "dense", "dropout", "optimizers", "schedules", "curves", "config", "tables", "spool", "provenance"},
    {"store", "losses", "sources", "data", "figures"},
    {"population"},
    {"jobs", "delivery"},
    {"courier"},
    {"tracking"},
    {"module", "recording"},
    {"terminal"},
    {"training"},
    {"command", "cli"},
]
DOORS = {
    "mlflow": {"store"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "matplotlib": {"figures"},
}
MODULES = sorted((ROOT / "src" / "manyfit").glob("*.py"))


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
    if path.stem == "__init__":
        return
    assert path.stem in level, f"{path.name} is on no level"
    own = {name.split(".")[1] for name in imports(path) if name.startswith("manyfit.")}
    above = {name for name in own if level.get(name, -1) >= level[path.stem]}
    assert not above


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_libraries_have_one_door(path: Path) -> None:
    """mlflow, hydra, omegaconf and matplotlib are imported in one module each."""
    tops = {name.split(".")[0] for name in imports(path)}
    for library, doors in DOORS.items():
        assert library not in tops or path.stem in doors
