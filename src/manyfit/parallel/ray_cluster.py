"""Workers on a cluster: actors of Ray. All that is Ray's is here; it is imported once it is known how."""

import contextlib
import functools
import logging
import os
import pickle
import queue
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from manyfit.config import place
from manyfit.config.errors import ConfigError
from manyfit.parallel.channel import Channel

if TYPE_CHECKING:
    from manyfit.parallel.launch import Launch

ALIKE = ("manyfit", "torch", "numpy", "numba")  # whose versions must be the same everywhere: bits depend on them
ANSWERS = 5.0  # seconds until a cluster does; Ray itself would wait for minutes
SAYS_LITTLE: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class Place:
    """Where the command is, and with what: its workers are to be there, too."""

    folder: str = field(default_factory=os.getcwd)
    path: list[str] = field(default_factory=lambda: [entry or os.getcwd() for entry in sys.path])
    argv: list[str] = field(default_factory=lambda: list(sys.argv))
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in ALIKE})

    def enter(self) -> str:
        """Be there, with this whole process; or why that cannot be."""
        if not Path(self.folder).is_dir():
            return (
                f"{self.folder} must be a folder of every node, since data and modules are looked for in it, but "
                f"{socket.gethostname()} has none. Start from a folder of a shared file system."
            )
        os.chdir(self.folder)
        sys.path[:] = [*self.path, *(entry for entry in sys.path if entry not in self.path)]
        sys.argv = list(self.argv)
        for name, here in self.versions.items():
            if (there := version(name)) != here:
                return (
                    f"{name} must be {here} on every node, as here, but {socket.gethostname()} has {there}. Install "
                    "the same on all."
                )
        return ""


class Actor:
    """In a process of Ray's: `workers.work`, whose messages come and go by Ray's calls.

    Args:
        place: To be in.
        gpu: Whether it has one, which Ray has chosen.
        threads: For its arithmetic.
    """

    def __init__(self, place: Place, gpu: bool, threads: int) -> None:
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what a machine has and nobody asked for changes no bit
        self.refusal, self.threads, self.mail = place.enter(), threads, Mail()

    def serve(self) -> Iterator[bytes]:
        """Work; every message as it comes."""
        if self.refusal:
            self.mail.send_bytes(pickle.dumps(("refused", self.refusal)))
        else:
            from manyfit.parallel.workers import work

            threading.Thread(target=work, args=(Channel(self.mail), 0, self.threads), daemon=True).start()
        while True:
            yield self.mail.out.get()

    def say(self, message: bytes) -> None:
        """To who works."""
        self.mail.come.put(message)


class Mail:
    """The line of who works in an actor."""

    def __init__(self) -> None:
        self.come: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.out: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def send_bytes(self, buf: bytes, /) -> None:
        """It goes when Ray asks for it."""
        self.out.put(buf)

    def recv_bytes(self) -> bytes:
        """Wait for it."""
        return self.come.get()


class Calls:
    """The command's line to an actor, whose end may come with any call."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.end = actor, ""
        self.said = actor.serve.options(num_returns="streaming").remote()

    def send_bytes(self, buf: bytes, /) -> None:
        """It is not known whether it arrives; but there is an answer to everything."""
        self.actor.say.remote(buf)

    def recv_bytes(self) -> bytes:
        """Wait for it, of an actor that may itself wait for its node."""
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(next(self.said))  # type: ignore[no-any-return]  # bytes
        except (RayError, StopIteration, ValueError) as error:  # the last: it was killed here
            self.end = self.end or str(error)
            raise EOFError(self.end) from error


class RayWorker:
    """An actor: Ray starts it where there is room, or waits until there is.

    Args:
        start: Asks Ray for it.
    """

    lives = 4  # nodes go for reasons of their own

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start, self.calls = start, Calls(start())
        self.channel: Channel = Channel(self.calls)

    def kill(self) -> None:
        """Or have it not start."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.kill(self.calls.actor)

    def fate(self) -> str:
        """In Ray's words."""
        return f"with {' '.join(self.calls.end.split())[:1000]!r}"

    def again(self) -> "RayWorker":
        """Wherever there is room."""
        return RayWorker(self.start)


class Cluster:
    """A connection to Ray; a context manager.

    Args:
        launch: With the address.

    Attributes:
        beside: Workers that share the memory of a machine.

    Raises:
        ConfigError: There is no cluster.
    """

    def __init__(self, launch: "Launch") -> None:
        if not launch.address:
            _prepare()
        with _path_kept():
            import ray

        self.launch, self.ours, self.beside = launch, not ray.is_initialized(), 1
        if self.ours:
            with _sigterm_kept():
                (_join if launch.address else _start)(launch)

    def __enter__(self) -> Self:
        """It is there."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it; what was started here ends."""
        import ray

        if self.ours:
            ray.shutdown()

    def workers(self, gpu: bool) -> list[RayWorker]:
        """As many as were asked for, or as there is room for.

        Args:
            gpu: Whether each is to have one.

        Raises:
            ConfigError: There is room for none.
        """
        import ray

        nodes = self._nodes(gpu)
        share, most = self._share(nodes, gpu)
        if not most and not self.launch.workers:
            raise _no_room(share, nodes, gpu)
        kind = ray.remote(Actor).options(num_cpus=share, num_gpus=int(gpu), max_restarts=0, max_concurrency=2)
        start = functools.partial(kind.remote, Place(), gpu, share)
        return [RayWorker(start) for _ in range(self.launch.workers or most)]

    def _nodes(self, gpu: bool) -> list[tuple[int, int]]:
        """CPUs and GPUs of each node that can work."""
        import ray

        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        has = [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in there]
        return [(cpus, gpus) for cpus, gpus in has if cpus and (gpus or not gpu)]

    def _share(self, has: Sequence[tuple[int, int]], gpu: bool) -> tuple[int, int]:
        """The CPUs of a worker, and how many workers there is room for.

        Nodes are taken for alike: each worker gets those of the smallest, or its part of them for each GPU. A machine
        by itself is shared by as many workers as were asked for.
        """
        of_each = [gpus if gpu else (1 if self.launch.address else self.launch.workers or 1) for _, gpus in has]
        alike = [max(1, cpus // n) for (cpus, _), n in zip(has, of_each, strict=True)]
        share = self.launch.cpus_per_worker or min(alike, default=1)
        room = [min(cpus // share, gpus if gpu else cpus) for cpus, gpus in has]
        self.beside = max(room, default=1)
        return share, sum(room)


def _no_room(share: int, nodes: Sequence[tuple[int, int]], gpu: bool) -> ConfigError:
    """That none of these nodes has so many CPUs for a worker, or that there is no node."""
    if not nodes:
        return ConfigError(
            f"hydra.launcher.address must be of a cluster with a node that has {'a GPU and ' * gpu}CPUs, but got none. "
            "`ray start` adds one; hydra.launcher.workers=1 waits for it."
        )
    most = max(cpus for cpus, _ in nodes)
    return ConfigError(f"hydra.launcher.cpus_per_worker must be <= {most}, which a node has, but got {share}.")


def _join(launch: "Launch") -> None:
    """A cluster that is there."""
    import ray

    assert launch.address
    host, _, port = launch.address.rpartition(":")
    try:
        if launch.address != "auto":
            socket.create_connection((host, int(port)), ANSWERS).close()
        ray.init(address=launch.address, **SAYS_LITTLE)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"hydra.launcher.address must be of a cluster that answers, but got {launch.address}: "
            f"{_first_line(error)} `ray start --head` starts one; null needs none."
        ) from None


def _start(launch: "Launch") -> None:
    """A cluster of this machine, for this command."""
    import ray

    cores = max(place.cores(), launch.workers or 0)
    try:
        ray.init("local", num_cpus=cores, include_dashboard=False, **SAYS_LITTLE)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"hydra/launcher must be fused where Ray cannot start, but got ray: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _prepare() -> None:
    """What Ray reads when it is imported: of whom a Ray of this command, which listens to the network, takes orders.

    Where somebody has imported it before, it reads that again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else last of all, and a busy machine never comes to them
    there = sys.modules.get("ray")
    if "RAY_AUTH_MODE" in os.environ or (there and there.is_initialized()):  # a person has decided
        return
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if there:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # it is compiled

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _path_kept() -> Iterator[None]:
    """Ray puts a folder of its own before that of the command, whose modules a config may name: now behind all."""
    before = list(sys.path)
    yield
    sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for its own, which ends the command as we end it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
