"""What a process does when it is asked to end: the command, the first of several ranks, any other rank."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Leaving = list[Callable[[], None]]  # what is to be done before this process is ended


ENDING = (signal.SIGTERM, signal.SIGHUP)  # a terminal that is closed asks, too


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) here, and SIGHUP SystemExit(129), as Ctrl-C raises KeyboardInterrupt.

    Under nohup SIGHUP is ignored, and stays so. While torch is imported each waits: an exception that comes into its
    C++ then aborts the process.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        torch = sys.modules.get("torch")
        if getattr(getattr(torch, "__spec__", None), "_initializing", False):
            _again(number, 0.05)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    heard += [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def insist() -> None:
    """Send a signal again whose exception was swallowed.

    Nothing comes out of a `__del__`, or of a callback such as that of `importlib`'s locks: Python prints it, no more.
    """
    say = sys.unraisablehook

    def again(ignored: "sys.UnraisableHookArgs") -> None:
        number = _signal_of(ignored.exc_value)
        if number is None:
            say(ignored)
            return
        _again(number, 0.01)  # in here it would be swallowed as well

    sys.unraisablehook = again


def _again(number: int, seconds: float) -> None:
    """Send this process a signal once more, somewhat later."""
    later = threading.Timer(seconds, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """The stop by a signal that an error hides: a library may fail as it is left."""
    while error is not None and _signal_of(error) is None:
        error = error.__context__
    assert error is None or isinstance(error, KeyboardInterrupt | SystemExit)
    return error


def _signal_of(stop: BaseException | None) -> int | None:
    """Which signal is behind an exception, if it is a stop."""
    if isinstance(stop, KeyboardInterrupt):
        return signal.SIGINT
    return next((n for n in ENDING if isinstance(stop, SystemExit) and stop.code == 128 + n), None)


@contextlib.contextmanager
def noted_signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals that came can be read, whoever handles them."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def obey_signals(leaving: Leaving) -> None:
    """End on SIGTERM, SIGHUP and SIGINT, also from within a collective that waits for a rank that is gone.

    Python's own handlers run between two of its instructions, and there may be no next one. The number of the signal is
    written to a pipe whatever the process is doing, and a thread reads it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (*ENDING, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)

    def obey() -> None:
        number = os.read(reader, 1)[0]
        for finish in leaving:
            finish()
        os._exit(128 + number)

    threading.Thread(target=obey, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
