"""What the command and a process that trains for it say to each other: the protocol of workers and of ranks."""

import pickle
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from manyfit.config.errors import TrainingError

if TYPE_CHECKING:
    from manyfit.progress import OnEpoch
    from manyfit.training.loop import Stops


class GoneError(Exception):
    """The process at the other end is gone."""


class Line(Protocol):
    """What carries messages: `multiprocessing`'s Connection, or what behaves as it does."""

    def send_bytes(self, buf: bytes, /) -> None:
        """To the other end; raises OSError."""

    def recv_bytes(self) -> bytes:
        """What the other end sends next; raises EOFError, or OSError."""


class Channel:
    """One end of a line. A message is a tuple: a word, and what belongs to it.

    Args:
        connection: Which only this reads and writes.
    """

    def __init__(self, connection: Line) -> None:
        self.connection = connection

    def send(self, *message: Any) -> None:
        """To the other process; what cannot be pickled raises before anything is sent. Raises GoneError."""
        content = pickle.dumps(message)
        try:
            self.connection.send_bytes(content)
        except OSError as error:
            raise GoneError from error

    def receive(self) -> tuple[Any, ...]:
        """What the other process, one of our own, says next; raises GoneError."""
        try:
            content = self.connection.recv_bytes()
        except (EOFError, OSError) as error:  # the latter in the middle of a message
            raise GoneError from error
        message: tuple[Any, ...] = pickle.loads(content)
        return message

    def report(self, *epoch: Any) -> None:
        """Where it trains: tells the command's observer of an epoch."""
        self.send("epoch", *epoch)

    def stops(self, *epoch: Any) -> Any:
        """Where it trains: asks the command's observer who is to stop."""
        self.send("stops", *epoch)
        return self.receive()[1]

    def passes_on(self, message: tuple[Any, ...], report: "OnEpoch | None", stops: "Stops | None") -> bool:
        """In the command: whether a message was for the observers; then they were told, or asked and answered."""
        word, *content = message
        if word == "epoch" and report:
            report(*content)
        elif word == "stops":
            self.send("stop", stops(*content) if stops else [])
        return word in ("epoch", "stops")


class PipeChannel(Channel):
    """Over a connection of which several can be waited for."""

    connection: Connection

    def fileno(self) -> int:
        """For `multiprocessing.connection.wait`."""
        return self.connection.fileno()

    def close(self) -> None:
        """The other end hears of it."""
        self.connection.close()


def portable(error: Exception) -> Exception:
    """An exception as it can be sent: some cannot be made again from their arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


def made(run: Any, known: dict[type, Any]) -> Any:
    """What a message says is to train: a class is made once in a process, since it remembers what it has built."""
    if not isinstance(run, type):
        return run
    if run not in known:
        known[run] = run()
    return known[run]
