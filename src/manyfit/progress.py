"""What a person sees of a command at work: a first line at once, and at every moment what is being done.

At a terminal that is one live line, in a notebook one that its cell shows. Without either (a pipe, CI, nohup) it is a
plain line on stderr when something new begins, and one every half a minute, the rarer the longer it takes. Nothing
heavy is imported here: the first words come before Hydra and torch, which take seconds.
"""

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
from typing import TYPE_CHECKING, Any, Self

from manyfit.config.secrets import mask

if TYPE_CHECKING:
    import numpy as np
    from rich.live import Live
    from rich.text import Text

OnEpoch = Callable[[int, "np.ndarray", Mapping[str, "np.ndarray"]], None]
"""Takes note of an epoch: its number, the members present, and their metrics (members present,) by name."""

REDRAWS = 6  # a second, of the live line; nothing is formatted in between
SHOWN = 2  # a second, of the line in a notebook
LOOK = 1.0  # seconds between looks at what there is to say without a terminal
RARER = 10.0  # a plain line at most every tenth of the time that has passed
AT_LEAST = 30.0  # seconds
SURE = 3.0  # seconds of a stage from which its speed is taken for what it will be
BAR = 16  # characters, where there is so much space
ROOM = 10  # for the clock and a space
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ERASE = "\r\x1b[2K"


def line(name: str, words: str) -> str:
    """A line in the look of the closing ones."""
    return f"{name:>11}  {words}"


def announce(arguments: Sequence[str]) -> None:
    """The first words of a command, which the screen's own first line replaces, unless it only asks Hydra something.

    Of several ranks that torchrun or srun started, only the first speaks.
    """
    asks = any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments)
    if not asks and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        _put(line("manyfit", "starting"), end="\r" if _is_terminal() else "\n")


def last_words(stop: KeyboardInterrupt | SystemExit) -> int:
    """Say why a command ends, where that is to be said; its exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    code = stop.code if isinstance(stop, SystemExit) else 130
    if code in (130, 143):
        _put(": ".join(["stopped", *getattr(stop, "__notes__", [])]))
    if isinstance(code, str):
        _put(code)
    return code if isinstance(code, int) else int(code is not None)


def _put(text: str, end: str = "\n") -> None:
    """On stderr, in the place of what stands in the line, without passwords."""
    print(f"{ERASE if _is_terminal() else ''}{mask(text)}", end=end, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


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
        return [f"about {_clock(passed * (1 - share) / (share - self.first))} left"]


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
        self._live: Live | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Say the first line, and start telling the stages."""
        if notebook := _notebook():
            self._thread = threading.Thread(target=self._show, args=(notebook,), daemon=True)
            self._thread.start()
            return self
        _put(line("manyfit", self.head))
        if _is_terminal():
            with self._showing():
                self._live = _live(self._drawn)
                self._live.start()
        self._thread = threading.Thread(target=self._draw if self._live else self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the live line."""
        live, self._live = self._live, None
        if live:
            with contextlib.suppress(Exception) if self._ended.is_set() else self._showing():  # it was said
                live.stop()
        self._ended.set()
        self._thread.join(1.0)  # its last words come before ours

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

    def training(self, runs: int) -> contextlib.AbstractContextManager[None]:
        """So many runs are being trained for the present stage, which counts them already or is to do so now."""
        stage = self.stages[-1]
        return self.stage(stage.words, runs) if stage.runs is None else contextlib.nullcontext()

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
        if not self.says:
            return
        if self._live and sys.stdout.isatty():
            self._live.console.print(text)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # whoever read it has enough, as head: that is no failure of the run
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

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

    def _drawn(self) -> "Text":
        """The live line."""
        from rich.text import Text

        (words, share), passed = self._now(), time.monotonic() - self.start
        drawn = Text(f"{SPINNER[int(passed * REDRAWS) % len(SPINNER)]:>11}  ", no_wrap=True, overflow="ellipsis")
        width = self._live.console.width if self._live else 0
        if share is not None and len(drawn) + BAR + len(words) + ROOM <= width:
            full = min(BAR, int(share * BAR))
            drawn.append("━" * full, "green").append("━" * (BAR - full) + " ", "dim")
        return drawn.append(words).append(f"  {_clock(passed)}", "dim")

    def _draw(self) -> None:
        """Keep the live line up to date, until the end."""
        while not self._ended.wait(1 / REDRAWS):
            if live := self._live:
                with self._showing():
                    live.refresh()

    def _show(self, display: Callable[..., Any]) -> None:
        """In a notebook: one line of the cell, until the end; what it was about stays."""
        with self._showing():
            shown: Any = display({"text/plain": mask(self.head)}, raw=True, display_id=True)
            while not self._ended.wait(1 / SHOWN):
                words = f"{self.head}: {self._now()[0]} ({_clock(time.monotonic() - self.start)})"
                shown.update({"text/plain": mask(words)}, raw=True)
            shown.update({"text/plain": mask(f"{self.head} ({_clock(time.monotonic() - self.start)})")}, raw=True)

    def _tell(self) -> None:
        """Plain lines, until the end."""
        told, when = "", self.start
        while not self._ended.wait(LOOK):
            now = time.monotonic()
            words, stage = self._now()[0], self.stages[-1].words
            if now - when >= pause(now - self.start, news=stage != told):
                with self._showing():
                    print(line(_clock(now - self.start), words), file=sys.stderr, flush=True)
                told, when = stage, now


def pause(passed: float, news: bool) -> float:
    """Seconds from one plain line to the next, so many seconds after the first: sooner if there is news."""
    return max(LOOK, min(AT_LEAST, passed / RARER)) if news else AT_LEAST


def _notebook() -> Callable[..., Any] | None:
    """What shows something in the cell that is running; None where this is no notebook."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import display, get_ipython

    return display.display if hasattr(get_ipython(), "kernel") else None


def _live(drawn: Any) -> "Live":
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)
    return Live(
        console=console,
        get_renderable=drawn,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _clock(seconds: float) -> str:
    """`12 s`, `3:05` minutes, `1:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
