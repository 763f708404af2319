"""What a person sees: one live line while training, and the closing summary."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from manyfit import curves
from manyfit.jobs import Job, Result
from manyfit.recording import score

REDRAW = 0.1  # seconds; nothing is formatted in between


@dataclass(frozen=True)
class Beside:
    """How far a sweep has come: runs done, runs in all, the best validation loss so far."""

    done: int
    total: int
    best: float = np.inf


class Progress:
    """A live line: epochs, losses, gap, time left; in a sweep, runs done as well. Quiet when this is not a terminal.

    Args:
        jobs: What is training now.
        beside: Of the sweep they belong to.
    """

    def __init__(self, jobs: Sequence[Job], beside: Beside | None = None) -> None:
        self.console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            *([] if beside else [MofNCompleteColumn()]),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        epochs = jobs[0].config.epochs
        self.sweep, self.members, self.epochs = beside, len(jobs), epochs
        self.done, total = (beside.done, beside.total) if beside else (0, 0)
        self.best = beside.best if beside else np.inf
        title = f"{self.done} of {total} runs done" if beside else jobs[0].config.title()
        self.task = self.bar.add_task(
            title, total=max(total, len(jobs)) * epochs, completed=self.done * epochs, losses=""
        )
        self.drawn = 0.0

    def __enter__(self) -> "Progress":
        """Start drawing."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the line."""
        self.bar.stop()

    def epoch(self, epoch: int, members: np.ndarray, measured: Mapping[str, np.ndarray]) -> None:
        """Redraw, at most every `REDRAW` seconds."""
        self.best = min(self.best, float(np.nan_to_num(measured["loss/val"], nan=np.inf).min()))
        if self.bar.disable or time.monotonic() - self.drawn < REDRAW:
            return
        self.drawn = time.monotonic()
        if self.sweep:
            text = f"{len(members)} training, best loss/val {self.best:.4g}"
        else:
            text = "  ".join(f"{name} {measured[f'loss/{name}'][0]:.4g}" for name in ("train", "val", "gap"))
        ended = (self.members - len(members)) * self.epochs
        self.bar.update(self.task, completed=self.done * self.epochs + ended + len(members) * epoch, losses=text)


def summary(result: Result, where: str) -> str:
    """The end of a run in five lines: test score, best epoch, verdict in words, seconds, where to look."""
    s = result.summary
    epochs = len(result.metrics["loss/val"]) - 1
    lines: list[tuple[str, Any]] = [
        ("run", f"{result.config.experiment}: {result.config.title()}"),
        ("test", f"{score(result)}, with the weights of epoch {s.best_epoch}"),
        ("best epoch", f"{s.best_epoch} of {epochs} (loss/val {s.best_loss_val:.4g}, gap {s.best_gap:.4g})"),
        ("verdict", curves.sentence(s)),
        ("training", f"{result.seconds:.1f} s, {result.metrics['progress/steps'][-1]:.0f} steps"),
        ("look", where),
    ]
    return "\n".join(f"{name:>11}  {text}" for name, text in lines)
