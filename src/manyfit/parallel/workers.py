"""Processes that train populations side by side: one for each GPU, or for a share of the cores."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from manyfit.config import place
from manyfit.config.errors import TrainingError
from manyfit.config.schema import Config
from manyfit.parallel.channel import Channel, GoneError, made

if TYPE_CHECKING:
    from manyfit.progress import OnEpoch
    from manyfit.training.loop import Stops
    from manyfit.training.trained import Trained


class Worker:
    """A process with a device of its own.

    Args:
        device: Which of the machine's GPUs; without one it means nothing.
        threads: For its arithmetic.
    """

    def __init__(self, device: int, threads: int) -> None:
        self.device, self.threads = device, threads
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self.channel = Channel(ours)
        self.process = spawn.Process(target=_work, args=(theirs, device, threads, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def again(self) -> "Worker":
        """Another in the place of this one, which is dead."""
        self.process.join()
        return Worker(self.device, self.threads)


class Pool:
    """Workers, and whose turn it is.

    Each population is looked after by a thread of this process, but only one of them runs at a time: it gives the turn
    away while it waits for its worker, so that nothing here needs to be thread-safe.

    Args:
        count: Workers.
    """

    def __init__(self, count: int) -> None:
        threads = max(1, place.cores() // count)
        self.turn = threading.Lock()
        self.stopped: BaseException | None = None
        gpus = torch.cuda.device_count() or 1
        self.workers = [Worker(number % gpus, threads) for number in range(count)]
        self.free: queue.Queue[Worker] = queue.Queue()
        for worker in self.workers:
            self.free.put(worker)

    def __enter__(self) -> Self:
        """The workers are starting already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; they have nothing to lose."""
        self.stop(error or TrainingError("the workers were ended"))

    def stop(self, error: BaseException) -> None:
        """End the workers; whoever waits for one gets this error."""
        self.stopped = error
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()

    def train(
        self, run: Callable[..., Any], configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None"
    ) -> "Trained":
        """Train a population in the next free worker; the arguments are those of `fitting.train`, which is `run`.

        Members of a worker that dies are given to another, once: what is told twice is the same bit for bit.

        Raises:
            TrainingError: That one died too.
            Exception: The training's own.
        """
        with self._waiting():
            worker = self.free.get()
        try:
            for _ in range(2):
                try:
                    said = self._talk(worker, run, configs, report, stops)
                except BaseException:  # of this process: the worker is still at it
                    if not self.stopped:
                        worker.process.kill()
                        worker = self._another(worker)
                    raise
                if isinstance(said, Exception):
                    raise said
                if said is not None:
                    return said
                code = worker.process.exitcode
                worker = self._another(worker)
            raise TrainingError(f"two worker processes died of these runs, with exit code {code}")
        finally:
            self.free.put(worker)

    def _talk(
        self, worker: Worker, run: Any, configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None"
    ) -> "Trained | Exception | None":
        """What came of it; an exception is the training's own; None: the worker is dead."""
        try:
            worker.channel.send("train", run, list(configs))
            while True:
                with self._waiting():
                    message = worker.channel.receive()
                if not worker.channel.passes_on(message, report, stops):
                    return message[1]  # type: ignore[no-any-return]  # trained, or failed
        except GoneError:
            if self.stopped:
                raise self.stopped from None
            worker.process.join()
            return None

    def _another(self, worker: Worker) -> Worker:
        """In the place of one that is dead."""
        with self._waiting():
            new = worker.again()
        self.workers[self.workers.index(worker)] = new
        if self.stopped:  # meanwhile
            new.process.kill()
            raise self.stopped
        return new

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()


def _work(command: Connection, device: int, threads: int, parent: int) -> None:
    """Train what comes, until nobody is there any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which ends the workers
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)

    channel, known = Channel(command), dict[type, Any]()
    with contextlib.suppress(GoneError):
        while True:
            _, run, configs = channel.receive()
            try:
                trained = made(run, known)(configs, channel.report, channel.stops, device=device)
                message: tuple[str, Any] = ("trained", trained)
            except GoneError:
                raise
            except Exception as error:
                message = ("failed", _portable(error))
            channel.send(*message)


def _portable(error: Exception) -> Exception:
    """An exception as it can be sent: some cannot be made again from their arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
