"""What a person sees: one live line while training, and the closing summary."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from manyfit import curves
from manyfit.jobs import Job, Result
from manyfit.module import Report
from manyfit.recording import devices, score

REDRAW = 0.1  # seconds; nothing is formatted in between


@dataclass
class _Population:
    """How far the runs are that train together."""

    members: int
    epochs: int
    present: int
    epoch: int = 0

    @property
    def done(self) -> float:
        """In runs."""
        return self.members - self.present + self.present * self.epoch / self.epochs


class Progress:
    """A live line: epochs, losses, gap, time left; in a sweep, runs done as well. Quiet when this is not a terminal.

    Args:
        runs: Of the sweep in all; None: a run by itself.
        done: Of them.
        best: Validation loss so far.
    """

    def __init__(self, runs: int | None = None, done: int = 0, best: float = np.inf) -> None:
        self.console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            *([] if runs else [MofNCompleteColumn()]),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.runs, self.done, self.best = runs, done, best
        self.populations: list[_Population] = []
        self.task = self.bar.add_task("", total=runs, completed=done, losses="")
        self.drawn = 0.0

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Whatever goes wrong within costs the display, not what is being trained: it is said once."""
        try:
            yield
        except Exception as error:  # a terminal that is gone, for one
            with contextlib.suppress(OSError):
                if not self.bar.disable:
                    print(f"no progress is shown: {error}", file=sys.stderr)
            self.bar.disable = True

    def __enter__(self) -> "Progress":
        """Start drawing."""
        with self._drawing():
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the line."""
        with self._drawing():
            self.bar.stop()

    @contextlib.contextmanager
    def population(self, jobs: Sequence[Job]) -> Iterator[Report]:
        """Some runs are training, whose epochs are told to what this yields."""
        ours = _Population(len(jobs), jobs[0].config.epochs, len(jobs))
        self.populations.append(ours)
        if self.runs is None:
            with self._drawing():
                self.bar.update(self.task, total=ours.epochs, description=jobs[0].config.title())

        def report(epoch: int, members: np.ndarray, measured: Mapping[str, np.ndarray]) -> None:
            ours.present, ours.epoch = len(members), epoch
            self.best = min(self.best, float(np.nan_to_num(measured["loss/val"], nan=np.inf).min()))
            if not self.bar.disable and time.monotonic() - self.drawn >= REDRAW:
                with self._drawing():
                    self._draw(measured)

        try:
            yield report
            self.done += len(jobs)
        finally:
            self.populations.remove(ours)

    def _draw(self, measured: Mapping[str, np.ndarray]) -> None:
        self.drawn = time.monotonic()
        if self.runs is None:
            text = "  ".join(f"{name} {measured[f'loss/{name}'][0]:.4g}" for name in ("train", "val", "gap"))
            self.bar.update(self.task, completed=self.populations[0].epoch, losses=text)
            return
        training = sum(population.present for population in self.populations)
        self.bar.update(
            self.task,
            completed=self.done + sum(population.done for population in self.populations),
            description=f"{self.done} of {self.runs} runs done",
            losses=f"{training} training, best loss/val {self.best:.4g}",
        )


def summary(result: Result, where: str) -> str:
    """The end of a run in five lines: test score, best epoch, verdict in words, seconds, where to look."""
    s = result.summary
    epochs = len(result.metrics["loss/val"]) - 1
    lines: list[tuple[str, Any]] = [
        ("run", f"{result.config.experiment}: {result.config.title()}"),
        ("test", f"{score(result)}, with the weights of epoch {s.best_epoch}"),
        ("best epoch", f"{s.best_epoch} of {epochs} (loss/val {s.best_loss_val:.4g}, gap {s.best_gap:.4g})"),
        ("verdict", curves.sentence(s)),
        ("training", f"{result.seconds:.1f} s, {result.metrics['progress/steps'][-1]:.0f} steps{_on(result)}"),
        ("look", where),
    ]
    return "\n".join(f"{name:>11}  {text}" for name, text in lines)


def _on(result: Result) -> str:
    return f", on {devices(result)}" if len(result.devices) > 1 else ""
