"""The same training on several devices: how its ranks are started, and what travels between them and the command.

The command starts its ranks from the resolved config, by torch's elastic launcher. They train, and tell it of every
epoch; it alone touches the tracker, the study and the terminal. Ranks that torchrun or srun started stand in
leader.py.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyfit.config.errors import TrainingError
from manyfit.config.schema import Config
from manyfit.parallel.channel import GoneError, PipeChannel
from manyfit.parallel.devices import launched, world
from manyfit.parallel.leader import LEADER
from manyfit.parallel.rank_process import Train, work
from manyfit.parallel.signals import ENDING, sigterm_exits

if TYPE_CHECKING:
    from manyfit.progress import OnEpoch
    from manyfit.training.loop import Stops
    from manyfit.training.trained import Trained

GRACE = 2.0  # seconds that the true cause may be seen after its consequences
PATIENCE = 10.0  # seconds for ranks to end by themselves


def train(run: Train, configs: Sequence[Config], report: "OnEpoch | None", stops: "Stops | None") -> "Trained":
    """Train one population on several devices; the arguments are those of `fitting.train`, which is `run`.

    Raises:
        TrainingError: A rank failed or died; names it and the cause.
        SystemExit: 143, a rank or this process was asked to end by SIGTERM.
        KeyboardInterrupt: The same by SIGINT.
    """
    if launched(configs[0].trainer.launcher) > 1:
        return LEADER.get().train(run, configs, report, stops)
    with own_ranks(run, configs, world(configs[0].trainer)) as ranks:
        return ranks.serve(report, stops)


@dataclass
class Launched:
    """The ranks of one job, as the command sees them.

    Attributes:
        door: Where they announce themselves.
        over: Readable once the launcher has ended.
        world: How many there will be.
    """

    door: socket.socket
    over: connection.Connection
    world: int
    present: dict[PipeChannel, tuple[int, BaseProcess]] = field(default_factory=dict)  # to rank and process
    said: dict[int, str] = field(default_factory=dict)  # last words by rank
    causes: list[tuple[int, BaseException]] = field(default_factory=list)  # those that explain the others are lower

    def serve(self, report: "OnEpoch | None", stops: "Stops | None") -> "Trained":
        """Pass on what rank 0 tells and asks, until it has trained."""
        deadline: float | None = None
        while True:
            waiting: list[Any] = [self.door, *([] if deadline else [self.over]), *self.present]
            ready = connection.wait(waiting, None if deadline is None else max(0.0, deadline - time.monotonic()))
            for one in ready:
                if one is self.door:
                    self._welcome()
                elif one is self.over:
                    self.causes.append((4, TrainingError("the launcher ended without a result")))
                elif (done := self._hear(one, report, stops)) is not None:  # type: ignore[arg-type]  # a PipeChannel
                    return done
            if self.causes and deadline is None:
                deadline = time.monotonic() + GRACE
            if deadline is not None and (not self.present or time.monotonic() >= deadline):
                raise min(self.causes, key=lambda cause: cause[0])[1]

    def _welcome(self) -> None:
        """Who it is says its address, and the kernel: a rank that is dead already can be named."""
        accepted, address = self.door.accept()
        rank = int(Path(address).name)
        number = _peer(accepted)
        channel = PipeChannel(connection.Connection(accepted.detach()))
        process = next((p for p in multiprocessing.active_children() if p.pid == number), None)
        if process is None:
            channel.close()
            self.causes.append((0, TrainingError(f"rank {rank} of {self.world} died as it started")))
        else:
            self.present[channel] = rank, process

    def _hear(self, channel: PipeChannel, report: "OnEpoch | None", stops: "Stops | None") -> "Trained | None":
        rank, process = self.present[channel]
        try:
            message = channel.receive()
            if channel.passes_on(message, report, stops):
                return None
        except GoneError:
            del self.present[channel]
            if rank not in self.said:
                self.causes.append(self._death(rank, process))
            return None
        kind, *content = message
        if kind == "trained":
            return content[0]  # type: ignore[no-any-return]
        if kind in ("failed", "lost"):
            self.said[rank] = content[0]
            error = TrainingError(f"rank {rank} of {self.world} failed: {content[0]}")
            self.causes.append((1 if kind == "failed" else 3, error))
        elif kind == "done":
            self.said[rank] = ""
        return None

    def _death(self, rank: int, process: BaseProcess) -> tuple[int, BaseException]:
        """How a rank went that said nothing. Its exit code is known when the launcher, in its thread, has asked.

        Being asked to end comes after every other way to go: the launcher asks it of the ranks that are left.
        """
        deadline = time.monotonic() + 5
        while (code := process.exitcode) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in ENDING:
            if code in (-number, 128 + number):
                return 2, SystemExit(128 + number)
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            return 2, KeyboardInterrupt()
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return 0, TrainingError(f"rank {rank} of {self.world} {how}")


def _peer(accepted: socket.socket) -> int:
    """The process at the other end, as the kernel knows it."""
    if sys.platform == "darwin":
        return int(struct.unpack("i", accepted.getsockopt(0, 2, 4))[0])  # SOL_LOCAL, LOCAL_PEERPID of sys/un.h
    number, _, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(number)


@contextlib.contextmanager
def own_ranks(run: Train, configs: Sequence[Any], count: int) -> Iterator[Launched]:
    """Start the ranks, and leave nothing of them: no process, no file, no variable in the environment."""
    environment = dict(os.environ)
    others = set(multiprocessing.active_children())  # a notebook may have some
    short = None if len(tempfile.gettempdir()) <= 81 else "/tmp"  # a socket's path has at most 104 bytes on macOS
    with (
        tempfile.TemporaryDirectory(prefix="manyfit-", dir=short) as folder,
        sigterm_exits(),
        socket.socket(socket.AF_UNIX) as door,
    ):
        door.bind(f"{folder}/door")
        door.listen(count)
        over, end = multiprocessing.Pipe()
        agent = threading.Thread(target=_start, args=(folder, count, end, (run, list(configs))), daemon=True)
        agent.start()
        try:
            yield Launched(door, over, count)
        except BaseException:
            _stop(agent, others)
            raise
        finally:
            agent.join(PATIENCE)
            _stop(agent, others)
            over.close()
            os.environ.clear()
            os.environ.update(environment)


def _start(folder: str, count: int, end: connection.Connection, task: tuple[Any, ...]) -> None:
    """In a thread, since the launcher returns when the ranks have ended."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    resource_tracker.ensure_running()  # multiprocessing's, whose start would undo the next line
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the ranks inherit it: Ctrl-C waits until they can obey
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the run says what happened
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=5,
        logs_specs=DefaultLogsSpecs(log_dir=f"{folder}/logs"),
    )
    with contextlib.suppress(ChildFailedError), contextlib.closing(end):  # the ranks have said why
        elastic_launch(config, work)(f"{folder}/door", *task)


def _stop(agent: threading.Thread, others: Collection[BaseProcess]) -> None:
    """End ranks that are still there, and no others; first in a way that lets them finish what they are writing."""
    for end in ("terminate", "kill"):
        for process in set(multiprocessing.active_children()).difference(others) if agent.is_alive() else ():
            getattr(process, end)()
        agent.join(PATIENCE)
