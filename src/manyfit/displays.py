"""Where progress is shown: at a terminal a live line, in a notebook a line of its cell, elsewhere a line now and then.

Nothing heavy is imported here: the first words of a command come before Hydra and torch, which take seconds.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from manyfit.config.secrets import mask

if TYPE_CHECKING:
    from rich.text import Text

RARER = 10.0  # a plain line at most every tenth of the time that has passed
LONGEST = 30.0  # seconds without one
LOOK = 1.0  # seconds between looks at what there is to say without a terminal
BAR = 16  # characters, where there is so much space
ROOM = 10  # for the clock and a space
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ERASE = "\r\x1b[2K"


@dataclass(frozen=True)
class Moment:
    """What is to be seen: the stage, in words how far it is and as a share where that is known, seconds so far."""

    stage: str
    words: str
    share: float | None
    passed: float


class Display(Protocol):
    """Shows one moment after the other, from a thread; what raises there ends it."""

    every: float
    """Seconds from one to the next."""

    def show(self, moment: Moment) -> None:
        """This is how it stands."""

    def say(self, text: str) -> None:
        """A result, on stdout."""

    def close(self, passed: float) -> None:
        """It is over, after so many seconds."""


def begun(head: str) -> Display:
    """That of this process, begun with a line that says what it is about."""
    if notebook := _notebook():
        return Cell(head, notebook)
    put(line("manyfit", head))
    return LiveLine() if is_terminal() else Lines()


class Silence:
    """Shows nothing."""

    every = LOOK

    def show(self, moment: Moment) -> None:
        """Not here."""

    def say(self, text: str) -> None:
        """Results come through."""
        _print(text)

    def close(self, passed: float) -> None:
        """Nothing is left."""


class LiveLine:
    """The last line of a terminal, which is gone at the end; nothing is formatted in between."""

    every = 1 / 6

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.moment = Moment("at work", "at work", None, 0.0)
        self.live = Live(
            console=Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False),
            get_renderable=self._drawn,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        try:
            self.live.start()
        except Exception:
            self.live.stop()
            raise

    def show(self, moment: Moment) -> None:
        """In the place of the one before."""
        self.moment = moment
        self.live.refresh()

    def say(self, text: str) -> None:
        """Above the line."""
        if sys.stdout.isatty():
            self.live.console.print(text)
        else:
            _print(text)

    def close(self, passed: float) -> None:  # noqa: ARG002
        """Clear it."""
        self.live.stop()

    def _drawn(self) -> "Text":
        from rich.text import Text

        now = self.moment
        drawn = Text(f"{SPINNER[int(now.passed / self.every) % len(SPINNER)]:>11}  ", no_wrap=True, overflow="ellipsis")
        if now.share is not None and len(drawn) + BAR + len(now.words) + ROOM <= self.live.console.width:
            full = min(BAR, int(now.share * BAR))
            drawn.append("━" * full, "green").append("━" * (BAR - full) + " ", "dim")
        return drawn.append(now.words).append(f"  {clock(now.passed)}", "dim")


class Cell:
    """One line of a notebook's cell; what it was about stays."""

    every = 0.5

    def __init__(self, head: str, show: Callable[..., Any]) -> None:
        self.head = head
        self.shown = show({"text/plain": mask(head)}, raw=True, display_id=True)

    def show(self, moment: Moment) -> None:
        """In the place of the one before."""
        self._put(f"{self.head}: {moment.words} ({clock(moment.passed)})")

    def say(self, text: str) -> None:
        """Where the cell prints."""
        _print(text)

    def close(self, passed: float) -> None:
        """How long it took."""
        self._put(f"{self.head} ({clock(passed)})")

    def _put(self, words: str) -> None:
        self.shown.update({"text/plain": mask(words)}, raw=True)


class Lines:
    """Plain lines on stderr: when something new begins, and now and then, the rarer the longer it takes."""

    def __init__(self) -> None:
        self.every, self.stage, self.when = LOOK, "", 0.0

    def show(self, moment: Moment) -> None:
        """If it is time for another."""
        if moment.passed - self.when >= pause(moment.passed, news=moment.stage != self.stage):
            print(line(clock(moment.passed), moment.words), file=sys.stderr, flush=True)
            self.stage, self.when = moment.stage, moment.passed

    def say(self, text: str) -> None:
        """Beside them, on stdout."""
        _print(text)

    def close(self, passed: float) -> None:
        """Nothing is left."""


def pause(passed: float, news: bool) -> float:
    """Seconds from one plain line to the next, so many seconds after the first: sooner if there is news."""
    return max(LOOK, min(LONGEST, passed / RARER)) if news else LONGEST


def line(name: str, words: str) -> str:
    """A line in the look of the closing ones."""
    return f"{name:>11}  {words}"


def put(text: str, end: str = "\n") -> None:
    """On stderr, in the place of what stands in the line, without passwords."""
    print(f"{ERASE if is_terminal() else ''}{mask(text)}", end=end, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a line of stderr can be written over."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def clock(seconds: float) -> str:
    """`12 s`, `3:05` minutes, `1:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read it has enough, as head: that is no failure of the run
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _notebook() -> Callable[..., Any] | None:
    """What shows something in the cell that is running; None where this is no notebook."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import display, get_ipython

    return display.display if hasattr(get_ipython(), "kernel") else None
