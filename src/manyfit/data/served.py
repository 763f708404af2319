"""A model of a table as MLflow serves it: rows as they stand in the file in, classes by name and probabilities out.

It travels with the model, beside the modules that it imports (`tracking/packaging.py`), and needs nothing else of ours.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.data import program
from manyfit.data.encoding import Encoding
from manyfit.data.files import Frame

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]
FILE = "rows.json"


def written(encoding: Encoding, classes: tuple[str, ...]) -> Record:
    """What a served model has to know of its table, as JSON."""
    return {
        "target": encoding.target,
        "classes": classes,
        "inputs": encoding.inputs,
        "columns": dict(encoding.columns),
        "medians": None if encoding.medians is None else encoding.medians.tolist(),
    }


def read(record: Record) -> Encoding:
    """The encoding of a `written` record."""
    medians = None if record["medians"] is None else np.array(record["medians"])
    inputs = tuple((column, category) for column, category in record["inputs"])
    return Encoding(inputs, record["columns"], medians, {}, record["target"])


class Served:
    """What MLflow asks for predictions.

    Args:
        encoding: Of rows.
        classes: Names of the network's outputs; none: it predicts values.
        network: From inputs (rows, d) to probabilities (rows, classes), or values (rows, 1).
    """

    def __init__(self, encoding: Encoding, classes: Sequence[str], network: Any) -> None:
        self.encoding, self.classes, self.network = encoding, classes, network

    def answers(self, rows: Frame) -> "pd.DataFrame":
        """Of each row the target; of classes a probability each, too.

        Args:
            rows: With the columns of the file, in any order, others beside them; or with the network's inputs.
        """
        return self._named(self.encoding.of_frame(rows), rows.data.index)

    def predict(self, rows: "pd.DataFrame | np.ndarray", params: Record | None = None) -> "pd.DataFrame":  # noqa: ARG002  # MLflow's
        """As `answers`, of a frame, or of the network's inputs (rows, d)."""
        import pandas as pd

        if isinstance(rows, pd.DataFrame):
            return self.answers(Frame(rows, "the frame", "x"))
        return self._named(np.asarray(rows), pd.RangeIndex(len(rows)))

    def _named(self, x: Any, index: Any) -> "pd.DataFrame":
        import pandas as pd
        import torch

        with torch.no_grad():
            found = self.network(torch.from_numpy(x.astype(np.float32))).numpy()
        if not self.classes:
            return pd.DataFrame({self.encoding.target: found[:, 0]}, index=index)
        named = pd.DataFrame({self.encoding.target: np.array(self.classes)[found.argmax(1)]}, index=index)
        return named.assign(**{f"p({name})": found[:, i] for i, name in enumerate(self.classes)})


def load(folder: Path) -> Served:
    """The model whose network and record lie in a folder."""
    record = json.loads((folder / FILE).read_text())
    return Served(read(record), record["classes"], program.load(folder / "model.pt2"))


def _load_pyfunc(path: str) -> Served:
    """MLflow's way to ask for a model."""
    return load(Path(path))
