"""An exported network -> the folder of an MLflow model."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from manyfit import data
from manyfit.data import columns, encoding, files, program, served, table
from manyfit.tracking.journal import Record

CARRIED = "rows_of_manyfit"
SERVED = f"{CARRIED}.served"
PYTHON = ".".join(map(str, sys.version_info[:3]))


def assemble(exported: Path, item: Record, run_id: str, model: LoggedModel) -> Path:
    """The folder of an MLflow model in its pytorch flavor, around an exported program.

    What `mlflow.pytorch.save_model` writes, without tracing the module a second time (and without importing torch).
    """
    folder = exported.parent / "model"
    target = folder / "data" / "model.pt2"
    if folder.is_symlink():  # not ours
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    target.parent.mkdir(parents=True)
    os.link(exported, target)
    rows = item.get("rows")
    made = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=None if rows else _signature(item),  # MLflow's takes no whole numbers for real ones, and no gaps
    )
    made.add_flavor("pytorch", model_data="data", pytorch_version=item["versions"]["torch"], code=None)
    if rows:
        (target.parent / served.FILE).write_text(json.dumps(rows))
        _carry(folder / "code" / CARRIED)
    made.add_flavor(
        "python_function",
        loader_module=SERVED if rows else "mlflow.pytorch",
        python_version=PYTHON,
        data="data",
        code="code" if rows else None,
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
    )
    made.save(str(folder / "MLmodel"))
    _requirements(folder, item["versions"] | {"mlflow": mlflow.__version__})
    return folder


def _signature(item: Record) -> ModelSignature:
    """Rows of the network's inputs, and its outputs."""
    inputs, outputs = (
        Schema([TensorSpec(np.dtype(kind), (-1, *shape))]) for kind, shape in (item["inputs"], item["outputs"])
    )
    return ModelSignature(inputs, outputs)


def _carry(folder: Path) -> None:
    """Put the modules that encode rows beside a model, as a package of another name: ours need not be installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in (data, files, columns, table, encoding, program, served):
        source = Path(str(module.__file__))
        (folder / source.name).write_text(source.read_text().replace(data.__name__, CARRIED))


def _requirements(folder: Path, versions: dict[str, str]) -> None:
    """The three files in which a model names what it needs (JSON is YAML)."""
    pins = [f"{name}=={version.split('+')[0]}" for name, version in sorted(versions.items())]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
    dependencies: list[Any] = [f"python={PYTHON}", "pip", {"pip": pins}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}
    (folder / "conda.yaml").write_text(json.dumps(conda, indent=2))
    virtual = {"python": PYTHON, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(virtual, indent=2))
