"""What a person sees of a command at work: a first line at once, and at every moment what is being done."""

import contextlib
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from manyfit import displays
from manyfit.displays import Display, Moment, Silence, clock, line, put

if TYPE_CHECKING:
    import numpy as np

OnEpoch = Callable[[int, "np.ndarray", Mapping[str, "np.ndarray"]], None]
"""Takes note of an epoch: its number, the members present, and their metrics (members present,) by name."""

SURE = 3.0  # seconds of a stage from which its speed is taken for what it will be


def announce(arguments: Sequence[str]) -> None:
    """The first words of a command, which the screen's own first line replaces, unless it only asks Hydra something.

    Of several ranks that torchrun or srun started, only the first speaks.
    """
    asks = any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments)
    if not asks and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        put(line("manyfit", "starting"), end="\r" if displays.is_terminal() else "\n")


def last_words(stop: KeyboardInterrupt | SystemExit) -> int:
    """Say why a command ends, where that is to be said; its exit code: 130 after Ctrl-C, of another signal likewise."""
    code = stop.code if isinstance(stop, SystemExit) else 130
    if code in (129, 130, 143):
        put(": ".join(["stopped", *getattr(stop, "__notes__", [])]))
    if isinstance(code, str):
        put(code)
    return code if isinstance(code, int) else int(code is not None)


@dataclass
class _Population:
    """How far the runs are that train together."""

    members: int
    epochs: int
    present: int
    stage: "_Stage"
    epoch: int | None = None  # the last that was told; before it their processes may be starting

    @property
    def share(self) -> float:
        """Of the epochs, that are done."""
        return (self.epoch or 0) / self.epochs

    @property
    def done(self) -> float:
        """In runs."""
        return self.members - self.present + self.present * self.share

    @property
    def words(self) -> str:
        """Where they are."""
        return "starting" if self.epoch is None else f"epoch {self.epoch} of {self.epochs}"


@dataclass
class _Stage:
    """What is being done; with `runs`, how many of them are."""

    words: str
    runs: int | None = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # share that was done at its beginning

    def left(self, share: float) -> list[str]:
        """How much time is left, from the speed so far; nothing where that is not known."""
        self.first = share if self.first is None else self.first
        passed = time.monotonic() - self.began
        if share <= self.first or passed < SURE:
            return []
        return [f"about {clock(passed * (1 - share) / (share - self.first))} left"]


class Screen:
    """A context manager: within it something is shown.

    Args:
        head: The first line: what this command is about.
        says: Whether results are printed; a library hands them over.
    """

    def __init__(self, head: str, says: bool = True) -> None:
        self.head, self.says, self.start = head, says, time.monotonic()
        self.stages: list[_Stage] = [_Stage("at work")]
        self.populations: list[_Population] = []
        self.best = math.inf  # validation loss so far
        self.measured: Mapping[str, np.ndarray] = {}  # of the last epoch
        self._display: Display = Silence()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Say the first line, and start telling the stages."""
        with self._showing():
            self._display = displays.begun(self.head)
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the live line."""
        failed = self._ended.is_set()  # and it was said
        self._ended.set()
        try:
            self._thread.join(1.0)  # its last words come before ours
        finally:
            with contextlib.suppress(Exception) if failed else self._showing():
                self._display.close(self.passed)
            self._display = Silence()

    @property
    def passed(self) -> float:
        """Seconds."""
        return time.monotonic() - self.start

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        """Whatever goes wrong within, a terminal that is gone for one, costs the display alone; it is said once."""
        try:
            yield
        except Exception as error:
            self._ended.set()
            with contextlib.suppress(OSError):
                print(f"no progress is shown: {error}", file=sys.stderr)

    @contextlib.contextmanager
    def stage(self, words: str, runs: int | None = None, done: int = 0) -> Iterator[None]:
        """This is being done; afterwards again what was before.

        Args:
            words: Such as `loading data`.
            runs: How many are to be trained in it.
            done: Of them, already.
        """
        self.stages.append(_Stage(words, runs, done))
        try:
            yield
        finally:
            self.stages.pop()

    def training(self, runs: int, done: int = 0) -> contextlib.AbstractContextManager[None]:
        """So many runs, some done already, are of the present stage, which counts them or is to do so now."""
        stage = self.stages[-1]
        if stage.runs is None:
            return self.stage(stage.words, runs, done)
        stage.done += done
        return contextlib.nullcontext()

    def left(self, runs: int) -> None:
        """So many runs of the present stage are left; of a single one there is nothing to count."""
        stage = self.stages[-1]
        if stage.runs or runs > 1:
            stage.runs = max(stage.runs or 0, runs)
            stage.done = stage.runs - runs

    @contextlib.contextmanager
    def population(self, members: int, epochs: int) -> Iterator[OnEpoch]:
        """Some runs are training, whose epochs are told to what this yields."""
        stage = self.stages[-1]
        ours = _Population(members, epochs, members, stage)
        self.populations.append(ours)

        def report(epoch: int, present: "np.ndarray", measured: Mapping[str, "np.ndarray"]) -> None:
            ours.present, ours.epoch, self.measured = len(present), epoch, measured
            self.best = min([self.best, *(v for v in measured["loss/val"].tolist() if math.isfinite(v))])

        try:
            yield report
            stage.done += members
        except Exception:  # of several each is to be trained again
            stage.done += members == 1
            raise
        finally:
            self.populations.remove(ours)

    def say(self, text: str) -> None:
        """A result, on stdout, above the live line."""
        if self.says:
            self._display.say(text)

    def note(self, words: str) -> None:
        """What was taken for granted: a line, or of a library a warning."""
        if self.says:
            self.say(line("note", words))
        else:
            warnings.warn(words, stacklevel=2)

    def _now(self) -> tuple[str, float | None]:
        """What is being done, in words, and the share of it that is done, where it can be counted."""
        stage = self.stages[-1]
        counted = next((one for one in reversed(self.stages) if one.runs is not None), None)
        training = [population for population in self.populations if population.stage is stage]
        if counted is not None:
            words, share = self._counted(counted, training)
            return f"{counted.words}: {words if stage is counted else stage.words}", share
        if training:
            (population,) = training
            said = [population.words]
            said += [f"{k} {self.measured[f'loss/{k}'][0]:.4g}" for k in ("train", "val", "gap") if self.measured]
            return f"{stage.words}: {', '.join([*said, *stage.left(population.share)])}", population.share
        return stage.words, None

    def _counted(self, stage: _Stage, training: Sequence[_Population]) -> tuple[str, float]:
        assert stage.runs is not None
        share = (stage.done + sum(population.done for population in training)) / max(stage.runs, 1)
        said = [f"{stage.done} of {stage.runs} runs"]
        if training:
            present = f"{sum(population.present for population in training)} training"
            said.append(training[0].words if len(training) == 1 else present)
        said += [f"best loss/val {self.best:.4g}"] if self.best < math.inf else []
        return ", ".join([*said, *stage.left(share)]), share

    def _show(self) -> None:
        """Keep the display up to date, until the end."""
        while not self._ended.wait(self._display.every):
            with self._showing():
                words, share = self._now()
                self._display.show(Moment(self.stages[-1].words, words, share, self.passed))
