"""One tracked run: what training hands its values to."""

import contextlib
import copy
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyfit.config.secrets import mask
from manyfit.tracking import journal

FINGERPRINT = "manyfit.tracking.fingerprint"  # a tag: of a run's config, data and code

if TYPE_CHECKING:
    import torch

    from manyfit.tracking.tracker import Tracker


@dataclass(frozen=True)
class DatasetRecord:
    """The data a run was trained on, for MLflow's dataset input.

    Attributes:
        name: Its name.
        digest: Hash of its content.
        source: Where it comes from.
        rows: Training examples.
        features: Inputs per example.
        targets: Classes, or 1 for regression.
    """

    name: str
    digest: str
    source: str
    rows: int
    features: int
    targets: int


class TrackedRun:
    """One run: thread-safe, and never blocked by MLflow. Made by `Tracker.start`; without a tracker it forgets.

    Args:
        tracker: Whose it is.
        name: What people call it.
        stored: Of one of an earlier session, which is over: our own id and MLflow's.

    Attributes:
        id: Our own id, 32 hex digits, in the tag `manyfit.id`.
        name: What people call it.
        ended: Whether `end` was called.
        missing: What could not be stored, and why.
    """

    def __init__(self, tracker: "Tracker | None", name: str, stored: tuple[str, str] | None = None) -> None:
        self.id: str = stored[0] if stored else os.urandom(16).hex()
        self._stored = stored[1] if stored else None
        self.name = name
        self.ended = False
        self.missing: dict[str, str] = {}
        self._tracker = tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None before the run exists there."""
        return self._tracker.acks().ids.get(self.id) if self._tracker else self._stored

    @property
    def place(self) -> tuple[str, str] | None:
        """Where it is in the store: the experiment's id, and the address of the artifacts."""
        return self._tracker.acks().places.get(self.id) if self._tracker else None

    def metrics(self, rows: Iterable[tuple[str, float, int]]) -> None:
        """Record (name, value, step); NaN and infinities included."""
        if values := [(key, float(value), int(step)) for key, value, step in rows]:
            self._append({"op": "metrics", "run": self.id, "rows": values})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; `mlflow.note.content` is the note at the top of the run's page."""
        self._append({"op": "tags", "run": self.id, "tags": {key: mask(str(value)) for key, value in tags.items()}})

    @contextlib.contextmanager
    def storing(self, what: str) -> Iterator[None]:
        """Whatever goes wrong within costs the run only this: one line says so, and the tag `not_stored`."""
        try:
            yield
        except Exception as error:  # of a figure, an export, the disk: what was trained is as good as before
            if what in self.missing:
                return
            self.missing[what] = mask(f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):  # without a terminal there is the tag
                print(f"not stored: {what} of run {self.name} ({self.missing[what]})", file=sys.stderr)
            self.tags({"not_stored": "; ".join(f"{name} ({why})" for name, why in self.missing.items())[:5000]})

    def file(self, name: str, content: bytes) -> None:
        """Store an artifact under its path, such as `figures/overfitting.png`."""
        if not self._tracker:
            return
        with self.storing(name):
            path = self._tracker._journal.file(Path(name).name, content)
            folder = str(Path(name).parent)
            self._append({"op": "file", "run": self.id, "path": path, "folder": None if folder == "." else folder})

    def model(
        self,
        module: "torch.nn.Module",
        example: np.ndarray,
        outputs: np.ndarray,
        rows: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the run's model, as a graph for any number of rows (torch.export, not pickled).

        Args:
            module: (rows, features) -> outputs, on any device.
            example: One row of inputs (1, features), float32.
            outputs: What the module gives for it (1, ...).
            rows: How rows of a file become inputs, see `manyfit.data.served`; None: it is served inputs.
        """
        if not self._tracker:
            return
        import torch

        with self.storing("model"):
            needed = ["numpy"] if rows is None else ["numpy", "pandas"]
            inputs = torch.from_numpy(np.repeat(example, 2, axis=0))  # a single row would be taken for a constant
            with torch.no_grad():
                program = torch.export.export(
                    copy.deepcopy(module).cpu().eval(), (inputs,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
                )
                packed = io.BytesIO()  # not to the disk: if that is full, torch's writer aborts the process
                torch.export.save(program, packed)
            self._append(
                {
                    "op": "model",
                    "run": self.id,
                    "path": self._tracker._journal.file("model.pt2", packed.getvalue()),
                    "inputs": [str(example.dtype), list(example.shape[1:])],
                    "outputs": [str(outputs.dtype), list(outputs.shape[1:])],
                    "versions": {"torch": str(torch.__version__)} | {name: version(name) for name in needed},
                    "rows": rows,
                }
            )

    def end(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        if status not in {"FINISHED", "FAILED", "KILLED"}:
            raise ValueError(f"status must be FINISHED, FAILED or KILLED, but got {status}.")
        self.ended = True
        self._append({"op": "end", "run": self.id, "status": status})

    def _append(self, record: journal.Record) -> None:
        if self._tracker:
            self._tracker.append(record)
