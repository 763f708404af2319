"""What trains populations side by side: processes here, one for each GPU or for a share of the cores, or elsewhere."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from manyfit.config import place
from manyfit.config.errors import ConfigError, TrainingError
from manyfit.config.schema import Config
from manyfit.parallel import devices
from manyfit.parallel.channel import Channel, GoneError, made, portable

SOON = 5.0  # seconds in which a thread hears that its worker was killed

if TYPE_CHECKING:
    from manyfit.progress import OnEpoch
    from manyfit.training.loop import Stops
    from manyfit.training.trained import Trained


class Worker(Protocol):
    """Trains populations somewhere, one after the other, once its first word has come.

    Attributes:
        channel: To where `work` is done.
        lives: So many of its kind may die of a population, or of a start.
    """

    channel: Channel
    lives: int

    def kill(self) -> None:
        """End it, whatever it is doing."""

    def fate(self) -> str:
        """How it ended, which it has."""

    def again(self) -> "Worker":
        """Another in its place."""


class Process:
    """A process with a device of its own.

    Args:
        device: Which of the machine's GPUs; without one it means nothing.
        threads: For its arithmetic.
    """

    lives = 2

    def __init__(self, device: int, threads: int) -> None:
        self.device, self.threads = device, threads
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self.channel = Channel(ours)
        self.process = spawn.Process(target=_process, args=(theirs, device, threads, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        """And wait for its end."""
        self.process.kill()
        self.process.join()

    def fate(self) -> str:
        """Its exit code, that of a signal being negative."""
        return f"with exit code {self.process.exitcode}"

    def again(self) -> "Process":
        """On the same device."""
        return Process(self.device, self.threads)


def processes(count: int) -> list[Worker]:
    """So many on this machine, which share its GPUs and cores."""
    threads, gpus = max(1, place.cores() // count), torch.cuda.device_count() or 1
    return [Process(number % gpus, threads) for number in range(count)]


class Pool:
    """Workers, and whose turn it is.

    Each population is looked after by a thread of this process, but only one of them runs at a time: it gives the turn
    away while it waits for its worker, so that nothing here needs to be thread-safe.

    Args:
        workers: Which may be starting still.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.turn = threading.Lock()
        self.stopped: BaseException | None = None
        self.workers = list(workers)
        self.awaiting: list[threading.Thread] = []
        self.free: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()  # None: there will be no more
        for worker in workers:
            self._await(worker, 1)

    def __enter__(self) -> Self:
        """The workers are starting already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; they have nothing to lose."""
        self.stop(error or TrainingError("the workers were ended"))
        for thread in self.awaiting:
            thread.join(SOON)

    def stop(self, error: BaseException) -> None:
        """End the workers; whoever waits for one gets this error."""
        self.stopped = self.stopped or error
        for worker in list(self.workers):
            worker.kill()
        self.free.put(None)

    def ready(self) -> None:
        """Wait for the first worker.

        Raises:
            ConfigError: None can start, and why.
        """
        self.free.put(self._next())

    def train(
        self, run: Callable[..., Any], configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None"
    ) -> "Trained":
        """Train a population in the next free worker; the arguments are those of `fitting.train`, which is `run`.

        Members of a worker that dies are given to another: what is told twice is the same bit for bit.

        Raises:
            TrainingError: Too many died.
            Exception: The training's own.
        """
        deaths = 0
        while True:
            with self._waiting():
                worker = self._next()
            try:
                said = self._talk(worker, run, configs, report, stops)
            except GoneError:
                self._replace(worker)
                deaths += 1
                if self.stopped:
                    raise self.stopped from None
                if deaths == worker.lives:
                    raise TrainingError(f"{deaths} workers died of these runs, the last {worker.fate()}") from None
                print(f"a worker died: its {len(configs)} runs begin again in another", file=sys.stderr)
            except BaseException:  # of this process: the worker is still at it
                self._replace(worker)
                raise
            else:
                self.free.put(worker)
                if isinstance(said, Exception):
                    raise said
                return said

    def _talk(
        self, worker: Worker, run: Any, configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None"
    ) -> "Trained | Exception":
        """What came of it; an exception is the training's own. Raises GoneError: the worker is dead."""
        worker.channel.send("train", run, list(configs))
        while True:
            with self._waiting():
                message = worker.channel.receive()
            if not worker.channel.passes_on(message, report, stops):
                return message[1]  # type: ignore[no-any-return]  # trained, or failed

    def _next(self) -> Worker:
        """The next that is free."""
        worker = self.free.get()
        if worker is None:
            self.free.put(None)  # for whoever else waits
            assert self.stopped
            raise self.stopped
        return worker

    def _await(self, worker: Worker, starts: int) -> None:
        """A worker that is starting, the last of so many in its place: it is free when it has said so."""
        thread = threading.Thread(target=self._hear, args=(worker, starts), daemon=True)
        self.awaiting.append(thread)
        thread.start()

    def _hear(self, worker: Worker, starts: int) -> None:
        try:
            word, reason = worker.channel.receive()
        except GoneError:
            word, reason = "gone", f"{starts} workers died as they started, the last {worker.fate()}"
        if word == "ready":
            self.free.put(worker)
        elif word == "gone" and starts < worker.lives:
            self._replace(worker, starts + 1)
        elif not self.stopped:
            self._leave_out(worker, reason)

    def _replace(self, worker: Worker, starts: int = 1) -> None:
        """Another comes for one that is dead, or is to be."""
        worker.kill()
        if not self.stopped:
            new = self.workers[self.workers.index(worker)] = worker.again()
            self._await(new, starts)
            if self.stopped:  # meanwhile
                new.kill()

    def _leave_out(self, worker: Worker, reason: str) -> None:
        """One that cannot be used; without any the pool is at its end."""
        worker.kill()
        self.workers.remove(worker)
        if self.workers:
            print(f"a worker is left out: {reason}", file=sys.stderr)
        else:
            self.stop(ConfigError(reason))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()


def work(channel: Channel, device: int, threads: int) -> None:
    """Train what comes, until nobody is there any more."""
    torch.set_num_threads(threads)
    known: dict[type, Any] = {}
    with contextlib.suppress(GoneError):
        channel.send("ready", None)
        while True:
            _, run, configs = channel.receive()
            try:
                channel.send("trained", made(run, known)(configs, channel.report, channel.stops, device=device))
            except GoneError:
                raise
            except Exception as error:
                channel.send("failed", portable(error))
                devices.give_back(error)


def _process(command: Connection, device: int, threads: int, parent: int) -> None:
    """What a process of ours does, for as long as its parent lives."""
    for number in (signal.SIGINT, signal.SIGHUP):  # which reach the command, too: it ends the workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    work(Channel(command), device, threads)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
